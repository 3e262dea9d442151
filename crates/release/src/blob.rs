//! Blobs: files known by the list of their chunk digests. A chunk is hashed before it is handed out for
//! writing, so that a bad byte is refused within [`CHUNK`] and a torn download resumes at a good chunk.

use farlight_wire::codes::Code;
use sha2::{Digest, Sha256};

use crate::digest;
use crate::manifest::{Blob, CHUNK};

/// Largest blob in bytes. A chunk list of this length still fits in a manifest.
pub const MAX_BLOB: u64 = 16 * 1024 * 1024 * 1024;
// A chunk has to fit in memory on every target.
const CHUNK_BYTES: usize = CHUNK as usize;

/// Why the bytes of a blob were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The description itself does not hold together.
    #[error("blob {id:.80}: {why}")]
    Description {
        /// The blob.
        id: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A chunk differs from its signed digest.
    #[error("blob {id}: chunk {chunk} differs from its signed digest; fetch again from byte {offset}")]
    ChunkMismatch {
        /// The blob.
        id: String,
        /// Number of the chunk, from 0.
        chunk: u64,
        /// Where it begins.
        offset: u64,
    },
    /// More bytes than signed.
    #[error("blob {id}: more bytes came than the {expected} that are signed")]
    TooLong {
        /// The blob.
        id: String,
        /// Bytes signed.
        expected: u64,
    },
    /// Fewer bytes than signed.
    #[error("blob {id}: {found} bytes came, signed are {expected}")]
    Truncated {
        /// The blob.
        id: String,
        /// Bytes signed.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
}

impl FetchError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Description { .. } => Code::FetchDescription,
            Self::ChunkMismatch { .. } => Code::FetchChunkMismatch,
            Self::TooLong { .. } => Code::FetchTooLong,
            Self::Truncated { .. } => Code::FetchTruncated,
        }
    }
}

/// Describes a file: length, chunk digests, id.
pub fn describe(bytes: &[u8]) -> Blob {
    let chunks: Vec<String> = bytes.chunks(CHUNK_BYTES).map(digest::sha256).collect();
    Blob { id: id_of(&chunks).unwrap_or_default(), length: bytes.len() as u64, chunks }
}

/// The id that belongs to a list of chunk digests: SHA-256 over the digests' raw bytes, one after the
/// other. `None` when an entry is not a SHA-256 in lower-case hex.
pub fn id_of(chunks: &[String]) -> Option<String> {
    let mut all = Sha256::new();
    for chunk in chunks {
        let mut raw = [0; 32];
        if !digest::is_sha256(chunk) || hex::decode_to_slice(chunk, &mut raw).is_err() {
            return None;
        }
        all.update(raw);
    }
    Some(hex::encode(all.finalize()))
}

/// Checks that id, length and chunk list of a description belong together.
///
/// # Errors
/// [`FetchError::Description`] with the rule it breaks.
pub fn check(blob: &Blob) -> Result<(), FetchError> {
    let refuse = |why| Err(FetchError::Description { id: blob.id.clone(), why });
    if blob.length == 0 || blob.length > MAX_BLOB {
        return refuse("its length is 0 or above 16 GiB");
    }
    if blob.chunks.len() as u64 != blob.length.div_ceil(CHUNK) {
        return refuse("its length and its number of chunks disagree");
    }
    if id_of(&blob.chunks).as_deref() != Some(blob.id.as_str()) {
        return refuse("its id is not the digest of its chunk list");
    }
    Ok(())
}

/// A chunk that holds what was signed; write its bytes at its offset.
#[derive(Debug)]
pub struct Chunk<'a> {
    /// Where the chunk begins in the blob.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Takes the bytes of a blob as they come and hands out whole verified chunks.
///
/// To resume, push what is on disk through a new verifier until it ends or is refused, call
/// [`Self::rewind`], cut the file at [`Self::offset`] and fetch from there:
/// ```
/// # use farlight_release::blob::{describe, ChunkVerifier, FetchError};
/// # fn main() -> Result<(), FetchError> {
/// let blob = describe(b"some bytes");
/// let mut verifier = ChunkVerifier::new(&blob)?;
/// let mut received: &[u8] = b"some bytes";
/// while let Some(chunk) = verifier.push(&mut received)? {
///     // write chunk.bytes at chunk.offset
///     assert_eq!((chunk.offset, chunk.bytes.len()), (0, 10));
/// }
/// verifier.finish()
/// # }
/// ```
#[derive(Debug)]
pub struct ChunkVerifier {
    blob: Blob,
    offset: u64,
    pending: Vec<u8>,
    /// The pending bytes were handed out and are to be dropped.
    handed_out: bool,
}

impl ChunkVerifier {
    /// Begins at the first byte of `blob`.
    ///
    /// # Errors
    /// [`FetchError::Description`] when the description does not hold together.
    pub fn new(blob: &Blob) -> Result<Self, FetchError> {
        check(blob)?;
        Ok(Self { blob: blob.clone(), offset: 0, pending: Vec::new(), handed_out: false })
    }

    /// Where the first byte lies that is not verified: the place to resume from.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Forgets a chunk that came in part, so that the next byte pushed is the one at [`Self::offset`].
    pub fn rewind(&mut self) {
        self.pending.clear();
        self.handed_out = false;
    }

    /// Takes bytes from the front of `received`. Returns a chunk when one is complete (call again: there
    /// may be more), `None` when `received` is used up.
    ///
    /// # Errors
    /// [`FetchError::ChunkMismatch`] when the chunk is not the signed one; it is dropped, and the next
    /// byte expected is the one at [`Self::offset`]. [`FetchError::TooLong`] for bytes beyond the end.
    pub fn push(&mut self, received: &mut &[u8]) -> Result<Option<Chunk<'_>>, FetchError> {
        if self.handed_out {
            self.rewind();
        }
        if received.is_empty() {
            return Ok(None);
        }
        let left = self.blob.length - self.offset;
        if left == 0 {
            return Err(FetchError::TooLong { id: self.blob.id.clone(), expected: self.blob.length });
        }
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let (taken, rest) = received.split_at(received.len().min(size - self.pending.len()));
        self.pending.extend_from_slice(taken);
        *received = rest;
        if self.pending.len() < size {
            return Ok(None);
        }
        let (offset, number) = (self.offset, self.offset / CHUNK);
        let expected = usize::try_from(number).ok().and_then(|number| self.blob.chunks.get(number));
        if expected != Some(&digest::sha256(&self.pending)) {
            self.rewind();
            return Err(FetchError::ChunkMismatch { id: self.blob.id.clone(), chunk: number, offset });
        }
        self.offset += size as u64;
        self.handed_out = true;
        Ok(Some(Chunk { offset, bytes: &self.pending }))
    }

    /// Whether every byte came and was verified.
    ///
    /// # Errors
    /// [`FetchError::Truncated`] when bytes are missing.
    pub fn finish(&self) -> Result<(), FetchError> {
        let (expected, found) = (self.blob.length, self.offset);
        match found == expected {
            true => Ok(()),
            false => Err(FetchError::Truncated { id: self.blob.id.clone(), expected, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn run(blob: &Blob, received: &[u8], piece: usize) -> Result<Vec<u8>, FetchError> {
        let mut verifier = ChunkVerifier::new(blob)?;
        let mut out = Vec::new();
        for mut part in received.chunks(piece) {
            while let Some(chunk) = verifier.push(&mut part)? {
                assert_eq!(chunk.offset, out.len() as u64);
                out.extend_from_slice(chunk.bytes);
            }
        }
        verifier.finish().map(|()| out)
    }

    #[test]
    fn whole_blobs_pass_at_any_split() {
        for length in [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17] {
            let data = bytes(length);
            let blob = describe(&data);
            for piece in [4093, CHUNK_BYTES, 5 * CHUNK_BYTES] {
                assert_eq!(run(&blob, &data, piece).as_deref(), Ok(&data[..]));
            }
        }
    }

    #[test]
    fn a_bad_chunk_is_refused_before_it_is_handed_out_and_can_be_fetched_again() {
        let data = bytes(2 * CHUNK_BYTES + 5);
        let mut bad = data.clone();
        bad[CHUNK_BYTES + 3] ^= 1;
        let mut verifier = ChunkVerifier::new(&describe(&data)).unwrap();
        let mut received = &bad[..];
        assert_eq!(verifier.push(&mut received).unwrap().unwrap().offset, 0);
        let error = verifier.push(&mut received).unwrap_err();
        assert_eq!(error.code(), Code::FetchChunkMismatch);
        assert_eq!(verifier.offset(), CHUNK);
        let mut again = &data[CHUNK_BYTES..];
        assert_eq!(verifier.push(&mut again).unwrap().unwrap().offset, CHUNK);
        assert_eq!(verifier.push(&mut again).unwrap().unwrap().bytes.len(), 5);
        assert_eq!(verifier.finish(), Ok(()));
    }

    #[test]
    fn a_torn_download_resumes_at_the_last_good_chunk() {
        let data = bytes(2 * CHUNK_BYTES);
        let mut verifier = ChunkVerifier::new(&describe(&data)).unwrap();
        let mut on_disk = &data[..CHUNK_BYTES + 1000];
        while verifier.push(&mut on_disk).unwrap().is_some() {}
        verifier.rewind();
        assert_eq!(verifier.offset(), CHUNK);
        assert_eq!(verifier.finish().unwrap_err().code(), Code::FetchTruncated);
        assert!(verifier.push(&mut &data[CHUNK_BYTES..]).unwrap().is_some());
        assert_eq!(verifier.finish(), Ok(()));
    }

    #[test]
    fn bytes_beyond_the_end_are_refused() {
        let data = bytes(10);
        let mut long = data.clone();
        long.push(0);
        assert_eq!(run(&describe(&data), &long, 100).unwrap_err().code(), Code::FetchTooLong);
    }

    #[test]
    fn descriptions_that_do_not_hold_together_are_refused() {
        let good = describe(&bytes(CHUNK_BYTES + 1));
        let cases = [
            Blob { length: 0, chunks: vec![], ..good.clone() },
            Blob { length: CHUNK, ..good.clone() },
            Blob { length: u64::MAX, ..good.clone() },
            Blob { id: "0".repeat(64), ..good.clone() },
            Blob { id: "../../etc/passwd".to_owned(), ..good.clone() },
            Blob { chunks: vec![good.chunks[0].to_uppercase(), good.chunks[1].clone()], ..good.clone() },
        ];
        for blob in cases {
            assert_eq!(check(&blob).unwrap_err().code(), Code::FetchDescription, "{blob:?}");
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_refused(length in 1usize..3000, at: prop::sample::Index, bit in 0u8..8) {
            let data = bytes(length);
            let mut bad = data.clone();
            bad[at.index(length)] ^= 1 << bit;
            prop_assert_eq!(run(&describe(&data), &bad, 700).unwrap_err().code(), Code::FetchChunkMismatch);
        }
    }
}
