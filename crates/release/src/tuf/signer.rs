//! Builds and signs metadata: root and targets by the operator's offline keys, snapshot and timestamp
//! by the cloud's online ones. Versions and dates are the caller's.

use std::collections::{BTreeMap, BTreeSet};

use farlight_wire::Millis;

use super::delegation::{DelegatedRole, Delegations};
use super::metadata::{Document, Meta, RoleKeys, Root, SPEC_VERSION, Snapshot, Target, Targets, Timestamp};
use super::{Role, TufError};
use crate::canonical;
use crate::envelope::{self, Envelope};
use crate::key::{KeyPair, PublicKey};

/// Keys and threshold of one role, for a root that is to be made.
#[derive(Debug, Clone)]
pub struct Signers {
    /// The keys.
    pub keys: Vec<PublicKey>,
    /// How many of them must sign.
    pub threshold: u64,
}

impl Signers {
    /// One key that signs alone.
    pub fn one(key: PublicKey) -> Self {
        Self { keys: vec![key], threshold: 1 }
    }
}

/// Keys and thresholds of all roles, for a root that is to be made.
#[derive(Debug, Clone)]
pub struct RootSigners {
    /// Signs roots; offline.
    pub root: Signers,
    /// Signs targets; offline.
    pub targets: Signers,
    /// Signs snapshots; online.
    pub snapshot: Signers,
    /// Signs timestamps; online.
    pub timestamp: Signers,
}

impl Root {
    /// The root after this one, with other signers for these roles and all else as it was. Keys that no role
    /// uses any more are left out.
    #[must_use]
    pub fn successor(&self, expires: Millis, changed: &[(Role, Signers)]) -> Self {
        let mut next = self.clone();
        next.version = self.version.saturating_add(1);
        next.expires = expires;
        for (role, signers) in changed {
            let keyids = signers.keys.iter().map(PublicKey::id).collect();
            let entry = RoleKeys { keyids, threshold: signers.threshold, extra: BTreeMap::new() };
            next.roles.insert(role.name().to_owned(), entry);
            next.keys.extend(signers.keys.iter().map(|key| (key.id(), key.to_object())));
        }
        let used: BTreeSet<&String> = next.roles.values().flat_map(|role| &role.keyids).collect();
        next.keys.retain(|id, _| used.contains(id));
        next
    }

    /// A root with consistent snapshots.
    pub fn new(version: u64, expires: Millis, signers: &RootSigners) -> Self {
        let roles = [
            (Role::Root, &signers.root),
            (Role::Targets, &signers.targets),
            (Role::Snapshot, &signers.snapshot),
            (Role::Timestamp, &signers.timestamp),
        ];
        let keys = roles.iter().flat_map(|(_, s)| &s.keys).map(|key| (key.id(), key.to_object())).collect();
        let entry = |(role, signers): (Role, &Signers)| {
            let keyids = signers.keys.iter().map(PublicKey::id).collect();
            let entry = RoleKeys { keyids, threshold: signers.threshold, extra: BTreeMap::new() };
            (role.name().to_owned(), entry)
        };
        Self {
            kind: Role::Root.name().to_owned(),
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires,
            consistent_snapshot: true,
            keys,
            roles: roles.into_iter().map(entry).collect(),
            extra: BTreeMap::new(),
        }
    }
}

impl Targets {
    /// Targets metadata without any target.
    pub fn new(version: u64, expires: Millis) -> Self {
        Self {
            kind: Role::Targets.name().to_owned(),
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires,
            targets: BTreeMap::new(),
            delegations: None,
            floor: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Adds the target file `path`, or replaces it.
    pub fn add(&mut self, path: impl Into<String>, bytes: &[u8]) {
        self.targets.insert(path.into(), Target::of(bytes));
    }

    /// Lets `signers` speak for the target paths that match `paths`, as the role `name`: behind all roles
    /// that are delegated to already, or in place of the one of this name. The delegation is terminating:
    /// for these paths no later role is asked. Keys that no role uses any more are left out.
    pub fn delegate(&mut self, name: &str, paths: Vec<String>, signers: &Signers) {
        let all = self.delegations.get_or_insert_with(|| Delegations {
            keys: BTreeMap::new(),
            roles: Vec::new(),
            extra: BTreeMap::new(),
        });
        let role = DelegatedRole {
            name: name.to_owned(),
            keyids: signers.keys.iter().map(PublicKey::id).collect(),
            threshold: signers.threshold,
            terminating: true,
            paths: Some(paths),
            path_hash_prefixes: None,
            extra: BTreeMap::new(),
        };
        match all.roles.iter_mut().find(|old| old.name == name) {
            Some(old) => *old = role,
            None => all.roles.push(role),
        }
        all.keys.extend(signers.keys.iter().map(|key| (key.id(), key.to_object())));
        all.drop_unused_keys();
    }

    /// Takes the role `name` out of the delegations. Whether there was one.
    pub fn revoke(&mut self, name: &str) -> bool {
        let Some(all) = &mut self.delegations else { return false };
        let before = all.roles.len();
        all.roles.retain(|role| role.name != name);
        all.drop_unused_keys();
        all.roles.len() < before
    }
}

impl Delegations {
    fn drop_unused_keys(&mut self) {
        let used: BTreeSet<&String> = self.roles.iter().flat_map(|role| &role.keyids).collect();
        self.keys.retain(|id, _| used.contains(id));
    }
}

impl Snapshot {
    /// The snapshot that holds this targets metadata.
    pub fn new(version: u64, expires: Millis, targets_version: u64, targets: &[u8]) -> Self {
        let meta = Meta::of(targets_version, targets);
        Self {
            kind: Role::Snapshot.name().to_owned(),
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires,
            meta: BTreeMap::from([(Role::Targets.file().to_owned(), meta)]),
            extra: BTreeMap::new(),
        }
    }

    /// Lists the metadata of the delegated role `name`.
    pub fn list(&mut self, name: &str, version: u64, bytes: &[u8]) {
        self.meta.insert(format!("{name}.json"), Meta::of(version, bytes));
    }
}

impl Timestamp {
    /// The timestamp that names this snapshot. Set `issued` to what the signer's clock says.
    pub fn new(version: u64, expires: Millis, snapshot_version: u64, snapshot: &[u8]) -> Self {
        let meta = Meta::of(snapshot_version, snapshot);
        Self {
            kind: Role::Timestamp.name().to_owned(),
            spec_version: SPEC_VERSION.to_owned(),
            version,
            expires,
            issued: None,
            meta: BTreeMap::from([(Role::Snapshot.file().to_owned(), meta)]),
            extra: BTreeMap::new(),
        }
    }
}

/// Signs a document with each of `keys`; the bytes of its file.
///
/// # Errors
/// [`TufError::Malformed`] when the document breaks a rule of its role or has no canonical form.
pub fn sign<T: Document>(document: &T, keys: &[&KeyPair]) -> Result<Vec<u8>, TufError> {
    let refuse = |why: String| TufError::Malformed { what: format!("{} metadata", T::ROLE), why };
    document.check().map_err(refuse)?;
    envelope::seal(document, keys).map_err(|e| refuse(e.to_string()))
}

/// Adds a signature to a file that somebody else may have signed before: how a threshold of keys on
/// several machines is reached. Signatures already there are kept.
///
/// # Errors
/// [`TufError::Malformed`] when the bytes are no signed metadata.
pub fn add_signature(bytes: &[u8], key: &KeyPair) -> Result<Vec<u8>, TufError> {
    let refuse = |why: String| TufError::Malformed { what: "metadata to be signed".to_owned(), why };
    let mut envelope = Envelope::parse(bytes).map_err(|e| refuse(e.to_string()))?;
    envelope.add_signature(key);
    envelope.to_bytes().map_err(|e| refuse(e.to_string()))
}

/// The content of the target [`super::ASSIGNMENT_KEYS`] for these keys.
///
/// # Errors
/// [`TufError::Malformed`] never for valid keys.
pub fn assignment_keys(keys: &[PublicKey]) -> Result<Vec<u8>, TufError> {
    let objects: Vec<_> = keys.iter().map(PublicKey::to_object).collect();
    canonical::to_vec(&serde_json::json!({ "keys": objects }))
        .map_err(|e| TufError::Malformed { what: super::ASSIGNMENT_KEYS.to_owned(), why: e.to_string() })
}
