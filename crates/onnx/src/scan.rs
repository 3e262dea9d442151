//! Reads an encoded model without decoding it, and refuses what is over a limit: two bytes on the wire can become
//! hundreds in memory, so a small file could otherwise ask for gigabytes. Called before any decoder sees the bytes.

use crate::model::{Limits, OnnxError};

/// Deepest nesting of messages; prost itself stops at 100.
pub(crate) const MAX_DEPTH: usize = 64;

/// The messages whose children are looked at; everything else is a leaf.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Training,
    Graph,
    Node,
    Attribute,
    Function,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Leaf,
}

impl Kind {
    /// The kind of the message in `field`, by the field numbers of `onnx.proto`.
    fn child(self, field: u64) -> Self {
        match (self, field) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 20) => Self::Training,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Graph, 11..=13) => Self::ValueInfo,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            _ => Self::Leaf,
        }
    }

    /// Whether `field` is a name: of the message itself, or of what it takes and gives.
    fn is_name(self, field: u64) -> bool {
        match self {
            Self::Graph => field == 2,
            Self::Node => matches!(field, 1..=4 | 7),
            Self::Attribute => matches!(field, 1 | 21),
            Self::Function => matches!(field, 1 | 4..=6 | 10),
            Self::Tensor => field == 8,
            Self::ValueInfo => field == 1,
            _ => false,
        }
    }
}

/// Whether the bytes are an encoded model within `limits`: its size, nodes, tensors, names and nesting, and how many
/// messages a decoder would have to hold. It does not decode them.
///
/// # Errors
/// [`OnnxError`] with the limit that is passed, or saying that it is no model.
pub fn check(bytes: &[u8], limits: &Limits) -> Result<(), OnnxError> {
    if bytes.len() > limits.bytes {
        return Err(OnnxError::TooLarge { found: bytes.len(), limit: limits.bytes });
    }
    let mut walk = Walk { limits, fields: 0, nodes: 0, tensors: 0, has_graph: false };
    walk.message(bytes, Kind::Model, MAX_DEPTH, 0)?;
    if walk.has_graph { Ok(()) } else { Err(OnnxError::NoGraph) }
}

/// What was counted so far.
struct Walk<'a> {
    limits: &'a Limits,
    fields: usize,
    nodes: usize,
    tensors: usize,
    has_graph: bool,
}

impl Walk<'_> {
    fn message(
        &mut self,
        mut bytes: &[u8],
        kind: Kind,
        depth: usize,
        mut graphs: usize,
    ) -> Result<(), OnnxError> {
        if depth == 0 {
            return Err(OnnxError::TooDeep { limit: MAX_DEPTH });
        }
        let limits = self.limits;
        match kind {
            Kind::Graph => {
                self.has_graph = true;
                graphs += 1;
                if graphs > limits.graphs {
                    return Err(OnnxError::TooDeep { limit: limits.graphs });
                }
            }
            Kind::Node => {
                self.nodes += 1;
                if self.nodes > limits.nodes {
                    return Err(OnnxError::TooManyNodes { limit: limits.nodes });
                }
            }
            Kind::Tensor => {
                self.tensors += 1;
                if self.tensors > limits.tensors {
                    return Err(OnnxError::TooManyTensors { limit: limits.tensors });
                }
            }
            _ => {}
        }
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let field = key >> 3;
            // Numbers in a tensor take no more room once decoded than they took before.
            if kind != Kind::Tensor || key & 7 == 2 {
                self.fields += 1;
            }
            if self.fields > limits.fields {
                return Err(OnnxError::TooManyFields { limit: limits.fields });
            }
            match key & 7 {
                0 => {
                    let value = varint(&mut bytes)?;
                    if (kind, field, value) == (Kind::Tensor, 14, 1) {
                        return Err(OnnxError::External);
                    }
                }
                1 => take(&mut bytes, 8).map(drop)?,
                5 => take(&mut bytes, 4).map(drop)?,
                2 => {
                    let length = varint(&mut bytes)?;
                    let body = take(&mut bytes, usize::try_from(length).map_err(|_| OnnxError::Truncated)?)?;
                    if kind.is_name(field) && body.len() > limits.name {
                        return Err(OnnxError::LongName { found: body.len(), limit: limits.name });
                    }
                    match kind.child(field) {
                        Kind::Leaf => {}
                        child => self.message(body, child, depth - 1, graphs)?,
                    }
                }
                _ => return Err(OnnxError::Truncated),
            }
        }
        Ok(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], OnnxError> {
    let (head, tail) = bytes.split_at_checked(length).ok_or(OnnxError::Truncated)?;
    *bytes = tail;
    Ok(head)
}

pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64, OnnxError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(OnnxError::Truncated)
}
