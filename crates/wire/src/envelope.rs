//! The envelope: one byte of version and flags, then postcard, zstd-compressed where that is smaller.
//!
//! Byte 0: high nibble = payload version (1), low nibble = flags (bit 0: zstd; bit 1: zstd with the
//! shared dictionary). The rest is one postcard value with nothing after it. postcard ignores
//! trailing bytes and reads shifted fields as garbage, so a version is one frozen struct and a rest
//! that is not empty is an error.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{MAX_DECODED, MAX_PAYLOAD};

/// The payload version this build writes and reads.
pub const VERSION: u8 = 1;
const ZSTD: u8 = 0b01;
const DICTIONARY: u8 = 0b10;
/// Below this zstd without a dictionary does not pay.
const MIN_COMPRESS: usize = 96;
const LEVEL: i32 = 9;

/// The shared dictionary, trained on synthetic windows; see `tests/dictionary.rs` for how. It is
/// part of version 1 and never changes.
static DICTIONARY_V1: &[u8] = include_bytes!("../dictionary/v1.bin");

/// Why a value could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The value cannot be serialised.
    #[error("encode payload: {0}")]
    Serialise(#[source] postcard::Error),
    /// zstd failed.
    #[error("compress payload: {0}")]
    Compress(#[source] std::io::Error),
    /// Larger than a broker takes.
    #[error("payload of {0} bytes is over the limit of {MAX_PAYLOAD}; send fewer records in one batch")]
    TooLarge(usize),
}

/// Why bytes are not a payload.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No bytes.
    #[error("payload is empty")]
    Empty,
    /// Over the limit before or after decompression.
    #[error("payload is over the limit of {limit} bytes")]
    TooLarge {
        /// The limit that was passed.
        limit: usize,
    },
    /// A version this build does not know.
    #[error("payload version {0} is not known; this build reads version {VERSION}")]
    Version(u8),
    /// Flags this build does not know.
    #[error("payload flags {0:#06b} are not known")]
    Flags(u8),
    /// zstd refused it.
    #[error("decompress payload: {0}")]
    Decompress(#[source] std::io::Error),
    /// postcard refused it.
    #[error("decode payload: {0}")]
    Parse(#[source] postcard::Error),
    /// Bytes after the value.
    #[error("payload has {0} bytes after its value")]
    Trailing(usize),
}

/// Encodes a value of the current version, compressed where that is smaller.
///
/// # Errors
/// [`EncodeError::TooLarge`] over [`MAX_PAYLOAD`]; the others do not occur for the types of this crate.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let plain = postcard::to_allocvec(value).map_err(EncodeError::Serialise)?;
    if plain.len() > MAX_DECODED {
        return Err(EncodeError::TooLarge(plain.len()));
    }
    let mut best = frame(0, &plain);
    if plain.len() >= MIN_COMPRESS {
        let mut compressor =
            zstd::bulk::Compressor::with_dictionary(LEVEL, DICTIONARY_V1).map_err(EncodeError::Compress)?;
        compressor.include_dictid(false).map_err(EncodeError::Compress)?;
        let packed = compressor.compress(&plain).map_err(EncodeError::Compress)?;
        if packed.len() + 1 < best.len() {
            best = frame(ZSTD | DICTIONARY, &packed);
        }
    }
    if best.len() > MAX_PAYLOAD { Err(EncodeError::TooLarge(best.len())) } else { Ok(best) }
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 1);
    out.push((VERSION << 4) | flags);
    out.extend_from_slice(body);
    out
}

/// Decodes bytes from the air.
///
/// # Errors
/// [`DecodeError`] for anything that is not one whole payload of a known version within the limits.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_PAYLOAD {
        return Err(DecodeError::TooLarge { limit: MAX_PAYLOAD });
    }
    let (&head, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if head >> 4 != VERSION {
        return Err(DecodeError::Version(head >> 4));
    }
    match head & 0x0f {
        0 => parse(body),
        ZSTD => parse(&unpack(body, &[])?),
        flags if flags == ZSTD | DICTIONARY => parse(&unpack(body, DICTIONARY_V1)?),
        flags => Err(DecodeError::Flags(flags)),
    }
}

fn unpack(body: &[u8], dictionary: &[u8]) -> Result<Vec<u8>, DecodeError> {
    // A frame says its own size; the limit holds whatever it says.
    let mut decompressor =
        zstd::bulk::Decompressor::with_dictionary(dictionary).map_err(DecodeError::Decompress)?;
    decompressor.decompress(body, MAX_DECODED).map_err(DecodeError::Decompress)
}

fn parse<T: DeserializeOwned>(plain: &[u8]) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(plain).map_err(DecodeError::Parse)?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(rest.len())) }
}
