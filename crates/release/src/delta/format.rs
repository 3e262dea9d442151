//! What encoder and decoder share: marks, limits and the numbers of a delta. `DELTA.md` describes them.

use std::io::{self, Read};

use super::element::{Difference, Kind, Plain, Steps};

/// First bytes of a delta.
pub(super) const MARK: [u8; 7] = *b"FLDELTA";
/// Version of the format.
pub(super) const VERSION: u8 = 1;

/// Bytes of tensor elements in one operation: what a decoder holds of the old and the new file at a time.
pub(super) const BLOCK: usize = 256 * 1024;
/// Bytes of other parts of the new file in one operation.
pub(super) const TEXT: usize = 512 * 1024;
/// Most bytes of the old file that text may refer to: with [`TEXT`] below the window that zstd may use.
pub(super) const MAX_PREFIX: usize = 1024 * 1024;
/// Bytes of the old file that a text of any length may refer to; a longer one [`PREFIX_RATIO`] times its
/// own length, so that a small delta cannot ask for much reading.
pub(super) const FREE_PREFIX: usize = 4 * 1024;
/// See [`FREE_PREFIX`].
pub(super) const PREFIX_RATIO: usize = 4;
/// Logarithm of the largest zstd window: 2 MiB of memory at most.
pub(super) const WINDOW_LOG: u32 = 21;

/// Code of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Bytes of the old file.
    Copy,
    /// Bytes as a zstd frame whose prefix are bytes of the old file.
    Text,
    /// Elements as differences to those of the old file.
    Difference(Kind),
    /// Elements that stand alone.
    Plain(Kind),
    /// f32 that moved by multiples of one step.
    Steps,
}

impl Operation {
    const COPY: u8 = 0x01;
    const TEXT: u8 = 0x02;
    const DIFFERENCE: u8 = 0x10;
    const PLAIN: u8 = 0x20;
    const STEPS: u8 = 0x30;

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Copy => Self::COPY,
            Self::Text => Self::TEXT,
            Self::Difference(kind) => Self::DIFFERENCE | kind as u8,
            Self::Plain(kind) => Self::PLAIN | kind as u8,
            Self::Steps => Self::STEPS,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        let kind = || Kind::ALL.get(usize::from(code & 0x0f)).copied();
        match code {
            Self::COPY => Some(Self::Copy),
            Self::TEXT => Some(Self::Text),
            Self::STEPS => Some(Self::Steps),
            _ => match code & 0xf0 {
                Self::DIFFERENCE => kind().map(Self::Difference),
                Self::PLAIN => kind().map(Self::Plain),
                _ => None,
            },
        }
    }
}

/// Most bytes that something of `length` bytes may take when coded: neither coder adds more than this to
/// what cannot be made smaller.
pub(super) fn max_coded(length: usize) -> usize {
    length + length / 64 + 512
}

/// Most bytes of the old file that a text of `length` bytes may refer to.
pub(super) fn max_prefix(length: usize) -> usize {
    (length.saturating_mul(PREFIX_RATIO) + FREE_PREFIX).min(MAX_PREFIX)
}

/// What was learned of the elements so far, by kind; it lasts for the whole file, so that small tensors
/// profit from those before them.
#[derive(Debug, Clone, Default)]
pub(super) struct Learned {
    differences: [Option<Box<Difference>>; Kind::ALL.len()],
    plains: [Option<Box<Plain>>; Kind::ALL.len()],
    steps: Option<Box<Steps>>,
}

impl Learned {
    pub(super) fn difference(&mut self, kind: Kind) -> &mut Difference {
        self.differences[kind as usize].get_or_insert_with(|| Box::new(Difference::new(kind)))
    }

    pub(super) fn plain(&mut self, kind: Kind) -> &mut Plain {
        self.plains[kind as usize].get_or_insert_with(|| Box::new(Plain::new(kind)))
    }

    pub(super) fn steps(&mut self) -> &mut Steps {
        self.steps.get_or_insert_with(|| Box::new(Steps::new()))
    }
}

/// An element from its bytes, little-endian.
pub(super) fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Appends a number, seven bits a byte, lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a number; `None` when it does not fit 64 bits.
pub(super) fn get(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let digits = u64::from(byte[0] & 0x7f);
        if digits << shift >> shift != digits {
            return Ok(None);
        }
        number |= digits << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// A signed number as one without a sign: small for small ones either way.
pub(super) fn zigzag(signed: i64) -> u64 {
    (signed << 1 ^ signed >> 63) as u64
}

/// The inverse of [`zigzag`].
pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}
