//! `test_quoting_issues.py`: 4 cases.

use serde_json::json;

use super::device::Device;
use super::repository::Repository;

#[test]
fn test_unusual_role_name() {
    let cases = [
        ("?", "%3F"),
        ("#", "%23"),
        ("/delegatedrole", "%2Fdelegatedrole"),
        ("../delegatedrole", "..%2Fdelegatedrole"),
    ];
    for (role, quoted) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        repository.delegate("targets", role, json!({ "paths": ["*"] }));
        repository.publish(&[role, "targets", "snapshot", "timestamp"]);
        let missing = device.download(&mut repository, &["nonexistent target"]);
        assert_eq!(missing, Err("tuf.unknown_target"), "{role}");
        assert!(repository.requests.contains(&(quoted.to_owned(), Some(1))), "{role}");
        assert_eq!(device.versions().len(), 5, "{role}");
        assert_eq!(device.version(quoted), Some(1), "{role}");
    }
}
