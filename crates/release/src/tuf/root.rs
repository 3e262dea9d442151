//! A root that is trusted, and what it vouches for: its successor and the metadata of each top-level
//! role. Client, registry and command line all verify through it.

use std::collections::BTreeSet;

use super::metadata::{Document, Root};
use super::verify::{self, Authority};
use super::{Role, TufError};
use crate::envelope::Envelope;
use crate::verified::Verified;

/// A root that is trusted, with its bytes as received.
#[derive(Debug, Clone)]
pub struct TrustedRoot {
    root: Verified<Root>,
    bytes: Vec<u8>,
}

impl TrustedRoot {
    /// Takes a root that is trusted by the way it came (at enrolment, or shipped). It must be signed by
    /// its own keys.
    ///
    /// # Errors
    /// [`TufError`] when it is malformed or not signed by its own threshold of keys.
    pub fn open(bytes: &[u8]) -> Result<Self, TufError> {
        let what = verify::what::<Root>();
        Self::read(&what, &verify::open::<Root>(&what, bytes)?, bytes)
    }

    /// Verifies the next root: signed by this root's threshold and by its own, version exactly one more.
    ///
    /// # Errors
    /// [`TufError`] saying which rule it breaks.
    pub fn succeed(&self, bytes: &[u8]) -> Result<Self, TufError> {
        let what = verify::what::<Root>();
        let envelope = verify::open::<Root>(&what, bytes)?;
        // 5.3.4: a threshold of the keys of the trusted root, and of the new root itself.
        authority(&self.root, Role::Root, "trusted root").check(&what, &envelope)?;
        let next = Self::read(&what, &envelope, bytes)?;
        // 5.3.5: exactly one more than the trusted version.
        let (trusted, offered) = (self.root.version, next.root.version);
        if offered <= trusted {
            return Err(TufError::Rollback { what, role: Role::Root, trusted, offered });
        }
        let expected = trusted.saturating_add(1);
        if offered != expected {
            return Err(TufError::MixAndMatch { what, expected, found: offered });
        }
        Ok(next)
    }

    /// Verifies metadata of another role: type, signatures by this root's threshold for it, and form.
    /// Version and expiry are the caller's to judge.
    ///
    /// # Errors
    /// [`TufError`] saying which rule it breaks.
    pub fn verify<T: Document>(&self, bytes: &[u8]) -> Result<Verified<T>, TufError> {
        let what = verify::what::<T>();
        let envelope = verify::open::<T>(&what, bytes)?;
        authority(&self.root, T::ROLE, "trusted root").check(&what, &envelope)?;
        Ok(Verified::new(verify::decode(&what, &envelope)?, bytes))
    }

    /// Verifies a stored file again: `None` when it is merely signed by other keys than this root's (it
    /// was written before a rotation).
    pub(super) fn verify_stored<T: Document>(&self, bytes: &[u8]) -> Result<Option<Verified<T>>, TufError> {
        let what = verify::what::<T>();
        let damaged = |why: String| TufError::Damaged { what: what.clone(), why };
        let envelope = verify::open::<T>(&what, bytes).map_err(|e| damaged(e.to_string()))?;
        let authority = authority(&self.root, T::ROLE, "trusted root");
        match authority.check(&what, &envelope) {
            Ok(()) => {
                let document = verify::decode(&what, &envelope).map_err(|e| damaged(e.to_string()))?;
                Ok(Some(Verified::new(document, bytes)))
            }
            Err(_) if authority.is_forged(&envelope) => {
                Err(damaged("a signature by a trusted key does not hold".to_owned()))
            }
            Err(_) => Ok(None),
        }
    }

    /// The root itself.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The bytes of the root as received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The usable keys of `role`, by what tells one key from another (for ed25519 its 32 bytes).
    pub fn keys(&self, role: Role) -> BTreeSet<[u8; 32]> {
        self.root.keys_of(role)
    }

    /// Whether this root takes a key from `role` that its predecessor had.
    pub(super) fn rotates(&self, role: Role, predecessor: &Self) -> bool {
        !predecessor.keys(role).is_subset(&self.keys(role))
    }

    fn read(what: &str, envelope: &Envelope, bytes: &[u8]) -> Result<Self, TufError> {
        let root: Root = verify::decode(what, envelope)?;
        authority(&root, Role::Root, "new root").check(what, envelope)?;
        Ok(Self { root: Verified::new(root, bytes), bytes: bytes.to_vec() })
    }
}

impl Root {
    /// Reads a root without a look at its signatures: for one that is being signed. Not to be trusted.
    ///
    /// # Errors
    /// [`TufError`] when it is no root.
    pub fn peek(bytes: &[u8]) -> Result<Self, TufError> {
        let what = verify::what::<Self>();
        verify::decode(&what, &verify::open::<Self>(&what, bytes)?)
    }

    /// The usable keys of `role`, as [`TrustedRoot::keys`].
    pub fn keys_of(&self, role: Role) -> BTreeSet<[u8; 32]> {
        authority(self, role, "trusted root").keys().map(crate::key::Verifier::identity).collect()
    }
}

fn authority(root: &Root, role: Role, signers: &'static str) -> Authority {
    match root.roles.get(role.name()) {
        Some(entry) => Authority::new(&root.keys, &entry.keyids, entry.threshold, signers),
        None => Authority::nobody(signers),
    }
}
