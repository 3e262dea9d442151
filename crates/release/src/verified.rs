//! The proof type of this crate: whoever holds a `Verified<T>` holds something that was checked over
//! the bytes as received. Only the verifiers in this crate construct it.

use std::ops::Deref;

/// A value that was verified, with the digest of the bytes it was read from.
///
/// There is no public constructor: only the verifiers of this crate make one.
///
/// ```compile_fail
/// let forged = farlight_release::Verified { value: 1, sha256: String::new() };
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<T> {
    value: T,
    sha256: String,
}

impl<T> Verified<T> {
    pub(crate) fn new(value: T, bytes: &[u8]) -> Self {
        Self { value, sha256: crate::digest::sha256(bytes) }
    }

    /// SHA-256 of the document as received, lower-case hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The value alone, without the proof.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
