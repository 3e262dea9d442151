//! Where the element bytes of tensors lie in an encoded model, without decoding it: what the delta of two
//! model files is made over. Reads the wire format only; nothing is copied but names.

use std::collections::HashMap;
use std::ops::Range;

use crate::model::OnnxError;
use crate::scan::{MAX_DEPTH, varint};
use crate::tensor;

/// Longest name with the names around it in bytes: real ones are far shorter, and a file of long names must
/// not make every tensor in it carry them.
const MAX_NAME: usize = 1024;

/// The element bytes of one tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The tensor's name after those of the nodes and attributes that it lies in: unique in most files.
    pub name: String,
    /// ONNX element type (1 is f32).
    pub element: i32,
    /// Its dimensions as the file gives them.
    pub dims: Vec<u64>,
    /// Where its bytes lie: elements of fixed width, little-endian, in row-major order.
    pub range: Range<usize>,
}

/// The messages on the way to a tensor; everything else is skipped.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Tensor,
}

impl Kind {
    /// The kind of the message in `field`, by the field numbers of `onnx.proto`.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) => Some(Self::Tensor),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            _ => None,
        }
    }

    /// The field that names the message. A node is named by its first output, which is unique in its graph.
    fn name(self) -> Option<u64> {
        match self {
            Self::Model | Self::Graph => None,
            Self::Function | Self::Attribute => Some(1),
            Self::Node => Some(2),
            Self::Tensor => Some(8),
        }
    }
}

/// The payloads of all tensors in `bytes`, in the order in which they lie there, of all graphs, subgraphs
/// and attributes. Tensors with their data in another file or in a packed varint list have none.
///
/// # Errors
/// [`OnnxError`] when the bytes are not protobuf, or have more than `fields` fields on the way to tensors.
pub fn payloads(bytes: &[u8], fields: usize) -> Result<Vec<Payload>, OnnxError> {
    let mut walk = Walk { bytes, left: fields, limit: fields, found: Vec::new() };
    walk.message(Kind::Model, 0..bytes.len(), "", MAX_DEPTH)?;
    walk.found.sort_by_key(|payload| payload.range.start);
    Ok(walk.found)
}

struct Walk<'a> {
    bytes: &'a [u8],
    left: usize,
    limit: usize,
    found: Vec<Payload>,
}

/// A field on the wire.
enum Value {
    Varint(u64),
    Fixed,
    Bytes(Range<usize>),
}

impl Walk<'_> {
    fn field(&mut self, rest: &mut Range<usize>) -> Result<(u64, Value), OnnxError> {
        self.left = self.left.checked_sub(1).ok_or(OnnxError::TooManyFields { limit: self.limit })?;
        let mut bytes = self.bytes.get(rest.clone()).ok_or(OnnxError::Truncated)?;
        let key = varint(&mut bytes)?;
        let skip = |bytes: &[u8], length: usize| bytes.len().checked_sub(length).ok_or(OnnxError::Truncated);
        let (value, left) = match key & 7 {
            0 => (Value::Varint(varint(&mut bytes)?), bytes.len()),
            1 => (Value::Fixed, skip(bytes, 8)?),
            5 => (Value::Fixed, skip(bytes, 4)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| OnnxError::Truncated)?;
                let left = skip(bytes, length)?;
                (Value::Bytes(rest.end - bytes.len()..rest.end - left), left)
            }
            _ => return Err(OnnxError::Truncated),
        };
        rest.start = rest.end - left;
        Ok((key >> 3, value))
    }

    fn message(
        &mut self,
        kind: Kind,
        range: Range<usize>,
        path: &str,
        depth: usize,
    ) -> Result<(), OnnxError> {
        if depth == 0 {
            return Err(OnnxError::TooDeep { limit: MAX_DEPTH });
        }
        if matches!(kind, Kind::Tensor) {
            return self.tensor(range, path);
        }
        // Names may come after what they name.
        let mut name = None;
        let mut children: Vec<(Kind, Range<usize>)> = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let (number, value) = self.field(&mut rest)?;
            let Value::Bytes(inner) = value else { continue };
            if kind.name() == Some(number) && name.is_none() {
                name = Some(self.text(inner));
            } else if let Some(child) = kind.child(number) {
                children.push((child, inner));
            }
        }
        let path = match name {
            Some(name) if path.len() + name.len() < MAX_NAME => format!("{path}{name}/"),
            _ => path.to_owned(),
        };
        // Children of one name, such as the graphs of an attribute, are told apart by their number.
        let mut numbers: HashMap<u8, usize> = HashMap::new();
        for (child, inner) in children {
            let number = numbers.entry(child as u8).or_default();
            let inside = match (kind, child) {
                (Kind::Attribute, Kind::Graph | Kind::Tensor) if *number > 0 => format!("{path}{number}/"),
                _ => path.clone(),
            };
            *number += 1;
            self.message(child, inner, &inside, depth - 1)?;
        }
        Ok(())
    }

    fn tensor(&mut self, range: Range<usize>, path: &str) -> Result<(), OnnxError> {
        let (mut name, mut element, mut dims) = (String::new(), 0, Vec::new());
        let mut data = None;
        let mut rest = range;
        while !rest.is_empty() {
            match self.field(&mut rest)? {
                (1, Value::Varint(dim)) => dims.push(dim),
                (1, Value::Bytes(packed)) => {
                    let mut packed = self.bytes.get(packed).unwrap_or_default();
                    while !packed.is_empty() && dims.len() <= tensor::MAX_RANK {
                        dims.push(varint(&mut packed)?);
                    }
                }
                (2, Value::Varint(value)) => element = i32::try_from(value).unwrap_or_default(),
                (8, Value::Bytes(text)) => name = self.text(text),
                // float_data, raw_data, double_data
                (4 | 9 | 10, Value::Bytes(bytes)) if !bytes.is_empty() => data = Some(bytes),
                _ => {}
            }
        }
        if let Some(range) = data {
            self.found.push(Payload { name: format!("{path}{name}"), element, dims, range });
        }
        Ok(())
    }

    fn text(&self, range: Range<usize>) -> String {
        let bytes = self.bytes.get(range).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_NAME)]).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    };
    use crate::{Dim, GraphBuilder};

    const FIELDS: usize = 10_000;

    fn graph() -> GraphBuilder {
        GraphBuilder::new("g").input("x", &[Dim::Fixed(2)]).output("y", &[Dim::Fixed(2)])
    }

    #[test]
    fn finds_the_bytes_of_initialisers_in_order() {
        let model = graph().f32("a", &[2, 1], &[1.0, 2.0]).i64("b", &[1], &[7]).finish().unwrap();
        let bytes = model.to_bytes();
        let found = payloads(&bytes, FIELDS).unwrap();
        let names: Vec<&str> = found.iter().map(|payload| payload.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!((found[0].element, &found[0].dims[..]), (tensor::FLOAT, &[2, 1][..]));
        assert_eq!(bytes[found[0].range.clone()], [1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
        assert_eq!(bytes[found[1].range.clone()], 7i64.to_le_bytes());
    }

    #[test]
    fn finds_constants_and_subgraphs_under_the_names_around_them() {
        let tensor = |name: &str, value: f32| TensorProto {
            name: Some(name.to_owned()),
            dims: vec![1],
            data_type: Some(tensor::FLOAT),
            float_data: vec![value],
            ..TensorProto::default()
        };
        let branch = |name: &str, value: f32| AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(GraphProto { initializer: vec![tensor("w", value)], ..GraphProto::default() }),
            ..AttributeProto::default()
        };
        let constant = AttributeProto {
            name: Some("value".to_owned()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(tensor("", 3.0)),
            ..AttributeProto::default()
        };
        let node = |output: &str, attribute: Vec<AttributeProto>| NodeProto {
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![
                node("c", vec![constant]),
                node("y", vec![branch("then_branch", 1.0), branch("else_branch", 2.0)]),
            ],
            ..GraphProto::default()
        };
        let bytes =
            prost::Message::encode_to_vec(&ModelProto { graph: Some(graph), ..ModelProto::default() });
        let found = payloads(&bytes, FIELDS).unwrap();
        let names: Vec<&str> = found.iter().map(|payload| payload.name.as_str()).collect();
        assert_eq!(names, ["c/value/", "y/then_branch/w", "y/else_branch/w"]);
        assert_eq!(bytes[found[2].range.clone()], 2.0f32.to_le_bytes());
    }

    #[test]
    fn more_fields_than_allowed_are_refused() {
        let bytes = graph().f32("a", &[1], &[1.0]).finish().unwrap().to_bytes();
        assert_eq!(payloads(&bytes, 3).unwrap_err(), OnnxError::TooManyFields { limit: 3 });
    }

    proptest! {
        #[test]
        fn any_bytes_give_ranges_inside_the_file_that_do_not_overlap(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let mut model = graph().f32("a", &[2], &[1.0, 2.0]).i64("b", &[1], &[7]).finish().unwrap().to_bytes();
            let at = flip.index(model.len());
            model[at] ^= bytes.first().copied().unwrap_or(1);
            model.truncate(cut.index(model.len()) + 1);
            for file in [&bytes, &model] {
                let found = payloads(file, FIELDS).unwrap_or_default();
                prop_assert!(found.iter().all(|p| p.range.start < p.range.end && p.range.end <= file.len()));
                prop_assert!(found.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
            }
        }
    }
}
