//! The honest world from which each attack begins: keys, a repository of two roots and three versions of
//! everything, and the device's desired state. Keys and dates are fixed, so that the bytes are.

use std::collections::BTreeMap;

use anyhow::Context;
use farlight_release::assignment::{self, Assignment, ModelAssignment, Probation};
use farlight_release::key::{KeyPair, PublicKey};
use farlight_release::tuf::signer::{RootSigners, Signers, assignment_keys, sign};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Root, Snapshot, Targets, Timestamp};
use farlight_release::{canonical, digest};
use farlight_wire::Millis;
use serde_json::{Value, json};

use crate::models::{self, Parts};

/// 2100-01-01: what is valid stays valid.
pub const FAR: Millis = Millis(4_102_444_800_000);
/// 2020-01-01: what expired has expired.
pub const PAST: Millis = Millis(1_577_836_800_000);
/// The device of the fixtures.
pub const DEVICE: &str = "gw-1";

/// Keys that are the same each time.
#[must_use]
pub fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

/// Who may sign what.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Two, both needed.
    pub root: [KeyPair; 2],
    /// Two, both needed.
    pub targets: [KeyPair; 2],
    /// Online.
    pub snapshot: KeyPair,
    /// Online.
    pub timestamp: KeyPair,
    /// Online.
    pub assignment: KeyPair,
}

/// A repository as files, with what is needed to go on from it.
#[derive(Debug, Clone)]
pub struct World {
    /// Who signs.
    pub keys: Keys,
    /// Version of the newest root.
    pub root: u64,
    /// The targets metadata that is signed next.
    pub targets: Targets,
    /// Version of snapshot and timestamp that is signed next.
    pub version: u64,
    /// Every file, by its path in the repository.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// The path of a target with its digest in the name.
#[must_use]
pub fn target_path(path: &str, bytes: &[u8]) -> String {
    let hash = digest::sha256(bytes);
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("targets/{folder}/{hash}.{name}"),
        None => format!("targets/{hash}.{path}"),
    }
}

impl World {
    /// The honest repository: `m/1.0.0` is released, roots 1 and 2, version 3 of everything else.
    ///
    /// # Errors
    /// When something cannot be signed.
    pub fn honest() -> anyhow::Result<Self> {
        let keys = Keys {
            root: [key(1), key(2)],
            targets: [key(3), key(4)],
            snapshot: key(5),
            timestamp: key(6),
            assignment: key(7),
        };
        let targets = Targets::new(3, FAR);
        let mut world = Self { keys, root: 0, targets, version: 3, files: BTreeMap::new() };
        world.rotate()?;
        world.rotate()?;
        world.add_keys()?;
        let parts = models::honest(0.0)?;
        world.release("1.0.0", &parts, &json!({}))?;
        world.publish()?;
        Ok(world)
    }

    fn signers(&self) -> RootSigners {
        let two = |keys: &[KeyPair; 2]| Signers {
            keys: keys.iter().map(KeyPair::public).collect::<Vec<PublicKey>>(),
            threshold: 2,
        };
        RootSigners {
            root: two(&self.keys.root),
            targets: two(&self.keys.targets),
            snapshot: Signers::one(self.keys.snapshot.public()),
            timestamp: Signers::one(self.keys.timestamp.public()),
        }
    }

    /// The next root, signed by both keys.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn next_root(&self, version: u64) -> anyhow::Result<Vec<u8>> {
        let root = Root::new(version, FAR, &self.signers());
        Ok(sign(&root, &self.keys.root.iter().collect::<Vec<_>>())?)
    }

    /// Publishes one more root.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn rotate(&mut self) -> anyhow::Result<()> {
        self.root += 1;
        let bytes = self.next_root(self.root)?;
        self.files.insert(format!("metadata/{}.root.json", self.root), bytes);
        Ok(())
    }

    /// Publishes the key that may sign assignments.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_keys(&mut self) -> anyhow::Result<()> {
        let bytes = assignment_keys(&[self.keys.assignment.public()])?;
        self.target(ASSIGNMENT_KEYS, &bytes);
        Ok(())
    }

    /// Adds a target file.
    pub fn target(&mut self, path: &str, bytes: &[u8]) {
        self.targets.add(path, bytes);
        self.files.insert(target_path(path, bytes), bytes.to_vec());
    }

    /// Adds a blob.
    pub fn blob(&mut self, bytes: &[u8]) {
        let id = farlight_release::blob::describe(bytes).id;
        self.files.insert(format!("blobs/{id}"), bytes.to_vec());
    }

    /// Adds a release of `m`; `changes` replaces fields of its manifest.
    ///
    /// # Errors
    /// When its manifest cannot be made.
    pub fn release(&mut self, version: &str, parts: &Parts, changes: &Value) -> anyhow::Result<()> {
        let manifest = models::manifest(&format!("m/{version}"), &parts.onnx, &parts.golden, changes)?;
        self.target(&format!("m/{version}.json"), &serde_json::to_vec(&manifest)?);
        self.blob(&parts.onnx);
        self.blob(&parts.golden);
        Ok(())
    }

    /// Signs targets, snapshot and timestamp as they are due, and begins the next versions.
    ///
    /// # Errors
    /// When something cannot be signed.
    pub fn publish(&mut self) -> anyhow::Result<()> {
        let targets = sign(&self.targets, &self.keys.targets.iter().collect::<Vec<_>>())?;
        self.publish_targets(&targets)
    }

    /// Publishes this targets metadata, whoever signed it.
    ///
    /// # Errors
    /// When something cannot be signed.
    pub fn publish_targets(&mut self, targets: &[u8]) -> anyhow::Result<()> {
        let version = self.targets.version;
        self.files.insert(format!("metadata/{version}.targets.json"), targets.to_vec());
        let snapshot = Snapshot::new(self.version, FAR, version, targets);
        self.publish_snapshot(&sign(&snapshot, &[&self.keys.snapshot])?, FAR)?;
        self.targets.version += 1;
        Ok(())
    }

    /// Publishes this snapshot, whoever signed it, under a timestamp that expires then.
    ///
    /// # Errors
    /// When the timestamp cannot be signed.
    pub fn publish_snapshot(&mut self, snapshot: &[u8], expires: Millis) -> anyhow::Result<()> {
        let version = self.version;
        self.files.insert(format!("metadata/{version}.snapshot.json"), snapshot.to_vec());
        let timestamp = Timestamp::new(version, expires, version, snapshot);
        self.files.insert("metadata/timestamp.json".into(), sign(&timestamp, &[&self.keys.timestamp])?);
        self.version += 1;
        Ok(())
    }

    /// The device's desired state.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn assignment(&self, sequence: u64, version: &str) -> anyhow::Result<Vec<u8>> {
        self.assignment_with(sequence, version, DEVICE, FAR, &self.keys.assignment)
    }

    /// A desired state for any device, until any time, signed by any key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn assignment_with(
        &self,
        sequence: u64,
        version: &str,
        device: &str,
        expires: Millis,
        key: &KeyPair,
    ) -> anyhow::Result<Vec<u8>> {
        let document = Assignment {
            device: device.parse()?,
            sequence,
            issued: PAST,
            expires,
            models: vec![ModelAssignment {
                release: format!("m/{version}").parse()?,
                rollout: None,
                probation: Probation { duration: Millis(0), min_requests: 0 },
                shadow: None,
                retry_failed: false,
            }],
        };
        assignment::sign(&document, key).context("sign an assignment")
    }

    /// The files that differ from those of `honest`.
    #[must_use]
    pub fn beyond(&self, honest: &Self) -> BTreeMap<String, Vec<u8>> {
        let new = self.files.iter().filter(|(path, bytes)| honest.files.get(*path) != Some(bytes));
        new.map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    }
}

/// A document like `good` that names `release`, signed by `signer`: no tool of ours writes one.
///
/// # Errors
/// When the document is not one of ours.
pub fn naming(good: &[u8], release: &str, signer: &KeyPair) -> anyhow::Result<Vec<u8>> {
    let mut signed = serde_json::from_slice::<Value>(good)?["signed"].take();
    signed["models"][0]["release"] = release.into();
    let signature = signer.sign(&canonical::to_vec(&signed)?);
    let signatures = json!([{ "keyid": signer.public().id(), "sig": signature }]);
    Ok(canonical::to_vec(&json!({ "signatures": signatures, "signed": signed }))?)
}

/// A change of one text in a signed document, as somebody without keys could make it.
///
/// # Errors
/// When the document is not one of ours.
pub fn forge(bytes: &[u8], from: &str, to: &str) -> anyhow::Result<Vec<u8>> {
    let text = std::str::from_utf8(bytes)?;
    anyhow::ensure!(text.contains(from), "{from:?} is not in the document");
    Ok(text.replacen(from, to, 1).into_bytes())
}
