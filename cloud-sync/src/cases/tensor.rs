//! Reading a stored tensor back into numbers.

use half::f16;

/// Why a stored tensor cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The shape is no list of numbers.
    #[error("shape {0:?} cannot be read")]
    Shape(String),
    /// An element type this build does not know.
    #[error("encoding {0:?} is not known")]
    Encoding(String),
    /// Shape and bytes do not agree.
    #[error("{bytes} bytes do not fit shape {shape:?}")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes there are.
        bytes: usize,
    },
}

/// Shape and elements of a tensor.
///
/// # Errors
/// [`TensorError`] when shape, encoding and bytes do not agree.
pub fn decode_tensor(
    shape: &str,
    encoding: &str,
    bytes: &[u8],
) -> Result<(Vec<usize>, Vec<f32>), TensorError> {
    let shape: Vec<usize> = serde_json::from_str(shape).map_err(|_| TensorError::Shape(shape.to_owned()))?;
    let values: Vec<f32> = match encoding {
        "f32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        "f16" => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        "u8" => bytes.iter().map(|b| f32::from(*b)).collect(),
        other => return Err(TensorError::Encoding(other.to_owned())),
    };
    match shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim)) {
        Some(expected) if expected == values.len() => Ok((shape, values)),
        _ => Err(TensorError::Length { shape, bytes: bytes.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_read_or_refused() {
        let f16s: Vec<u8> = [1.0_f32, -2.5].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(decode_tensor("[1,2]", "f16", &f16s), Ok((vec![1, 2], vec![1.0, -2.5])));
        assert_eq!(decode_tensor("[2]", "u8", &[0, 255]), Ok((vec![2], vec![0.0, 255.0])));
        assert!(decode_tensor("[3]", "f16", &f16s).is_err());
        assert!(decode_tensor("[2]", "f64", &f16s).is_err());
        assert!(decode_tensor("x", "f16", &f16s).is_err());
        assert!(decode_tensor("[99999999999,99999999999]", "u8", &[]).is_err());
    }
}
