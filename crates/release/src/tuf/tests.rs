//! The client against a repository in memory, one test an attack. The case names follow
//! tuf-conformance where it has the case.

mod repository;

use repository::{LATER, NOW, Repository, key};

use super::signer::{self, Signers};
use super::*;

#[test]
fn a_first_refresh_takes_each_file_once_and_the_next_one_only_the_timestamp() {
    let repository = Repository::new();
    let mut client = repository.client();
    assert_eq!(client.targets(), Err(TufError::Incomplete));
    let kept: Vec<String> = repository.refresh(&mut client).unwrap().into_iter().map(|k| k.name).collect();
    assert_eq!(kept, ["timestamp.json", "snapshot.json", "targets.json"]);
    assert!(repository.refresh(&mut client).unwrap().is_empty());
    assert_eq!(client.target("a/1.0.0.json").unwrap().verify("a", b"content"), Ok(()));
    assert_eq!(client.check_fresh(NOW), Ok(()));
    assert_eq!(client.check_fresh(LATER).unwrap_err().code().as_str(), "tuf.expired");
    let hash = crate::digest::sha256(b"content");
    assert_eq!(client.target_file("a/1.0.0.json"), Ok(format!("a/{hash}.1.0.0.json")));
    assert_eq!(client.target_file("b").unwrap_err().code().as_str(), "tuf.unknown_target");
}

/// What a client would have stored.
fn stored(client: &Client) -> std::collections::BTreeMap<String, Vec<u8>> {
    let bytes = [
        Some(client.root().bytes().to_vec()),
        client.timestamp.as_ref().map(|held| held.bytes.clone()),
        client.snapshot.as_ref().map(|held| held.bytes.clone()),
        client.targets.as_ref().map(|held| held.bytes.clone()),
    ];
    let names = Role::ALL.map(|role| role.file().to_owned());
    names.into_iter().zip(bytes).filter_map(|(name, bytes)| Some((name, bytes?))).collect()
}

fn reload(client: &Client) -> Result<Client, TufError> {
    Client::load(&stored(client))
}

type Attack = (&'static str, &'static str, fn(&mut Repository));

/// Attacks on a device that knows nothing but its root.
const FIRST_REFRESH: &[Attack] = &[
    ("timestamp by a foreign key", "tuf.unknown_key", |r| {
        r.timestamp_key = key(66);
        r.publish_timestamp();
    }),
    ("snapshot by a foreign key", "tuf.unknown_key", |r| {
        r.snapshot_key = key(66);
        r.publish_snapshot();
        r.publish_timestamp();
    }),
    ("targets by the online keys", "tuf.unknown_key", |r| {
        r.targets_key = key(3);
        r.publish();
    }),
    ("no signature", "tuf.unknown_key", |r| {
        let timestamp = Timestamp::new(9, LATER, 1, r.file("1.snapshot.json"));
        r.put("timestamp.json", signer::sign(&timestamp, &[]).unwrap());
    }),
    ("root signed by its own keys alone", "tuf.unknown_key", |r| {
        r.root_keys = vec![key(66)];
        r.publish_root();
    }),
    ("root signed by the old keys alone", "tuf.unknown_key", |r| {
        r.root_keys = vec![key(66)];
        r.root += 1;
        let root = Root::new(r.root, LATER, &r.signers());
        r.put("2.root.json", signer::sign(&root, &[&key(1)]).unwrap());
    }),
    ("root that repeats its version", "tuf.rollback_root", |r| {
        let bytes = r.file("1.root.json").to_vec();
        r.put("2.root.json", bytes);
    }),
    ("root that skips a version", "tuf.mix_and_match", |r| {
        let root = Root::new(3, LATER, &r.signers());
        r.put("2.root.json", signer::sign(&root, &[&key(1)]).unwrap());
    }),
    ("expired root", "tuf.expired", |r| {
        r.expires = NOW;
        r.publish_root();
    }),
    ("expired timestamp", "tuf.expired", |r| {
        r.expires = NOW;
        r.publish_timestamp();
    }),
    ("expired snapshot", "tuf.expired", |r| {
        r.expires = NOW;
        r.publish_snapshot();
        r.expires = LATER;
        r.publish_timestamp();
    }),
    ("expired targets", "tuf.expired", |r| {
        r.expires = NOW;
        r.publish_targets();
        r.expires = LATER;
        r.publish_snapshot();
        r.publish_timestamp();
    }),
    ("snapshot of another version than announced", "tuf.mix_and_match", |r| {
        r.publish_snapshot();
        let newer = r.file("2.snapshot.json").to_vec();
        r.put("1.snapshot.json", newer);
    }),
    ("snapshot version alone differs, no digest given", "tuf.mix_and_match", |r| {
        let mut timestamp = Timestamp::new(2, LATER, 7, r.file("1.snapshot.json"));
        let meta = timestamp.meta.get_mut("snapshot.json").unwrap();
        (meta.length, meta.hashes) = (None, None);
        let bytes = signer::sign(&timestamp, &[&r.timestamp_key]).unwrap();
        r.put("timestamp.json", bytes);
        let bytes = r.file("1.snapshot.json").to_vec();
        r.put("7.snapshot.json", bytes);
    }),
    ("targets exchanged", "tuf.hash_mismatch", |r| {
        let mut other = Targets::new(1, LATER);
        other.add("a/1.0.0.json", b"CONTENT");
        let bytes = signer::sign(&other, &[&r.targets_key]).unwrap();
        r.put("1.targets.json", bytes);
    }),
    ("targets longer than announced", "tuf.too_large", |r| {
        let mut bytes = r.file("1.targets.json").to_vec();
        bytes.push(b' ');
        r.put("1.targets.json", bytes);
    }),
    ("targets cut short", "tuf.truncated", |r| {
        let mut bytes = r.file("1.targets.json").to_vec();
        bytes.pop();
        r.put("1.targets.json", bytes);
    }),
    ("endless timestamp", "tuf.too_large", |r| r.put("timestamp.json", vec![b' '; 20_000])),
    ("endless root", "tuf.too_large", |r| r.put("2.root.json", vec![b' '; 600_000])),
    ("garbage", "tuf.malformed", |r| r.put("timestamp.json", b"\xff{".to_vec())),
    ("deep nesting", "tuf.malformed", |r| r.put("timestamp.json", vec![b'['; 10_000])),
    ("duplicate key", "tuf.duplicate_key", |r| {
        let text = String::from_utf8(r.file("timestamp.json").to_vec()).unwrap();
        r.put(
            "timestamp.json",
            text.replacen("\"version\":1", "\"version\":1,\"version\":1", 1).into_bytes(),
        );
    }),
    ("root in place of the timestamp", "tuf.wrong_type", |r| {
        let bytes = r.file("1.root.json").to_vec();
        r.put("timestamp.json", bytes);
    }),
    ("no timestamp", "tuf.missing", |r| drop(r.files.remove("metadata/timestamp.json"))),
    ("no snapshot", "tuf.missing", |r| drop(r.files.remove("metadata/1.snapshot.json"))),
    ("no targets", "tuf.missing", |r| drop(r.files.remove("metadata/1.targets.json"))),
];

#[test]
fn each_attack_on_a_first_refresh_is_refused_with_its_own_code() {
    for (name, code, attack) in FIRST_REFRESH {
        let mut repository = Repository::new();
        attack(&mut repository);
        let mut client = repository.client();
        assert_eq!(repository.refused(&mut client), *code, "{name}");
        assert_eq!(client.targets(), Err(TufError::Incomplete), "{name}");
        assert_eq!(client.next(), Step::Done, "{name}");
    }
}

/// Attacks on a device that has seen version 3 of everything.
const LATER_REFRESH: &[Attack] = &[
    ("old timestamp", "tuf.rollback_timestamp", |r| {
        r.timestamp = 0;
        r.publish_timestamp();
    }),
    ("new timestamp, old snapshot", "tuf.rollback_snapshot", |r| {
        r.snapshot = 1;
        r.publish_timestamp();
    }),
    ("new timestamp and snapshot, old targets", "tuf.rollback_targets", |r| {
        r.targets.version = 1;
        r.publish_snapshot();
        r.publish_timestamp();
    }),
    ("snapshot that forgets a file", "tuf.malformed", |r| {
        let mut snapshot = Snapshot::new(4, LATER, 3, r.file("3.targets.json"));
        let meta = snapshot.meta.remove("targets.json").unwrap();
        snapshot.meta.insert("other.json".to_owned(), meta);
        let signed = serde_json::to_value(&snapshot).unwrap();
        r.put("4.snapshot.json", crate::envelope::seal(&signed, &[&r.snapshot_key]).unwrap());
        r.snapshot = 4;
        r.publish_timestamp();
    }),
    ("foreign timestamp", "tuf.unknown_key", |r| {
        r.timestamp_key = key(66);
        r.publish_timestamp();
    }),
];

#[test]
fn each_rollback_is_refused_also_after_a_restart() {
    for (name, code, attack) in LATER_REFRESH {
        let mut repository = Repository::new();
        repository.publish();
        repository.publish();
        let client = repository.fresh_client();
        let before = client.targets().unwrap().clone();
        attack(&mut repository);
        for mut client in [client.clone(), reload(&client).unwrap()] {
            assert_eq!(repository.refused(&mut client), *code, "{name}");
            assert!(client.targets().is_err() || client.targets() == Ok(&before), "{name}");
        }
    }
}

#[test]
fn a_refresh_that_broke_off_is_taken_up_again_and_nothing_is_used_in_between() {
    let mut repository = Repository::new();
    let mut client = repository.fresh_client();
    repository.publish();
    let file = repository.files.remove("metadata/2.snapshot.json").unwrap();
    assert_eq!(repository.refused(&mut client), "tuf.missing");
    let mut client = reload(&client).unwrap();
    assert_eq!(client.targets(), Err(TufError::Incomplete));
    repository.put("2.snapshot.json", file);
    let kept: Vec<String> = repository.refresh(&mut client).unwrap().into_iter().map(|k| k.name).collect();
    assert_eq!(kept, ["snapshot.json", "targets.json"]);
    assert_eq!(client.targets().unwrap().version, 2);
}

#[test]
fn stored_files_that_were_changed_are_not_taken_for_old_ones() {
    let client = Repository::new().fresh_client();
    let whole = stored(&client);
    let load = |name: &str, bytes: &[u8]| {
        let mut files = whole.clone();
        files.insert(name.to_owned(), bytes.to_vec());
        Client::load(&files).map_or_else(|e| e.code().as_str(), |_| "yes")
    };
    for (name, bytes) in &whole {
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert_eq!(load(name, &bytes[..cut]), "tuf.damaged", "{name} {cut}");
        }
        let changed = String::from_utf8(bytes.clone()).unwrap().replacen("\"version\":1", "\"version\":2", 1);
        assert_eq!(load(name, changed.as_bytes()), "tuf.damaged", "{name}");
        assert_eq!(load(name, bytes), "yes");
    }
}

#[test]
fn roots_are_followed_in_a_chain_over_expired_ones() {
    let mut repository = Repository::new();
    let mut client = repository.client();
    repository.expires = NOW;
    repository.root_keys = vec![key(11), key(12)];
    repository.publish_root_with(&[&key(1)]);
    repository.expires = LATER;
    repository.root_keys = vec![key(13)];
    repository.publish_root_with(&[&key(11), &key(12)]);
    repository.refresh(&mut client).unwrap();
    assert_eq!(client.root().root().version, 3);
    // Half of the threshold of the second root is not enough.
    let mut repository = Repository::new();
    repository.root_keys = vec![key(11), key(12)];
    repository.publish_root_with(&[&key(1)]);
    repository.root_keys = vec![key(13)];
    repository.publish_root_with(&[&key(11)]);
    assert_eq!(repository.refused(&mut repository.client()), "tuf.below_threshold");
}

#[test]
fn rotated_online_keys_end_a_fast_forward_attack() {
    let mut repository = Repository::new();
    (repository.timestamp, repository.snapshot) = (900_000, 900_000);
    repository.targets.version = 900_000;
    repository.publish();
    let mut client = repository.fresh_client();
    (repository.timestamp, repository.snapshot, repository.targets.version) = (1, 1, 1);
    repository.publish();
    assert_eq!(repository.refused(&mut client.clone()), "tuf.rollback_timestamp");
    (repository.snapshot_key, repository.timestamp_key) = (key(23), key(24));
    repository.publish_root();
    (repository.timestamp, repository.snapshot, repository.targets.version) = (2, 2, 2);
    repository.publish();
    repository.refresh(&mut client).unwrap();
    assert_eq!(client.targets().unwrap().version, 3);
    // The same when power failed between root and timestamp.
    assert_eq!(reload(&client).unwrap().targets().unwrap().version, 3);
}

#[test]
fn rotated_targets_keys_make_old_targets_worthless() {
    let mut repository = Repository::new();
    let mut client = repository.fresh_client();
    repository.targets_key = key(22);
    repository.publish_root();
    assert_eq!(repository.refused(&mut client), "tuf.unknown_key");
    assert_eq!(client.targets(), Err(TufError::Incomplete));
    repository.publish();
    repository.refresh(&mut client).unwrap();
    assert_eq!(client.targets().unwrap().version, 2);
}

#[test]
fn one_key_counts_once_however_often_it_signs_or_is_named() {
    let mut repository = Repository::new();
    let mut signers = repository.signers();
    signers.timestamp = Signers { keys: vec![key(4).public(), key(5).public()], threshold: 2 };
    let mut root = Root::new(2, LATER, &signers);
    // The same key under a second name.
    let alias = root.keys[&key(4).public().id()].clone();
    root.keys.insert("alias".to_owned(), alias);
    let role = root.roles.get_mut("timestamp").unwrap();
    role.keyids.extend(["alias".to_owned(), key(4).public().id()]);
    repository.put("2.root.json", signer::sign(&root, &[&key(1)]).unwrap());
    let timestamp = repository.file("timestamp.json").to_vec();
    let mut document: serde_json::Value = serde_json::from_slice(&timestamp).unwrap();
    let mut again = document["signatures"][0].clone();
    document["signatures"].as_array_mut().unwrap().push(again.clone());
    repository.put("timestamp.json", serde_json::to_vec(&document).unwrap());
    assert_eq!(repository.refused(&mut repository.client()), "tuf.malformed");
    again["keyid"] = "alias".into();
    document["signatures"][1] = again;
    repository.put("timestamp.json", serde_json::to_vec(&document).unwrap());
    assert_eq!(repository.refused(&mut repository.client()), "tuf.below_threshold");
    let both = signer::add_signature(repository.file("timestamp.json"), &key(5)).unwrap();
    repository.put("timestamp.json", both);
    repository.refresh(&mut repository.client()).unwrap();
}

#[test]
fn unknown_fields_roles_and_kinds_of_keys_are_ignored() {
    let mut repository = Repository::new();
    let mut root = serde_json::to_value(Root::new(2, LATER, &repository.signers())).unwrap();
    root["x-new"] = serde_json::json!({ "a": [1, null] });
    root["keys"]["k"] =
        serde_json::json!({ "keytype": "post-quantum", "scheme": "?", "keyval": { "public": "" } });
    root["roles"]["timestamp"]["keyids"].as_array_mut().unwrap().push("k".into());
    root["roles"]["mirrors"] = serde_json::json!({ "keyids": [], "threshold": 1 });
    repository.put("2.root.json", crate::envelope::seal(&root, &[&key(1)]).unwrap());
    let mut client = repository.client();
    repository.refresh(&mut client).unwrap();
    assert_eq!(client.root().root().version, 2);
}

#[test]
fn metadata_that_breaks_a_rule_is_malformed_though_it_is_signed() {
    type Change = fn(&mut serde_json::Value);
    let changes: &[Change] = &[
        |d| d["version"] = 0.into(),
        |d| d["version"] = "1".into(),
        |d| d["version"] = (-1).into(),
        |d| d["spec_version"] = "2.0.0".into(),
        |d| d["expires"] = "2999-01-01".into(),
        |d| d["meta"] = serde_json::json!({}),
        |d| d["meta"]["snapshot.json"]["version"] = 0.into(),
        |d| d["meta"] = serde_json::json!([]),
        |d| drop(d.as_object_mut().unwrap().remove("expires")),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut repository = Repository::new();
        let timestamp = Timestamp::new(1, LATER, 1, repository.file("1.snapshot.json"));
        let mut document = serde_json::to_value(timestamp).unwrap();
        change(&mut document);
        repository.put("timestamp.json", crate::envelope::seal(&document, &[&key(4)]).unwrap());
        assert_eq!(repository.refused(&mut repository.client()), "tuf.malformed", "{number}");
    }
    let mut repository = Repository::new();
    let mut root = Root::new(2, LATER, &repository.signers());
    root.roles.get_mut("snapshot").unwrap().threshold = 0;
    let document = serde_json::to_value(root).unwrap();
    repository.put("2.root.json", crate::envelope::seal(&document, &[&key(1)]).unwrap());
    assert_eq!(repository.refused(&mut repository.client()), "tuf.malformed");
}

#[test]
fn the_floor_and_the_list_of_targets_limit_what_may_be_assigned() {
    let mut repository = Repository::new();
    repository.targets.add("a/2.0.0.json", b"x");
    repository.targets.floor.insert("a".parse().unwrap(), "1.5.0".parse().unwrap());
    repository.publish();
    let client = repository.fresh_client();
    let code = |id: &str| client.permits(&id.parse().unwrap()).map_or_else(|e| e.code().as_str(), |_| "yes");
    assert_eq!(code("a/2.0.0"), "yes");
    assert_eq!(code("a/1.0.0"), "assignment.below_floor");
    assert_eq!(code("a/3.0.0"), "tuf.unknown_target");
    assert_eq!(code("b/1.0.0"), "tuf.unknown_target");
    let wrong = client.verify_manifest(&"a/2.0.0".parse().unwrap(), b"y").unwrap_err();
    assert_eq!(wrong.code().as_str(), "tuf.hash_mismatch");
    let none = client.verify_manifest(&"a/2.0.0".parse().unwrap(), b"x").unwrap_err();
    assert_eq!(none.code().as_str(), "manifest.malformed");
}

#[test]
fn assignment_keys_are_a_signed_target() {
    let mut repository = Repository::new();
    let bytes = signer::assignment_keys(&[key(7).public()]).unwrap();
    repository.targets.add(ASSIGNMENT_KEYS, &bytes);
    repository.publish();
    let client = repository.fresh_client();
    assert_eq!(client.assignment_keys(&bytes), Ok(vec![key(7).public()]));
    let forged = signer::assignment_keys(&[key(66).public()]).unwrap();
    assert_eq!(client.assignment_keys(&forged).unwrap_err().code().as_str(), "tuf.hash_mismatch");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_or_are_trusted(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let repository = Repository::new();
        proptest::prop_assert!(Client::new(&bytes).is_err());
        for name in ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"] {
            let mut repository = repository.clone();
            repository.put(name, bytes.clone());
            proptest::prop_assert!(repository.refresh(&mut repository.client()).is_err());
        }
    }

    #[test]
    fn no_changed_byte_is_trusted(at: proptest::sample::Index, to: u8) {
        let repository = Repository::new();
        for name in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
            let mut bytes = repository.file(name).to_vec();
            let at = at.index(bytes.len());
            if bytes[at] == to {
                continue;
            }
            bytes[at] = to;
            let mut changed = repository.clone();
            changed.put(name, bytes);
            let mut client = repository.client();
            let same = repository.fresh_client();
            if changed.refresh(&mut client).is_ok() {
                // White space and hex case lie outside of what is signed.
                proptest::prop_assert_eq!(&**client.targets().unwrap(), &**same.targets().unwrap());
            }
        }
    }
}
