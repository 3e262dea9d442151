//! Tensors of an ONNX file as plain arrays. Every length is checked against the declared shape.

use half::{bf16, f16};

use crate::model::OnnxError;
use crate::proto::TensorProto;

/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Most elements of a tensor: 1 GiB of f32.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// ONNX element type f32.
pub const FLOAT: i32 = 1;
/// ONNX element type i64.
pub const INT64: i32 = 7;
const UINT8: i32 = 2;
const INT8: i32 = 3;
const INT32: i32 = 6;
const BOOL: i32 = 9;
const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;
const BFLOAT16: i32 = 16;

fn unreadable(tensor: &TensorProto, reason: impl Into<String>) -> OnnxError {
    OnnxError::Tensor { name: tensor.name().to_owned(), reason: reason.into() }
}

/// The shape of a tensor, empty for a scalar.
///
/// # Errors
/// [`OnnxError::Tensor`] when a dimension is negative or a limit is passed.
pub fn dims(tensor: &TensorProto) -> Result<Vec<usize>, OnnxError> {
    if tensor.dims.len() > MAX_RANK {
        return Err(unreadable(
            tensor,
            format!("it has {} dimensions, more than {MAX_RANK}", tensor.dims.len()),
        ));
    }
    let dims = tensor
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| unreadable(tensor, "a dimension is negative")))
        .collect::<Result<Vec<usize>, _>>()?;
    let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match elements {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(dims),
        _ => Err(unreadable(tensor, format!("it has more than {MAX_ELEMENTS} elements"))),
    }
}

/// The values of a floating-point tensor (f32, f64, f16, bf16) as f32, row-major.
///
/// # Errors
/// [`OnnxError::Tensor`] when the type is another one, the data is in an external file, or its
/// length does not fit the shape.
pub fn to_f32(tensor: &TensorProto) -> Result<Vec<f32>, OnnxError> {
    let halves = |raw: u16| match tensor.data_type() {
        BFLOAT16 => bf16::from_bits(raw).to_f32(),
        _ => f16::from_bits(raw).to_f32(),
    };
    let values = match (tensor.data_type(), tensor.raw_data.as_deref().filter(|raw| !raw.is_empty())) {
        (FLOAT, Some(raw)) => words(tensor, raw)?.map(f32::from_le_bytes).collect(),
        (FLOAT, None) => tensor.float_data.clone(),
        (DOUBLE, Some(raw)) => words(tensor, raw)?.map(|word| f64::from_le_bytes(word) as f32).collect(),
        (DOUBLE, None) => tensor.double_data.iter().map(|&value| value as f32).collect(),
        (FLOAT16 | BFLOAT16, Some(raw)) => {
            words(tensor, raw)?.map(|word| halves(u16::from_le_bytes(word))).collect()
        }
        (FLOAT16 | BFLOAT16, None) => tensor.int32_data.iter().map(|&value| halves(value as u16)).collect(),
        (other, _) => return Err(unreadable(tensor, format!("element type {other} is not a float"))),
    };
    checked(tensor, values)
}

/// The values of an integer or boolean tensor as i64, row-major.
///
/// # Errors
/// As [`to_f32`].
pub fn to_i64(tensor: &TensorProto) -> Result<Vec<i64>, OnnxError> {
    let values = match (tensor.data_type(), tensor.raw_data.as_deref().filter(|raw| !raw.is_empty())) {
        (INT64, Some(raw)) => words(tensor, raw)?.map(i64::from_le_bytes).collect(),
        (INT64, None) => tensor.int64_data.clone(),
        (INT32, Some(raw)) => words(tensor, raw)?.map(|word| i64::from(i32::from_le_bytes(word))).collect(),
        (UINT8 | BOOL, Some(raw)) => raw.iter().map(|&byte| i64::from(byte)).collect(),
        (INT8, Some(raw)) => raw.iter().map(|&byte| i64::from(byte as i8)).collect(),
        (INT32 | UINT8 | INT8 | BOOL, None) => {
            tensor.int32_data.iter().map(|&value| i64::from(value)).collect()
        }
        (other, _) => return Err(unreadable(tensor, format!("element type {other} is not an integer"))),
    };
    checked(tensor, values)
}

/// True when [`to_f32`] reads this element type.
pub fn is_float(element: i32) -> bool {
    matches!(element, FLOAT | DOUBLE | FLOAT16 | BFLOAT16)
}

fn words<'a, const N: usize>(
    tensor: &TensorProto,
    raw: &'a [u8],
) -> Result<impl Iterator<Item = [u8; N]> + use<'a, N>, OnnxError> {
    let (words, rest) = raw.as_chunks::<N>();
    if rest.is_empty() {
        Ok(words.iter().copied())
    } else {
        Err(unreadable(tensor, format!("{} bytes are not a multiple of {N}", raw.len())))
    }
}

fn checked<T>(tensor: &TensorProto, values: Vec<T>) -> Result<Vec<T>, OnnxError> {
    if !tensor.external_data.is_empty() || tensor.data_location() as i32 == 1 {
        return Err(unreadable(tensor, "its data is in another file: save the model as one file"));
    }
    let expected: usize = dims(tensor)?.iter().product();
    if values.len() == expected {
        Ok(values)
    } else {
        Err(unreadable(tensor, format!("it has {} values where its shape asks for {expected}", values.len())))
    }
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect()
}

/// An f32 tensor for a graph.
pub fn from_f32(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: signed(dims),
        data_type: Some(FLOAT),
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}

/// An i64 tensor for a graph.
pub fn from_i64(name: &str, dims: &[usize], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: signed(dims),
        data_type: Some(INT64),
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..TensorProto::default()
    }
}
