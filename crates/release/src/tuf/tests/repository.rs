//! A small repository in memory that publishes correctly, until a test replaces something in it.

use farlight_wire::Millis;

use crate::key::KeyPair;
use crate::tuf::signer::{self, RootSigners, Signers};
use crate::tuf::*;

pub(super) const NOW: Millis = Millis(1_700_000_000_000);
pub(super) const LATER: Millis = Millis(NOW.0 + 86_400_000);

pub(super) fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

/// A repository whose every file can be replaced.
#[derive(Clone)]
pub(super) struct Repository {
    pub(super) files: std::collections::BTreeMap<String, Vec<u8>>,
    pub(super) root: u64,
    pub(super) targets: Targets,
    pub(super) snapshot: u64,
    pub(super) timestamp: u64,
    pub(super) root_keys: Vec<KeyPair>,
    pub(super) targets_key: KeyPair,
    pub(super) snapshot_key: KeyPair,
    pub(super) timestamp_key: KeyPair,
    pub(super) expires: Millis,
}

impl Repository {
    pub(super) fn new() -> Self {
        let mut new = Self {
            files: Default::default(),
            root: 0,
            targets: Targets::new(0, LATER),
            snapshot: 0,
            timestamp: 0,
            root_keys: vec![key(1)],
            targets_key: key(2),
            snapshot_key: key(3),
            timestamp_key: key(4),
            expires: LATER,
        };
        new.publish_root();
        new.targets.add("a/1.0.0.json", b"content");
        new.publish();
        new
    }

    pub(super) fn signers(&self) -> RootSigners {
        RootSigners {
            root: Signers {
                keys: self.root_keys.iter().map(KeyPair::public).collect(),
                threshold: self.root_keys.len() as u64,
            },
            targets: Signers::one(self.targets_key.public()),
            snapshot: Signers::one(self.snapshot_key.public()),
            timestamp: Signers::one(self.timestamp_key.public()),
        }
    }

    /// The next root, signed by its own keys and `old` ones.
    pub(super) fn publish_root_with(&mut self, old: &[&KeyPair]) {
        self.root += 1;
        let keys: Vec<&KeyPair> = self.root_keys.iter().chain(old.iter().copied()).collect();
        let root = Root::new(self.root, self.expires, &self.signers());
        self.put(&format!("{}.root.json", self.root), signer::sign(&root, &keys).unwrap());
    }

    pub(super) fn publish_root(&mut self) {
        self.publish_root_with(&[]);
    }

    pub(super) fn publish_targets(&mut self) {
        self.targets.version += 1;
        self.targets.expires = self.expires;
        let bytes = signer::sign(&self.targets, &[&self.targets_key]).unwrap();
        self.put(&format!("{}.targets.json", self.targets.version), bytes);
    }

    pub(super) fn publish_snapshot(&mut self) {
        self.snapshot += 1;
        let version = self.targets.version;
        let targets = self.file(&format!("{version}.targets.json"));
        let snapshot = Snapshot::new(self.snapshot, self.expires, version, targets);
        let bytes = signer::sign(&snapshot, &[&self.snapshot_key]).unwrap();
        self.put(&format!("{}.snapshot.json", self.snapshot), bytes);
    }

    pub(super) fn publish_timestamp(&mut self) {
        self.timestamp += 1;
        let snapshot = self.file(&format!("{}.snapshot.json", self.snapshot));
        let timestamp = Timestamp::new(self.timestamp, self.expires, self.snapshot, snapshot);
        let bytes = signer::sign(&timestamp, &[&self.timestamp_key]).unwrap();
        self.put("timestamp.json", bytes);
    }

    pub(super) fn publish(&mut self) {
        self.publish_targets();
        self.publish_snapshot();
        self.publish_timestamp();
    }

    pub(super) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(format!("{METADATA}{name}"), bytes);
    }

    pub(super) fn file(&self, name: &str) -> &[u8] {
        &self.files[&format!("{METADATA}{name}")]
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.file("1.root.json")).unwrap()
    }

    pub(super) fn fresh_client(&self) -> Client {
        let mut client = self.client();
        self.refresh(&mut client).unwrap();
        client
    }

    pub(super) fn refused(&self, client: &mut Client) -> &'static str {
        self.refresh(client).unwrap_err().code().as_str()
    }

    pub(super) fn refresh(&self, client: &mut Client) -> Result<Vec<Keep>, TufError> {
        self.refresh_at(client, NOW)
    }

    pub(super) fn refresh_at(&self, client: &mut Client, now: Millis) -> Result<Vec<Keep>, TufError> {
        let mut kept = Vec::new();
        client.begin_refresh(now);
        while let Step::Fetch { path, max_len: _ } = client.next() {
            kept.extend(client.supply(self.files.get(&path).map(Vec::as_slice))?);
        }
        Ok(kept)
    }
}
