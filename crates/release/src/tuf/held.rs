//! Documents that a client holds: verified, with the bytes they were read from, which are verified again
//! when the root changes and stored as they came.

use farlight_wire::Millis;

use super::metadata::{Document, Meta};
use super::root::TrustedRoot;
use super::{TufError, verify};
use crate::verified::Verified;

/// A verified document of a top-level role with its bytes.
#[derive(Debug, Clone)]
pub(super) struct Held<T> {
    pub(super) document: Verified<T>,
    pub(super) bytes: Vec<u8>,
}

impl<T: Document> Held<T> {
    pub(super) fn new(root: &TrustedRoot, bytes: &[u8]) -> Result<Self, TufError> {
        Ok(Self { document: root.verify(bytes)?, bytes: bytes.to_vec() })
    }

    /// Whether these are the bytes that `meta` announces. A genuine document of another version, which somebody
    /// serves in its place, is told from a damaged one; it is not taken either.
    ///
    /// # Errors
    /// [`TufError::MixAndMatch`], or as [`Meta::verify`].
    pub(super) fn is_announced(root: &TrustedRoot, meta: &Meta, bytes: &[u8]) -> Result<(), TufError> {
        let what = verify::what::<T>();
        meta.verify(&what, bytes).map_err(|error| match root.verify::<T>(bytes) {
            Ok(other) if other.version() != meta.version => {
                TufError::MixAndMatch { what, expected: meta.version, found: other.version() }
            }
            _ => error,
        })
    }

    /// A stored one; `None` when it is signed by the keys of an earlier root.
    pub(super) fn open(root: &TrustedRoot, bytes: Option<&Vec<u8>>) -> Result<Option<Self>, TufError> {
        let Some(bytes) = bytes else { return Ok(None) };
        let document = root.verify_stored(bytes)?;
        Ok(document.map(|document| Self { document, bytes: bytes.clone() }))
    }

    /// The same under another root, if that vouches for it, too.
    pub(super) fn again(self, root: &TrustedRoot) -> Option<Self> {
        Self::new(root, &self.bytes).ok()
    }

    /// Whether this is the file that `meta` describes.
    pub(super) fn is(&self, meta: Option<&Meta>) -> bool {
        meta.is_some_and(|meta| is(&*self.document, &self.bytes, meta))
    }

    pub(super) fn is_current(&self, meta: Option<&Meta>, now: Millis) -> bool {
        self.is(meta) && fresh(&*self.document, now).is_ok()
    }
}

/// Whether a document and its bytes are what `meta` describes.
pub(super) fn is<T: Document>(document: &T, bytes: &[u8], meta: &Meta) -> bool {
    meta.version == document.version() && meta.verify(T::ROLE.file(), bytes).is_ok()
}

/// Whether a top-level document has not expired.
///
/// # Errors
/// [`TufError::Expired`].
pub(super) fn fresh<T: Document>(document: &T, now: Millis) -> Result<(), TufError> {
    fresh_as(&verify::what::<T>(), document, now)
}

/// Whether the document `what` has not expired.
///
/// # Errors
/// [`TufError::Expired`].
pub(super) fn fresh_as<T: Document>(what: &str, document: &T, now: Millis) -> Result<(), TufError> {
    let expires = document.expires();
    if now < expires { Ok(()) } else { Err(TufError::Expired { what: what.to_owned(), expires, now }) }
}

/// Whether a document has the version that was announced.
///
/// # Errors
/// [`TufError::MixAndMatch`].
pub(super) fn announced(what: &str, expected: u64, found: u64) -> Result<(), TufError> {
    if found == expected {
        Ok(())
    } else {
        Err(TufError::MixAndMatch { what: what.to_owned(), expected, found })
    }
}
