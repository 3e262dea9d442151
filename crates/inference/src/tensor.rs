//! Tensors as applications send and get them: a shape and row-major elements of one of the protocol's types.

use std::borrow::Cow;

use farlight_release::manifest::Datatype;
use half::f16;
use serde::{Deserialize, Serialize};

/// Elements, row-major.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Values {
    /// Truth values.
    Bool(Vec<bool>),
    /// Unsigned, 8 bits.
    Uint8(Vec<u8>),
    /// Unsigned, 16 bits.
    Uint16(Vec<u16>),
    /// Unsigned, 32 bits.
    Uint32(Vec<u32>),
    /// Unsigned, 64 bits.
    Uint64(Vec<u64>),
    /// Signed, 8 bits.
    Int8(Vec<i8>),
    /// Signed, 16 bits.
    Int16(Vec<i16>),
    /// Signed, 32 bits.
    Int32(Vec<i32>),
    /// Signed, 64 bits.
    Int64(Vec<i64>),
    /// Half precision.
    Fp16(Vec<f16>),
    /// Single precision.
    Fp32(Vec<f32>),
    /// Double precision.
    Fp64(Vec<f64>),
    /// Byte strings.
    Bytes(Vec<Vec<u8>>),
}

/// Does the same with the elements of whatever type.
macro_rules! each {
    ($values:expr, $elements:ident => $body:expr) => {
        match $values {
            Values::Bool($elements) => $body,
            Values::Uint8($elements) => $body,
            Values::Uint16($elements) => $body,
            Values::Uint32($elements) => $body,
            Values::Uint64($elements) => $body,
            Values::Int8($elements) => $body,
            Values::Int16($elements) => $body,
            Values::Int32($elements) => $body,
            Values::Int64($elements) => $body,
            Values::Fp16($elements) => $body,
            Values::Fp32($elements) => $body,
            Values::Fp64($elements) => $body,
            Values::Bytes($elements) => $body,
        }
    };
}

/// Makes new elements of the same type.
macro_rules! map {
    ($values:expr, $elements:ident => $body:expr) => {
        match $values {
            Values::Bool($elements) => Values::Bool($body),
            Values::Uint8($elements) => Values::Uint8($body),
            Values::Uint16($elements) => Values::Uint16($body),
            Values::Uint32($elements) => Values::Uint32($body),
            Values::Uint64($elements) => Values::Uint64($body),
            Values::Int8($elements) => Values::Int8($body),
            Values::Int16($elements) => Values::Int16($body),
            Values::Int32($elements) => Values::Int32($body),
            Values::Int64($elements) => Values::Int64($body),
            Values::Fp16($elements) => Values::Fp16($body),
            Values::Fp32($elements) => Values::Fp32($body),
            Values::Fp64($elements) => Values::Fp64($body),
            Values::Bytes($elements) => Values::Bytes($body),
        }
    };
}

impl Values {
    /// Elements.
    pub fn len(&self) -> usize {
        each!(self, elements => elements.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn datatype(&self) -> Datatype {
        match self {
            Self::Bool(_) => Datatype::Bool,
            Self::Uint8(_) => Datatype::Uint8,
            Self::Uint16(_) => Datatype::Uint16,
            Self::Uint32(_) => Datatype::Uint32,
            Self::Uint64(_) => Datatype::Uint64,
            Self::Int8(_) => Datatype::Int8,
            Self::Int16(_) => Datatype::Int16,
            Self::Int32(_) => Datatype::Int32,
            Self::Int64(_) => Datatype::Int64,
            Self::Fp16(_) => Datatype::Fp16,
            Self::Fp32(_) => Datatype::Fp32,
            Self::Fp64(_) => Datatype::Fp64,
            Self::Bytes(_) => Datatype::Bytes,
        }
    }

    /// `count` zeros (empty strings for [`Datatype::Bytes`]).
    pub fn zeros(datatype: Datatype, count: usize) -> Self {
        match datatype {
            Datatype::Bool => Self::Bool(vec![false; count]),
            Datatype::Uint8 => Self::Uint8(vec![0; count]),
            Datatype::Uint16 => Self::Uint16(vec![0; count]),
            Datatype::Uint32 => Self::Uint32(vec![0; count]),
            Datatype::Uint64 => Self::Uint64(vec![0; count]),
            Datatype::Int8 => Self::Int8(vec![0; count]),
            Datatype::Int16 => Self::Int16(vec![0; count]),
            Datatype::Int32 => Self::Int32(vec![0; count]),
            Datatype::Int64 => Self::Int64(vec![0; count]),
            Datatype::Fp16 => Self::Fp16(vec![f16::ZERO; count]),
            Datatype::Fp32 => Self::Fp32(vec![0.0; count]),
            Datatype::Fp64 => Self::Fp64(vec![0.0; count]),
            Datatype::Bytes => Self::Bytes(vec![Vec::new(); count]),
        }
    }

    /// As single precision, without a copy where they are; `None` for byte strings. Integers above 2^24 and
    /// doubles are rounded to the nearest.
    pub fn to_f32(&self) -> Option<Cow<'_, [f32]>> {
        Some(match self {
            Self::Fp32(v) => Cow::Borrowed(v),
            Self::Bool(v) => v.iter().map(|x| f32::from(u8::from(*x))).collect(),
            Self::Uint8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Self::Uint16(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Self::Uint32(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Uint64(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Int8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Self::Int16(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Self::Int32(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Int64(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Fp16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Fp64(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Bytes(_) => return None,
        })
    }

    /// From single precision, rounded to the nearest integer and held to the type's range (NaN becomes 0) where
    /// it is one; `None` for byte strings.
    pub fn from_f32(datatype: Datatype, values: &[f32]) -> Option<Self> {
        fn integers<T>(values: &[f32], cast: impl Fn(f32) -> T) -> Vec<T> {
            values.iter().map(|x| cast(x.round_ties_even())).collect()
        }
        // `as` saturates and makes NaN 0.
        Some(match datatype {
            Datatype::Bool => Self::Bool(values.iter().map(|x| *x != 0.0).collect()),
            Datatype::Uint8 => Self::Uint8(integers(values, |x| x as u8)),
            Datatype::Uint16 => Self::Uint16(integers(values, |x| x as u16)),
            Datatype::Uint32 => Self::Uint32(integers(values, |x| x as u32)),
            Datatype::Uint64 => Self::Uint64(integers(values, |x| x as u64)),
            Datatype::Int8 => Self::Int8(integers(values, |x| x as i8)),
            Datatype::Int16 => Self::Int16(integers(values, |x| x as i16)),
            Datatype::Int32 => Self::Int32(integers(values, |x| x as i32)),
            Datatype::Int64 => Self::Int64(integers(values, |x| x as i64)),
            Datatype::Fp16 => Self::Fp16(values.iter().map(|x| f16::from_f32(*x)).collect()),
            Datatype::Fp32 => Self::Fp32(values.to_vec()),
            Datatype::Fp64 => Self::Fp64(values.iter().map(|x| f64::from(*x)).collect()),
            Datatype::Bytes => return None,
        })
    }

    /// The elements from `start` on, `count` of them; fewer where they end before.
    pub fn part(&self, start: usize, count: usize) -> Self {
        fn part<T: Clone>(elements: &[T], start: usize, count: usize) -> Vec<T> {
            elements.iter().skip(start).take(count).cloned().collect()
        }
        map!(self, elements => part(elements, start, count))
    }

    /// Appends elements of the same type; those of another are left out and `false` is returned.
    pub fn append(&mut self, other: &Self) -> bool {
        macro_rules! append {
            ($($kind:ident),*) => {
                match (self, other) {
                    $((Self::$kind(all), Self::$kind(more)) => { all.extend_from_slice(more); true })*
                    _ => false,
                }
            };
        }
        append!(Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes)
    }

    /// Whether any element is NaN or infinite.
    pub fn has_non_finite(&self) -> bool {
        match self {
            Self::Fp16(v) => v.iter().any(|x| !x.is_finite()),
            Self::Fp32(v) => v.iter().any(|x| !x.is_finite()),
            Self::Fp64(v) => v.iter().any(|x| !x.is_finite()),
            _ => false,
        }
    }
}

/// A shape and the elements that fill it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Sizes of the axes; none for a scalar.
    pub shape: Vec<usize>,
    /// As many elements as the shape has.
    pub values: Values,
}

impl Tensor {
    /// A tensor, or `None` when the elements are not as many as the shape has.
    pub fn new(shape: Vec<usize>, values: Values) -> Option<Self> {
        (elements(&shape) == Some(values.len())).then_some(Self { shape, values })
    }

    /// Zeros.
    pub fn zeros(datatype: Datatype, shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), values: Values::zeros(datatype, elements(shape).unwrap_or(0)) }
    }

    /// Single-precision elements of one axis.
    pub fn floats(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], values: Values::Fp32(values) }
    }
}

/// Elements of a shape; `None` when they cannot be counted.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis))
}

/// A tensor with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// The name in the graph and in the protocol.
    pub name: String,
    /// The tensor.
    pub tensor: Tensor,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_have_their_type_and_length() {
        for datatype in Datatype::ALL {
            let zeros = Values::zeros(datatype, 3);
            assert_eq!((zeros.datatype(), zeros.len()), (datatype, 3));
            assert_eq!(Values::from_f32(datatype, &[0.0; 3]), zeros.to_f32().map(|_| zeros.clone()));
        }
        assert!(Tensor::new(vec![2, 2], Values::Fp32(vec![0.0; 3])).is_none());
        assert_eq!(elements(&[usize::MAX, 2]), None);
    }

    #[test]
    fn casts_round_and_saturate() {
        let cast = |datatype, x: f32| Values::from_f32(datatype, &[x]).unwrap();
        assert_eq!(cast(Datatype::Uint8, 300.0), Values::Uint8(vec![255]));
        assert_eq!(cast(Datatype::Uint8, -1.0), Values::Uint8(vec![0]));
        assert_eq!(cast(Datatype::Int8, 2.5), Values::Int8(vec![2]));
        assert_eq!(cast(Datatype::Int64, f32::NAN), Values::Int64(vec![0]));
        assert_eq!(cast(Datatype::Bool, 0.5), Values::Bool(vec![true]));
    }

    proptest! {
        #[test]
        fn bytes_come_back_through_floats(values in prop::collection::vec(any::<u8>(), 0..20), start in 0_usize..30, count in 0_usize..30) {
            let values = Values::Uint8(values);
            let floats = values.to_f32().unwrap();
            prop_assert_eq!(&Values::from_f32(Datatype::Uint8, &floats).unwrap(), &values);
            let mut parts = values.part(0, start);
            prop_assert!(parts.append(&values.part(start, values.len())));
            prop_assert_eq!(&parts, &values);
            prop_assert!(values.part(start, count).len() <= count);
        }
    }
}
