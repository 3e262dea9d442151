//! `test_file_download.py`: 9 cases.

use farlight_release::digest;
use serde_json::{Value, json};

use super::BELOW_ROOT;
use super::device::Device;
use super::repository::Repository;

const CONTENT: &[u8] = b"target file contents";

#[test]
fn test_client_downloads_expected_file() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_artifact("targets", CONTENT, "target_file.txt");
    repository.publish(&BELOW_ROOT);
    device.refresh(&mut repository).unwrap();
    assert!(device.files.is_empty());
    device.download(&mut repository, &["target_file.txt"]).unwrap();
    assert_eq!(device.contents(), [CONTENT]);
}

#[test]
fn test_client_downloads_expected_file_in_sub_dir() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_artifact("targets", CONTENT, "path/to/a/target_file.txt");
    repository.publish(&BELOW_ROOT);
    device.download(&mut repository, &["path/to/a/target_file.txt"]).unwrap();
    assert_eq!(device.contents(), [CONTENT]);
}

#[test]
fn test_repository_substitutes_target_file() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_artifact("targets", CONTENT, "one");
    repository.add_artifact("targets", b"content", "two");
    repository.publish(&BELOW_ROOT);
    device.download(&mut repository, &["one"]).unwrap();
    for artifact in repository.artifacts.values_mut() {
        artifact.bytes = b"malicious".to_vec();
    }
    // What is there already is not fetched again.
    device.download(&mut repository, &["one"]).unwrap();
    assert_eq!(device.contents(), [CONTENT]);
    assert!(device.download(&mut repository, &["two"]).is_err());
    assert_eq!(device.contents(), [CONTENT]);
}

#[test]
fn test_multiple_changes_to_target() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_artifact("targets", CONTENT, "one");
    repository.publish(&BELOW_ROOT);
    device.download(&mut repository, &["one"]).unwrap();
    let mut expected = vec![CONTENT.to_vec()];
    for i in 0..11 {
        let (changed, new) = (format!("modified {i}").into_bytes(), format!("new {i}").into_bytes());
        repository.add_artifact("targets", &changed, "one");
        repository.add_artifact("targets", &new, &format!("new-{i}"));
        repository.publish(&BELOW_ROOT);
        // The device sees every fifth version only.
        if i % 5 > 0 {
            continue;
        }
        let previous = device.files.iter().find(|(name, _)| name == "one").unwrap().1.clone();
        device.download(&mut repository, &["one", &format!("new-{i}")]).unwrap();
        expected.retain(|content| *content != previous);
        expected.extend([changed, new]);
        assert_eq!(device.contents(), expected);
        repository.artifacts.get_mut("one").unwrap().bytes = b"malicious".to_vec();
        repository.publish(&BELOW_ROOT);
        device.download(&mut repository, &["one"]).unwrap();
        assert_eq!(device.contents(), expected);
    }
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha512::digest(bytes))
}

#[test]
fn test_download_with_hash_algorithms() {
    let (short, long) = (digest::sha256(CONTENT), sha512(CONTENT));
    let cases: [(&str, Value); 3] = [
        ("sha256", json!({ "sha256": short })),
        ("sha512", json!({ "sha512": long })),
        ("sha256, sha512", json!({ "sha256": short, "sha512": long })),
    ];
    for (name, hashes) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        repository.add_artifact_with("targets", CONTENT, "target_file.txt", hashes);
        repository.publish(&BELOW_ROOT);
        device.download(&mut repository, &["target_file.txt"]).unwrap();
        let (path, digest) = &repository.downloads[0];
        assert_eq!((repository.downloads.len(), path.as_str()), (1, "target_file.txt"), "{name}");
        assert!([&short, &long].contains(&digest), "{name}");
        assert_eq!(device.contents(), [CONTENT], "{name}");
    }
}

#[test]
fn test_download_with_unknown_hash_algorithm() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    let hashes = json!({ "unknown-hash": sha512(CONTENT) });
    repository.add_artifact_with("targets", CONTENT, "target_file.txt", hashes);
    repository.publish(&BELOW_ROOT);
    assert_eq!(device.download(&mut repository, &["target_file.txt"]), Err("tuf.hash_mismatch"));
    assert!(device.files.is_empty());
}

#[test]
fn test_artifact_cache() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.add_artifact("targets", CONTENT, "target_file.txt");
    repository.publish(&BELOW_ROOT);
    device.download(&mut repository, &["target_file.txt"]).unwrap();
    device.download(&mut repository, &["target_file.txt"]).unwrap();
    assert_eq!(repository.downloads.len(), 1);
}
