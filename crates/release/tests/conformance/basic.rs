//! `test_basic.py`: 24 cases.

use serde_json::json;

use super::device::Device;
use super::repository::{Repository, day, stamp};
use super::{ALL, BELOW_ROOT};

fn requests(repository: &Repository) -> Vec<(&str, Option<u64>)> {
    repository.requests.iter().map(|(role, version)| (role.as_str(), *version)).collect()
}

const FIRST_REQUESTS: [(&str, Option<u64>); 4] =
    [("root", Some(2)), ("timestamp", None), ("snapshot", Some(1)), ("targets", Some(1))];

fn assert_all_trusted(device: &Device, repository: &mut Repository) {
    for role in ALL {
        assert_eq!(device.metadata[&format!("{role}.json")], *repository.newest(role), "{role}");
    }
}

#[test]
fn test_basic_refresh_requests() {
    let mut repository = Repository::new();
    Device::new(&repository).refresh(&mut repository).unwrap();
    assert_eq!(requests(&repository), FIRST_REQUESTS);
}

#[test]
fn test_basic_refresh_trusted_data() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    assert_all_trusted(&device, &mut repository);
}

#[test]
fn test_implicit_refresh() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    assert_eq!(device.download(&mut repository, &["nonexistent artifact"]), Err("tuf.unknown_target"));
    assert_eq!(requests(&repository), FIRST_REQUESTS);
    assert_all_trusted(&device, &mut repository);
}

#[test]
fn test_invalid_initial_root() {
    let mut repository = Repository::new();
    repository.tamper("root", |root| drop(root["signed"].as_object_mut().unwrap().remove("version")));
    assert_eq!(Device::new(&repository).refresh(&mut repository), Err("tuf.damaged"));
    assert!(repository.requests.is_empty());
}

#[test]
fn test_unsigned_initial_root() {
    let mut repository = Repository::new();
    repository.tamper("root", |root| root["signatures"][0]["sig"] = "00".repeat(64).into());
    assert_eq!(Device::new(&repository).refresh(&mut repository), Err("tuf.damaged"));
    assert!(repository.requests.is_empty());
}

#[test]
fn test_unsigned_metadata() {
    let cases: [(&str, &[(&str, u64)]); 4] = [
        ("root", &[("root", 1)]),
        ("timestamp", &[("root", 2)]),
        ("snapshot", &[("root", 2), ("timestamp", 2)]),
        ("targets", &[("root", 2), ("snapshot", 2), ("timestamp", 2)]),
    ];
    for (role, trusted) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        repository.signers.get_mut(role).unwrap().clear();
        repository.publish(&ALL);
        assert_eq!(device.refresh(&mut repository), Err("tuf.unknown_key"), "{role}");
        assert_eq!(device.versions(), trusted, "{role}");
    }
}

#[test]
fn test_url_and_metadata_version_mismatch() {
    let cases: [(&str, &[(&str, u64)]); 3] = [
        ("root", &[("root", 1)]),
        ("snapshot", &[("root", 2), ("timestamp", 2)]),
        ("targets", &[("root", 2), ("snapshot", 2), ("timestamp", 2)]),
    ];
    for (role, trusted) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        // It is served as version 2 and says 3.
        repository.document(role)["version"] = 2.into();
        repository.publish(&["root", "targets"]);
        if role == "targets" {
            repository.document("snapshot")["meta"]["targets.json"]["version"] = 2.into();
        }
        repository.publish(&["snapshot"]);
        if role == "snapshot" {
            repository.document("timestamp")["meta"]["snapshot.json"]["version"] = 2.into();
        }
        repository.publish(&["timestamp"]);
        assert_eq!(device.refresh(&mut repository), Err("tuf.mix_and_match"), "{role}");
        assert_eq!(device.versions(), trusted, "{role}");
    }
}

#[test]
fn test_timestamp_content_changes() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    let before = device.metadata.clone();
    repository.document("timestamp")["meta"]["snapshot.json"]["version"] = 100.into();
    repository.unpublish("timestamp");
    repository.publish(&["timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(requests(&repository).last(), Some(&("timestamp", None)));
    assert_eq!(device.metadata, before);
}

#[test]
fn test_basic_metadata_hash_support() {
    let mut repository = Repository::new();
    repository.digests = true;
    repository.publish(&BELOW_ROOT);
    Device::new(&repository).refresh(&mut repository).unwrap();
}

#[test]
fn test_targets_hash_mismatch() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.digests = true;
    repository.publish(&BELOW_ROOT);
    device.refresh(&mut repository).unwrap();
    repository.publish(&["targets"]);
    repository.document("snapshot")["meta"]["targets.json"]["hashes"]["sha256"] = "0".repeat(64).into();
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.hash_mismatch"));
    assert_eq!((device.version("snapshot"), device.version("targets")), (Some(3), Some(2)));
}

#[test]
fn test_snapshot_hash_mismatch() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.digests = true;
    repository.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    repository.publish(&["snapshot"]);
    repository.document("timestamp")["meta"]["snapshot.json"]["hashes"]["sha256"] = "0".repeat(64).into();
    repository.publish(&["timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.hash_mismatch"));
    assert_eq!((device.version("timestamp"), device.version("snapshot")), (Some(3), Some(2)));
}

#[test]
fn test_metadata_bytes_match() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.newest("timestamp").push(b' ');
    device.refresh(&mut repository).unwrap();
    assert_all_trusted(&device, &mut repository);
}

#[test]
fn test_custom_fields() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    let key = repository.new_key();
    let mut object = key.public().to_object();
    object["extra-field"] = json!({ "a": 1, "b": 2 });
    repository.trust("root", &key.public(), object);
    repository.signers.get_mut("root").unwrap().push(key);
    repository.document("root")["custom-field"] = "value".into();
    repository.role("root")["another-field"] = "value".into();
    repository.publish(&["root"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("root"), Some(2));
}

#[test]
fn test_deprecated_keyid_hash_algorithms() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.clear_keys("snapshot");
    let key = repository.new_key();
    let mut object = key.public().to_object();
    object["keyid_hash_algorithms"] = "md5".into();
    repository.trust("snapshot", &key.public(), object);
    repository.signers.get_mut("snapshot").unwrap().push(key);
    repository.publish(&["root", "snapshot", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!((device.version("root"), device.version("snapshot")), (Some(2), Some(2)));
}

#[test]
fn test_snapshot_404() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.document("timestamp")["meta"]["snapshot.json"]["version"] = 2.into();
    repository.publish(&["timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.missing"));
    assert_eq!(requests(&repository).last(), Some(&("snapshot", Some(2))));
    assert_eq!(device.versions(), [("root", 1), ("snapshot", 1), ("targets", 1), ("timestamp", 2)]);
}

#[test]
fn test_targets_404() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.document("snapshot")["meta"]["targets.json"]["version"] = 2.into();
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.missing"));
    assert_eq!(requests(&repository).last(), Some(&("targets", Some(2))));
    assert_eq!(device.versions(), [("root", 1), ("snapshot", 2), ("targets", 1), ("timestamp", 2)]);
}

#[test]
fn test_timestamp_404() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.published.remove("timestamp");
    assert_eq!(device.refresh(&mut repository), Err("tuf.missing"));
    assert_eq!(requests(&repository).last(), Some(&("timestamp", None)));
}

#[test]
fn test_incorrect_metadata_type() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    // A snapshot that is a timestamp in all but its type, signed by the timestamp's key as well.
    let key = repository.signers["timestamp"][0].clone();
    repository.trust("snapshot", &key.public(), key.public().to_object());
    repository.signers.get_mut("snapshot").unwrap().push(key);
    repository.document("snapshot")["meta"] = json!({ "snapshot.json": { "version": 1 } });
    repository.publish(&["root", "snapshot"]);
    let snapshot = repository.newest("snapshot").clone();
    repository.published.get_mut("timestamp").unwrap().push(snapshot);
    assert_eq!(device.refresh(&mut repository), Err("tuf.wrong_type"));
    assert_eq!(device.versions(), [("root", 2)]);
}

#[test]
fn test_faketime() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.document("root")["expires"] = stamp(day(7));
    repository.publish(&["root"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.refresh_at(&mut repository, day(8)), Err("tuf.expired"));
}
