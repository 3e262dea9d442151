//! The client workflow of TUF 1.0.34, section 5, as a machine: `next` says what to fetch, `supply`
//! takes what came and says what to store. A refused file changes nothing that was trusted.

use farlight_wire::{Millis, ModelName, ReleaseId};
use serde_json::Value;

use super::metadata::{Document, Meta, Snapshot, Target, Targets, Timestamp};
use super::root::TrustedRoot;
use super::{MAX_ROOTS, METADATA, Role, TufError};
use crate::canonical::{self, Fractions};
use crate::key::PublicKey;
use crate::manifest::Manifest;
use crate::manifest::ManifestError;
use crate::verified::Verified;

/// The target that holds the public keys which may sign assignments.
pub const ASSIGNMENT_KEYS: &str = "keys/assignment.json";
/// Most assignment keys that are read: the one in use and a few of a rotation.
const MAX_ASSIGNMENT_KEYS: usize = 16;

/// What the shell is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch this file and call [`Client::supply`] with its bytes.
    Fetch {
        /// Path below the repository's address, for example `metadata/timestamp.json`.
        path: String,
        /// Stop reading after so many bytes (reading one more proves that it is too long).
        max_len: u64,
    },
    /// The refresh is over (or was not begun).
    Done,
}

/// A file that was accepted: store it durably before going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// Its role.
    pub role: Role,
    /// The name to store it under, without a version: `timestamp.json`.
    pub name: &'static str,
    /// The bytes as received.
    pub bytes: Vec<u8>,
}

/// Why a manifest was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The signed metadata does not vouch for it.
    #[error(transparent)]
    Tuf(#[from] TufError),
    /// It is genuine, and this build cannot use it.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl VerifyError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Tuf(error) => error.code(),
            Self::Manifest(error) => error.code(),
        }
    }
}

/// What is trusted now, and where a refresh stands.
#[derive(Debug, Clone)]
pub struct Client {
    root: TrustedRoot,
    pub(super) timestamp: Option<Held<Timestamp>>,
    pub(super) snapshot: Option<Held<Snapshot>>,
    pub(super) targets: Option<Held<Targets>>,
    stage: Stage,
}

/// A verified document with its bytes: they are verified again when the root changes.
#[derive(Debug, Clone)]
pub(super) struct Held<T> {
    document: Verified<T>,
    pub(super) bytes: Vec<u8>,
}

/// Where a refresh stands. `started` is the time all expiry is judged by (5.1).
#[derive(Debug, Clone, Copy)]
enum Stage {
    Idle,
    Root { started: Millis, left: u32 },
    Timestamp { started: Millis },
    Snapshot { started: Millis },
    Targets { started: Millis },
}

/// Whether a timestamp brought anything new.
enum Taken {
    New,
    Same,
}

impl Client {
    /// A client that trusts `root`, which came with the device or at its enrolment (5.2).
    ///
    /// # Errors
    /// [`TufError`] when the root is malformed or not signed by its own keys.
    pub fn new(root: &[u8]) -> Result<Self, TufError> {
        let root = TrustedRoot::open(root)?;
        Ok(Self { root, timestamp: None, snapshot: None, targets: None, stage: Stage::Idle })
    }

    /// A client with what it stored in its last life. Everything is verified again, except for expiry.
    /// Files that were signed before a root rotation are dropped, as the rotation would have done.
    ///
    /// # Errors
    /// [`TufError::Damaged`] when a stored file was changed: going on without it would let an attacker
    /// roll the repository back.
    pub fn load(
        root: &[u8],
        timestamp: Option<&[u8]>,
        snapshot: Option<&[u8]>,
        targets: Option<&[u8]>,
    ) -> Result<Self, TufError> {
        let root = TrustedRoot::open(root)
            .map_err(|e| TufError::Damaged { role: Role::Root, why: e.to_string() })?;
        Ok(Self {
            timestamp: Held::open(&root, timestamp)?,
            snapshot: Held::open(&root, snapshot)?,
            targets: Held::open(&root, targets)?,
            root,
            stage: Stage::Idle,
        })
    }

    /// Begins a refresh. `now` is what all expiry is judged by until it ends (5.1).
    pub fn begin_refresh(&mut self, now: Millis) {
        self.stage = Stage::Root { started: now, left: MAX_ROOTS };
    }

    /// What to fetch next.
    pub fn next(&self) -> Step {
        let Some((path, max_len)) = self.wanted() else { return Step::Done };
        Step::Fetch { path: format!("{METADATA}{path}"), max_len }
    }

    /// Takes the file that [`Self::next`] asked for; `None` when the repository has none (404). A
    /// transport failure is not supplied: begin again later. After an error the refresh is over.
    ///
    /// # Errors
    /// [`TufError`] saying which rule the file breaks.
    pub fn supply(&mut self, file: Option<&[u8]>) -> Result<Option<Keep>, TufError> {
        let wanted = self.wanted();
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let Some((path, max_len)) = wanted else { return Err(TufError::NotAsked) };
        let bytes = match (file, stage) {
            (Some(bytes), _) => bytes,
            // 5.3.3: no newer root.
            (None, Stage::Root { started, .. }) => return self.end_roots(started).map(|()| None),
            (None, _) => return Err(TufError::Missing { path: format!("{METADATA}{path}") }),
        };
        let length = bytes.len() as u64;
        if length > max_len {
            return Err(TufError::TooLarge { what: path, length, limit: max_len });
        }
        let role = match stage {
            Stage::Root { started, left } => self.take_root(bytes, started, left)?,
            Stage::Timestamp { started } => match self.take_timestamp(bytes, started)? {
                Taken::New => Role::Timestamp,
                Taken::Same => return Ok(None),
            },
            Stage::Snapshot { started } => self.take_snapshot(bytes, started)?,
            Stage::Targets { started } => self.take_targets(bytes, started)?,
            Stage::Idle => return Err(TufError::NotAsked),
        };
        Ok(Some(Keep { role, name: role.file(), bytes: bytes.to_vec() }))
    }

    fn wanted(&self) -> Option<(String, u64)> {
        let file = |role: Role, meta: Option<&Meta>| {
            let meta = meta?;
            let prefix = match self.root.root().consistent_snapshot {
                true => format!("{}.", meta.version),
                false => String::new(),
            };
            let limit = meta.length.map_or(role.max_len(), |length| length.min(role.max_len()));
            Some((format!("{prefix}{}", role.file()), limit))
        };
        match self.stage {
            Stage::Idle => None,
            Stage::Root { .. } => {
                let version = self.root.root().version.saturating_add(1);
                Some((format!("{version}.root.json"), Role::Root.max_len()))
            }
            Stage::Timestamp { .. } => Some((Role::Timestamp.file().to_owned(), Role::Timestamp.max_len())),
            Stage::Snapshot { .. } => file(Role::Snapshot, self.snapshot_meta()),
            Stage::Targets { .. } => file(Role::Targets, self.targets_meta()),
        }
    }

    /// 5.3: one link of the root chain.
    fn take_root(&mut self, bytes: &[u8], started: Millis, left: u32) -> Result<Role, TufError> {
        let next = self.root.succeed(bytes)?;
        let rotated = [Role::Timestamp, Role::Snapshot]
            .into_iter()
            .any(|role| !self.root.keys(role).is_subset(&next.keys(role)));
        // 5.3.11: recovery from a fast-forward attack. Done with each root and not at the chain's end, so
        // that a refresh that breaks off in between recovers as well.
        if rotated {
            self.timestamp = None;
            self.snapshot = None;
        }
        // What the new root's keys do not vouch for is no longer trusted.
        self.timestamp = self.timestamp.take().and_then(|held| held.again(&next));
        self.snapshot = self.snapshot.take().and_then(|held| held.again(&next));
        self.targets = self.targets.take().and_then(|held| held.again(&next));
        self.root = next;
        self.stage = match left.saturating_sub(1) {
            0 => Stage::Timestamp { started },
            left => Stage::Root { started, left },
        };
        Ok(Role::Root)
    }

    /// 5.3.10: only the last root of the chain must not have expired.
    fn end_roots(&mut self, started: Millis) -> Result<(), TufError> {
        fresh(self.root.root(), started)?;
        self.stage = Stage::Timestamp { started };
        Ok(())
    }

    /// 5.4.
    fn take_timestamp(&mut self, bytes: &[u8], started: Millis) -> Result<Taken, TufError> {
        // Again, for a chain that was cut off at its limit.
        fresh(self.root.root(), started)?;
        let new = Held::<Timestamp>::new(&self.root, bytes)?;
        if let Some(old) = &self.timestamp {
            let what = "timestamp metadata".to_owned();
            let (trusted, offered) = (old.document.version, new.document.version);
            // 5.4.3.1: an older one is refused, the same one discarded.
            if offered < trusted {
                return Err(TufError::Rollback { what, trusted, offered });
            }
            if offered == trusted {
                fresh(&*old.document, started)?;
                self.after_timestamp(started);
                return Ok(Taken::Same);
            }
            // 5.4.3.2: nor may the snapshot it names be older.
            let version = |held: &Held<Timestamp>| held.document.snapshot().map_or(0, |meta| meta.version);
            let (trusted, offered) = (version(old), version(&new));
            if offered < trusted {
                let what = "snapshot metadata (as the timestamp names it)".to_owned();
                return Err(TufError::Rollback { what, trusted, offered });
            }
        }
        // 5.4.4: freeze attack.
        fresh(&*new.document, started)?;
        self.timestamp = Some(new);
        self.after_timestamp(started);
        Ok(Taken::New)
    }

    /// Skips what is held already. An expired file is asked for again, and refused when it comes.
    fn after_timestamp(&mut self, started: Millis) {
        match &self.snapshot {
            Some(held) if held.is_current(self.snapshot_meta(), started) => self.after_snapshot(started),
            _ => self.stage = Stage::Snapshot { started },
        }
    }

    /// 5.5.
    fn take_snapshot(&mut self, bytes: &[u8], started: Millis) -> Result<Role, TufError> {
        // 5.5.2: digest and length as the timestamp has them, before anything is parsed.
        let announced = self.snapshot_meta().ok_or(TufError::Incomplete)?;
        announced.verify("snapshot metadata", bytes)?;
        let new = Held::<Snapshot>::new(&self.root, bytes)?;
        // 5.5.4: the version that the timestamp names.
        announced_version("snapshot metadata", announced.version, new.document.version)?;
        // 5.5.5: no file that the trusted snapshot names is gone or older.
        for (name, old) in self.snapshot.iter().flat_map(|held| &held.document.meta) {
            let offered = new.document.meta.get(name).map_or(0, |meta| meta.version);
            if offered < old.version {
                let what = format!("{name:.80} (as the snapshot names it)");
                return Err(TufError::Rollback { what, trusted: old.version, offered });
            }
        }
        // 5.5.6: freeze attack.
        fresh(&*new.document, started)?;
        self.snapshot = Some(new);
        self.after_snapshot(started);
        Ok(Role::Snapshot)
    }

    fn after_snapshot(&mut self, started: Millis) {
        self.stage = match &self.targets {
            Some(held) if held.is_current(self.targets_meta(), started) => Stage::Idle,
            _ => Stage::Targets { started },
        };
    }

    /// 5.6.
    fn take_targets(&mut self, bytes: &[u8], started: Millis) -> Result<Role, TufError> {
        let announced = self.targets_meta().ok_or(TufError::Incomplete)?;
        announced.verify("targets metadata", bytes)?;
        let new = Held::<Targets>::new(&self.root, bytes)?;
        announced_version("targets metadata", announced.version, new.document.version)?;
        fresh(&*new.document, started)?;
        self.targets = Some(new);
        Ok(Role::Targets)
    }

    fn snapshot_meta(&self) -> Option<&Meta> {
        self.timestamp.as_ref()?.document.snapshot()
    }

    fn targets_meta(&self) -> Option<&Meta> {
        self.snapshot.as_ref()?.document.targets()
    }

    /// The root that is trusted now.
    pub fn root(&self) -> &TrustedRoot {
        &self.root
    }

    /// The targets metadata, once the chain down to it is complete and consistent.
    ///
    /// # Errors
    /// [`TufError::Incomplete`] before the first full refresh, and after one that broke off half-way.
    pub fn targets(&self) -> Result<&Verified<Targets>, TufError> {
        let snapshot = self.snapshot.as_ref().filter(|held| held.is(self.snapshot_meta()));
        let targets = self.targets.as_ref().filter(|held| held.is(self.targets_meta()));
        match (snapshot, targets) {
            (Some(_), Some(targets)) => Ok(&targets.document),
            _ => Err(TufError::Incomplete),
        }
    }

    /// Whether all that is trusted is complete and has not expired at `now`. New releases are installed
    /// only then; running ones run on.
    ///
    /// # Errors
    /// [`TufError::Incomplete`] or [`TufError::Expired`].
    pub fn check_fresh(&self, now: Millis) -> Result<(), TufError> {
        let targets = self.targets()?;
        fresh(self.root.root(), now)?;
        self.timestamp.iter().try_for_each(|held| fresh(&*held.document, now))?;
        self.snapshot.iter().try_for_each(|held| fresh(&*held.document, now))?;
        fresh(&**targets, now)
    }

    /// The signed target of this name.
    pub fn target(&self, path: &str) -> Option<&Target> {
        self.targets().ok()?.targets.get(path)
    }

    /// The file of a target: path below the repository's `targets/`, with the digest in its name
    /// (`a/b.json` is `a/‹digest›.b.json`).
    pub fn target_file(&self, path: &str) -> Option<String> {
        let target = self.target(path)?;
        if !self.root.root().consistent_snapshot {
            return Some(path.to_owned());
        }
        let hash = target.hashes.file_name()?;
        Some(match path.rsplit_once('/') {
            Some((folder, name)) => format!("{folder}/{hash}.{name}"),
            None => format!("{hash}.{path}"),
        })
    }

    /// The oldest version of `model` that an assignment may name.
    pub fn floor(&self, model: &ModelName) -> Option<&semver::Version> {
        self.targets().ok()?.floor.get(model)
    }

    /// Whether `release` is a signed target and not below its model's floor.
    ///
    /// # Errors
    /// [`TufError::Incomplete`], [`TufError::UnknownTarget`] or [`TufError::BelowFloor`].
    pub fn permits(&self, release: &ReleaseId) -> Result<&Target, TufError> {
        self.targets()?.permits(release)
    }

    /// Verifies the bytes of a release's manifest: permitted, and the signed ones; then reads and checks it.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_manifest(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<Manifest>, VerifyError> {
        self.permits(release)?;
        self.targets()?.verify_manifest(release, bytes)
    }

    /// Verifies the bytes of [`ASSIGNMENT_KEYS`] and reads the keys which may sign assignments. Keys of
    /// unknown kinds are skipped.
    ///
    /// # Errors
    /// [`TufError`] when the bytes are not the signed ones or hold no usable key.
    pub fn assignment_keys(&self, bytes: &[u8]) -> Result<Vec<PublicKey>, TufError> {
        let refuse =
            |why: &str| TufError::Malformed { what: ASSIGNMENT_KEYS.to_owned(), why: why.to_owned() };
        let target = self.targets()?.targets.get(ASSIGNMENT_KEYS);
        let target = target.ok_or_else(|| TufError::UnknownTarget { path: ASSIGNMENT_KEYS.to_owned() })?;
        target.verify(ASSIGNMENT_KEYS, bytes)?;
        let document = canonical::parse(bytes, Fractions::Refuse).map_err(|e| refuse(&e.to_string()))?;
        let objects =
            document.get("keys").and_then(Value::as_array).ok_or_else(|| refuse("no list `keys`"))?;
        let keys: Vec<_> = objects
            .iter()
            .take(MAX_ASSIGNMENT_KEYS)
            .filter_map(|object| PublicKey::from_object(object).ok())
            .collect();
        if keys.is_empty() { Err(refuse("no usable key")) } else { Ok(keys) }
    }
}

impl Targets {
    /// Whether `release` is a target and not below its model's floor.
    ///
    /// # Errors
    /// [`TufError::UnknownTarget`] or [`TufError::BelowFloor`].
    pub fn permits(&self, release: &ReleaseId) -> Result<&Target, TufError> {
        if let Some(floor) = self.floor.get(&release.model)
            && release.version < *floor
        {
            return Err(TufError::BelowFloor { release: release.clone(), floor: floor.clone() });
        }
        let path = release.target_path();
        self.targets.get(&path).ok_or(TufError::UnknownTarget { path })
    }
}

impl Verified<Targets> {
    /// Verifies the bytes of a release's manifest against its target, then reads and checks it. The
    /// floor is not looked at: it limits what is assigned, not what is genuine.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_manifest(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<Manifest>, VerifyError> {
        let path = release.target_path();
        match self.targets.get(&path) {
            Some(target) => target.verify(&path, bytes)?,
            None => return Err(TufError::UnknownTarget { path }.into()),
        }
        let manifest = Manifest::parse_checked(bytes)?;
        if manifest.release != *release {
            let rule = format!("must be {release}, the release it is signed as");
            return Err(ManifestError::Invalid { field: "release".to_owned(), rule }.into());
        }
        Ok(Verified::new(manifest, bytes))
    }
}

impl<T: Document> Held<T> {
    fn new(root: &TrustedRoot, bytes: &[u8]) -> Result<Self, TufError> {
        Ok(Self { document: root.verify(bytes)?, bytes: bytes.to_vec() })
    }

    fn open(root: &TrustedRoot, bytes: Option<&[u8]>) -> Result<Option<Self>, TufError> {
        let Some(bytes) = bytes else { return Ok(None) };
        let document = root.verify_stored(bytes)?;
        Ok(document.map(|document| Self { document, bytes: bytes.to_vec() }))
    }

    fn again(self, root: &TrustedRoot) -> Option<Self> {
        Self::new(root, &self.bytes).ok()
    }

    /// Whether this is the file that `meta` describes.
    fn is(&self, meta: Option<&Meta>) -> bool {
        meta.is_some_and(|meta| {
            meta.version == self.document.version() && meta.verify(T::ROLE.file(), &self.bytes).is_ok()
        })
    }

    fn is_current(&self, meta: Option<&Meta>, now: Millis) -> bool {
        self.is(meta) && fresh(&*self.document, now).is_ok()
    }
}

fn fresh<T: Document>(document: &T, now: Millis) -> Result<(), TufError> {
    let expires = document.expires();
    if now < expires { Ok(()) } else { Err(TufError::Expired { role: T::ROLE, expires, now }) }
}

fn announced_version(what: &str, expected: u64, found: u64) -> Result<(), TufError> {
    if found == expected {
        Ok(())
    } else {
        Err(TufError::MixAndMatch { what: what.to_owned(), expected, found })
    }
}
