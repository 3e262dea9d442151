//! Tensors as constants of a graph.

use farlight_onnx::proto::TensorProto;
use farlight_release::manifest::Datatype;

use crate::tensor::{Tensor, Values};

/// The ONNX element type of a datatype.
pub(super) fn element(datatype: Datatype) -> i32 {
    match datatype {
        Datatype::Fp32 => 1,
        Datatype::Uint8 => 2,
        Datatype::Int8 => 3,
        Datatype::Uint16 => 4,
        Datatype::Int16 => 5,
        Datatype::Int32 => 6,
        Datatype::Int64 => 7,
        Datatype::Bytes => 8,
        Datatype::Bool => 9,
        Datatype::Fp16 => 10,
        Datatype::Fp64 => 11,
        Datatype::Uint32 => 12,
        Datatype::Uint64 => 13,
    }
}

/// The tensor as a constant called `name`.
pub(super) fn to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: Some(name.to_owned()),
        dims: tensor.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
        data_type: Some(element(tensor.values.datatype())),
        ..TensorProto::default()
    };
    let raw = match &tensor.values {
        Values::Bytes(v) => {
            proto.string_data.clone_from(v);
            return proto;
        }
        Values::Bool(v) => v.iter().map(|value| u8::from(*value)).collect(),
        Values::Uint8(v) => v.clone(),
        Values::Uint16(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Uint32(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Uint64(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Int8(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Int16(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Int32(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Int64(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Fp16(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Fp32(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Fp64(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    proto.raw_data = Some(raw);
    proto
}
