//! The last step of TUF 5.6: the pre-order depth-first search for the role that speaks for a target. Only
//! the roles on the way are fetched. One that cannot be had or verified ends the search, for the roles
//! behind it are trusted less; targets that it may not speak for are not concerned.

use std::collections::{BTreeMap, BTreeSet};

use farlight_wire::Millis;

use super::client::{Client, Keep, Stage, Wanted};
use super::delegation::{DelegatedRole, decode_name, encode_name, role_metadata};
use super::held::{announced, fresh_as, is};
use super::metadata::{Document, Meta, Snapshot, Target, Targets};
use super::{MAX_DELEGATED, MAX_DELEGATIONS, MAX_ROLES_HELD, Role, TufError};
use crate::verified::Verified;

/// A lookup that is under way.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    path: String,
    started: Millis,
    /// How many files may still be fetched.
    left: usize,
}

/// Metadata of delegated roles.
#[derive(Debug, Clone, Default)]
pub(super) struct Roles {
    /// Files as received, by role. Those from the store prove nothing yet.
    files: BTreeMap<String, Vec<u8>>,
    /// What was verified, by role and by the digest of the document that delegates to it: being genuine
    /// for one delegator says nothing about another.
    verified: BTreeMap<(String, String), Verified<Targets>>,
}

/// Where a search ends.
enum Found<'a> {
    /// At the target and the role that speaks for it.
    Target(&'a Target, &'a Verified<Targets>),
    /// Nobody who may speak for it names it.
    Nothing,
    /// At a role whose metadata is not there.
    Needs { role: &'a DelegatedRole, delegator: &'a Verified<Targets>, meta: &'a Meta },
}

impl Client {
    /// Begins to look up the target `path`: fetches the delegated roles that may speak for it, as
    /// [`Client::next`] and [`Client::supply`] go on. Then ask [`Client::target`]. `clock` as for
    /// [`Client::begin_refresh`].
    pub fn begin_lookup(&mut self, path: &str, clock: Millis) {
        self.stage = Stage::Idle;
        self.look_on(Lookup { path: path.to_owned(), started: clock, left: MAX_DELEGATIONS });
    }

    /// Goes on with what is stored, as far as it reaches.
    fn look_on(&mut self, lookup: Lookup) {
        let now = self.trusted_now(lookup.started);
        while let Ok(Found::Needs { role, .. }) = self.search(&lookup.path, Some(now)) {
            let stored = self.roles.files.get(&role.name).cloned();
            // What was stored before is taken if it still holds, and else fetched anew.
            if stored.is_none_or(|bytes| self.admit(&lookup, &bytes).is_err()) {
                self.stage = Stage::Lookup(lookup);
                return;
            }
        }
    }

    pub(super) fn wanted_role(&self, lookup: &Lookup) -> Option<Wanted> {
        let now = self.trusted_now(lookup.started);
        match self.search(&lookup.path, Some(now)) {
            Ok(Found::Needs { role, meta, .. }) => {
                Some(self.file_of(&encode_name(&role.name), MAX_DELEGATED, meta))
            }
            _ => None,
        }
    }

    /// Takes the metadata of the role that the search needs.
    pub(super) fn take_role(&mut self, mut lookup: Lookup, bytes: &[u8]) -> Result<Keep, TufError> {
        let (name, forget) = self.admit(&lookup, bytes)?;
        lookup.left = lookup.left.saturating_sub(1);
        if lookup.left > 0 {
            self.look_on(lookup);
        }
        Ok(Keep { name: file_name(&name), bytes: bytes.to_vec(), forget })
    }

    /// Verifies metadata of the role that the search needs and holds it: as 5.6.2 to 5.6.5 ask of the
    /// top-level targets, with the delegating role in place of the root.
    fn admit(&mut self, lookup: &Lookup, bytes: &[u8]) -> Result<(String, Vec<String>), TufError> {
        let now = self.trusted_now(lookup.started);
        let Found::Needs { role, delegator, meta } = self.search(&lookup.path, Some(now))? else {
            return Err(TufError::NotAsked);
        };
        let what = role_metadata(&role.name);
        meta.verify(&what, bytes)?;
        let document = delegator.verify_role(&role.name, bytes)?;
        announced(&what, meta.version, document.version)?;
        fresh_as(&what, &*document, now)?;
        let (name, by) = (role.name.clone(), delegator.sha256().to_owned());
        let forget = self.roles.hold(&name, by, bytes, document);
        Ok((name, forget))
    }

    /// 5.6.7. With `now`, a role that has expired is one that is needed anew.
    fn search(&self, path: &str, now: Option<Millis>) -> Result<Found<'_>, TufError> {
        let (snapshot, targets) = self.chain()?;
        let mut visited = BTreeSet::new();
        let mut at = targets;
        let mut waiting: Vec<(&DelegatedRole, &Verified<Targets>)> = Vec::new();
        loop {
            if let Some(target) = at.targets.get(path) {
                return Ok(Found::Target(target, at));
            }
            if let Some(delegations) = &at.delegations {
                let (roles, terminated) = delegations.of(path);
                // 5.6.7.2.1: nobody behind a terminating delegation is asked.
                if terminated {
                    waiting.clear();
                }
                // The last one waiting comes first.
                waiting.extend(roles.into_iter().rev().map(|role| (role, at)));
            }
            // 5.6.7.1: a role is visited once, and not too many are.
            let next = loop {
                match waiting.pop() {
                    None => return Ok(Found::Nothing),
                    Some((role, by)) if visited.insert(role.name.as_str()) => break (role, by),
                    Some(_) => {}
                }
            };
            if visited.len() > MAX_DELEGATIONS {
                return Err(TufError::TooManyDelegations { path: path.to_owned(), limit: MAX_DELEGATIONS });
            }
            let (role, delegator) = next;
            let meta = snapshot.role(&role.name);
            let meta = meta.ok_or_else(|| TufError::Unlisted { role: role.name.clone() })?;
            match self.roles.get(role, delegator, meta, now) {
                Some(document) => at = document,
                None => return Ok(Found::Needs { role, delegator, meta }),
            }
        }
    }

    /// The target and the role that speaks for it, as far as it was looked up.
    pub(crate) fn found(&self, path: &str) -> Result<(&Target, &Verified<Targets>), TufError> {
        match self.search(path, None)? {
            Found::Target(target, role) => Ok((target, role)),
            Found::Nothing => Err(TufError::UnknownTarget { path: path.to_owned() }),
            Found::Needs { .. } => Err(TufError::Incomplete),
        }
    }

    /// The metadata of a role that the top-level targets delegate to, if a lookup brought it and it still is
    /// the one that the snapshot lists.
    pub fn role(&self, name: &str) -> Option<&Verified<Targets>> {
        let (snapshot, targets) = self.chain().ok()?;
        let role = targets.delegations.as_ref()?.roles.iter().find(|role| role.name == name)?;
        self.roles.get(role, targets, snapshot.role(name)?, None)
    }

    /// The version that the snapshot lists of a delegated role's metadata, also when the role was revoked.
    pub fn listed(&self, name: &str) -> Option<u64> {
        self.chain().ok()?.0.role(name).map(|meta| meta.version)
    }

    /// The signed target of this name. Looking it up comes first, unless the top-level role names it.
    ///
    /// # Errors
    /// [`TufError::UnknownTarget`], [`TufError::Incomplete`] when it was not looked up since the last
    /// refresh, or why the search for it ends.
    pub fn target(&self, path: &str) -> Result<&Target, TufError> {
        self.found(path).map(|(target, _)| target)
    }

    /// The file of a target: path below the repository's `targets/`, with the digest in its name where
    /// the root says so (`a/b.json` is `a/‹digest›.b.json`).
    ///
    /// # Errors
    /// As [`Client::target`], and [`TufError::HashMismatch`] when no digest is one that is known here.
    pub fn target_file(&self, path: &str) -> Result<String, TufError> {
        let target = self.target(path)?;
        if !self.root().root().consistent_snapshot {
            return Ok(path.to_owned());
        }
        let why = "no digest by SHA-256 or SHA-512 is signed".to_owned();
        let hash = target.hashes.file_name();
        let hash = hash.ok_or_else(|| TufError::HashMismatch { what: path.to_owned(), why })?;
        Ok(match path.rsplit_once('/') {
            Some((folder, name)) => format!("{folder}/{hash}.{name}"),
            None => format!("{hash}.{path}"),
        })
    }
}

impl Roles {
    /// Stored files of delegated roles, not verified yet.
    pub(super) fn load(stored: &BTreeMap<String, Vec<u8>>) -> Self {
        let files = stored
            .iter()
            .filter(|(name, bytes)| is_role(name) && bytes.len() as u64 <= MAX_DELEGATED)
            .filter_map(|(name, bytes)| Some((decode_name(name.strip_suffix(".json")?)?, bytes.clone())))
            .collect();
        Self { files, verified: BTreeMap::new() }
    }

    /// The metadata of a role as `delegator` and `meta` want it, if it is here.
    fn get(
        &self,
        role: &DelegatedRole,
        delegator: &Verified<Targets>,
        meta: &Meta,
        now: Option<Millis>,
    ) -> Option<&Verified<Targets>> {
        let document = self.verified.get(&(role.name.clone(), delegator.sha256().to_owned()))?;
        let current = is(&**document, self.files.get(&role.name)?, meta)
            && now.is_none_or(|now| now < document.expires());
        current.then_some(document)
    }

    /// Holds verified metadata. The names of files that had to go for it.
    fn hold(&mut self, name: &str, by: String, bytes: &[u8], document: Verified<Targets>) -> Vec<String> {
        if self.files.get(name).is_none_or(|old| old != bytes) {
            self.verified.retain(|(role, _), _| role != name);
            self.files.insert(name.to_owned(), bytes.to_vec());
        }
        self.verified.insert((name.to_owned(), by), document);
        let held: usize = self.files.values().map(Vec::len).sum();
        if held <= MAX_ROLES_HELD {
            return Vec::new();
        }
        // They can be fetched again.
        self.drop_files(|role, _| role != name)
    }

    /// Drops what a new snapshot does not list in this form. The names of the files.
    pub(super) fn keep_listed(&mut self, snapshot: &Snapshot) -> Vec<String> {
        let dropped = |role: &str, bytes: &[u8]| {
            snapshot.role(role).is_none_or(|meta| meta.verify(role, bytes).is_err())
        };
        self.drop_files(dropped)
    }

    fn drop_files(&mut self, dropped: impl Fn(&str, &[u8]) -> bool) -> Vec<String> {
        let gone: Vec<String> = self
            .files
            .iter()
            .filter(|(role, bytes)| dropped(role, bytes))
            .map(|(role, _)| role.clone())
            .collect();
        for role in &gone {
            self.files.remove(role);
            self.verified.retain(|(name, _), _| name != role);
        }
        gone.iter().map(|role| file_name(role)).collect()
    }
}

fn file_name(role: &str) -> String {
    format!("{}.json", encode_name(role))
}

fn is_role(file: &str) -> bool {
    Role::ALL.iter().all(|role| role.file() != file)
}
