//! Repositories by chance, and changes of them: signed again or not, right or wrong.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::repository::{Repository, day, stamp};

const PATTERNS: [&str; 7] = ["*/*", "a/*", "b/*", "a/?.json", "*/[12].json", "c/*", "a/1*"];

fn any<'a, T>(items: &'a [T], rng: &mut StdRng) -> &'a T {
    items.choose(rng).unwrap()
}

/// A repository with delegations, and the paths to ask it for.
pub(crate) fn generate(rng: &mut StdRng) -> (Repository, Vec<String>) {
    let mut repository = Repository::new();
    repository.digests = rng.random();
    let mut roles = vec!["targets".to_owned()];
    for number in 0..rng.random_range(0..6) {
        let from = any(&roles, rng).clone();
        let name = format!("role-{number}");
        let which = match rng.random_range(0..4) {
            0 => json!({ "path_hash_prefixes": [format!("{:x}", rng.random_range(0..16)), "f"] }),
            _ => json!({ "paths": [any(&PATTERNS, rng), any(&PATTERNS, rng)] }),
        };
        repository.delegate(&from, &name, which);
        let last = last_delegation(&mut repository, &from);
        last["terminating"] = rng.random_bool(0.3).into();
        // Now and then a second way to a role, with another key.
        if rng.random_bool(0.2) {
            let other = any(&roles, rng).clone();
            if other != from {
                repository.delegate(&other, &name, json!({ "paths": [any(&PATTERNS, rng)] }));
            }
        }
        roles.push(name);
    }
    let mut paths = vec!["none/1.json".to_owned()];
    for folder in ["a", "b", "c"] {
        for file in 1..=3 {
            let path = format!("{folder}/{file}.json");
            if rng.random_bool(0.8) {
                repository.add_artifact(any(&roles, rng).as_str(), path.as_bytes(), &path);
            }
            paths.push(path);
        }
    }
    let mut again: Vec<&str> = roles.iter().map(String::as_str).collect();
    again.extend(["snapshot", "timestamp"]);
    repository.publish(&again);
    (repository, paths)
}

fn last_delegation<'a>(repository: &'a mut Repository, from: &str) -> &'a mut Value {
    let roles = repository.document(from)["delegations"]["roles"].as_array_mut().unwrap();
    roles.last_mut().unwrap()
}

/// Changes a repository; what was done.
pub(crate) fn change(repository: &mut Repository, rng: &mut StdRng) -> String {
    let delegated: Vec<String> =
        repository.published.keys().filter(|role| role.starts_with("role-")).cloned().collect();
    let below_root: Vec<String> = ["targets", "snapshot", "timestamp"]
        .map(str::to_owned)
        .into_iter()
        .chain(delegated.iter().cloned())
        .collect();
    let role = any(&below_root, rng).clone();
    let chain = |role: &str| match role {
        "timestamp" => vec!["timestamp".to_owned()],
        "snapshot" => vec!["snapshot".to_owned(), "timestamp".to_owned()],
        role => vec![role.to_owned(), "snapshot".to_owned(), "timestamp".to_owned()],
    };
    let publish = |repository: &mut Repository, roles: Vec<String>| {
        repository.publish(&roles.iter().map(String::as_str).collect::<Vec<_>>());
    };
    match rng.random_range(0..15) {
        0 => {
            publish(repository, chain(&role));
            format!("{role} published again")
        }
        1 => {
            repository.publish(&[&role]);
            format!("{role} published alone")
        }
        2 => {
            // Not 0: at the very second we say expired, as python-tuf and the specification, sigstore-tuf not yet.
            let days = *any(&[-1, 1, 400], rng);
            repository.document(&role)["expires"] = stamp(day(days));
            publish(repository, chain(&role));
            format!("{role} expires after {days} days")
        }
        3 => {
            repository.unpublish(&role);
            publish(repository, chain(&role));
            format!("{role} begins anew at version 1")
        }
        4 => {
            let kept = repository.signers[&role].clone();
            let stranger = repository.new_key();
            repository.signers.insert(role.clone(), vec![stranger]);
            publish(repository, chain(&role));
            repository.signers.insert(role.clone(), kept);
            format!("{role} signed by a stranger")
        }
        5 => {
            repository.rotate("timestamp");
            repository.rotate("snapshot");
            repository.publish(&["root", "snapshot", "timestamp"]);
            "online keys rotated".to_owned()
        }
        6 => {
            repository.rotate("targets");
            repository.publish(&["root", "targets", "snapshot", "timestamp"]);
            "targets keys rotated".to_owned()
        }
        7 => {
            let old = repository.signers["root"].clone();
            repository.rotate("root");
            let new = repository.signers["root"].clone();
            let right = rng.random_bool(0.7);
            if right {
                repository.signers.insert("root".to_owned(), [new.clone(), old].concat());
            }
            repository.publish(&["root"]);
            repository.signers.insert("root".to_owned(), new);
            format!("root keys rotated, signed by the old ones: {right}")
        }
        8 => {
            let top = any(&["targets", "snapshot", "timestamp"], rng);
            let more = rng.random_bool(0.5);
            if more {
                repository.add_key(top);
            }
            let threshold = repository.role(top)["threshold"].as_u64().unwrap() + 1;
            repository.role(top)["threshold"] = threshold.into();
            repository.publish(&["root", "targets", "snapshot", "timestamp"]);
            format!("threshold of {top} raised to {threshold}, a key added: {more}")
        }
        9 => {
            repository.document("snapshot")["meta"]["targets.json"]["version"] =
                rng.random_range(1..6).into();
            repository.publish(&["snapshot", "timestamp"]);
            "the snapshot lists another version of targets".to_owned()
        }
        10 => {
            let hashes = json!({ "sha256": "0".repeat(64) });
            if rng.random() {
                repository.publish(&["targets"]);
                repository.document("snapshot")["meta"]["targets.json"]["hashes"] = hashes;
                repository.publish(&["snapshot"]);
            } else {
                repository.publish(&["snapshot"]);
                repository.document("timestamp")["meta"]["snapshot.json"]["hashes"] = hashes;
            }
            repository.publish(&["timestamp"]);
            "a wrong digest was written".to_owned()
        }
        11 => {
            let names: Vec<String> = repository.artifacts.keys().cloned().collect();
            let Some(name) = names.choose(rng) else { return "nothing".to_owned() };
            repository.artifacts.get_mut(name).unwrap().bytes.push(b'!');
            format!("the file {name} was exchanged")
        }
        12 => {
            // In a new version: what a client holds it need not fetch again.
            publish(repository, chain(&role));
            let bytes = repository.newest(&role);
            let byte = rng.random_range(0..bytes.len());
            bytes[byte] ^= 1 << rng.random_range(0..7);
            format!("{role} published again with a bit of byte {byte} flipped")
        }
        13 => {
            let from: Vec<String> = below_root
                .iter()
                .filter(|role| repository.document(role)["delegations"].is_object())
                .cloned()
                .collect();
            let Some(from) = from.choose(rng).cloned() else { return "nothing".to_owned() };
            let entry = last_delegation(repository, &from);
            let what = match rng.random_range(0..4) {
                0 => {
                    entry["terminating"] = (entry["terminating"] == false).into();
                    "is terminating or not"
                }
                1 => {
                    entry["threshold"] = 2.into();
                    "needs a second signature"
                }
                2 if entry["paths"].is_array() => {
                    entry["paths"] = json!([any(&PATTERNS, rng)]);
                    "has other paths"
                }
                _ => {
                    entry["keyids"] = json!([]);
                    "has lost its keys"
                }
            };
            publish(repository, chain(&from));
            format!("the last delegation of {from} {what}")
        }
        _ => {
            publish(repository, chain(&role));
            // What is empty is not served.
            repository.newest(&role).clear();
            format!("{role} published again and withheld")
        }
    }
}
