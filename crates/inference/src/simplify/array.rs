//! Numbers with an element type and a shape: what goes into a graph and comes out, and constants of it.
//! Nothing here knows an engine.

use farlight_onnx::proto::TensorProto;

/// Why bytes and a shape make no array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// Another number of elements than the shape has.
    #[error("{found} elements where shape {shape:?} asks for others")]
    Length {
        /// Elements given.
        found: usize,
        /// Shape given.
        shape: Vec<usize>,
    },
    /// Bytes that are not a whole number of elements.
    #[error("{bytes} bytes are no whole number of elements")]
    Bytes {
        /// How many.
        bytes: usize,
    },
    /// An ONNX element type that arrays cannot hold.
    #[error("ONNX element type {0} is not one of f32, f64, i8, i32, i64, u8 and bool")]
    Element(i32),
}

/// The numbers of an array, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Truth values.
    Bool(Vec<bool>),
    /// u8.
    U8(Vec<u8>),
    /// i8.
    I8(Vec<i8>),
    /// i32.
    I32(Vec<i32>),
    /// i64.
    I64(Vec<i64>),
    /// f32.
    F32(Vec<f32>),
    /// f64.
    F64(Vec<f64>),
}

/// Numbers and their shape, which fit each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    data: Data,
}

impl Data {
    /// The ONNX element type.
    pub fn element(&self) -> i32 {
        match self {
            Self::F32(_) => 1,
            Self::U8(_) => 2,
            Self::I8(_) => 3,
            Self::I32(_) => 6,
            Self::I64(_) => 7,
            Self::Bool(_) => 9,
            Self::F64(_) => 11,
        }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Array {
    /// An array of `shape`; an empty shape is a scalar.
    ///
    /// # Errors
    /// [`ArrayError::Length`] when the data has another number of elements.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, ArrayError> {
        let elements = shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim));
        if elements == Some(data.len()) {
            Ok(Self { shape, data })
        } else {
            Err(ArrayError::Length { found: data.len(), shape })
        }
    }

    /// An array of ONNX element type `element` from little-endian bytes, one byte for a truth value.
    ///
    /// # Errors
    /// [`ArrayError`] when the element type is not held, or the bytes do not fit the shape.
    pub fn from_le_bytes(element: i32, shape: Vec<usize>, bytes: &[u8]) -> Result<Self, ArrayError> {
        let data = match element {
            1 => Data::F32(words(bytes)?.map(f32::from_le_bytes).collect()),
            2 => Data::U8(bytes.to_vec()),
            3 => Data::I8(words(bytes)?.map(i8::from_le_bytes).collect()),
            6 => Data::I32(words(bytes)?.map(i32::from_le_bytes).collect()),
            7 => Data::I64(words(bytes)?.map(i64::from_le_bytes).collect()),
            9 => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
            11 => Data::F64(words(bytes)?.map(f64::from_le_bytes).collect()),
            other => return Err(ArrayError::Element(other)),
        };
        Self::new(shape, data)
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The numbers as little-endian bytes.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match &self.data {
            Data::Bool(v) => v.iter().map(|value| u8::from(*value)).collect(),
            Data::U8(v) => v.clone(),
            Data::I8(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Data::I32(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Data::I64(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Data::F32(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Data::F64(v) => v.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    /// The array as a tensor of a graph.
    pub(crate) fn to_proto(&self, name: &str) -> TensorProto {
        TensorProto {
            name: Some(name.to_owned()),
            dims: self.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
            data_type: Some(self.data.element()),
            raw_data: Some(self.to_le_bytes()),
            ..TensorProto::default()
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, ArrayError> {
    let (words, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() { Ok(words.iter().copied()) } else { Err(ArrayError::Bytes { bytes: bytes.len() }) }
}
