//! The release repository on disk: `metadata/`, `targets/`, `blobs/`, plain files that any static host
//! can serve. Every change is complete the moment `timestamp.json` is renamed; before that nobody sees
//! it, and after a crash the same upload is simply accepted again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_release::manifest::{Blob, Manifest};
use farlight_release::tuf::{
    ASSIGNMENT_KEYS, Document, METADATA, Role, Snapshot, TARGETS, Target, Targets, Timestamp, TrustedRoot,
    TufError, signer,
};
use farlight_release::{Verified, digest};
use farlight_wire::{Millis, ReleaseId};

use super::RegistryError;
use super::online::OnlineKeys;
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
    keys: OnlineKeys,
    current: Option<Current>,
}

/// What is published.
#[derive(Debug)]
struct Current {
    root: TrustedRoot,
    targets: Verified<Targets>,
    targets_bytes: Vec<u8>,
    snapshot: Verified<Snapshot>,
    timestamp: Verified<Timestamp>,
}

/// Where things stand, for people.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Status {
    /// Version and expiry (Unix milliseconds) of each role.
    pub roles: BTreeMap<String, RoleStatus>,
    /// Number of signed targets.
    pub targets: usize,
}

/// Version and expiry of one role.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct RoleStatus {
    /// Version.
    pub version: u64,
    /// When it expires, Unix milliseconds.
    pub expires: u64,
}

impl Repository {
    /// Opens the repository below `folder` and verifies all that is published in it.
    ///
    /// # Errors
    /// [`RegistryError`] when files cannot be read or do not verify.
    pub fn open(folder: &Path, keys: OnlineKeys) -> Result<Self, RegistryError> {
        for name in [METADATA, TARGETS, "blobs"] {
            files::folder(&folder.join(name))?;
        }
        let mut new = Self { folder: folder.to_owned(), keys, current: None };
        new.current = new.load()?;
        Ok(new)
    }

    fn load(&self) -> Result<Option<Current>, RegistryError> {
        let Some(timestamp) = files::read(&self.metadata(Role::Timestamp.file()))? else { return Ok(None) };
        let mut root = TrustedRoot::open(&self.must_read("1.root.json")?)?;
        for version in 2..MAX_ROOTS {
            match files::read(&self.metadata(&format!("{version}.root.json")))? {
                Some(bytes) => root = root.succeed(&bytes)?,
                None => break,
            }
        }
        let timestamp: Verified<Timestamp> = root.verify(&timestamp)?;
        let version = timestamp.snapshot().map_or(0, |meta| meta.version);
        let snapshot: Verified<Snapshot> =
            root.verify(&self.must_read(&format!("{version}.snapshot.json"))?)?;
        let version = snapshot.targets().map_or(0, |meta| meta.version);
        let targets_bytes = self.must_read(&format!("{version}.targets.json"))?;
        let targets = root.verify(&targets_bytes)?;
        Ok(Some(Current { root, targets, targets_bytes, snapshot, timestamp }))
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
        self.check_online(&root)?;
        let targets: Verified<Targets> = root.verify(targets_bytes)?;
        fresh(root.root(), now)?;
        let unknown = targets.targets.keys().find(|path| *path != ASSIGNMENT_KEYS);
        if let Some(path) = unknown {
            return Err(RegistryError::Refused(format!(
                "the first targets name {path:?}, which nobody uploaded"
            )));
        }
        let expected = signer::assignment_keys(&[self.keys.assignment.public()])?;
        if assignment_keys != expected {
            return Err(RegistryError::Refused(
                "keys/assignment.json does not hold this service's assignment key".to_owned(),
            ));
        }
        let target = targets.targets.get(ASSIGNMENT_KEYS);
        let target = target.ok_or_else(|| TufError::UnknownTarget { path: ASSIGNMENT_KEYS.to_owned() })?;
        target.verify(ASSIGNMENT_KEYS, assignment_keys)?;
        self.write_target(ASSIGNMENT_KEYS, target, assignment_keys)?;
        self.write_metadata("1.root.json", root_bytes)?;
        self.publish(root, targets, targets_bytes, (0, 0), now)
    }

    /// Takes new targets metadata, signed offline, with the manifest of a release that it adds (none for
    /// a mere renewal), and publishes it. The same again is accepted. The release that was added.
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold; nothing is published then.
    pub fn accept(
        &mut self,
        targets_bytes: &[u8],
        manifest: Option<&[u8]>,
        now: Millis,
    ) -> Result<Option<Verified<Manifest>>, RegistryError> {
        let current = self.current.as_ref().ok_or(RegistryError::NotInitialised)?;
        let targets: Verified<Targets> = current.root.verify(targets_bytes)?;
        let added = manifest.map(|bytes| Added::read(&targets, bytes)).transpose()?;
        if targets_bytes == current.targets_bytes {
            return Ok(added.map(|added| added.manifest));
        }
        let (trusted, offered) = (current.targets.version, targets.version);
        if offered != trusted.saturating_add(1) {
            let what = "targets metadata".to_owned();
            return Err(TufError::Rollback { what, trusted, offered }.into());
        }
        fresh(&*targets, now)?;
        for (path, target) in &targets.targets {
            let is_added = added.as_ref().is_some_and(|added| added.path == *path);
            match current.targets.targets.get(path) {
                Some(old) if old.hashes == target.hashes && old.length == target.length => {}
                Some(_) => return Err(RegistryError::Immutable(path.clone())),
                None if is_added => {}
                None => {
                    let text = format!("the targets name {path:?}, which nobody uploaded");
                    return Err(RegistryError::Refused(text));
                }
            }
        }
        if let Some(added) = &added {
            added.manifest.blobs().try_for_each(|blob| self.check_blob(blob))?;
            self.write_target(&added.path, &added.target, manifest.unwrap_or_default())?;
        }
        let (root, versions) = (current.root.clone(), (current.snapshot.version, current.timestamp.version));
        self.publish(root, targets, targets_bytes, versions, now)?;
        Ok(added.map(|added| added.manifest))
    }

    /// Signs snapshot and timestamp again when less than half of their time is left. Whether it did.
    ///
    /// # Errors
    /// [`RegistryError`] when the files cannot be written.
    pub fn renew(&mut self, now: Millis) -> Result<bool, RegistryError> {
        let Some(current) = &self.current else { return Ok(false) };
        let due = |expires: Millis, valid: Millis| expires.since(now).0 < valid.0 / 2;
        if !due(current.snapshot.expires, SNAPSHOT_VALID) && !due(current.timestamp.expires, TIMESTAMP_VALID)
        {
            return Ok(false);
        }
        let versions = (current.snapshot.version, current.timestamp.version);
        let (root, targets, bytes) =
            (current.root.clone(), current.targets.clone(), current.targets_bytes.clone());
        self.publish(root, targets, &bytes, versions, now)?;
        Ok(true)
    }

    /// Writes targets, signs the next snapshot and timestamp over them, and makes them current.
    fn publish(
        &mut self,
        root: TrustedRoot,
        targets: Verified<Targets>,
        targets_bytes: &[u8],
        (snapshot, timestamp): (u64, u64),
        now: Millis,
    ) -> Result<(), RegistryError> {
        let version = snapshot.saturating_add(1);
        self.write_metadata(&format!("{}.targets.json", targets.version), targets_bytes)?;
        let next = Snapshot::new(version, now.plus(SNAPSHOT_VALID), targets.version, targets_bytes);
        let snapshot_bytes = signer::sign(&next, &[&self.keys.snapshot])?;
        let snapshot = root.verify(&snapshot_bytes)?;
        let next =
            Timestamp::new(timestamp.saturating_add(1), now.plus(TIMESTAMP_VALID), version, &snapshot_bytes);
        let timestamp_bytes = signer::sign(&next, &[&self.keys.timestamp])?;
        let timestamp = root.verify(&timestamp_bytes)?;
        self.write_metadata(&format!("{version}.snapshot.json"), &snapshot_bytes)?;
        // From here on it is published.
        self.write_metadata(Role::Timestamp.file(), &timestamp_bytes)?;
        let targets_bytes = targets_bytes.to_vec();
        self.current = Some(Current { root, targets, targets_bytes, snapshot, timestamp });
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

    /// The manifest of a release that is published.
    ///
    /// # Errors
    /// [`RegistryError`] when its file cannot be read or was changed on disk.
    pub fn manifest(&self, release: &ReleaseId) -> Result<Option<Verified<Manifest>>, RegistryError> {
        let path = release.target_path();
        let Some(targets) = self.targets() else { return Ok(None) };
        let Some(target) = targets.targets.get(&path) else { return Ok(None) };
        let Some(bytes) = files::read(&self.target_path(&path, target)?)? else { return Ok(None) };
        Ok(Some(Added::read_as(targets, &path, &bytes)?.manifest))
    }

    /// Where things stand.
    pub fn status(&self) -> Option<Status> {
        fn role<T: Document>(document: &T) -> (String, RoleStatus) {
            let status = RoleStatus { version: document.version(), expires: document.expires().0 };
            (T::ROLE.name().to_owned(), status)
        }
        let current = self.current.as_ref()?;
        let roles = BTreeMap::from([
            role(current.root.root()),
            role(&*current.targets),
            role(&*current.snapshot),
            role(&*current.timestamp),
        ]);
        Some(Status { roles, targets: current.targets.targets.len() })
    }

    /// Where the file of a blob is.
    pub fn blob(&self, id: &str) -> Option<PathBuf> {
        digest::is_sha256(id).then(|| self.folder.join("blobs").join(id))
    }

    fn check_online(&self, root: &TrustedRoot) -> Result<(), RegistryError> {
        let keys = [(Role::Snapshot, &self.keys.snapshot), (Role::Timestamp, &self.keys.timestamp)];
        for (role, key) in keys {
            let alone = root.root().roles.get(role.name()).is_some_and(|keys| keys.threshold == 1);
            if !alone || !root.keys(role).contains(key.public().as_bytes()) {
                let text = format!("the root does not let this service's {role} key sign alone");
                return Err(RegistryError::Refused(text));
            }
        }
        Ok(())
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

/// A release that new targets metadata adds.
struct Added {
    path: String,
    target: Target,
    manifest: Verified<Manifest>,
}

impl Added {
    fn read(targets: &Verified<Targets>, bytes: &[u8]) -> Result<Self, RegistryError> {
        let release = Manifest::parse_checked(bytes)?.release;
        Self::read_as(targets, &release.target_path(), bytes)
    }

    fn read_as(targets: &Verified<Targets>, path: &str, bytes: &[u8]) -> Result<Self, RegistryError> {
        let release: ReleaseId = path
            .strip_suffix(".json")
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| RegistryError::Refused(format!("{path:?} is not the name of a release")))?;
        let manifest = targets.verify_manifest(&release, bytes)?;
        let target = targets.targets.get(path).cloned();
        let target = target.ok_or_else(|| TufError::UnknownTarget { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), target, manifest })
    }
}

fn fresh<T: Document>(document: &T, now: Millis) -> Result<(), RegistryError> {
    let (role, expires) = (T::ROLE, document.expires());
    if now < expires { Ok(()) } else { Err(TufError::Expired { role, expires, now }.into()) }
}
