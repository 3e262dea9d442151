//! The store under every combination of damage, and under a cut at every write: a rolled-back repository
//! is never let through.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use farlight_release::key::KeyPair;
use farlight_release::tuf::signer::{self, RootSigners, Signers};
use farlight_release::tuf::{Root, Snapshot, Step, Targets, Timestamp};
use farlight_wire::Millis;

use super::*;

const NOW: Millis = Millis(1_700_000_000_000);
const LATER: Millis = Millis(NOW.0 + 86_400_000);

fn key(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

/// A repository's files; version `n` of it has version `n` of everything but the root.
fn repository(version: u64) -> BTreeMap<String, Vec<u8>> {
    let mut family = Targets::new(version, LATER);
    family.add("a/1.0.0.json", b"content");
    let family = signer::sign(&family, &[&key(5)]).unwrap();
    let mut targets = Targets::new(version, LATER);
    targets.delegate("a", vec!["a/*".to_owned()], &Signers::one(key(5).public()));
    let targets = signer::sign(&targets, &[&key(2)]).unwrap();
    let mut snapshot = Snapshot::new(version, LATER, version, &targets);
    snapshot.list("a", version, &family);
    let snapshot = signer::sign(&snapshot, &[&key(3)]).unwrap();
    let mut timestamp = Timestamp::new(version, LATER, version, &snapshot);
    timestamp.issued = Some(Millis(NOW.0 + version * 1000));
    let timestamp = signer::sign(&timestamp, &[&key(4)]).unwrap();
    BTreeMap::from([
        ("metadata/timestamp.json".to_owned(), timestamp),
        (format!("metadata/{version}.snapshot.json"), snapshot),
        (format!("metadata/{version}.targets.json"), targets),
        (format!("metadata/{version}.a.json"), family),
    ])
}

fn root() -> Vec<u8> {
    let signers = RootSigners {
        root: Signers::one(key(1).public()),
        targets: Signers::one(key(2).public()),
        snapshot: Signers::one(key(3).public()),
        timestamp: Signers::one(key(4).public()),
    };
    signer::sign(&Root::new(1, LATER, &signers), &[&key(1)]).unwrap()
}

/// Refreshes and looks `a/1.0.0` up; what was accepted is committed, also after an error.
fn refresh(trust: &mut Trust, version: u64) -> Result<(), String> {
    let files = repository(version);
    trust.client.begin_refresh(NOW);
    let mut outcome = drive(trust, &files);
    if outcome.is_ok() {
        trust.client.begin_lookup("a/1.0.0.json", NOW);
        outcome = drive(trust, &files);
    }
    trust.commit().unwrap();
    outcome
}

fn drive(trust: &mut Trust, files: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    while let Step::Fetch { path, .. } = trust.client.next() {
        let file = files.get(&path).map(Vec::as_slice);
        if let Some(keep) = trust.client.supply(file).map_err(|e| e.code().as_str().to_owned())? {
            trust.keep(keep);
        }
    }
    Ok(())
}

fn files(folder: &Path) -> [PathBuf; 3] {
    let [a, b] = copies(folder);
    [a, b, mark(folder)]
}

/// A store that has seen versions 1, 2 and 3, and its files after 2 and after 3.
fn store(folder: &Path) -> [[Vec<u8>; 3]; 2] {
    let mut trust = Trust::create(folder, &root()).unwrap();
    let contents = || files(folder).map(|path| fs::read(path).unwrap());
    refresh(&mut trust, 1).unwrap();
    refresh(&mut trust, 2).unwrap();
    let old = contents();
    refresh(&mut trust, 3).unwrap();
    [old, contents()]
}

type Damage = (&'static str, fn(&[u8], &[u8]) -> Option<Vec<u8>>);

/// What may have become of a file: from its older and its newest content.
const DAMAGES: &[Damage] = &[
    ("whole", |_, new| Some(new.to_vec())),
    ("missing", |_, _| None),
    ("empty", |_, _| Some(Vec::new())),
    ("cut in half", |_, new| Some(new[..new.len() / 2].to_vec())),
    ("last byte cut", |_, new| Some(new[..new.len() - 1].to_vec())),
    ("zeroed", |_, new| Some(vec![0; new.len()])),
    ("second half zeroed", |_, new| {
        let half = new.len() / 2;
        Some([&new[..half], &vec![0; new.len() - half]].concat())
    }),
    ("garbage", |_, new| Some((0..new.len()).map(|at| (at * 31 % 251) as u8).collect())),
    ("one bit", |_, new| {
        let mut bytes = new.to_vec();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        Some(bytes)
    }),
    ("older", |old, _| Some(old.to_vec())),
    ("older in front of newer", |old, new| Some([&old[..old.len() / 2], &new[old.len() / 2..]].concat())),
];

#[test]
fn no_combination_of_damage_lets_a_rolled_back_repository_through() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = store(dir.path());
    let paths = files(dir.path());
    let (mut opened, mut lost) = (0, 0);
    for (a, of_a) in DAMAGES {
        for (b, of_b) in DAMAGES {
            for (m, of_mark) in DAMAGES {
                for ((path, damage), (old, new)) in
                    paths.iter().zip([of_a, of_b, of_mark]).zip(old.iter().zip(&new))
                {
                    match damage(old, new) {
                        Some(bytes) => fs::write(path, bytes).unwrap(),
                        None => drop(fs::remove_file(path)),
                    }
                }
                let case = format!("a {a}, b {b}, mark {m}");
                let whole = [a, b, m].iter().filter(|name| **name == &"whole").count();
                match Trust::open(dir.path()) {
                    Ok(mut trust) => {
                        opened += 1;
                        // Where all that can be read is older, nothing is there that could tell.
                        if whole > 0 {
                            assert_eq!(
                                refresh(&mut trust, 2).unwrap_err(),
                                "tuf.rollback_timestamp",
                                "{case}"
                            );
                        }
                        assert_eq!(refresh(&mut trust, 3), Ok(()), "{case}");
                        drop(trust);
                        let mut again = Trust::open(dir.path()).unwrap();
                        assert!(!again.dirty, "{case}: the commit makes all files whole");
                        assert_eq!(refresh(&mut again, 2).unwrap_err(), "tuf.rollback_timestamp", "{case}");
                    }
                    Err(error) => {
                        lost += 1;
                        assert!(matches!(error, TrustError::Lost { .. }), "{case}: {error}");
                        // One damaged file loses nothing.
                        assert!(whole < 2, "{case}");
                    }
                }
            }
        }
    }
    assert_eq!(opened + lost, DAMAGES.len().pow(3));
    assert!(opened > 50 && lost > 100, "{opened} {lost}");
}

#[test]
fn a_cut_at_any_write_leaves_the_state_before_or_after() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = store(dir.path());
    let paths = files(dir.path());
    for done in 0..=paths.len() {
        for torn in [false, true] {
            for (at, path) in paths.iter().enumerate() {
                let half = new[at].len() / 2;
                let bytes = match at {
                    _ if at < done => new[at].clone(),
                    // A file system that does not replace as a whole.
                    _ if at == done && torn => new[at][..half].to_vec(),
                    _ => old[at].clone(),
                };
                fs::write(path, bytes).unwrap();
            }
            let mut trust = Trust::open(dir.path()).unwrap_or_else(|e| panic!("{done} {torn}: {e}"));
            assert_eq!(refresh(&mut trust, 1).unwrap_err(), "tuf.rollback_timestamp", "{done} {torn}");
            assert_eq!(refresh(&mut trust, 3), Ok(()), "{done} {torn}");
        }
    }
}

#[test]
fn what_was_looked_up_is_there_after_a_restart_without_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let mut trust = Trust::open(dir.path()).unwrap();
    let release = "a/1.0.0".parse().unwrap();
    assert_eq!(trust.client.permits(&release).unwrap_err().code().as_str(), "tuf.incomplete");
    trust.client.begin_lookup("a/1.0.0.json", NOW);
    assert_eq!(trust.client.next(), Step::Done);
    assert!(trust.client.permits(&release).is_ok());
}

#[test]
fn the_time_that_the_repository_proved_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let trust = Trust::open(dir.path()).unwrap();
    assert_eq!(trust.client.trusted_now(Millis(0)), Millis(NOW.0 + 3000));
    assert_eq!(trust.client.trusted_now(LATER), LATER);
    assert_eq!(trust.client.check_fresh(Millis(0)), Ok(()));
    assert_eq!(trust.client.check_fresh(LATER).unwrap_err().code().as_str(), "tuf.expired");
}

#[test]
fn enrolling_again_goes_on_beyond_the_mark() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    for path in copies(dir.path()) {
        fs::remove_file(path).unwrap();
    }
    assert!(matches!(Trust::open(dir.path()), Err(TrustError::Lost { .. })));
    Trust::create(dir.path(), &root()).unwrap();
    let mut trust = Trust::open(dir.path()).unwrap();
    assert_eq!(refresh(&mut trust, 1), Ok(()));
}

#[test]
fn a_commit_that_fails_is_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let mut trust = Trust::open(dir.path()).unwrap();
    // A folder in place of the file that is written beside the copy.
    let obstacle = copies(dir.path())[1].with_extension("new");
    fs::create_dir(&obstacle).unwrap();
    assert!(trust.keep_assignment(b"x", Last { sequence: 1, sha256: String::new() }).is_err());
    fs::remove_dir(&obstacle).unwrap();
    trust.commit().unwrap();
    assert_eq!(Trust::open(dir.path()).unwrap().assignment(), Some(b"x".to_vec()));
}
