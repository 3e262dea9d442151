//! A root that is trusted, and what it vouches for: its successor and the metadata of each role. The
//! one place where signatures are counted; client and registry both verify through it.

use std::collections::{BTreeMap, BTreeSet};

use super::metadata::{Document, Root};
use super::{Role, TufError};
use crate::envelope::Envelope;
use crate::key::PublicKey;
use crate::verified::Verified;

/// A root that is trusted, with its bytes as received.
#[derive(Debug, Clone)]
pub struct TrustedRoot {
    root: Verified<Root>,
    bytes: Vec<u8>,
    /// Keys of the root that are of a kind known here, by key id.
    keys: BTreeMap<String, PublicKey>,
}

impl TrustedRoot {
    /// Takes a root that is trusted by the way it came (at enrolment, or shipped). It must be signed by
    /// its own keys.
    ///
    /// # Errors
    /// [`TufError`] when it is malformed or not signed by its own threshold of keys.
    pub fn open(bytes: &[u8]) -> Result<Self, TufError> {
        Self::read(&envelope::<Root>(bytes)?, bytes)
    }

    /// Verifies the next root: signed by this root's threshold and by its own, version exactly one more.
    ///
    /// # Errors
    /// [`TufError`] saying which rule it breaks.
    pub fn succeed(&self, bytes: &[u8]) -> Result<Self, TufError> {
        let envelope = envelope::<Root>(bytes)?;
        // 5.3.4: a threshold of the keys of the trusted root, and of the new root itself.
        self.threshold(Role::Root, "trusted root", &envelope)?;
        let next = Self::read(&envelope, bytes)?;
        // 5.3.5: exactly one more than the trusted version.
        let (trusted, offered) = (self.root.version, next.root.version);
        if offered <= trusted {
            return Err(TufError::Rollback { what: "root metadata".to_owned(), trusted, offered });
        }
        if offered != trusted.saturating_add(1) {
            let expected = trusted.saturating_add(1);
            return Err(TufError::MixAndMatch { what: "root metadata".to_owned(), expected, found: offered });
        }
        Ok(next)
    }

    /// Verifies metadata of another role: type, signatures by this root's threshold for it, and form.
    /// Version and expiry are the caller's to judge.
    ///
    /// # Errors
    /// [`TufError`] saying which rule it breaks.
    pub fn verify<T: Document>(&self, bytes: &[u8]) -> Result<Verified<T>, TufError> {
        let envelope = envelope::<T>(bytes)?;
        self.threshold(T::ROLE, "trusted root", &envelope)?;
        Ok(Verified::new(decode(&envelope)?, bytes))
    }

    /// Verifies a stored file again: `None` when it is merely signed by other keys than this root's (it
    /// was written before a rotation).
    pub(crate) fn verify_stored<T: Document>(&self, bytes: &[u8]) -> Result<Option<Verified<T>>, TufError> {
        let damaged = |why: String| TufError::Damaged { role: T::ROLE, why };
        let envelope = envelope::<T>(bytes).map_err(|e| damaged(e.to_string()))?;
        if envelope.is_damaged(&self.role_keys(T::ROLE)) {
            return Err(damaged("a signature by a trusted key does not hold".to_owned()));
        }
        if self.threshold(T::ROLE, "trusted root", &envelope).is_err() {
            return Ok(None);
        }
        Ok(Some(Verified::new(decode(&envelope).map_err(|e| damaged(e.to_string()))?, bytes)))
    }

    /// The root itself.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The bytes of the root as received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The usable keys of `role`.
    pub fn keys(&self, role: Role) -> BTreeSet<[u8; 32]> {
        self.role_keys(role).values().map(|key| *key.as_bytes()).collect()
    }

    fn read(envelope: &Envelope, bytes: &[u8]) -> Result<Self, TufError> {
        let root: Root = decode(envelope)?;
        // Keys of unknown kinds are not an error: they cannot sign here, others may use them.
        let keys = root
            .keys
            .iter()
            .filter_map(|(id, object)| Some((id.clone(), PublicKey::from_object(object).ok()?)))
            .collect();
        let new = Self { root: Verified::new(root, bytes), bytes: bytes.to_vec(), keys };
        new.threshold(Role::Root, "new root", envelope)?;
        Ok(new)
    }

    fn role_keys(&self, role: Role) -> BTreeMap<&str, &PublicKey> {
        let Some(role) = self.root.roles.get(role.name()) else { return BTreeMap::new() };
        role.keyids.iter().filter_map(|id| Some((id.as_str(), self.keys.get(id)?))).collect()
    }

    fn threshold(&self, role: Role, signers: &'static str, envelope: &Envelope) -> Result<(), TufError> {
        // A missing role counts as one nobody can sign for.
        let threshold = self.root.roles.get(role.name()).map_or(u64::MAX, |keys| keys.threshold.max(1));
        let valid = envelope.signers(&self.role_keys(role)).len() as u64;
        if valid >= threshold { Ok(()) } else { Err(TufError::Signature { role, signers, valid, threshold }) }
    }
}

/// Length, strict JSON, the envelope's form and `_type`.
fn envelope<T: Document>(bytes: &[u8]) -> Result<Envelope, TufError> {
    let what = format!("{} metadata", T::ROLE);
    let (length, limit) = (bytes.len() as u64, T::ROLE.max_len());
    if length > limit {
        return Err(TufError::TooLarge { what, length, limit });
    }
    let envelope = Envelope::parse(bytes).map_err(|why| TufError::Malformed { what: what.clone(), why })?;
    match envelope.signed().get("_type").and_then(|kind| kind.as_str()) {
        Some(kind) if kind == T::ROLE.name() => Ok(envelope),
        Some(kind) => Err(TufError::WrongType { expected: T::ROLE, found: kind.chars().take(40).collect() }),
        None => Err(TufError::Malformed { what, why: "`_type` is missing".to_owned() }),
    }
}

fn decode<T: Document>(envelope: &Envelope) -> Result<T, TufError> {
    let refuse = |why: String| TufError::Malformed { what: format!("{} metadata", T::ROLE), why };
    let document: T = T::deserialize(envelope.signed()).map_err(|e| refuse(e.to_string()))?;
    document.check().map_err(refuse)?;
    Ok(document)
}
