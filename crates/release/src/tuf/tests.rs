//! The client against a repository in memory, one test an attack. The case names follow
//! tuf-conformance where it has the case.

use farlight_wire::Millis;

use super::signer::{self, RootSigners, Signers};
use super::*;
use crate::key::KeyPair;

const NOW: Millis = Millis(1_700_000_000_000);
const LATER: Millis = Millis(NOW.0 + 86_400_000);

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

/// A repository whose every file can be replaced.
#[derive(Clone)]
struct Repository {
    files: std::collections::BTreeMap<String, Vec<u8>>,
    root: u64,
    targets: Targets,
    snapshot: u64,
    timestamp: u64,
    root_keys: Vec<KeyPair>,
    targets_key: KeyPair,
    snapshot_key: KeyPair,
    timestamp_key: KeyPair,
    expires: Millis,
}

impl Repository {
    fn new() -> Self {
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

    fn signers(&self) -> RootSigners {
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
    fn publish_root_with(&mut self, old: &[&KeyPair]) {
        self.root += 1;
        let keys: Vec<&KeyPair> = self.root_keys.iter().chain(old.iter().copied()).collect();
        let root = Root::new(self.root, self.expires, &self.signers());
        self.put(&format!("{}.root.json", self.root), signer::sign(&root, &keys).unwrap());
    }

    fn publish_root(&mut self) {
        self.publish_root_with(&[]);
    }

    fn publish_targets(&mut self) {
        self.targets.version += 1;
        self.targets.expires = self.expires;
        let bytes = signer::sign(&self.targets, &[&self.targets_key]).unwrap();
        self.put(&format!("{}.targets.json", self.targets.version), bytes);
    }

    fn publish_snapshot(&mut self) {
        self.snapshot += 1;
        let version = self.targets.version;
        let targets = self.file(&format!("{version}.targets.json"));
        let snapshot = Snapshot::new(self.snapshot, self.expires, version, targets);
        let bytes = signer::sign(&snapshot, &[&self.snapshot_key]).unwrap();
        self.put(&format!("{}.snapshot.json", self.snapshot), bytes);
    }

    fn publish_timestamp(&mut self) {
        self.timestamp += 1;
        let snapshot = self.file(&format!("{}.snapshot.json", self.snapshot));
        let timestamp = Timestamp::new(self.timestamp, self.expires, self.snapshot, snapshot);
        let bytes = signer::sign(&timestamp, &[&self.timestamp_key]).unwrap();
        self.put("timestamp.json", bytes);
    }

    fn publish(&mut self) {
        self.publish_targets();
        self.publish_snapshot();
        self.publish_timestamp();
    }

    fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(format!("{METADATA}{name}"), bytes);
    }

    fn file(&self, name: &str) -> &[u8] {
        &self.files[&format!("{METADATA}{name}")]
    }

    fn client(&self) -> Client {
        Client::new(self.file("1.root.json")).unwrap()
    }

    fn refresh(&self, client: &mut Client) -> Result<Vec<Keep>, TufError> {
        self.refresh_at(client, NOW)
    }

    fn refresh_at(&self, client: &mut Client, now: Millis) -> Result<Vec<Keep>, TufError> {
        let mut kept = Vec::new();
        client.begin_refresh(now);
        while let Step::Fetch { path, max_len: _ } = client.next() {
            kept.extend(client.supply(self.files.get(&path).map(Vec::as_slice))?);
        }
        Ok(kept)
    }
}

#[test]
fn a_first_refresh_takes_each_file_once_and_the_next_one_only_the_timestamp() {
    let repository = Repository::new();
    let mut client = repository.client();
    assert_eq!(client.targets(), Err(TufError::Incomplete));
    let kept: Vec<Role> = repository.refresh(&mut client).unwrap().into_iter().map(|k| k.role).collect();
    assert_eq!(kept, [Role::Timestamp, Role::Snapshot, Role::Targets]);
    assert!(repository.refresh(&mut client).unwrap().is_empty());
    assert_eq!(client.target("a/1.0.0.json").unwrap().verify("a", b"content"), Ok(()));
    assert_eq!(client.check_fresh(NOW), Ok(()));
    assert_eq!(client.check_fresh(LATER).unwrap_err().code(), "tuf.expired");
    let hash = crate::digest::sha256(b"content");
    assert_eq!(client.target_file("a/1.0.0.json"), Some(format!("a/{hash}.1.0.0.json")));
    assert_eq!(client.target_file("b"), None);
}
