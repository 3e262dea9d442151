//! Attributes of a node with their defaults, checked for sign and range while the plan is made.

use farlight_onnx::proto::{AttributeProto, NodeProto, TensorProto};

/// Reads the attributes of one node.
pub(super) struct Attributes<'a>(pub(super) &'a NodeProto);

impl<'a> Attributes<'a> {
    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name() == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).and_then(|attribute| attribute.i).unwrap_or(default)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.get(name).and_then(|attribute| attribute.f).unwrap_or(default))
    }

    pub(super) fn text(&self, name: &str, default: &'a str) -> &'a str {
        let bytes = self.get(name).and_then(|attribute| attribute.s.as_deref());
        bytes.and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or(default)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.get(name).and_then(|attribute| attribute.t.as_ref())
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// Sizes of at least `least`, `None` when the attribute is missing.
    pub(super) fn sizes(&self, name: &str, least: usize) -> Result<Option<Vec<usize>>, String> {
        let Some(values) = self.ints(name) else { return Ok(None) };
        values
            .iter()
            .map(|&value| match usize::try_from(value) {
                // 65,536 bounds what a kernel, stride or padding can ask for in memory.
                Ok(size) if size >= least && size <= 65_536 => Ok(size),
                _ => Err(format!("{name} has the value {value}")),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }
}
