//! A change of the repository: metadata that was signed offline, checked against what is published now. It
//! is accepted as a whole or not at all; nothing here writes.

use std::collections::BTreeMap;

use farlight_release::Verified;
use farlight_release::tuf::{ASSIGNMENT_KEYS, Document as _, Role, Target, Targets, TrustedRoot, TufError};
use farlight_wire::Millis;

use super::RegistryError;
use super::document::{self, Document};
use super::repository::{Current, RoleFile};

/// Signed documents that are to replace what is published. What is left out stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The next root.
    pub root: Option<Vec<u8>>,
    /// The next top-level targets.
    pub targets: Option<Vec<u8>>,
    /// The next metadata of delegated roles, by name.
    pub roles: BTreeMap<String, Vec<u8>>,
    /// The document of the one release that is added.
    pub release: Option<Vec<u8>>,
}

/// A change that was accepted: all that is published next.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) root: TrustedRoot,
    pub(super) targets: Verified<Targets>,
    pub(super) targets_bytes: Vec<u8>,
    pub(super) roles: BTreeMap<String, RoleFile>,
    pub(super) added: Option<Document>,
    /// Whether anything differs from what is published.
    pub(super) differs: bool,
}

impl Change {
    /// Checks the change against what is published. `next` is the content that the target of the assignment
    /// keys may change to.
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold.
    pub(super) fn check(
        &self,
        current: &Current,
        next: Option<&[u8]>,
        now: Millis,
    ) -> Result<Accepted, RegistryError> {
        let root = self.next_root(current, now)?;
        let (targets, targets_bytes) = self.next_targets(current, &root, now)?;
        let roles = self.next_roles(current, &targets, now)?;
        let added = match &self.release {
            Some(bytes) => Some(added(&targets, &roles, bytes)?),
            None => None,
        };
        let differs = root.bytes() != current.root.bytes()
            || targets_bytes != current.targets_bytes
            || roles
                .iter()
                .any(|(name, role)| current.roles.get(name).is_none_or(|old| old.bytes != role.bytes));
        let accepted = Accepted { root, targets, targets_bytes, roles, added, differs };
        if differs {
            accepted.check_names(current, next)?;
        }
        Ok(accepted)
    }

    fn next_root(&self, current: &Current, now: Millis) -> Result<TrustedRoot, RegistryError> {
        match &self.root {
            Some(bytes) if bytes != current.root.bytes() => {
                let next = current.root.succeed(bytes)?;
                fresh("root metadata", next.root().expires(), now)?;
                Ok(next)
            }
            _ => Ok(current.root.clone()),
        }
    }

    fn next_targets(
        &self,
        current: &Current,
        root: &TrustedRoot,
        now: Millis,
    ) -> Result<(Verified<Targets>, Vec<u8>), RegistryError> {
        const WHAT: &str = "targets metadata";
        let bytes = self.targets.as_ref().unwrap_or(&current.targets_bytes);
        // Under the next root: one that rotates the targets keys needs targets that these signed.
        let targets: Verified<Targets> = root.verify(bytes)?;
        if *bytes != current.targets_bytes {
            follows(WHAT, current.targets.version, targets.version)?;
            fresh(WHAT, targets.expires, now)?;
        }
        Ok((targets, bytes.clone()))
    }

    fn next_roles(
        &self,
        current: &Current,
        targets: &Verified<Targets>,
        now: Millis,
    ) -> Result<BTreeMap<String, RoleFile>, RegistryError> {
        // A snapshot never forgets a file: clients would take it for an attack. So a role that was revoked
        // stays as it was, and nobody asks for it.
        let mut roles = current.roles.clone();
        for (name, bytes) in &self.roles {
            let what = format!("metadata of the role {name:?}");
            let document = targets.verify_role(name, bytes)?;
            if document.delegations.as_ref().is_some_and(|all| !all.roles.is_empty()) {
                return Err(RegistryError::Refused(format!("the role {name:?} delegates further")));
            }
            let old = roles.get(name).filter(|old| old.bytes != *bytes);
            if let Some(old) = old {
                follows(&what, old.version, document.version)?;
            }
            fresh(&what, document.expires, now)?;
            let version = document.version;
            roles.insert(name.clone(), RoleFile { version, bytes: bytes.clone(), document: Some(document) });
        }
        for (name, role) in &mut roles {
            let delegated = targets.delegations.as_ref().is_some_and(|all| all.role(name).is_some());
            role.document = match delegated {
                true => Some(targets.verify_role(name, &role.bytes)?),
                false => None,
            };
        }
        Ok(roles)
    }
}

impl Accepted {
    /// Whether each target is the one that was published, or the one that is added, and is named by a role
    /// that may.
    fn check_names(&self, current: &Current, next: Option<&[u8]>) -> Result<(), RegistryError> {
        let added = self.added.as_ref().map(|document| document.release().target_path());
        let rotated = |path: &String, target: &Target| {
            path == ASSIGNMENT_KEYS && next.is_some_and(|bytes| target.verify(path, bytes).is_ok())
        };
        let allowed = |old: Option<&Targets>, new: &Targets| {
            new.targets.iter().try_for_each(|(path, target)| {
                match old.and_then(|old| old.targets.get(path)) {
                    Some(old) if old.hashes == target.hashes && old.length == target.length => Ok(()),
                    Some(_) if rotated(path, target) => Ok(()),
                    Some(_) => Err(RegistryError::Immutable(path.clone())),
                    None if current.names(path) => Err(RegistryError::Immutable(path.clone())),
                    None if added.as_ref() == Some(path) => Ok(()),
                    None => Err(RegistryError::Refused(format!("{path:?} is named, which nobody uploaded"))),
                }
            })
        };
        allowed(Some(&current.targets), &self.targets)?;
        for (name, role) in &self.roles {
            let Some(document) = &role.document else { continue };
            let old = current.roles.get(name).map(RoleFile::targets).transpose()?;
            allowed(old.as_ref(), document)?;
            let delegation = self.targets.delegations.as_ref().and_then(|all| all.role(name));
            let foreign =
                document.targets.keys().find(|path| !delegation.is_some_and(|role| role.covers(path)));
            if let Some(path) = foreign {
                return Err(RegistryError::Refused(format!("the role {name:?} may not speak for {path:?}")));
            }
        }
        Ok(())
    }
}

/// The role that speaks for a target, as a client finds it.
pub(super) fn speaker<'a>(
    targets: &'a Verified<Targets>,
    roles: &'a BTreeMap<String, RoleFile>,
    path: &str,
) -> Option<&'a Verified<Targets>> {
    if targets.targets.contains_key(path) {
        return Some(targets);
    }
    let (delegated, _) = targets.delegations.as_ref()?.of(path);
    let documents =
        delegated.into_iter().map(|role| roles.get(&role.name).and_then(|role| role.document.as_ref()));
    // One that is missing ends the search.
    documents.map_while(|document| document).find(|document| document.targets.contains_key(path))
}

fn added(
    targets: &Verified<Targets>,
    roles: &BTreeMap<String, RoleFile>,
    bytes: &[u8],
) -> Result<Document, RegistryError> {
    let release = document::claimed(bytes)
        .ok_or_else(|| RegistryError::Refused("the document names no release".to_owned()))?;
    let path = release.target_path();
    let role = speaker(targets, roles, &path).ok_or(TufError::UnknownTarget { path })?;
    Ok(Document::verify(role, &release, bytes)?)
}

fn follows(what: &str, trusted: u64, offered: u64) -> Result<(), RegistryError> {
    if offered == trusted.saturating_add(1) {
        return Ok(());
    }
    Err(TufError::Rollback { what: what.to_owned(), role: Role::Targets, trusted, offered }.into())
}

pub(super) fn fresh(what: &str, expires: Millis, now: Millis) -> Result<(), RegistryError> {
    if now < expires {
        return Ok(());
    }
    Err(TufError::Expired { what: what.to_owned(), expires, now }.into())
}
