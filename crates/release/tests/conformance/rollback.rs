//! `test_rollback.py`: 9 cases.

use serde_json::json;

use super::device::Device;
use super::repository::Repository;
use super::{ALL, BELOW_ROOT};

#[test]
fn test_new_timestamp_version_rollback() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.publish(&["timestamp"]);
    device.refresh(&mut repository).unwrap();
    repository.unpublish("timestamp");
    repository.publish(&["timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.rollback_timestamp"));
    assert_eq!(device.version("timestamp"), Some(2));
    assert_eq!(repository.requests.last().unwrap().0, "timestamp");
}

#[test]
fn test_snapshot_rollback() {
    for (name, digests) in [("basic", false), ("with hashes", true)] {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        repository.digests = digests;
        repository.publish(&["snapshot", "timestamp"]);
        device.refresh(&mut repository).unwrap();
        repository.unpublish("snapshot");
        repository.publish(&["snapshot", "timestamp"]);
        assert_eq!(device.refresh(&mut repository), Err("tuf.rollback_snapshot"), "{name}");
        assert_eq!((device.version("timestamp"), device.version("snapshot")), (Some(2), Some(2)), "{name}");
        assert_eq!(repository.requests.last().unwrap().0, "timestamp", "{name}");
    }
}

fn delegate(repository: &mut Repository) {
    repository.delegate("targets", "delegated", json!({ "paths": ["delegatedpath/*"] }));
    repository.publish(&["delegated"]);
}

#[test]
fn test_targets_role_removal() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    delegate(&mut repository);
    repository.publish(&BELOW_ROOT);
    device.refresh(&mut repository).unwrap();
    repository.document("snapshot")["meta"].as_object_mut().unwrap().remove("delegated.json");
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.rollback_targets"));
    assert_eq!(device.version("snapshot"), Some(2));
}

#[test]
fn test_targets_fast_forward_recovery() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    delegate(&mut repository);
    repository.publish(&["targets"; 99]);
    repository.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("targets"), Some(100));
    repository.rotate("snapshot");
    repository.unpublish("targets");
    repository.document("snapshot")["meta"].as_object_mut().unwrap().remove("delegated.json");
    repository.publish(&ALL);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("targets"), Some(1));
}

#[test]
fn test_new_snapshot_fast_forward_recovery() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.publish(&["snapshot"; 99]);
    repository.publish(&["timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("snapshot"), Some(100));
    repository.rotate("snapshot");
    repository.rotate("timestamp");
    repository.unpublish("snapshot");
    repository.publish(&ALL);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("snapshot"), Some(1));
}

#[test]
fn test_new_timestamp_fast_forward_recovery() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.publish(&["timestamp"; 99]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("timestamp"), Some(100));
    repository.rotate("timestamp");
    repository.unpublish("timestamp");
    repository.publish(&["root", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("timestamp"), Some(1));
}

#[test]
fn test_targets_rollback() {
    for (name, digests) in [("basic", false), ("with hashes", true)] {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        repository.digests = digests;
        repository.publish(&BELOW_ROOT);
        device.refresh(&mut repository).unwrap();
        repository.unpublish("targets");
        repository.publish(&BELOW_ROOT);
        assert_eq!(device.refresh(&mut repository), Err("tuf.rollback_targets"), "{name}");
        assert_eq!((device.version("snapshot"), device.version("targets")), (Some(2), Some(2)), "{name}");
    }
}
