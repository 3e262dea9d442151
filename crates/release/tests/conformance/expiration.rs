//! `test_expiration.py`: 6 cases.

use super::device::Device;
use super::repository::{Repository, day, stamp};
use super::{ALL, BELOW_ROOT};

#[test]
fn test_root_expired() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.publish(&["root"]);
    device.refresh(&mut repository).unwrap();
    repository.document("root")["expires"] = stamp(day(-1));
    repository.publish(&ALL);
    assert_eq!(device.refresh(&mut repository), Err("tuf.expired"));
    assert_eq!(device.versions(), [("root", 3), ("snapshot", 1), ("targets", 1), ("timestamp", 1)]);
}

/// `test_timestamp_expired`, `test_snapshot_expired`, `test_targets_expired`.
#[test]
fn test_role_expired() {
    let cases: [(&str, &[&str], [u64; 3]); 3] = [
        ("timestamp", &["timestamp"], [1, 1, 1]),
        ("snapshot", &["snapshot", "timestamp"], [1, 1, 2]),
        ("targets", &BELOW_ROOT, [2, 1, 2]),
    ];
    for (role, published, [snapshot, targets, timestamp]) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        device.refresh(&mut repository).unwrap();
        repository.document(role)["expires"] = stamp(day(-5));
        repository.publish(published);
        assert_eq!(device.refresh(&mut repository), Err("tuf.expired"), "{role}");
        let expected = [("root", 1), ("snapshot", snapshot), ("targets", targets), ("timestamp", timestamp)];
        assert_eq!(device.versions(), expected, "{role}");
    }
}

#[test]
fn test_expired_local_root() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.document("root")["expires"] = stamp(day(7));
    repository.publish(&["root"]);
    device.refresh(&mut repository).unwrap();
    repository.document("root")["expires"] = stamp(day(21));
    repository.publish(&["root"]);
    device.refresh_at(&mut repository, day(18)).unwrap();
    assert_eq!(device.version("root"), Some(3));
}

#[test]
fn test_expired_local_timestamp() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.document("timestamp")["expires"] = stamp(day(7));
    repository.publish(&["timestamp"]);
    device.refresh(&mut repository).unwrap();
    repository.document("timestamp")["expires"] = stamp(day(21));
    repository.publish(&BELOW_ROOT);
    device.refresh_at(&mut repository, day(18)).unwrap();
    assert_eq!(device.versions(), [("root", 1), ("snapshot", 2), ("targets", 2), ("timestamp", 3)]);
}
