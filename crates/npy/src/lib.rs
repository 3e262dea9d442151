//! NumPy's `.npy` format, versions 1 to 3, as far as inputs and data sets need it: little-endian or byte-wide
//! numbers in C order. Read and written here because the crates for it bring a parser generator
//! along for the one-line header. No bytes make it panic.

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the .npy data cannot be read: {0}")]
pub struct NpyError(pub String);

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header in bytes; NumPy writes 118.
const MAX_HEADER: usize = 4096;
/// Most dimensions.
const MAX_RANK: usize = 8;

/// The values of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// `<f4`
    F32(Vec<f32>),
    /// `<f8`
    F64(Vec<f64>),
    /// `<i2`
    I16(Vec<i16>),
    /// `<i4`
    I32(Vec<i32>),
    /// `<i8`
    I64(Vec<i64>),
    /// `<u4`
    U32(Vec<u32>),
    /// `|u1`
    U8(Vec<u8>),
}

/// An array in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its values, as many as the shape says.
    pub values: Values,
}

impl Array {
    /// The values as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::F64(values) => values.iter().map(|&value| value as f32).collect(),
            Values::I16(values) => values.iter().map(|&value| f32::from(value)).collect(),
            Values::I32(values) => values.iter().map(|&value| value as f32).collect(),
            Values::I64(values) => values.iter().map(|&value| value as f32).collect(),
            Values::U32(values) => values.iter().map(|&value| value as f32).collect(),
            Values::U8(values) => values.iter().map(|&value| f32::from(value)).collect(),
        }
    }

    /// The values as class numbers.
    ///
    /// # Errors
    /// [`NpyError`] when they are not integers from 0 to 2³²-1.
    pub fn to_u32(&self) -> Result<Vec<u32>, NpyError> {
        let bad = || NpyError("labels must be integers from 0 to 4294967295".into());
        match &self.values {
            Values::I16(values) => {
                values.iter().map(|&value| u32::try_from(value).map_err(|_| bad())).collect()
            }
            Values::I32(values) => {
                values.iter().map(|&value| u32::try_from(value).map_err(|_| bad())).collect()
            }
            Values::I64(values) => {
                values.iter().map(|&value| u32::try_from(value).map_err(|_| bad())).collect()
            }
            Values::U32(values) => Ok(values.clone()),
            Values::U8(values) => Ok(values.iter().map(|&value| u32::from(value)).collect()),
            Values::F32(_) | Values::F64(_) => Err(bad()),
        }
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, NpyError> {
    Err(NpyError(reason.into()))
}

/// Decodes a `.npy` file.
///
/// # Errors
/// [`NpyError`] when it is none, of an unsupported kind, or of the wrong length.
pub fn parse(bytes: &[u8]) -> Result<Array, NpyError> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { return refuse("it does not start with \\x93NUMPY") };
    let (header, body) = match rest {
        [1, _, low, high, rest @ ..] => rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high]))),
        [2 | 3, _, a, b, c, d, rest @ ..] => {
            let length = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
            rest.split_at_checked(length)
        }
        _ => return refuse("its format version is not 1, 2 or 3"),
    }
    .ok_or_else(|| NpyError("it ends within its header".into()))?;
    if header.len() > MAX_HEADER {
        return refuse(format!("its header has more than {MAX_HEADER} bytes"));
    }
    let header = str::from_utf8(header).map_err(|_| NpyError("its header is not text".into()))?;
    if field(header, "fortran_order").is_none_or(|value| !value.starts_with("False")) {
        return refuse("it is not in C order: save np.ascontiguousarray(a)");
    }
    let dims = shape(header)?;
    let count = dims
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&count| count <= body.len())
        .ok_or_else(|| NpyError("it ends before its last value".into()))?;
    let kind = field(header, "descr").and_then(|value| value.strip_prefix('\'')).unwrap_or_default();
    let kind = kind.split('\'').next().unwrap_or_default();
    let values = match kind {
        "<f4" => Values::F32(words(body, count, f32::from_le_bytes)?),
        "<f8" => Values::F64(words(body, count, f64::from_le_bytes)?),
        "<i2" => Values::I16(words(body, count, i16::from_le_bytes)?),
        "<i4" => Values::I32(words(body, count, i32::from_le_bytes)?),
        "<i8" => Values::I64(words(body, count, i64::from_le_bytes)?),
        "<u4" => Values::U32(words(body, count, u32::from_le_bytes)?),
        "|u1" | "<u1" => Values::U8(words(body, count, u8::from_le_bytes)?),
        other => return refuse(format!("its type {other:?} is not one of <f4 <f8 <i2 <i4 <i8 <u4 |u1")),
    };
    Ok(Array { dims, values })
}

/// The text after `'name':` in the header.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = header.split_once(&format!("'{name}'"))?;
    after.trim_start().strip_prefix(':').map(str::trim_start)
}

fn shape(header: &str) -> Result<Vec<usize>, NpyError> {
    let inner = field(header, "shape")
        .and_then(|value| value.strip_prefix('('))
        .and_then(|value| value.split_once(')'))
        .map(|(inner, _)| inner);
    let Some(inner) = inner else { return refuse("its header has no shape") };
    let dims = inner
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().map_err(|_| NpyError(format!("dimension {dim:?} is not a number"))))
        .collect::<Result<Vec<usize>, _>>()?;
    if dims.len() > MAX_RANK { refuse(format!("it has more than {MAX_RANK} dimensions")) } else { Ok(dims) }
}

fn words<const N: usize, T>(body: &[u8], count: usize, read: fn([u8; N]) -> T) -> Result<Vec<T>, NpyError> {
    let (words, rest) = body.as_chunks::<N>();
    if words.len() != count || !rest.is_empty() {
        return refuse(format!("{} bytes of data are not {count} values of {N} bytes", body.len()));
    }
    Ok(words.iter().map(|&word| read(word)).collect())
}

fn encode(dims: &[usize], kind: &str, body: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    let dims: String = dims.iter().map(|dim| format!("{dim},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Clause of the format: magic, version, length and header together are a multiple of 64.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.into_bytes());
    body.for_each(|word| bytes.extend(word));
    bytes
}

/// Encodes f32 values as `.npy`.
pub fn write_f32(dims: &[usize], values: &[f32]) -> Vec<u8> {
    encode(dims, "<f4", values.iter().map(|value| value.to_le_bytes()))
}

/// Encodes u32 values as `.npy`.
pub fn write_u32(dims: &[usize], values: &[u32]) -> Vec<u8> {
    encode(dims, "<u4", values.iter().map(|value| value.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = write_f32(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
        assert_eq!(bytes.len() % 64, 24);
        let array = parse(&bytes).unwrap();
        assert_eq!((array.dims.as_slice(), array.to_f32()[5]), (&[2, 3][..], 6.5));
        let array = parse(&write_u32(&[2], &[7, 8])).unwrap();
        assert_eq!((array.dims.as_slice(), array.to_u32().unwrap()), (&[2][..], vec![7, 8]));
        assert_eq!(parse(&write_u32(&[], &[7])).unwrap().dims, Vec::<usize>::new());
    }

    #[test]
    fn wrong_files_are_named() {
        let good = write_f32(&[2], &[1.0, 2.0]);
        assert!(parse(b"PK").unwrap_err().to_string().contains("NUMPY"));
        assert!(parse(&good[..good.len() - 1]).unwrap_err().to_string().contains("2 values"));
        let text = String::from_utf8_lossy(&good).replace("<f4", ">f4");
        assert!(parse(&[&good[..10], &text.as_bytes()[text.len() - good.len() + 10..]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(header in "[ -~]{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut file = MAGIC.to_vec();
            file.extend([1, 0, header.len() as u8, 0]);
            file.extend(header.as_bytes());
            file.extend(&bytes);
            let _ = parse(&file);
            let _ = parse(&bytes);
        }
    }
}
