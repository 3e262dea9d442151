//! Little-endian tensors: the protocol's binary extension of HTTP and the raw contents of gRPC.

use farlight_inference::Values;
use farlight_release::manifest::Datatype;
use half::f16;

/// Bytes before each element of [`Datatype::Bytes`].
const LENGTH: usize = 4;

/// Reads elements.
pub(crate) fn read(bytes: &[u8], datatype: Datatype) -> Result<Values, String> {
    fn numbers<const N: usize, T>(
        bytes: &[u8],
        datatype: Datatype,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        if rest.is_empty() {
            return Ok(chunks.iter().map(|chunk| read(*chunk)).collect());
        }
        Err(format!("{} bytes are no whole number of {} elements", bytes.len(), datatype.name()))
    }
    Ok(match datatype {
        Datatype::Bool => Values::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
        Datatype::Uint8 => Values::Uint8(bytes.to_vec()),
        Datatype::Uint16 => Values::Uint16(numbers(bytes, datatype, u16::from_le_bytes)?),
        Datatype::Uint32 => Values::Uint32(numbers(bytes, datatype, u32::from_le_bytes)?),
        Datatype::Uint64 => Values::Uint64(numbers(bytes, datatype, u64::from_le_bytes)?),
        Datatype::Int8 => Values::Int8(bytes.iter().map(|byte| byte.cast_signed()).collect()),
        Datatype::Int16 => Values::Int16(numbers(bytes, datatype, i16::from_le_bytes)?),
        Datatype::Int32 => Values::Int32(numbers(bytes, datatype, i32::from_le_bytes)?),
        Datatype::Int64 => Values::Int64(numbers(bytes, datatype, i64::from_le_bytes)?),
        Datatype::Fp16 => Values::Fp16(numbers(bytes, datatype, f16::from_le_bytes)?),
        Datatype::Fp32 => Values::Fp32(numbers(bytes, datatype, f32::from_le_bytes)?),
        Datatype::Fp64 => Values::Fp64(numbers(bytes, datatype, f64::from_le_bytes)?),
        Datatype::Bytes => Values::Bytes(strings(bytes)?),
    })
}

/// Elements that are each preceded by their length in 4 bytes.
fn strings(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut strings = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (string, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| format!("a BYTES element of {length} bytes has {} left", rest.len()))?;
        strings.push(string.to_vec());
        bytes = rest;
    }
    if bytes.is_empty() { Ok(strings) } else { Err("a BYTES element has no length".to_owned()) }
}

/// Appends elements.
pub(crate) fn write(values: &Values, out: &mut Vec<u8>) {
    fn numbers<const N: usize, T: Copy>(values: &[T], out: &mut Vec<u8>, write: impl Fn(T) -> [u8; N]) {
        out.reserve(values.len() * N);
        values.iter().for_each(|value| out.extend_from_slice(&write(*value)));
    }
    match values {
        Values::Bool(v) => out.extend(v.iter().map(|value| u8::from(*value))),
        Values::Uint8(v) => out.extend_from_slice(v),
        Values::Uint16(v) => numbers(v, out, u16::to_le_bytes),
        Values::Uint32(v) => numbers(v, out, u32::to_le_bytes),
        Values::Uint64(v) => numbers(v, out, u64::to_le_bytes),
        Values::Int8(v) => out.extend(v.iter().map(|value| value.cast_unsigned())),
        Values::Int16(v) => numbers(v, out, i16::to_le_bytes),
        Values::Int32(v) => numbers(v, out, i32::to_le_bytes),
        Values::Int64(v) => numbers(v, out, i64::to_le_bytes),
        Values::Fp16(v) => numbers(v, out, f16::to_le_bytes),
        Values::Fp32(v) => numbers(v, out, f32::to_le_bytes),
        Values::Fp64(v) => numbers(v, out, f64::to_le_bytes),
        Values::Bytes(v) => {
            for string in v {
                out.extend_from_slice(&(string.len() as u32).to_le_bytes());
                out.extend_from_slice(string);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back_and_torn_elements_are_refused() {
        for datatype in Datatype::ALL {
            let mut values = Values::zeros(datatype, 3);
            if let Values::Bytes(strings) = &mut values {
                *strings = vec![b"a".to_vec(), Vec::new(), b"bcd".to_vec()];
            }
            let mut bytes = Vec::new();
            write(&values, &mut bytes);
            assert_eq!(read(&bytes, datatype).unwrap(), values);
            if datatype.size() != Some(1) {
                let error = read(&bytes[..bytes.len() - 1], datatype).unwrap_err();
                assert!(error.contains(datatype.name()), "{error}");
            }
        }
        assert!(read(&[255, 255, 255, 255, 1], Datatype::Bytes).is_err());
        assert!(read(&[0, 0], Datatype::Bytes).is_err());
    }
}
