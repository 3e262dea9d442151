//! `test_updater_key_rotations.py`: 25 cases.

use farlight_release::key::KeyPair;

use super::ALL;
use super::device::Device;
use super::repository::Repository;

/// The keys of a role, how many must sign, and which do.
struct Version(&'static [usize], u64, &'static [usize]);

fn keys(repository: &mut Repository) -> Vec<KeyPair> {
    (0..10).map(|_| repository.new_key()).collect()
}

/// Gives a role keys and signers as a version says.
fn set(
    repository: &mut Repository,
    role: &str,
    keys: &[KeyPair],
    Version(trusted, threshold, signers): &Version,
) {
    repository.clear_keys(role);
    repository.role(role)["threshold"] = (*threshold).into();
    for at in *trusted {
        repository.trust(role, &keys[*at].public(), keys[*at].public().to_object());
    }
    repository.signers.insert(role.to_owned(), signers.iter().map(|at| keys[*at].clone()).collect());
}

/// Name, versions of the root in order, and whether the last one is to be accepted.
const ROOT_ROTATIONS: &[(&str, &[Version], bool)] = &[
    (
        "1-of-1-key-rotation",
        &[Version(&[1], 1, &[1]), Version(&[2], 1, &[2, 1]), Version(&[2], 1, &[2])],
        true,
    ),
    (
        "1-of-1-key-rotation-unused-signatures",
        &[Version(&[1], 1, &[3, 1, 4]), Version(&[2], 1, &[3, 2, 1, 4]), Version(&[2], 1, &[3, 2, 4])],
        true,
    ),
    (
        "3-of-5-sign-with-different-keycombos",
        &[
            Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]),
            Version(&[0, 1, 2, 3, 4], 3, &[0, 4, 1]),
            Version(&[0, 1, 2, 3, 4], 3, &[0, 1, 3]),
            Version(&[0, 1, 2, 3, 4], 3, &[0, 1, 3]),
        ],
        true,
    ),
    (
        "3-of-5-one-key-rotated",
        &[Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]), Version(&[0, 1, 3, 4, 5], 3, &[0, 4, 1])],
        true,
    ),
    (
        "3-of-5-one-key-rotated-with-intermediate-step",
        &[
            Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]),
            Version(&[0, 1, 3, 4, 5], 3, &[0, 2, 4, 5]),
            Version(&[0, 1, 3, 4, 5], 3, &[0, 4, 5]),
        ],
        true,
    ),
    (
        "3-of-5-all-keys-rotated-with-intermediate-step",
        &[
            Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]),
            Version(&[5, 6, 7, 8, 9], 3, &[0, 2, 4, 5, 6, 7]),
            Version(&[5, 6, 7, 8, 9], 3, &[5, 6, 7]),
        ],
        true,
    ),
    (
        "1-of-3-threshold-increase-to-2-of-3",
        &[Version(&[1, 2, 3], 1, &[1]), Version(&[1, 2, 3], 2, &[1, 2])],
        true,
    ),
    (
        "2-of-3-threshold-decrease-to-1-of-3",
        &[Version(&[1, 2, 3], 2, &[1, 2]), Version(&[1, 2, 3], 1, &[1, 2]), Version(&[1, 2, 3], 1, &[1])],
        true,
    ),
    ("1-of-2-threshold-increase-to-2-of-2", &[Version(&[1], 1, &[1]), Version(&[1, 2], 2, &[1, 2])], true),
    (
        "1-of-1-key-rotation-fail-not-signed-with-old-key",
        &[Version(&[1], 1, &[1]), Version(&[2], 1, &[2, 3, 4])],
        false,
    ),
    (
        "1-of-1-key-rotation-fail-not-signed-with-new-key",
        &[Version(&[1], 1, &[1]), Version(&[2], 1, &[1, 3, 4])],
        false,
    ),
    (
        "3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys",
        &[Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]), Version(&[0, 1, 3, 4, 5], 3, &[0, 2, 4])],
        false,
    ),
    (
        "3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys",
        &[Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]), Version(&[0, 1, 3, 4, 5], 3, &[0, 4, 5])],
        false,
    ),
    (
        "1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached",
        &[Version(&[1, 2, 3], 1, &[1]), Version(&[1, 2, 3], 2, &[2])],
        false,
    ),
    (
        "2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-eached",
        &[Version(&[1, 2, 3], 2, &[1, 2]), Version(&[1, 2, 3], 1, &[1])],
        false,
    ),
];

/// Whether a refresh was accepted, or else refused for its signatures: none of them counts, or too few.
fn judged(refresh: Result<(), &str>, accepted: bool, name: &str) {
    match refresh {
        Ok(()) => assert!(accepted, "{name}"),
        Err(code) => {
            assert!(
                !accepted && ["tuf.unknown_key", "tuf.below_threshold"].contains(&code),
                "{name}: {code}"
            );
        }
    }
}

#[test]
fn test_root_rotation() {
    assert_eq!(ROOT_ROTATIONS.len(), 15);
    for (name, versions, accepted) in ROOT_ROTATIONS {
        let mut repository = Repository::new();
        let keys = keys(&mut repository);
        repository.unpublish("root");
        for version in *versions {
            set(&mut repository, "root", &keys, version);
            repository.publish(&["root"]);
        }
        repository.publish(&super::BELOW_ROOT);
        let mut device = Device::new(&repository);
        judged(device.refresh(&mut repository), *accepted, name);
        let roots = &repository.published["root"];
        let trusted = if *accepted { roots.len() - 1 } else { roots.len() - 2 };
        assert_eq!(device.metadata["root.json"], roots[trusted], "{name}");
    }
}

const OTHER_ROTATIONS: &[(&str, Version, bool)] = &[
    ("1-of-1-key-rotation", Version(&[2], 1, &[2]), true),
    ("1-of-1-key-rotation-unused-signatures", Version(&[1], 1, &[3, 1, 4]), true),
    ("1-of-1-key-rotation-fail-not-signed-with-new-key", Version(&[2], 1, &[1, 3, 4]), false),
    (
        "3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys",
        Version(&[0, 1, 3, 4, 5], 3, &[0, 2, 4]),
        false,
    ),
    ("2-of-5-one-key-signature-mising-threshold-not-reached", Version(&[0, 1, 3, 4, 5], 3, &[0, 4]), false),
    ("3-of-5-sign-first-combo", Version(&[0, 1, 2, 3, 4], 3, &[0, 2, 4]), true),
    ("3-of-5-sign-second-combo", Version(&[0, 1, 2, 3, 4], 3, &[0, 4, 1]), true),
    ("3-of-5-sign-third-combo", Version(&[0, 1, 2, 3, 4], 3, &[0, 1, 3]), true),
    ("3-of-5-sign-fourth-combo", Version(&[0, 1, 2, 3, 4], 3, &[1, 2, 3]), true),
    ("3-of-5-sign-fifth-combo", Version(&[0, 1, 2, 3, 4], 3, &[2, 3, 4]), true),
];

#[test]
fn test_non_root_rotations() {
    assert_eq!(OTHER_ROTATIONS.len(), 10);
    for (name, version, accepted) in OTHER_ROTATIONS {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        let keys = keys(&mut repository);
        for role in ["timestamp", "snapshot", "targets"] {
            set(&mut repository, role, &keys, version);
            repository.publish(&ALL);
            judged(device.refresh(&mut repository), *accepted, name);
            if *accepted {
                assert_eq!(
                    device.metadata[&format!("{role}.json")],
                    *repository.newest(role),
                    "{name} {role}"
                );
            }
        }
    }
}
