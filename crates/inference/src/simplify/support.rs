//! Names the operators of a graph that the engine does not have, or gets wrong without saying so. `release build`
//! refuses a model by this list, so that nobody learns of it on a device.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use farlight_onnx::proto::{GraphProto, NodeProto};
use farlight_onnx::{Limits, Model, OnnxError};

use super::fold;
use super::graph::{attribute, each, is_standard};
use super::inputs::{FLOAT16, is_half};

/// The domains of which the engine knows operators. It looks an operator up by its name alone, so one of another
/// domain that happens to have a known name would be run as what it is not.
const DOMAINS: &[&str] = &["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// An operator that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Its name, such as `ZipMap`.
    pub operator: String,
    /// Its domain, empty for ONNX's own operators.
    pub domain: String,
    /// The first node that needs it, by name, or else by its first output.
    pub node: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = if self.domain.is_empty() { "" } else { "." };
        write!(f, "operator {}{domain}{} (node {:?}): {}", self.domain, self.operator, self.node, self.reason)
    }
}

/// The operators of a graph, the graphs within it and its functions that tract cannot run, each with the first node
/// that needs it: those it does not have, and forms of those it has for which it gives wrong results.
///
/// An empty list is no promise: only loading shows whether shapes fit, and only reference outputs whether numbers do.
///
/// # Errors
/// [`OnnxError`] when the bytes are no model within the limits.
pub fn unsupported(onnx: &[u8]) -> Result<Vec<Unsupported>, OnnxError> {
    let model = Model::parse(onnx, &Limits::DEFAULT)?;
    let known = fold::operators();
    let has_halves = has_halves(model.graph());
    let mut found = Vec::new();
    let mut seen: BTreeSet<(String, String, &'static str)> = BTreeSet::new();
    each(model.graph(), &mut |graph| {
        let uses = Uses::of(graph);
        for node in &graph.node {
            let missing = !DOMAINS.contains(&node.domain()) || !known.contains(node.op_type());
            let reason = if missing { Some("the engine does not have it") } else { wrong(node, &uses, has_halves) };
            let Some(reason) = reason else { continue };
            let (operator, domain) = (node.op_type().to_owned(), node.domain().to_owned());
            if seen.insert((operator.clone(), domain.clone(), reason)) {
                let output = node.output.first().map_or("", String::as_str);
                let node = if node.name().is_empty() { output } else { node.name() }.to_owned();
                found.push(Unsupported { operator, domain, node, reason });
            }
        }
        if let Some(tensor) = graph.sparse_initializer.first() {
            let node = tensor.values.as_ref().map_or("", |values| values.name()).to_owned();
            let (operator, domain) = ("SparseTensor".to_owned(), String::new());
            found.push(Unsupported { operator, domain, node, reason: "the engine has no sparse constants" });
        }
    });
    Ok(found)
}

/// Which operators make and take the values of a graph.
struct Uses<'a> {
    made_by: HashMap<&'a str, &'a str>,
    taken_by_quantize: HashSet<&'a str>,
}

impl<'a> Uses<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let made = |node: &'a NodeProto| node.output.iter().map(|name| (name.as_str(), node.op_type()));
        let quantize = graph.node.iter().filter(|node| node.op_type() == "QuantizeLinear");
        Self {
            made_by: graph.node.iter().flat_map(made).collect(),
            taken_by_quantize: quantize.filter_map(|node| node.input.first()).map(String::as_str).collect(),
        }
    }
}

/// Why tract would compute this node wrongly without saying so.
fn wrong(node: &NodeProto, uses: &Uses<'_>, has_halves: bool) -> Option<&'static str> {
    if !is_standard(node) {
        return None;
    }
    let text = |name| attribute(node, name).map(|attribute| attribute.s());
    match node.op_type() {
        "LSTM" | "GRU" | "RNN" if text("direction") == Some(b"reverse") => {
            Some("the engine computes direction \"reverse\" wrongly; use \"forward\" on a reversed sequence")
        }
        "Celu" if has_halves => Some("the engine computes it wrongly for f16; use f32"),
        "SpaceToDepth" if text("mode") == Some(b"CRD") => {
            Some("the engine computes mode \"CRD\" wrongly; use \"DCR\"")
        }
        "Softmax" | "LogSoftmax" => {
            let input = node.input.first().and_then(|name| uses.made_by.get(name.as_str()));
            let quantized = node.output.first().is_some_and(|name| uses.taken_by_quantize.contains(name.as_str()));
            (quantized && input == Some(&"DequantizeLinear"))
                .then_some("the engine computes it wrongly between quantised tensors; quantise Conv, Gemm and MatMul only")
        }
        _ => None,
    }
}

/// Whether any value may be f16: an input, a constant or a cast.
fn has_halves(graph: &GraphProto) -> bool {
    let mut found = false;
    each(graph, &mut |graph| {
        let constants = graph.node.iter().flat_map(|node| &node.attribute).filter_map(|value| value.t.as_ref());
        found |= graph.initializer.iter().chain(constants).any(|tensor| tensor.data_type() == FLOAT16);
        found |= graph.input.iter().any(is_half);
        let casts = graph.node.iter().filter(|node| node.op_type() == "Cast");
        found |= casts.filter_map(|node| attribute(node, "to")).any(|to| to.i() == i64::from(FLOAT16));
    });
    found
}
