//! Signatures, counted in this one place: a document is worth something once a threshold of distinct
//! keys signed it. Root and delegating roles both verify through here.

use std::collections::BTreeMap;

use serde_json::Value;

use super::metadata::Document;
use super::{SignatureFault, TufError};
use crate::canonical::JsonError;
use crate::envelope::{Envelope, EnvelopeError};
use crate::key::MetadataKey;

/// The keys of one role, by key id, with what the role asks for.
pub(super) struct Authority {
    keys: BTreeMap<String, MetadataKey>,
    threshold: u64,
    /// Whose keys these are, for errors.
    signers: &'static str,
}

impl Authority {
    /// The keys among `objects` that `keyids` name. Keys of unknown kinds are no error: they cannot sign
    /// here, others may use them.
    pub(super) fn new(
        objects: &BTreeMap<String, Value>,
        keyids: &[String],
        threshold: u64,
        signers: &'static str,
    ) -> Self {
        let read = |id: &String| Some((id.clone(), MetadataKey::from_object(objects.get(id)?).ok()?));
        // 0 would let everybody sign; a document that says so is refused before, and here again.
        Self { keys: keyids.iter().filter_map(read).collect(), threshold: threshold.max(1), signers }
    }

    /// A role that nobody can sign for.
    pub(super) fn nobody(signers: &'static str) -> Self {
        Self { keys: BTreeMap::new(), threshold: u64::MAX, signers }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &MetadataKey> {
        self.keys.values()
    }

    fn trusted(&self) -> BTreeMap<&str, &MetadataKey> {
        self.keys.iter().map(|(id, key)| (id.as_str(), key)).collect()
    }

    /// Whether a threshold of distinct keys signed the document `what`.
    ///
    /// # Errors
    /// [`TufError::Signature`].
    pub(super) fn check(&self, what: &str, envelope: &Envelope) -> Result<(), TufError> {
        let valid = envelope.signers(&self.trusted()).len() as u64;
        if valid >= self.threshold {
            return Ok(());
        }
        let fault = match valid {
            _ if self.is_forged(envelope) => SignatureFault::Forged,
            0 => SignatureFault::UnknownKeys,
            _ => SignatureFault::TooFew,
        };
        let (what, signers, threshold) = (what.to_owned(), self.signers, self.threshold);
        Err(TufError::Signature { what, fault, signers, valid, threshold })
    }

    /// Whether a signature claims to be by one of these keys and is not.
    pub(super) fn is_forged(&self, envelope: &Envelope) -> bool {
        envelope.is_forged(&self.trusted())
    }
}

/// The name of a role's metadata in errors.
pub(super) fn what<T: Document>() -> String {
    format!("{} metadata", T::ROLE)
}

/// Length, strict JSON, the envelope's form and `_type`.
///
/// # Errors
/// [`TufError::TooLarge`], [`TufError::Malformed`], [`TufError::DuplicateKey`] or [`TufError::WrongType`].
pub(super) fn open<T: Document>(what: &str, bytes: &[u8]) -> Result<Envelope, TufError> {
    let what = what.to_owned();
    let (length, limit) = (bytes.len() as u64, T::ROLE.max_len());
    if length > limit {
        return Err(TufError::TooLarge { what, length, limit });
    }
    let envelope = Envelope::parse(bytes).map_err(|error| match error {
        EnvelopeError::Json(JsonError::DuplicateKey(why)) => {
            TufError::DuplicateKey { what: what.clone(), why }
        }
        error => TufError::Malformed { what: what.clone(), why: error.to_string() },
    })?;
    match envelope.signed().get("_type").and_then(Value::as_str) {
        Some(kind) if kind == T::ROLE.name() => Ok(envelope),
        Some(kind) => Err(TufError::WrongType { what, found: kind.chars().take(40).collect() }),
        None => Err(TufError::Malformed { what, why: "`_type` is missing".to_owned() }),
    }
}

/// Reads the signed part.
///
/// # Errors
/// [`TufError::Malformed`] saying which rule it breaks.
pub(super) fn decode<T: Document>(what: &str, envelope: &Envelope) -> Result<T, TufError> {
    let refuse = |why: String| TufError::Malformed { what: what.to_owned(), why };
    let document: T = T::deserialize(envelope.signed()).map_err(|e| refuse(e.to_string()))?;
    document.check().map_err(refuse)?;
    Ok(document)
}
