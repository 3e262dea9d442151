//! The online keys: snapshot and timestamp, which say what is newest, and assignment, which says what a
//! device should run. Made at first start, 0600. None of them can make a release genuine. Those that are to
//! replace them wait in `next/` until a published root and targets name them.

use std::fs;
use std::path::Path;

use farlight_release::key::{KeyPair, PublicKey};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Role, Root, Targets, TufError, signer};
use rand::TryRngCore;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

use super::RegistryError;
use crate::files::{self, Access};

/// Folder of the keys that are to replace those beside it.
const NEXT: &str = "next";
const SNAPSHOT: &str = "snapshot.pem";
const TIMESTAMP: &str = "timestamp.pem";
const ASSIGNMENT: &str = "assignment.pem";

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
            snapshot: open_key(&folder.join(SNAPSHOT))?,
            timestamp: open_key(&folder.join(TIMESTAMP))?,
            assignment: open_key(&folder.join(ASSIGNMENT))?,
        })
    }

    /// The keys that wait to replace those of `folder`, if there are any.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn waiting(folder: &Path) -> Result<Option<Self>, RegistryError> {
        if folder.join(NEXT).is_dir() { Self::next(folder).map(Some) } else { Ok(None) }
    }

    /// The keys that are to replace those of `folder`, made when there are none yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn next(folder: &Path) -> Result<Self, RegistryError> {
        Self::open(&folder.join(NEXT))
    }

    /// Puts each waiting key of `folder` that what is published names in the place of the one before. Called
    /// after a publication and at each start: a power cut in between is made good.
    ///
    /// # Errors
    /// [`RegistryError`] when a file cannot be read or moved.
    pub fn adopt_next(folder: &Path, root: &Root, targets: &Targets) -> Result<(), RegistryError> {
        let next = folder.join(NEXT);
        for name in [SNAPSHOT, TIMESTAMP, ASSIGNMENT] {
            let Some(pair) = read_key(&next.join(name))? else { continue };
            let named = match name {
                SNAPSHOT => root.keys_of(Role::Snapshot).contains(pair.public().as_bytes()),
                TIMESTAMP => root.keys_of(Role::Timestamp).contains(pair.public().as_bytes()),
                _ => assigns(targets, &pair)?,
            };
            if named {
                files::rename(&next.join(name), &folder.join(name))?;
            }
        }
        // It stays where keys are still waiting, and it may never have been there.
        let _ = fs::remove_dir(next);
        Ok(())
    }

    /// Whether this root and these targets let exactly these keys speak, each alone.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] saying which they do not.
    pub fn check(&self, root: &Root, targets: &Targets) -> Result<(), RegistryError> {
        for (role, key) in [(Role::Snapshot, &self.snapshot), (Role::Timestamp, &self.timestamp)] {
            let alone = root.roles.get(role.name()).is_some_and(|keys| keys.threshold == 1);
            if !alone || !root.keys_of(role).contains(key.public().as_bytes()) {
                let text = format!("the root does not let this service's {role} key sign alone");
                return Err(RegistryError::Refused(text));
            }
        }
        if !assigns(targets, &self.assignment)? {
            let text = format!("the target {ASSIGNMENT_KEYS} is not this service's assignment key");
            return Err(RegistryError::Refused(text));
        }
        Ok(())
    }

    /// The content of the target [`ASSIGNMENT_KEYS`] for these keys.
    ///
    /// # Errors
    /// [`TufError`] when it cannot be written as JSON.
    pub fn assignment_keys(&self) -> Result<Vec<u8>, TufError> {
        signer::assignment_keys(&[self.assignment.public()])
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePublic {
    /// Verifies snapshots.
    pub snapshot: PublicKey,
    /// Verifies timestamps.
    pub timestamp: PublicKey,
    /// Verifies assignments.
    pub assignment: PublicKey,
}

/// Whether the targets name the key for assignments.
fn assigns(targets: &Targets, pair: &KeyPair) -> Result<bool, RegistryError> {
    let expected = signer::assignment_keys(&[pair.public()])?;
    let target = targets.targets.get(ASSIGNMENT_KEYS);
    Ok(target.is_some_and(|target| target.verify(ASSIGNMENT_KEYS, &expected).is_ok()))
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, RegistryError> {
    let fail = |why: String| RegistryError::Key { path: path.to_owned(), why };
    let Some(bytes) = files::read(path)?.map(Zeroizing::new) else { return Ok(None) };
    let pem = std::str::from_utf8(&bytes).map_err(|e| fail(e.to_string()))?;
    KeyPair::from_pem(pem).map(Some).map_err(|e| fail(e.to_string()))
}

fn open_key(path: &Path) -> Result<KeyPair, RegistryError> {
    if let Some(pair) = read_key(path)? {
        return Ok(pair);
    }
    let fail = |why: String| RegistryError::Key { path: path.to_owned(), why };
    let mut seed = Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(&mut *seed).map_err(|e| fail(e.to_string()))?;
    let pair = KeyPair::from_seed(&seed);
    let pem = pair.to_pem().map(Zeroizing::new).map_err(|e| fail(e.to_string()))?;
    files::replace(path, pem.as_bytes(), Access::Private)?;
    Ok(pair)
}
