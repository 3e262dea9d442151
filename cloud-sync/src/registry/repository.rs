//! The release repository on disk: `metadata/`, `targets/`, `blobs/`, plain files that any static host
//! can serve. Every change is complete the moment `timestamp.json` is renamed; before that nobody sees
//! it, and after a crash the same upload is simply accepted again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_release::manifest::Blob;
use farlight_release::tuf::{
    ASSIGNMENT_KEYS, Document as _, METADATA, Role, Snapshot, TARGETS, Target, Targets, Timestamp,
    TrustedRoot, TufError, encode_name, signer,
};
use farlight_release::{Verified, digest};
use farlight_wire::{Millis, ReleaseId};

use super::RegistryError;
use super::change::{self, Accepted, Change, fresh};
use super::document::Document;
use super::online::{OnlineKeys, OnlinePublic};
use crate::files::{self, Access};

/// How long a snapshot counts.
const SNAPSHOT_VALID: Millis = Millis::from_secs(30 * 86_400);
/// How long a timestamp counts: devices that stay offline for less than this need no exception, and a
/// frozen mirror is noticed within it.
const TIMESTAMP_VALID: Millis = Millis::from_secs(7 * 86_400);
/// Most roots followed at start.
const MAX_ROOTS: u64 = 10_000;

/// The repository and the keys that say what is newest in it.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    keys_folder: PathBuf,
    keys: OnlineKeys,
    /// Keys that are to replace them, once asked for.
    next: Option<OnlineKeys>,
    current: Option<Current>,
}

/// What is published.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) root: TrustedRoot,
    pub(super) targets: Verified<Targets>,
    pub(super) targets_bytes: Vec<u8>,
    pub(super) roles: BTreeMap<String, RoleFile>,
    snapshot: Verified<Snapshot>,
    timestamp: Verified<Timestamp>,
}

/// The metadata of a role that is or was delegated to.
#[derive(Debug, Clone)]
pub(super) struct RoleFile {
    pub(super) version: u64,
    pub(super) bytes: Vec<u8>,
    /// `None` once the role was revoked.
    pub(super) document: Option<Verified<Targets>>,
}

impl RoleFile {
    /// What it says, also once it was revoked: what it published never changes.
    pub(super) fn targets(&self) -> Result<Targets, RegistryError> {
        match &self.document {
            Some(document) => Ok(Targets::clone(document)),
            None => Ok(Targets::peek(&self.bytes)?),
        }
    }
}

impl Current {
    /// Whether a target of this name was published by any role.
    pub(super) fn names(&self, path: &str) -> bool {
        let by = |role: &RoleFile| role.targets().is_ok_and(|targets| targets.targets.contains_key(path));
        self.targets.targets.contains_key(path) || self.roles.values().any(by)
    }
}

/// Where things stand, for people.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Status {
    /// Each role, delegated ones as well.
    pub roles: BTreeMap<String, RoleStatus>,
    /// Number of signed targets.
    pub targets: usize,
}

/// Version and expiry of one role, and who signs it.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct RoleStatus {
    /// Version; 0 for a delegated role that has not signed anything yet.
    pub version: u64,
    /// When it expires, Unix milliseconds.
    pub expires: u64,
    /// How many keys may sign for it.
    pub keys: usize,
    /// How many of them must.
    pub threshold: u64,
}

impl Repository {
    /// Opens the repository below `folder` and verifies all that is published in it. The online keys are
    /// those of `keys_folder`.
    ///
    /// # Errors
    /// [`RegistryError`] when files cannot be read or do not verify.
    pub fn open(folder: &Path, keys_folder: &Path) -> Result<Self, RegistryError> {
        for name in [METADATA, TARGETS, "blobs"] {
            files::folder(&folder.join(name))?;
        }
        let keys_folder = keys_folder.to_owned();
        let keys = OnlineKeys::open(&keys_folder)?;
        let mut new = Self { folder: folder.to_owned(), keys_folder, keys, next: None, current: None };
        new.current = new.load()?;
        if let Some(current) = &new.current {
            OnlineKeys::adopt_next(&new.keys_folder, current.root.root(), &current.targets)?;
            new.keys = OnlineKeys::open(&new.keys_folder)?;
        }
        new.next = OnlineKeys::waiting(&new.keys_folder)?;
        Ok(new)
    }

    fn load(&self) -> Result<Option<Current>, RegistryError> {
        let Some(timestamp) = files::read(&self.metadata(Role::Timestamp.file()))? else { return Ok(None) };
        let mut roots = vec![TrustedRoot::open(&self.must_read("1.root.json")?)?];
        for version in 2..MAX_ROOTS {
            match (files::read(&self.metadata(&format!("{version}.root.json")))?, roots.last()) {
                (Some(bytes), Some(root)) => roots.push(root.succeed(&bytes)?),
                _ => break,
            }
        }
        let newest = roots.pop();
        let current = newest.map(|root| self.load_under(root, &timestamp)).transpose();
        // A crash after a new root was written and before the timestamp was: what was published before
        // still holds under the root before, and the operator sends the change again.
        match (current, roots.pop()) {
            (Err(RegistryError::Tuf(TufError::Signature { .. })), Some(root)) => {
                self.load_under(root, &timestamp).map(Some)
            }
            (current, _) => current,
        }
    }

    fn load_under(&self, root: TrustedRoot, timestamp: &[u8]) -> Result<Current, RegistryError> {
        let timestamp: Verified<Timestamp> = root.verify(timestamp)?;
        let version = timestamp.snapshot().map_or(0, |meta| meta.version);
        let snapshot: Verified<Snapshot> =
            root.verify(&self.must_read(&format!("{version}.snapshot.json"))?)?;
        let version = snapshot.targets().map_or(0, |meta| meta.version);
        let targets_bytes = self.must_read(&format!("{version}.targets.json"))?;
        let targets: Verified<Targets> = root.verify(&targets_bytes)?;
        let mut roles = BTreeMap::new();
        for (name, meta) in snapshot.roles() {
            let bytes = self.must_read(&role_file(name, meta.version))?;
            let delegated = targets.delegations.as_ref().is_some_and(|all| all.role(name).is_some());
            let document = if delegated { Some(targets.verify_role(name, &bytes)?) } else { None };
            roles.insert(name.to_owned(), RoleFile { version: meta.version, bytes, document });
        }
        Ok(Current { root, targets, targets_bytes, roles, snapshot, timestamp })
    }

    /// Takes the first root and targets, signed offline, and publishes them. The same again is accepted.
    ///
    /// # Errors
    /// [`RegistryError`] when there is another root already, or something does not verify.
    pub fn init(
        &mut self,
        root_bytes: &[u8],
        targets_bytes: &[u8],
        assignment_keys: &[u8],
        now: Millis,
    ) -> Result<(), RegistryError> {
        let root = TrustedRoot::open(root_bytes)?;
        if self.current.is_some() {
            return match files::read(&self.metadata("1.root.json"))? {
                Some(same) if same == root_bytes => Ok(()),
                _ => Err(RegistryError::Initialised),
            };
        }
        if root.root().version != 1 {
            return Err(RegistryError::Refused("the first root must have version 1".to_owned()));
        }
        let targets: Verified<Targets> = root.verify(targets_bytes)?;
        self.keys.check(root.root(), &targets)?;
        fresh("root metadata", root.root().expires(), now)?;
        let unknown = targets.targets.keys().find(|path| *path != ASSIGNMENT_KEYS);
        if let Some(path) = unknown {
            return Err(RegistryError::Refused(format!(
                "the first targets name {path:?}, which nobody uploaded"
            )));
        }
        let target = targets.targets.get(ASSIGNMENT_KEYS);
        let target = target.ok_or_else(|| TufError::UnknownTarget { path: ASSIGNMENT_KEYS.to_owned() })?;
        target.verify(ASSIGNMENT_KEYS, assignment_keys)?;
        self.write_target(ASSIGNMENT_KEYS, target, assignment_keys)?;
        let targets_bytes = targets_bytes.to_vec();
        let first =
            Accepted { root, targets, targets_bytes, roles: BTreeMap::new(), added: None, differs: true };
        self.publish(first, (0, 0), &self.keys.clone(), now)
    }

    /// Takes metadata that was signed offline, with the document of a release that it adds (none for a mere
    /// renewal), and publishes it. The same again is accepted. The release that was added.
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold; nothing is published then.
    pub fn accept(&mut self, change: &Change, now: Millis) -> Result<Option<Document>, RegistryError> {
        let current = self.current.as_ref().ok_or(RegistryError::NotInitialised)?;
        let next = self.next.as_ref().map(OnlineKeys::assignment_keys).transpose()?;
        let accepted = change.check(current, next.as_deref(), now)?;
        let added = accepted.added.clone();
        if !accepted.differs {
            return Ok(added);
        }
        let keys = self.speakers(&accepted)?.clone();
        if let (Some(bytes), Some(target)) = (&next, accepted.targets.targets.get(ASSIGNMENT_KEYS))
            && target.verify(ASSIGNMENT_KEYS, bytes).is_ok()
        {
            self.write_target(ASSIGNMENT_KEYS, target, bytes)?;
        }
        if let (Some(added), Some(bytes)) = (&added, &change.release) {
            added.blobs().into_iter().try_for_each(|blob| self.check_blob(blob))?;
            added.models().try_for_each(|blob| self.check_model(blob))?;
            let path = added.release().target_path();
            let role = change::speaker(&accepted.targets, &accepted.roles, &path);
            let target = role.and_then(|role| role.targets.get(&path));
            self.write_target(&path, target.ok_or(TufError::UnknownTarget { path: path.clone() })?, bytes)?;
        }
        let versions = (current.snapshot.version, current.timestamp.version);
        self.publish(accepted, versions, &keys, now)?;
        if keys.public() != self.keys.public() {
            self.keys = keys;
            self.next = None;
            if let Some(current) = &self.current {
                OnlineKeys::adopt_next(&self.keys_folder, current.root.root(), &current.targets)?;
            }
        }
        Ok(added)
    }

    /// The keys that are to replace the online keys, made at the first call. They sign nothing until a root
    /// and targets that name them are published.
    ///
    /// # Errors
    /// [`RegistryError`] when the files cannot be read or written.
    pub fn next_keys(&mut self) -> Result<OnlinePublic, RegistryError> {
        let next = OnlineKeys::next(&self.keys_folder)?;
        let public = next.public();
        self.next = Some(next);
        Ok(public)
    }

    /// The online keys that root and targets name: those in use, or those that wait.
    fn speakers(&self, accepted: &Accepted) -> Result<&OnlineKeys, RegistryError> {
        let (root, targets) = (accepted.root.root(), &accepted.targets);
        match (self.keys.check(root, targets), &self.next) {
            (Ok(()), _) => Ok(&self.keys),
            (Err(_), Some(next)) if next.check(root, targets).is_ok() => Ok(next),
            (Err(error), _) => Err(error),
        }
    }

    /// Signs snapshot and timestamp again when less than half of their time is left, or the clock was put back.
    /// Whether it did.
    ///
    /// # Errors
    /// [`RegistryError`] when the files cannot be written.
    pub fn renew(&mut self, now: Millis) -> Result<bool, RegistryError> {
        let Some(current) = &self.current else { return Ok(false) };
        let due = |expires: Millis, valid: Millis| expires.since(now).0 < valid.0 / 2;
        // Devices take the date of a timestamp for the least that it can be: one that a wrong clock wrote must
        // not stay.
        let ahead = current.timestamp.issued.is_some_and(|issued| issued > now);
        if !ahead
            && !due(current.snapshot.expires, SNAPSHOT_VALID)
            && !due(current.timestamp.expires, TIMESTAMP_VALID)
        {
            return Ok(false);
        }
        let versions = (current.snapshot.version, current.timestamp.version);
        let same = Accepted {
            root: current.root.clone(),
            targets: current.targets.clone(),
            targets_bytes: current.targets_bytes.clone(),
            roles: current.roles.clone(),
            added: None,
            differs: false,
        };
        self.publish(same, versions, &self.keys.clone(), now)?;
        Ok(true)
    }

    /// Writes what was accepted, signs the next snapshot and timestamp over it, and makes it current.
    fn publish(
        &mut self,
        accepted: Accepted,
        (snapshot, timestamp): (u64, u64),
        keys: &OnlineKeys,
        now: Millis,
    ) -> Result<(), RegistryError> {
        let Accepted { root, targets, targets_bytes, roles, .. } = accepted;
        let version = snapshot.saturating_add(1);
        let old = self.current.as_ref();
        let mut next = Snapshot::new(version, now.plus(SNAPSHOT_VALID), targets.version, &targets_bytes);
        for (name, role) in &roles {
            next.list(name, role.version, &role.bytes);
            if old.is_none_or(|old| old.roles.get(name).is_none_or(|old| old.bytes != role.bytes)) {
                self.write_metadata(&role_file(name, role.version), &role.bytes)?;
            }
        }
        self.write_metadata(&format!("{}.targets.json", targets.version), &targets_bytes)?;
        let snapshot_bytes = signer::sign(&next, &[&keys.snapshot])?;
        let snapshot = root.verify(&snapshot_bytes)?;
        let mut next =
            Timestamp::new(timestamp.saturating_add(1), now.plus(TIMESTAMP_VALID), version, &snapshot_bytes);
        next.issued = Some(now);
        let timestamp_bytes = signer::sign(&next, &[&keys.timestamp])?;
        let timestamp = root.verify(&timestamp_bytes)?;
        self.write_metadata(&format!("{version}.snapshot.json"), &snapshot_bytes)?;
        if old.is_none_or(|old| old.root.bytes() != root.bytes()) {
            self.write_metadata(&format!("{}.root.json", root.root().version), root.bytes())?;
        }
        // From here on it is published.
        self.write_metadata(Role::Timestamp.file(), &timestamp_bytes)?;
        self.current = Some(Current { root, targets, targets_bytes, roles, snapshot, timestamp });
        Ok(())
    }

    /// The newest root as it was uploaded.
    pub fn newest_root(&self) -> Option<&[u8]> {
        self.current.as_ref().map(|current| current.root.bytes())
    }

    /// The targets that are published, as signed.
    pub fn targets(&self) -> Option<&Verified<Targets>> {
        self.current.as_ref().map(|current| &current.targets)
    }

    /// The online keys.
    pub fn keys(&self) -> &OnlineKeys {
        &self.keys
    }

    /// The releases that are published.
    pub fn releases(&self) -> Vec<ReleaseId> {
        let Some(current) = &self.current else { return Vec::new() };
        let roles = current.roles.values().filter_map(|role| role.document.as_ref());
        let paths = [&current.targets].into_iter().chain(roles).flat_map(|role| role.targets.keys());
        paths.filter_map(|path| path.strip_suffix(".json")?.parse().ok()).collect()
    }

    /// Whether an assignment may name a release: signed, and not below the floor of its model.
    ///
    /// # Errors
    /// [`RegistryError::Tuf`] saying why not.
    pub fn permits(&self, release: &ReleaseId) -> Result<(), RegistryError> {
        let current = self.current.as_ref().ok_or(RegistryError::NotInitialised)?;
        current.targets.check_floor(release)?;
        let path = release.target_path();
        let role = change::speaker(&current.targets, &current.roles, &path);
        Ok(role.ok_or(TufError::UnknownTarget { path })?.check_floor(release)?)
    }

    /// The document of a release that is published.
    ///
    /// # Errors
    /// [`RegistryError`] when its file cannot be read or was changed on disk.
    pub fn document(&self, release: &ReleaseId) -> Result<Option<Document>, RegistryError> {
        let path = release.target_path();
        let Some(current) = &self.current else { return Ok(None) };
        let Some(role) = change::speaker(&current.targets, &current.roles, &path) else { return Ok(None) };
        let Some(target) = role.targets.get(&path) else { return Ok(None) };
        let Some(bytes) = files::read(&self.target_path(&path, target)?)? else { return Ok(None) };
        Ok(Some(Document::verify(role, release, &bytes)?))
    }

    /// Where things stand.
    pub fn status(&self) -> Option<Status> {
        let current = self.current.as_ref()?;
        let mut roles = BTreeMap::new();
        let mut note = |name: &str, version, expires: Millis, keys: usize, threshold| {
            roles.insert(name.to_owned(), RoleStatus { version, expires: expires.0, keys, threshold });
        };
        let root = current.root.root();
        for (role, version, expires) in [
            (Role::Root, root.version, root.expires),
            (Role::Targets, current.targets.version, current.targets.expires),
            (Role::Snapshot, current.snapshot.version, current.snapshot.expires),
            (Role::Timestamp, current.timestamp.version, current.timestamp.expires),
        ] {
            let threshold = root.roles.get(role.name()).map_or(0, |keys| keys.threshold);
            note(role.name(), version, expires, current.root.keys(role).len(), threshold);
        }
        let mut targets = current.targets.targets.len();
        let delegations = current.targets.delegations.as_ref();
        for delegated in delegations.iter().flat_map(|all| &all.roles) {
            let keys = delegations.map_or(0, |all| all.keys(&delegated.name).len());
            // Version 0: it has not signed anything yet.
            let document = current.roles.get(&delegated.name).and_then(|role| role.document.as_ref());
            let (version, expires) = document.map_or((0, Millis(0)), |role| (role.version, role.expires));
            targets += document.map_or(0, |role| role.targets.len());
            note(&delegated.name, version, expires, keys, delegated.threshold);
        }
        Some(Status { roles, targets })
    }

    /// Where the file of a blob is.
    pub fn blob(&self, id: &str) -> Option<PathBuf> {
        digest::is_sha256(id).then(|| self.folder.join("blobs").join(id))
    }

    /// A blob's name is the digest of its content, checked when it was uploaded.
    fn check_blob(&self, blob: &Blob) -> Result<(), RegistryError> {
        let missing = || RegistryError::MissingBlob(blob.id.clone());
        let path = self.blob(&blob.id).ok_or_else(missing)?;
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == blob.length => Ok(()),
            _ => Err(missing()),
        }
    }

    /// A model that no device would read is not published.
    fn check_model(&self, blob: &Blob) -> Result<(), RegistryError> {
        let missing = || RegistryError::MissingBlob(blob.id.clone());
        let path = self.blob(&blob.id).ok_or_else(missing)?;
        let bytes = files::read(&path)?.ok_or_else(missing)?;
        farlight_onnx::check(&bytes, &farlight_onnx::Limits::DEFAULT)
            .map_err(|source| RegistryError::Model { blob: blob.id.clone(), source })
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.folder.join(METADATA).join(name)
    }

    fn must_read(&self, name: &str) -> Result<Vec<u8>, RegistryError> {
        let path = format!("{METADATA}{name}");
        files::read(&self.metadata(name))?.ok_or_else(|| TufError::Missing { path }.into())
    }

    fn write_metadata(&self, name: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        Ok(files::replace(&self.metadata(name), bytes, Access::Public)?)
    }

    /// `a/b.json` lies at `targets/a/‹digest›.b.json`.
    fn target_path(&self, path: &str, target: &Target) -> Result<PathBuf, RegistryError> {
        let refuse = || RegistryError::Refused(format!("target {path:?} cannot be stored under that name"));
        let (folder, name) = path.split_once('/').ok_or_else(refuse)?;
        let safe = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('/');
        let hash = target.sha256().filter(|hash| digest::is_sha256(hash)).ok_or_else(refuse)?;
        if !safe(folder) || !safe(name) {
            return Err(refuse());
        }
        Ok(self.folder.join(TARGETS).join(folder).join(format!("{hash}.{name}")))
    }

    fn write_target(&self, path: &str, target: &Target, bytes: &[u8]) -> Result<(), RegistryError> {
        let file = self.target_path(path, target)?;
        if let Some(folder) = file.parent() {
            files::folder(folder)?;
        }
        Ok(files::replace(&file, bytes, Access::Public)?)
    }
}

/// The file of a delegated role.
fn role_file(name: &str, version: u64) -> String {
    format!("{version}.{}.json", encode_name(name))
}
