//! The online keys: snapshot and timestamp, which say what is newest, and assignment, which says what a
//! device should run. Made at first start, 0600. None of them can make a release genuine.

use std::path::Path;

use farlight_release::key::{KeyPair, PublicKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

use super::RegistryError;
use crate::files::{self, Access};

/// The keys that the service holds.
#[derive(Debug, Clone)]
pub struct OnlineKeys {
    /// Signs snapshots.
    pub snapshot: KeyPair,
    /// Signs timestamps.
    pub timestamp: KeyPair,
    /// Signs assignments.
    pub assignment: KeyPair,
}

impl OnlineKeys {
    /// Reads the keys of `folder`, making those that are not there yet.
    ///
    /// # Errors
    /// [`RegistryError`] when a file cannot be read or written, or is no key.
    pub fn open(folder: &Path) -> Result<Self, RegistryError> {
        files::folder(folder)?;
        Ok(Self {
            snapshot: open_key(&folder.join("snapshot.pem"))?,
            timestamp: open_key(&folder.join("timestamp.pem"))?,
            assignment: open_key(&folder.join("assignment.pem"))?,
        })
    }

    /// The public halves.
    pub fn public(&self) -> OnlinePublic {
        OnlinePublic {
            snapshot: self.snapshot.public(),
            timestamp: self.timestamp.public(),
            assignment: self.assignment.public(),
        }
    }
}

/// The public halves of the online keys.
#[derive(Debug, Clone)]
pub struct OnlinePublic {
    /// Verifies snapshots.
    pub snapshot: PublicKey,
    /// Verifies timestamps.
    pub timestamp: PublicKey,
    /// Verifies assignments.
    pub assignment: PublicKey,
}

fn open_key(path: &Path) -> Result<KeyPair, RegistryError> {
    let fail = |why: String| RegistryError::Key { path: path.to_owned(), why };
    if let Some(bytes) = files::read(path)? {
        let bytes = Zeroizing::new(bytes);
        let pem = std::str::from_utf8(&bytes).map_err(|e| fail(e.to_string()))?;
        return KeyPair::from_pem(pem).map_err(|e| fail(e.to_string()));
    }
    let mut seed = Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(&mut *seed).map_err(|e| fail(e.to_string()))?;
    let pair = KeyPair::from_seed(&seed);
    let pem = pair.to_pem().map(Zeroizing::new).map_err(|e| fail(e.to_string()))?;
    files::replace(path, pem.as_bytes(), Access::Private)?;
    Ok(pair)
}
