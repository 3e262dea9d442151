//! The client workflow of TUF 1.0.34, section 5, as a machine: `next` says what to fetch, `supply`
//! takes what came and says what to store. A refused file changes nothing that was trusted.

use std::collections::BTreeMap;

use farlight_wire::Millis;

use super::held::{Held, announced, fresh};
use super::lookup::{Lookup, Roles};
use super::metadata::{Meta, Snapshot, Targets, Timestamp};
use super::root::TrustedRoot;
use super::time::trusted_time;
use super::{MAX_ROOTS, METADATA, Role, TufError};
use crate::verified::Verified;

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
    /// The refresh or lookup is over (or was not begun).
    Done,
}

/// A file that was accepted: store it durably before going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The name to store it under, without a version: `timestamp.json`. Odd characters of a delegated
    /// role's name are percent-encoded.
    pub name: String,
    /// The bytes as received.
    pub bytes: Vec<u8>,
    /// Stored files that are no longer trusted. Delete them together with storing this one, or after it:
    /// before it, a power cut would forget them while the old root still counts.
    pub forget: Vec<String>,
}

/// What is trusted now, and where a refresh or lookup stands.
#[derive(Debug, Clone)]
pub struct Client {
    root: TrustedRoot,
    pub(super) timestamp: Option<Held<Timestamp>>,
    pub(super) snapshot: Option<Held<Snapshot>>,
    pub(super) targets: Option<Held<Targets>>,
    pub(super) roles: Roles,
    pub(super) stage: Stage,
}

/// Where a refresh or lookup stands. `started` is what the clock said when it began (5.1).
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Idle,
    Root { started: Millis, left: u32 },
    Timestamp { started: Millis },
    Snapshot { started: Millis },
    Targets { started: Millis },
    Lookup(Lookup),
}

/// A file that is wanted: name below `metadata/`, and limit in bytes.
pub(super) type Wanted = (String, u64);

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
        Ok(Self {
            root: TrustedRoot::open(root)?,
            timestamp: None,
            snapshot: None,
            targets: None,
            roles: Roles::default(),
            stage: Stage::Idle,
        })
    }

    /// A client with the files that it asked to [`Keep`] in its last life, by name. Top-level ones are
    /// verified again, except for expiry; delegated ones when a lookup needs them. Files that were signed
    /// before a root rotation are dropped, as the rotation would have done.
    ///
    /// # Errors
    /// [`TufError::Damaged`] when a stored file was changed: going on without it would let an attacker
    /// roll the repository back.
    pub fn load(stored: &BTreeMap<String, Vec<u8>>) -> Result<Self, TufError> {
        let file = |role: Role| stored.get(role.file());
        let root = file(Role::Root).map_or(&[][..], Vec::as_slice);
        let root = TrustedRoot::open(root)
            .map_err(|e| TufError::Damaged { what: "root metadata".to_owned(), why: e.to_string() })?;
        let timestamp = Held::open(&root, file(Role::Timestamp))?;
        let snapshot = Held::open(&root, file(Role::Snapshot))?;
        // 5.3.11: a power cut between storing the root and deleting these is made good.
        let foreign = (file(Role::Timestamp).is_some() && timestamp.is_none())
            || (file(Role::Snapshot).is_some() && snapshot.is_none());
        Ok(Self {
            timestamp: timestamp.filter(|_| !foreign),
            snapshot: snapshot.filter(|_| !foreign),
            targets: Held::open(&root, file(Role::Targets))?,
            roles: Roles::load(stored),
            root,
            stage: Stage::Idle,
        })
    }

    /// Begins a refresh. `clock` is what all expiry is judged by until it ends (5.1), unless the
    /// repository proves that it is later ([`trusted_time`]).
    pub fn begin_refresh(&mut self, clock: Millis) {
        self.stage = Stage::Root { started: clock, left: MAX_ROOTS };
    }

    /// What to fetch next.
    pub fn next(&self) -> Step {
        match self.wanted() {
            Some((name, max_len)) => Step::Fetch { path: format!("{METADATA}{name}"), max_len },
            None => Step::Done,
        }
    }

    /// Takes the file that [`Self::next`] asked for; `None` when the repository has none (404). A
    /// transport failure is not supplied: begin again later. After an error the refresh or lookup is over.
    ///
    /// # Errors
    /// [`TufError`] saying which rule the file breaks.
    pub fn supply(&mut self, file: Option<&[u8]>) -> Result<Option<Keep>, TufError> {
        let wanted = self.wanted();
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let Some((name, max_len)) = wanted else { return Err(TufError::NotAsked) };
        let bytes = match (file, &stage) {
            (Some(bytes), _) => bytes,
            // 5.3.3: no newer root.
            (None, Stage::Root { started, .. }) => return self.end_roots(*started).map(|()| None),
            (None, _) => return Err(TufError::Missing { path: format!("{METADATA}{name}") }),
        };
        let length = bytes.len() as u64;
        if length > max_len {
            return Err(TufError::TooLarge { what: name, length, limit: max_len });
        }
        let (role, forget) = match stage {
            Stage::Root { started, left } => (Role::Root, self.take_root(bytes, started, left)?),
            Stage::Timestamp { started } => match self.take_timestamp(bytes, started)? {
                Taken::New => (Role::Timestamp, Vec::new()),
                Taken::Same => return Ok(None),
            },
            Stage::Snapshot { started } => (Role::Snapshot, self.take_snapshot(bytes, started)?),
            Stage::Targets { started } => {
                self.take_targets(bytes, started)?;
                (Role::Targets, Vec::new())
            }
            Stage::Lookup(lookup) => return self.take_role(lookup, bytes).map(Some),
            Stage::Idle => return Err(TufError::NotAsked),
        };
        Ok(Some(Keep { name: role.file().to_owned(), bytes: bytes.to_vec(), forget }))
    }

    fn wanted(&self) -> Option<Wanted> {
        let file = |role: Role, meta: Option<&Meta>| Some(self.file_of(role.name(), role.max_len(), meta?));
        match &self.stage {
            Stage::Idle => None,
            Stage::Root { .. } => {
                let version = self.root.root().version.saturating_add(1);
                Some((format!("{version}.root.json"), Role::Root.max_len()))
            }
            Stage::Timestamp { .. } => Some((Role::Timestamp.file().to_owned(), Role::Timestamp.max_len())),
            Stage::Snapshot { .. } => file(Role::Snapshot, self.snapshot_meta()),
            Stage::Targets { .. } => file(Role::Targets, self.targets_meta()),
            Stage::Lookup(lookup) => self.wanted_role(lookup),
        }
    }

    /// The file of a role that `meta` describes; `name` is encoded already.
    pub(super) fn file_of(&self, name: &str, max_len: u64, meta: &Meta) -> Wanted {
        let file = match self.root.root().consistent_snapshot {
            true => format!("{}.{name}.json", meta.version),
            false => format!("{name}.json"),
        };
        (file, meta.length.map_or(max_len, |length| length.min(max_len)))
    }

    /// 5.3: one link of the root chain. What is no longer trusted for it.
    fn take_root(&mut self, bytes: &[u8], started: Millis, left: u32) -> Result<Vec<String>, TufError> {
        let next = self.root.succeed(bytes)?;
        let before = self.names();
        // 5.3.11: recovery from a fast-forward attack. Done with each root and not at the chain's end, so
        // that a refresh that breaks off in between recovers as well.
        if [Role::Timestamp, Role::Snapshot].into_iter().any(|role| next.rotates(role, &self.root)) {
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
        let after = self.names();
        Ok(before.into_iter().filter(|name| !after.contains(name)).map(str::to_owned).collect())
    }

    fn names(&self) -> Vec<&'static str> {
        [
            self.timestamp.as_ref().map(|_| Role::Timestamp.file()),
            self.snapshot.as_ref().map(|_| Role::Snapshot.file()),
            self.targets.as_ref().map(|_| Role::Targets.file()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// 5.3.10: only the last root of the chain must not have expired.
    fn end_roots(&mut self, started: Millis) -> Result<(), TufError> {
        // By the clock alone: what the trusted timestamp proves is asked when it or a newer one comes.
        fresh(self.root.root(), started)?;
        self.stage = Stage::Timestamp { started };
        Ok(())
    }

    /// 5.4.
    fn take_timestamp(&mut self, bytes: &[u8], started: Millis) -> Result<Taken, TufError> {
        let new = Held::<Timestamp>::new(&self.root, bytes)?;
        if let Some(old) = &self.timestamp {
            let what = "timestamp metadata".to_owned();
            let (trusted, offered) = (old.document.version, new.document.version);
            // 5.4.3.1: an older one is refused, the same one discarded.
            if offered < trusted {
                return Err(TufError::Rollback { what, role: Role::Timestamp, trusted, offered });
            }
            if offered == trusted {
                let now = self.trusted_now(started);
                fresh(self.root.root(), now)?;
                fresh(&*old.document, now)?;
                self.after_timestamp(started);
                return Ok(Taken::Same);
            }
            // 5.4.3.2: nor may the snapshot it names be older.
            let version = |held: &Held<Timestamp>| held.document.snapshot().map_or(0, |meta| meta.version);
            let (trusted, offered) = (version(old), version(&new));
            if offered < trusted {
                let what = "snapshot metadata (as the timestamp names it)".to_owned();
                return Err(TufError::Rollback { what, role: Role::Snapshot, trusted, offered });
            }
        }
        // 5.4.4: freeze attack. The root again, for a chain that was cut off at its limit and for a clock
        // that the timestamp proves wrong.
        let now = trusted_time(started, new.document.issued);
        fresh(self.root.root(), now)?;
        fresh(&*new.document, now)?;
        self.timestamp = Some(new);
        self.after_timestamp(started);
        Ok(Taken::New)
    }

    /// Skips what is held already. An expired file is asked for again, and refused when it comes.
    fn after_timestamp(&mut self, started: Millis) {
        match &self.snapshot {
            Some(held) if held.is_current(self.snapshot_meta(), self.trusted_now(started)) => {
                self.after_snapshot(started);
            }
            _ => self.stage = Stage::Snapshot { started },
        }
    }

    /// 5.5. What is no longer listed.
    fn take_snapshot(&mut self, bytes: &[u8], started: Millis) -> Result<Vec<String>, TufError> {
        // 5.5.2: digest and length as the timestamp has them, before anything is parsed.
        let meta = self.snapshot_meta().ok_or(TufError::Incomplete)?;
        Held::<Snapshot>::is_announced(&self.root, meta, bytes)?;
        let new = Held::<Snapshot>::new(&self.root, bytes)?;
        // 5.5.4: the version that the timestamp names.
        announced("snapshot metadata", meta.version, new.document.version)?;
        // 5.5.5: no file that the trusted snapshot names is gone or older.
        for (name, old) in self.snapshot.iter().flat_map(|held| &held.document.meta) {
            let offered = new.document.meta.get(name).map_or(0, |meta| meta.version);
            if offered < old.version {
                let what = format!("{name:.80} (as the snapshot names it)");
                let (role, trusted) = (Role::Targets, old.version);
                return Err(TufError::Rollback { what, role, trusted, offered });
            }
        }
        // 5.5.6: freeze attack.
        fresh(&*new.document, self.trusted_now(started))?;
        let forget = self.roles.keep_listed(&new.document);
        self.snapshot = Some(new);
        self.after_snapshot(started);
        Ok(forget)
    }

    fn after_snapshot(&mut self, started: Millis) {
        self.stage = match &self.targets {
            Some(held) if held.is_current(self.targets_meta(), self.trusted_now(started)) => Stage::Idle,
            _ => Stage::Targets { started },
        };
    }

    /// 5.6, but for its last step, which is a lookup.
    fn take_targets(&mut self, bytes: &[u8], started: Millis) -> Result<(), TufError> {
        let meta = self.targets_meta().ok_or(TufError::Incomplete)?;
        Held::<Targets>::is_announced(&self.root, meta, bytes)?;
        let new = Held::<Targets>::new(&self.root, bytes)?;
        announced("targets metadata", meta.version, new.document.version)?;
        fresh(&*new.document, self.trusted_now(started))?;
        self.targets = Some(new);
        Ok(())
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

    /// The later of the clock and the newest time that the repository signed. See [`trusted_time`].
    pub fn trusted_now(&self, clock: Millis) -> Millis {
        trusted_time(clock, self.timestamp.as_ref().and_then(|held| held.document.issued))
    }

    /// The snapshot and top-level targets, once the chain down to them is complete and consistent.
    pub(super) fn chain(&self) -> Result<(&Verified<Snapshot>, &Verified<Targets>), TufError> {
        let snapshot = self.snapshot.as_ref().filter(|held| held.is(self.snapshot_meta()));
        let targets = self.targets.as_ref().filter(|held| held.is(self.targets_meta()));
        match (snapshot, targets) {
            (Some(snapshot), Some(targets)) => Ok((&snapshot.document, &targets.document)),
            _ => Err(TufError::Incomplete),
        }
    }

    /// The top-level targets metadata, once the chain down to it is complete and consistent.
    ///
    /// # Errors
    /// [`TufError::Incomplete`] before the first full refresh, and after one that broke off half-way.
    pub fn targets(&self) -> Result<&Verified<Targets>, TufError> {
        self.chain().map(|(_, targets)| targets)
    }

    /// Whether all that is trusted is complete and has not expired. New releases are installed only then;
    /// running ones run on. The clock counts unless the repository proved that it is later.
    ///
    /// # Errors
    /// [`TufError::Incomplete`] or [`TufError::Expired`].
    pub fn check_fresh(&self, clock: Millis) -> Result<(), TufError> {
        let (snapshot, targets) = self.chain()?;
        let now = self.trusted_now(clock);
        fresh(self.root.root(), now)?;
        self.timestamp.iter().try_for_each(|held| fresh(&*held.document, now))?;
        fresh(&**snapshot, now)?;
        fresh(&**targets, now)
    }

    /// When the timestamp that is trusted expires: how long an offline copy of this state is taken.
    pub fn timestamp_expires(&self) -> Option<Millis> {
        self.timestamp.as_ref().map(|held| held.document.expires)
    }
}
