//! `test_keys.py`: 8 cases. RSA and ECDSA are verified with the feature `foreign-keys` alone; without it
//! their signatures count for nothing, and both are shown.

use serde_json::{Value, json};

use super::device::Device;
use super::repository::Repository;
use super::{ALL, BELOW_ROOT};

#[test]
fn test_snapshot_does_not_meet_threshold() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.role("snapshot")["threshold"] = 3.into();
    repository.add_key("snapshot");
    repository.add_key("snapshot");
    repository.publish(&ALL);
    device.refresh(&mut repository).unwrap();
    repository.signers.get_mut("snapshot").unwrap().pop();
    repository.publish(&BELOW_ROOT);
    assert_eq!(device.refresh(&mut repository), Err("tuf.below_threshold"));
    assert_eq!(device.version("snapshot"), Some(2));
}

#[test]
fn test_snapshot_has_too_few_keys() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    for _ in 0..4 {
        repository.add_key("snapshot");
    }
    repository.role("snapshot")["threshold"] = 6.into();
    repository.publish(&["root", "snapshot", "timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.below_threshold"));
    assert_eq!((device.version("root"), device.version("snapshot")), (Some(2), None));
}

#[test]
fn test_duplicate_keys() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    let key = repository.add_key("snapshot");
    for _ in 0..8 {
        repository.trust("snapshot", &key.public(), key.public().to_object());
    }
    repository.role("snapshot")["threshold"] = 6.into();
    repository.publish(&["root", "snapshot", "timestamp"]);
    repository.tamper("snapshot", |snapshot| {
        let again = snapshot["signatures"][1].clone();
        snapshot["signatures"].as_array_mut().unwrap().extend(vec![again; 8]);
    });
    assert!(device.refresh(&mut repository).is_err());
    assert_eq!(device.version("snapshot"), None);
}

#[test]
fn test_duplicate_sig_keyids() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.tamper("snapshot", |snapshot| {
        let again = snapshot["signatures"][0].clone();
        snapshot["signatures"].as_array_mut().unwrap().push(again);
    });
    assert_eq!(device.refresh(&mut repository), Err("tuf.malformed"));
    assert_eq!(device.version("snapshot"), None);
}

/// `test_keytype_and_scheme[ed25519/ed25519]`.
#[test]
fn test_keytype_and_scheme() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_key("root");
    repository.role("root")["threshold"] = 2.into();
    repository.publish(&["root"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("root"), Some(2));
    repository.publish(&["root"]);
    repository.tamper("root", |root| {
        root["signatures"][1]["sig"] = root["signatures"][0]["sig"].clone();
    });
    assert_eq!(device.refresh(&mut repository), Err("tuf.signature"));
    assert_eq!(device.version("root"), Some(2));
}

/// `test_keytype_and_scheme[rsa/rsassa-pss-sha256]` and `[ecdsa/ecdsa-sha2-nistp256]`, on roots that
/// python-tuf made: the second one needs a signature by the foreign key, the third has a wrong one.
#[test]
fn test_keytype_and_scheme_of_others() {
    let known = cfg!(feature = "foreign-keys");
    for kind in ["rsa", "ecdsa"] {
        let mut repository = Repository::new();
        let root = |version: u32| super::statics::read(&format!("keys-{kind}/{version}.root.json")).unwrap();
        let mut device = Device::trusting(&root(1));
        for (last, expected) in [(2, if known { 2 } else { 1 }), (3, if known { 2 } else { 1 })] {
            repository.published.insert("root".to_owned(), (1..=last).map(root).collect());
            // Nothing below the root is theirs: what counts is how far the chain of roots is followed.
            assert!(device.refresh(&mut repository).is_err(), "{kind}");
            assert_eq!(device.version("root"), Some(expected), "{kind} {last}");
        }
    }
}

#[test]
fn test_invalid_sig_in_valid_metadata() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    let mut old = Value::Null;
    repository.tamper("timestamp", |timestamp| old = timestamp["signatures"][0]["sig"].clone());
    repository.add_key("timestamp");
    repository.publish(&["root", "timestamp"]);
    for wrong in [old, json!("")] {
        repository.tamper("timestamp", |timestamp| timestamp["signatures"][0]["sig"] = wrong);
        device.refresh(&mut repository).unwrap();
        // The stored file is not damaged either.
        device.refresh(&mut repository).unwrap();
        repository.publish(&["timestamp"]);
    }
}
