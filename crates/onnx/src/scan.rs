//! Counts the messages of an encoded model before it is decoded: two bytes on the wire can become
//! hundreds in memory, so a small file could otherwise ask for gigabytes. Called by `Model::parse`.

use crate::model::OnnxError;

/// Deepest nesting of messages; prost itself stops at 100.
pub(crate) const MAX_DEPTH: usize = 64;

/// The messages whose children are counted; everything else is a leaf.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
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
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Graph, 11..=13) => Self::ValueInfo,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            _ => Self::Leaf,
        }
    }
}

/// Counts the fields of the model in `bytes`, and refuses more than `limit`.
pub(crate) fn check(bytes: &[u8], limit: usize) -> Result<(), OnnxError> {
    let mut left = limit;
    walk(bytes, Kind::Model, MAX_DEPTH, &mut left, limit)
}

fn walk(mut bytes: &[u8], kind: Kind, depth: usize, left: &mut usize, limit: usize) -> Result<(), OnnxError> {
    if depth == 0 {
        return Err(OnnxError::TooDeep { limit: MAX_DEPTH });
    }
    while !bytes.is_empty() {
        *left = left.checked_sub(1).ok_or(OnnxError::TooManyFields { limit })?;
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => take(&mut bytes, 8).map(drop)?,
            5 => take(&mut bytes, 4).map(drop)?,
            2 => {
                let length = varint(&mut bytes)?;
                let body = take(&mut bytes, usize::try_from(length).map_err(|_| OnnxError::Truncated)?)?;
                match kind.child(key >> 3) {
                    Kind::Leaf => {}
                    child => walk(body, child, depth - 1, left, limit)?,
                }
            }
            _ => return Err(OnnxError::Truncated),
        }
    }
    Ok(())
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
