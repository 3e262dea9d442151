//! The registry on a real folder and database: what it publishes, a device's client accepts; what was
//! tampered with or rolled back, registry and client refuse. No network: the client reads the files.

use std::fs;
use std::path::Path;

use farlight_cloud::registry::{Change, Document, Record, Registry, RegistryError};
use farlight_cloud::store::Store;
use farlight_onnx::Model;
use farlight_onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use farlight_release::blob::describe;
use farlight_release::key::KeyPair;
use farlight_release::manifest::Manifest;
use farlight_release::tuf::signer::{self, RootSigners, Signers};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Client, Root, Step, Targets, TufError};
use farlight_wire::{Millis, ReleaseId};

/// A graph without a node: what the registry takes for a model.
const MODEL: &[u8] = b"\x3a\x02\x12\x00";
const DAYS: Millis = Millis::from_secs(90 * 86_400);

fn now() -> Millis {
    farlight_cloud::clock::now()
}

/// A registry in a temporary folder, with the operator's offline keys.
struct Operator {
    folder: tempfile::TempDir,
    registry: Registry,
    root_key: KeyPair,
    targets_key: KeyPair,
    targets: Targets,
}

impl Operator {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path()).await;
        let targets = Targets::new(1, now().plus(DAYS));
        let (root_key, targets_key) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let mut new = Self { folder, registry, root_key, targets_key, targets };
        let keys = new.registry.online_keys().await;
        let signers = RootSigners {
            root: Signers::one(new.root_key.public()),
            targets: Signers::one(new.targets_key.public()),
            snapshot: Signers::one(keys.snapshot),
            timestamp: Signers::one(keys.timestamp),
        };
        let root = signer::sign(&Root::new(1, now().plus(DAYS), &signers), &[&new.root_key]).unwrap();
        let assignment = signer::assignment_keys(&[keys.assignment]).unwrap();
        new.targets.add(ASSIGNMENT_KEYS, &assignment);
        let targets = signer::sign(&new.targets, &[&new.targets_key]).unwrap();
        new.registry.init_root(root, targets, assignment, "test").await.unwrap();
        fs::write(new.repo().join("blobs").join(describe(MODEL).id), MODEL).unwrap();
        new
    }

    fn repo(&self) -> std::path::PathBuf {
        self.folder.path().join("repo")
    }

    /// Signs the next targets with this manifest added, by `key`.
    fn sign(&mut self, manifest: &[u8], key: &KeyPair) -> Vec<u8> {
        let release = Manifest::parse_checked(manifest).unwrap().release;
        self.targets.version += 1;
        self.targets.add(release.target_path(), manifest);
        signer::sign(&self.targets, &[key]).unwrap()
    }

    async fn publish(&mut self, version: &str) -> Result<Vec<u8>, RegistryError> {
        self.publish_document(manifest(version)).await
    }

    async fn publish_document(&mut self, manifest: Vec<u8>) -> Result<Vec<u8>, RegistryError> {
        let key = self.targets_key.clone();
        let targets = self.sign(&manifest, &key);
        self.registry.publish(change(targets, manifest.clone()), "test").await.map(|_| manifest)
    }

    async fn config(&mut self, release: &ReleaseId, bytes: Vec<u8>) -> Result<Record, RegistryError> {
        self.targets.version += 1;
        self.targets.add(release.target_path(), &bytes);
        let targets = signer::sign(&self.targets, &[&self.targets_key]).unwrap();
        self.registry.publish(change(targets, bytes), "test").await
    }

    fn client(&self) -> Client {
        Client::new(&fs::read(self.repo().join("metadata/1.root.json")).unwrap()).unwrap()
    }

    fn refresh(&self, client: &mut Client) -> Result<(), TufError> {
        client.begin_refresh(now());
        while let Step::Fetch { path, .. } = client.next() {
            client.supply(fs::read(self.repo().join(path)).ok().as_deref())?;
        }
        Ok(())
    }
}

async fn open(folder: &Path) -> Registry {
    let url = format!("sqlite://{}?mode=rwc", folder.join("cloud.db").display());
    Registry::open(folder, Store::open(&url).await.unwrap()).await.unwrap()
}

fn manifest(version: &str) -> Vec<u8> {
    let blob = describe(MODEL);
    serde_json::to_vec(&serde_json::json!({
        "format": 1, "release": format!("m/{version}"), "task": "classification",
        "input": {"name": "x", "datatype": "FP32", "shape": [1], "min": 0.0, "max": 1.0, "on_violation": "flag"},
        "pre": [], "post": [{"step": "softmax"}], "labels": ["a", "b"],
        "variants": [{"precision": "fp32", "format": "onnx", "blob": blob}],
        "golden": blob, "golden_tolerance": 0.001,
        "profile": {"features": [], "score_edges": [], "score_counts": [0], "class_counts": [0, 0]},
        "budgets": {"memory_kib": 1, "p95_us": 1},
        "sampling": {"hard_permille": 0, "control_permille": 0, "bytes_per_day": 0},
        "requires": {}, "lineage": {}
    }))
    .unwrap()
}

fn change(targets: Vec<u8>, release: Vec<u8>) -> Change {
    Change { targets: Some(targets), release: Some(release), ..Change::default() }
}

fn id(version: &str) -> ReleaseId {
    format!("m/{version}").parse().unwrap()
}

fn code(error: &RegistryError) -> &'static str {
    error.code().map_or_else(|| panic!("{error}"), |code| code.as_str())
}

#[tokio::test]
async fn what_is_published_is_what_a_device_accepts() {
    let mut operator = Operator::new().await;
    let bytes = operator.publish("1.0.0").await.unwrap();
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    client.check_fresh(now()).unwrap();
    let file = client.target_file(&id("1.0.0").target_path()).unwrap();
    let served = fs::read(operator.repo().join("targets").join(file)).unwrap();
    assert_eq!(served, bytes);
    assert_eq!(client.verify_manifest(&id("1.0.0"), &served).unwrap().release, id("1.0.0"));
    let keys = client.target_file(ASSIGNMENT_KEYS).unwrap();
    let keys = fs::read(operator.repo().join("targets").join(keys)).unwrap();
    let expected = vec![operator.registry.assignment_key().await.public()];
    assert_eq!(client.assignment_keys(&keys), Ok(expected));
    let records = operator.registry.releases(Some("m")).await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].manifest_sha256, farlight_release::digest::sha256(&bytes));
}

#[tokio::test]
async fn the_same_upload_again_changes_nothing_and_a_restart_finds_everything() {
    let mut operator = Operator::new().await;
    let bytes = operator.publish("1.0.0").await.unwrap();
    let targets = signer::sign(&operator.targets, &[&operator.targets_key]).unwrap();
    let before = fs::read(operator.repo().join("metadata/timestamp.json")).unwrap();
    operator.registry.publish(change(targets, bytes), "test").await.unwrap();
    assert_eq!(fs::read(operator.repo().join("metadata/timestamp.json")).unwrap(), before);
    // A crash between the files and the database: the row is made at the next start.
    fs::remove_file(operator.folder.path().join("cloud.db")).unwrap();
    operator.registry = open(operator.folder.path()).await;
    assert_eq!(operator.registry.releases(None).await.unwrap().len(), 1);
    assert!(operator.registry.newest_root().await.is_some());
    operator.publish("1.1.0").await.unwrap();
    assert_eq!(operator.registry.status().await.unwrap().roles["targets"].version, 3);
}

#[tokio::test]
async fn a_stolen_cloud_cannot_publish() {
    let mut operator = Operator::new().await;
    operator.publish("1.0.0").await.unwrap();
    let before = fs::read(operator.repo().join("metadata/timestamp.json")).unwrap();
    let thief = operator.registry.assignment_key().await;
    let bytes = manifest("6.6.6");
    let targets = operator.sign(&bytes, &thief);
    let error = operator.registry.publish(change(targets, bytes), "thief").await.unwrap_err();
    assert_eq!(code(&error), "tuf.unknown_key");
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    assert_eq!(client.permits(&id("6.6.6")).unwrap_err().code().as_str(), "tuf.unknown_target");
    assert_eq!(fs::read(operator.repo().join("metadata/timestamp.json")).unwrap(), before);
}

#[tokio::test]
async fn uploads_that_do_not_hold_together_are_refused() {
    let mut operator = Operator::new().await;
    operator.publish("1.0.0").await.unwrap();
    let key = operator.targets_key.clone();
    let good = operator.targets.clone();

    // Another content under a published version.
    let mut changed = manifest("1.0.0");
    changed.push(b' ');
    let targets = operator.sign(&changed, &key);
    let error = operator.registry.publish(change(targets, changed), "test").await.unwrap_err();
    assert_eq!(code(&error), "registry.immutable");

    // A target that nobody uploaded.
    operator.targets = good.clone();
    operator.targets.add("m/9.0.0.json", b"?");
    let bytes = manifest("1.1.0");
    let targets = operator.sign(&bytes, &key);
    let error = operator.registry.publish(change(targets, bytes), "test").await.unwrap_err();
    assert_eq!(code(&error), "registry.refused");

    // An older version of the targets.
    operator.targets = good.clone();
    operator.targets.version = 0;
    let bytes = manifest("1.1.0");
    let targets = operator.sign(&bytes, &key);
    let error = operator.registry.publish(change(targets, bytes), "test").await.unwrap_err();
    assert_eq!(code(&error), "tuf.rollback_targets");

    // A blob that was not uploaded.
    operator.targets = good;
    fs::remove_file(operator.repo().join("blobs").join(describe(MODEL).id)).unwrap();
    assert_eq!(code(&operator.publish("1.1.0").await.unwrap_err()), "registry.missing_blob");

    // Another root.
    let root = fs::read(operator.repo().join("metadata/1.root.json")).unwrap();
    let other = signer::add_signature(&root, &KeyPair::from_seed(&[9; 32])).unwrap();
    let error = operator.registry.init_root(other, vec![], vec![], "test").await.unwrap_err();
    assert_eq!(code(&error), "registry.initialised");
}

#[tokio::test]
async fn a_tampered_manifest_and_a_replayed_repository_are_refused_by_the_device() {
    let mut operator = Operator::new().await;
    operator.publish("1.0.0").await.unwrap();
    let old = fs::read(operator.repo().join("metadata/timestamp.json")).unwrap();
    let bytes = operator.publish("1.1.0").await.unwrap();
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();

    let mut tampered = bytes.clone();
    let at = tampered.iter().position(|byte| *byte == b'1').unwrap();
    tampered[at] = b'2';
    let error = client.verify_manifest(&id("1.1.0"), &tampered).unwrap_err();
    assert_eq!(error.code().as_str(), "tuf.hash_mismatch");

    let timestamp = operator.repo().join("metadata/timestamp.json");
    let new = fs::read(&timestamp).unwrap();
    fs::write(&timestamp, old).unwrap();
    assert_eq!(operator.refresh(&mut client).unwrap_err().code().as_str(), "tuf.rollback_timestamp");
    fs::write(&timestamp, new).unwrap();

    let targets = operator.repo().join("metadata/3.targets.json");
    let mut bad = fs::read(&targets).unwrap();
    let last = bad.len() - 10;
    bad[last] ^= 1;
    fs::write(&targets, bad).unwrap();
    let mut fresh = operator.client();
    assert_eq!(operator.refresh(&mut fresh).unwrap_err().code().as_str(), "tuf.hash_mismatch");
    assert_eq!(fresh.targets(), Err(TufError::Incomplete));
}

/// A family that signs its own releases, added to the next targets.
fn family(operator: &mut Operator, key: &KeyPair, version: u64) -> Targets {
    operator.targets.version += 1;
    operator.targets.delegate("m", vec!["m/*".to_owned()], &Signers::one(key.public()));
    Targets::new(version, now().plus(DAYS))
}

fn roles(bytes: Vec<u8>) -> std::collections::BTreeMap<String, Vec<u8>> {
    [("m".to_owned(), bytes)].into()
}

#[tokio::test]
async fn a_family_signs_its_own_releases_until_it_is_revoked() {
    let mut operator = Operator::new().await;
    let (key, other) = (KeyPair::from_seed(&[5; 32]), KeyPair::from_seed(&[6; 32]));
    let mut role = family(&mut operator, &key, 1);
    let delegation = Change {
        targets: Some(signer::sign(&operator.targets, &[&operator.targets_key]).unwrap()),
        roles: roles(signer::sign(&role, &[&key]).unwrap()),
        ..Change::default()
    };
    operator.registry.renew(delegation, "test").await.unwrap();

    let bytes = manifest("1.0.0");
    role.version = 2;
    role.add("m/1.0.0.json", &bytes);
    let by = |key: &KeyPair, role: &Targets| Change {
        roles: roles(signer::sign(role, &[key]).unwrap()),
        release: Some(bytes.clone()),
        ..Change::default()
    };
    for foreign in [&other, &operator.targets_key] {
        let error = operator.registry.publish(by(foreign, &role), "test").await.unwrap_err();
        assert_eq!(code(&error), "tuf.unknown_key");
    }
    // It speaks for its own models only.
    let mut greedy = role.clone();
    greedy.add("n/1.0.0.json", &bytes);
    assert_eq!(
        code(&operator.registry.publish(by(&key, &greedy), "test").await.unwrap_err()),
        "registry.refused"
    );
    operator.registry.publish(by(&key, &role), "test").await.unwrap();
    operator.registry.publish(by(&key, &role), "test").await.unwrap();
    operator.registry.permits(&id("1.0.0")).await.unwrap();
    assert_eq!(operator.registry.status().await.unwrap().roles["m"].version, 2);

    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    let release = id("1.0.0");
    let look_up = |client: &mut Client| {
        client.begin_lookup(&release.target_path(), now());
        while let Step::Fetch { path, .. } = client.next() {
            client.supply(fs::read(operator.repo().join(path)).ok().as_deref()).unwrap();
        }
    };
    look_up(&mut client);
    assert_eq!(client.verify_manifest(&release, &bytes).unwrap().release, release);

    // A restart finds it.
    operator.registry = open(operator.folder.path()).await;
    operator.registry.permits(&release).await.unwrap();
    assert!(operator.registry.manifest(&release).await.unwrap().is_some());

    operator.targets.version += 1;
    assert!(operator.targets.revoke("m"));
    let targets = Some(signer::sign(&operator.targets, &[&operator.targets_key]).unwrap());
    operator.registry.renew(Change { targets, ..Change::default() }, "test").await.unwrap();
    assert_eq!(code(&operator.registry.permits(&release).await.unwrap_err()), "tuf.unknown_target");
    // Devices take that for no attack: the snapshot still lists the role's file.
    operator.refresh(&mut client).unwrap();
    assert_eq!(client.permits(&release).unwrap_err().code().as_str(), "tuf.unknown_target");
    operator.registry = open(operator.folder.path()).await;
    // What it published stays taken.
    let other = [manifest("1.0.0"), b" ".to_vec()].concat();
    let targets = operator.sign(&other, &operator.targets_key.clone());
    let error = operator.registry.publish(change(targets, other), "test").await.unwrap_err();
    assert_eq!(code(&error), "registry.immutable");
}

#[tokio::test]
async fn keys_are_rotated_in_band_and_a_crash_in_between_is_made_good() {
    let mut operator = Operator::new().await;
    operator.publish("1.0.0").await.unwrap();
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    let (old, new) = (operator.targets_key.clone(), KeyPair::from_seed(&[22; 32]));
    let root = fs::read(operator.repo().join("metadata/1.root.json")).unwrap();
    let next = Root::peek(&root)
        .unwrap()
        .successor(now().plus(DAYS), &[(farlight_release::tuf::Role::Targets, Signers::one(new.public()))]);
    let root = Some(signer::sign(&next, &[&operator.root_key]).unwrap());
    operator.targets.version += 1;
    let by = |key: &KeyPair| Change {
        root: root.clone(),
        targets: Some(signer::sign(&operator.targets, &[key]).unwrap()),
        ..Change::default()
    };
    // Targets by the old key, targets that are not renewed, and a root that its own keys alone sign.
    assert_eq!(code(&operator.registry.renew(by(&old), "test").await.unwrap_err()), "tuf.unknown_key");
    let alone = Change { root: root.clone(), ..Change::default() };
    assert_eq!(code(&operator.registry.renew(alone, "test").await.unwrap_err()), "tuf.unknown_key");
    let foreign = Some(signer::sign(&next, &[&new]).unwrap());
    let foreign = Change { root: foreign, ..by(&new) };
    assert_eq!(code(&operator.registry.renew(foreign, "test").await.unwrap_err()), "tuf.unknown_key");

    // Power fails when the root is there and the timestamp is not: the cloud starts, the operator repeats it.
    fs::write(operator.repo().join("metadata/2.root.json"), root.as_ref().unwrap()).unwrap();
    let reopened = open(operator.folder.path()).await;
    assert_eq!(reopened.status().await.unwrap().roles["root"].version, 1);
    reopened.renew(by(&new), "test").await.unwrap();
    reopened.renew(by(&new), "test").await.unwrap();
    assert_eq!(reopened.status().await.unwrap().roles["root"].version, 2);
    operator.registry = reopened;
    operator.targets_key = new;
    operator.refresh(&mut client).unwrap();
    operator.publish("1.1.0").await.unwrap();
    operator.refresh(&mut client).unwrap();
    client.permits(&id("1.1.0")).unwrap();
    operator.registry = open(operator.folder.path()).await;
    assert_eq!(operator.registry.status().await.unwrap().roles["targets"].version, 4);
}

#[tokio::test]
async fn online_keys_are_rotated_and_a_crash_at_any_file_is_made_good() {
    let mut operator = Operator::new().await;
    operator.publish("1.0.0").await.unwrap();
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    let before = operator.registry.online_keys().await;
    let next = operator.registry.next_online_keys("test").await.unwrap();
    assert_ne!(next, before);
    // Other signers may take their time: a restart in between changes nothing.
    operator.registry = open(operator.folder.path()).await;
    assert_eq!(operator.registry.next_online_keys("test").await.unwrap(), next);
    assert_eq!(operator.registry.online_keys().await, before);
    let root = fs::read(operator.repo().join("metadata/1.root.json")).unwrap();
    let roles = [
        (farlight_release::tuf::Role::Snapshot, Signers::one(next.snapshot.clone())),
        (farlight_release::tuf::Role::Timestamp, Signers::one(next.timestamp.clone())),
    ];
    let root = Root::peek(&root).unwrap().successor(now().plus(DAYS), &roles);
    let root = Some(signer::sign(&root, &[&operator.root_key]).unwrap());
    operator.targets.version += 1;
    let targets = |targets: &Targets| Some(signer::sign(targets, &[&operator.targets_key]).unwrap());
    // The root alone would leave devices with an assignment key that nobody uses any more.
    let half = Change { root: root.clone(), targets: targets(&operator.targets), ..Change::default() };
    assert_eq!(code(&operator.registry.renew(half, "test").await.unwrap_err()), "registry.refused");
    let stranger = signer::assignment_keys(&[operator.root_key.public()]).unwrap();
    operator.targets.add(ASSIGNMENT_KEYS, &stranger);
    let other = Change { root: root.clone(), targets: targets(&operator.targets), ..Change::default() };
    assert_eq!(code(&operator.registry.renew(other, "test").await.unwrap_err()), "registry.immutable");
    operator
        .targets
        .add(ASSIGNMENT_KEYS, &signer::assignment_keys(std::slice::from_ref(&next.assignment)).unwrap());
    let whole = Change { root, targets: targets(&operator.targets), ..Change::default() };
    let folder = operator.folder.path().join("keys");
    let waiting: Vec<(String, Vec<u8>, Vec<u8>)> = ["snapshot.pem", "timestamp.pem", "assignment.pem"]
        .map(|name| {
            let read = |path: std::path::PathBuf| fs::read(path).unwrap();
            (name.to_owned(), read(folder.join(name)), read(folder.join("next").join(name)))
        })
        .into();
    operator.registry.renew(whole.clone(), "test").await.unwrap();
    operator.registry.renew(whole, "test").await.unwrap();
    assert_eq!(operator.registry.online_keys().await, next);
    assert!(!folder.join("next").exists());
    // Power fails between publication and the first, second or third file.
    for moved in 0..=waiting.len() {
        fs::create_dir_all(folder.join("next")).unwrap();
        for (index, (name, old, new)) in waiting.iter().enumerate() {
            fs::write(folder.join(name), if index < moved { new } else { old }).unwrap();
            if index >= moved {
                fs::write(folder.join("next").join(name), new).unwrap();
            }
        }
        operator.registry = open(operator.folder.path()).await;
        assert_eq!(operator.registry.online_keys().await, next, "{moved} files were moved");
        assert!(!folder.join("next").exists());
    }
    operator.refresh(&mut client).unwrap();
    operator.publish("1.1.0").await.unwrap();
    operator.refresh(&mut client).unwrap();
    client.permits(&id("1.1.0")).unwrap();
    let keys = client.target_file(ASSIGNMENT_KEYS).unwrap();
    let keys = fs::read(operator.repo().join("targets").join(keys)).unwrap();
    assert_eq!(client.assignment_keys(&keys), Ok(vec![next.assignment]));
}

#[tokio::test]
async fn configurations_are_releases_too() {
    let mut operator = Operator::new().await;
    let bytes = br#"{"format":1,"release":"config/1.0.0","runtime":{"kill_switch":true}}"#.to_vec();
    let release: ReleaseId = "config/1.0.0".parse().unwrap();
    let wrong = br#"{"format":1,"release":"config/1.0.0","runtime":{"kill_swich":true}}"#.to_vec();
    let before = operator.targets.clone();
    let error = operator.config(&release, wrong).await.unwrap_err();
    assert!(matches!(error, RegistryError::Manifest(_)));
    operator.targets = before;
    let record = operator.config(&release, bytes.clone()).await.unwrap();
    assert_eq!((record.release.clone(), record.bytes), (release.clone(), 0));
    operator.registry.permits(&release).await.unwrap();
    assert!(operator.registry.manifest(&release).await.unwrap().is_none());
    let document = operator.registry.document(&release).await.unwrap();
    assert!(matches!(document, Some(Document::Config(config)) if config.runtime.kill_switch));
    let mut client = operator.client();
    operator.refresh(&mut client).unwrap();
    assert!(client.verify_config(&release, &bytes).unwrap().runtime.kill_switch);
    // A crash between the files and the database: the row is made at the next start.
    fs::remove_file(operator.folder.path().join("cloud.db")).unwrap();
    operator.registry = open(operator.folder.path()).await;
    assert_eq!(operator.registry.releases(Some("config")).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_model_that_no_device_would_read_is_not_published() {
    let mut operator = Operator::new().await;
    let good = operator.targets.clone();
    let mut graph = GraphProto::default();
    for _ in 0..30 {
        let body = AttributeProto { g: Some(graph), ..AttributeProto::default() };
        let node = NodeProto { attribute: vec![body], ..NodeProto::default() };
        graph = GraphProto { node: vec![node], ..GraphProto::default() };
    }
    let nested = ModelProto { graph: Some(graph), ..ModelProto::default() };
    let nested = Model::from_proto(nested).unwrap().to_bytes();
    for (model, expected) in [(&nested[..], "model.over_limits"), (b"no model", "model.malformed")] {
        let blob = describe(model);
        fs::write(operator.repo().join("blobs").join(&blob.id), model).unwrap();
        let mut document: serde_json::Value = serde_json::from_slice(&manifest("1.0.0")).unwrap();
        document["variants"][0]["blob"] = serde_json::to_value(&blob).unwrap();
        let error = operator.publish_document(serde_json::to_vec(&document).unwrap()).await.unwrap_err();
        assert_eq!(code(&error), expected, "{error}");
        assert!(operator.registry.release(&id("1.0.0")).await.unwrap().is_none());
        operator.targets = good.clone();
    }
    operator.publish("1.0.0").await.unwrap();
}
