//! Metadata that is being signed, as a folder: `root.json`, `targets.json`, `‹role›.json`. It is carried from
//! machine to machine until enough keys have signed, and then published as a whole. A bundle is one, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farlight_release::Verified;
use farlight_release::key::KeyPair;
use farlight_release::tuf::signer::{self};
use farlight_release::tuf::{Document, Role, Root, Targets, TrustedRoot, TufError, encode_name};
use serde::Serialize;

use super::signing;
use crate::cli::error::CliError;
use crate::cli::files;
use crate::cli::trust::Trust;
use crate::registry::api::Signed;

/// Metadata that is being signed.
#[derive(Debug, Default)]
pub struct Change {
    root: Option<Vec<u8>>,
    targets: Option<Vec<u8>>,
    roles: BTreeMap<String, Vec<u8>>,
}

/// How far the signatures of one document have come.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    /// The role.
    pub role: String,
    /// Distinct valid signatures.
    pub signatures: u64,
    /// How many are needed.
    pub threshold: u64,
    /// Whose keys these are: for a root both the trusted root's and its own must sign.
    pub signers: &'static str,
}

impl Change {
    /// Reads what `folder` holds of roles that are known.
    ///
    /// # Errors
    /// [`CliError`] when a file cannot be read.
    pub fn read(folder: &Path, trust: &Trust) -> Result<Self, CliError> {
        let optional = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { files::read(&path).map(Some) } else { Ok(None) }
        };
        let mut new = Self {
            root: optional(Role::Root.file())?,
            targets: optional(Role::Targets.file())?,
            roles: BTreeMap::new(),
        };
        for name in new.names(trust)? {
            if let Some(bytes) = optional(&role_file(&name))? {
                new.roles.insert(name, bytes);
            }
        }
        Ok(new)
    }

    /// Reads the metadata of a signed bundle: every JSON file in it but the manifest.
    ///
    /// # Errors
    /// [`CliError`] when a file cannot be read.
    pub fn in_bundle(folder: &Path) -> Result<Self, CliError> {
        let mut new = Self::default();
        for path in files::list(folder)? {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            match name {
                None | Some("manifest") => {}
                Some("targets") => new.targets = Some(files::read(&path)?),
                Some(role) => drop(new.roles.insert(role.to_owned(), files::read(&path)?)),
            }
        }
        Ok(new)
    }

    /// Writes the documents into `folder`.
    ///
    /// # Errors
    /// [`CliError`] when a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), CliError> {
        files::folder(folder)?;
        for (name, bytes) in self.files() {
            files::write(&folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// Removes the documents from `folder`, and the folder if it is empty then.
    pub fn remove(&self, folder: &Path) {
        for (name, _) in self.files() {
            // What is left is only looked at again, and refused as old.
            let _ = std::fs::remove_file(folder.join(name));
        }
        let _ = std::fs::remove_dir(folder);
    }

    fn files(&self) -> impl Iterator<Item = (String, &Vec<u8>)> {
        let root = self.root.iter().map(|bytes| (Role::Root.file().to_owned(), bytes));
        let targets = self.targets.iter().map(|bytes| (Role::Targets.file().to_owned(), bytes));
        root.chain(targets).chain(self.roles.iter().map(|(name, bytes)| (role_file(name), bytes)))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }

    /// Sets the next root.
    ///
    /// # Errors
    /// [`CliError`] when it breaks a rule.
    pub fn set_root(&mut self, root: &Root) -> Result<(), CliError> {
        self.root = Some(unsigned(root)?);
        Ok(())
    }

    /// Sets the next targets.
    ///
    /// # Errors
    /// [`CliError`] when they break a rule.
    pub fn set_targets(&mut self, targets: &Targets) -> Result<(), CliError> {
        self.targets = Some(unsigned(targets)?);
        Ok(())
    }

    /// Sets the next metadata of a delegated role.
    ///
    /// # Errors
    /// [`CliError`] when it breaks a rule.
    pub fn set_role(&mut self, name: &str, targets: &Targets) -> Result<(), CliError> {
        self.roles.insert(name.to_owned(), unsigned(targets)?);
        Ok(())
    }

    /// The next targets as they are to be, signed or not.
    pub fn targets(&self, trust: &Trust) -> Result<Targets, CliError> {
        match &self.targets {
            Some(bytes) => Targets::peek(bytes).map_err(signing),
            None => trust.targets().map(|targets| Targets::clone(targets)),
        }
    }

    /// The metadata of a delegated role as it is to be, signed or not.
    pub fn role(&self, name: &str) -> Result<Option<Targets>, CliError> {
        self.roles.get(name).map(|bytes| Targets::peek(bytes).map_err(signing)).transpose()
    }

    fn names(&self, trust: &Trust) -> Result<Vec<String>, CliError> {
        let targets = self.targets(trust)?;
        Ok(targets.delegations.iter().flat_map(|all| &all.roles).map(|role| role.name.clone()).collect())
    }

    /// Signs each document with those of `pairs` that may. How many signatures that added.
    ///
    /// # Errors
    /// [`CliError`] when a document cannot be read.
    pub fn sign(&mut self, pairs: &[KeyPair], trust: &Trust) -> Result<usize, CliError> {
        let next_root = match &self.root {
            Some(bytes) => Some(Root::peek(bytes).map_err(signing)?),
            None => None,
        };
        let by_root = |role: Role| {
            let mut keys = if role == Role::Root || next_root.is_none() {
                trust.root().keys(role)
            } else {
                BTreeSet::new()
            };
            keys.extend(next_root.iter().flat_map(|root| root.keys_of(role)));
            keys
        };
        let mut added = 0;
        if let Some(bytes) = &mut self.root {
            added += add_signatures(bytes, pairs, &by_root(Role::Root))?;
        }
        let targets = self.targets(trust)?;
        if let Some(bytes) = &mut self.targets {
            added += add_signatures(bytes, pairs, &by_root(Role::Targets))?;
        }
        for (name, bytes) in &mut self.roles {
            let keys = targets.delegations.as_ref().map(|all| all.keys(name)).unwrap_or_default();
            added += add_signatures(bytes, pairs, &keys)?;
        }
        Ok(added)
    }

    /// The documents that not enough keys have signed yet.
    ///
    /// # Errors
    /// [`CliError`] when something else than signatures is wrong with a document.
    pub fn missing(&self, trust: &Trust) -> Result<Vec<Progress>, CliError> {
        let mut missing = Vec::new();
        let root = match &self.root {
            Some(bytes) => note(&mut missing, Role::Root.name(), trust.root().succeed(bytes))?,
            None => Some(trust.root().clone()),
        };
        let targets = match &self.targets {
            Some(bytes) => match &root {
                Some(root) => note(&mut missing, Role::Targets.name(), root.verify::<Targets>(bytes))?,
                // Its keys are known once the root is complete.
                None => return Ok(missing),
            },
            None => Some(trust.targets()?.clone()),
        };
        let Some(targets): Option<Verified<Targets>> = targets else { return Ok(missing) };
        for (name, bytes) in &self.roles {
            note(&mut missing, name, targets.verify_role(name, bytes))?;
        }
        Ok(missing)
    }

    /// In the form that the cloud takes.
    pub fn to_signed(&self) -> Signed {
        let encode = |bytes: &Vec<u8>| STANDARD.encode(bytes);
        Signed {
            root: self.root.as_ref().map(encode),
            targets: self.targets.as_ref().map(encode),
            roles: self.roles.iter().map(|(name, bytes)| (name.clone(), encode(bytes))).collect(),
        }
    }
}

/// The file of a delegated role.
pub fn role_file(name: &str) -> String {
    format!("{}.json", encode_name(name))
}

fn unsigned<T: Document>(document: &T) -> Result<Vec<u8>, CliError> {
    signer::sign(document, &[]).map_err(signing)
}

fn add_signatures(
    bytes: &mut Vec<u8>,
    pairs: &[KeyPair],
    keys: &BTreeSet<[u8; 32]>,
) -> Result<usize, CliError> {
    let mut added = 0;
    for pair in pairs.iter().filter(|pair| keys.contains(pair.public().as_bytes())) {
        *bytes = signer::add_signature(bytes, pair).map_err(signing)?;
        added += 1;
    }
    Ok(added)
}

/// The document, or a note that it lacks signatures.
fn note<T>(
    missing: &mut Vec<Progress>,
    role: &str,
    outcome: Result<T, TufError>,
) -> Result<Option<T>, CliError> {
    match outcome {
        Ok(document) => Ok(Some(document)),
        Err(TufError::Signature { signers, valid, threshold, .. }) => {
            missing.push(Progress { role: role.to_owned(), signatures: valid, threshold, signers });
            Ok(None)
        }
        Err(error) => Err(signing(error)),
    }
}

/// Adds the signatures of root keys to the file of a root, anywhere: no cloud is asked.
///
/// # Errors
/// [`CliError`] when it is no root, or none of the keys is one of its own or of `old`.
pub fn sign_root(
    bytes: &mut Vec<u8>,
    pairs: &[KeyPair],
    old: Option<&TrustedRoot>,
) -> Result<usize, CliError> {
    let mut keys = Root::peek(bytes).map_err(signing)?.keys_of(Role::Root);
    keys.extend(old.iter().flat_map(|old| old.keys(Role::Root)));
    add_signatures(bytes, pairs, &keys)
}
