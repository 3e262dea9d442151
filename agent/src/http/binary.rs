//! Little-endian tensors of the protocol's binary extension.

/// Reads elements as f32.
pub(super) fn read(bytes: &[u8], datatype: &str) -> Result<Vec<f32>, String> {
    match datatype {
        "UINT8" => Ok(bytes.iter().map(|b| f32::from(*b)).collect()),
        _ => {
            let (chunks, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(format!("{} bytes are no whole number of FP32 elements", bytes.len()));
            }
            Ok(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
        }
    }
}

/// Writes FP32 elements.
pub(super) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes BYTES elements: each its length in 4 bytes, then itself.
pub(super) fn strings(values: &[String]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| (value.len() as u32).to_le_bytes().into_iter().chain(value.bytes()))
        .collect()
}
