//! What the suite does not ask: bad delegates beside good ones, the bounds of a search, repositories
//! without consistent snapshots, power cuts within a rotation, and devices without a clock.

use farlight_release::tuf::{Client, MAX_DELEGATED, MAX_DELEGATIONS, Step};
use farlight_wire::Millis;
use serde_json::{Value, json};

use super::device::Device;
use super::repository::{NOW, Repository, day, stamp};
use super::{ALL, BELOW_ROOT};

/// Roles `good` and `bad`, each with one target, good behind bad.
fn families() -> Repository {
    let mut repository = Repository::new();
    for role in ["bad", "good"] {
        repository.delegate("targets", role, json!({ "paths": [format!("{role}/*"), "both/*"] }));
        repository.add_artifact(role, role.as_bytes(), &format!("{role}/1"));
    }
    repository.add_artifact("good", b"both", "both/1");
    repository.publish(&["bad", "good", "targets", "snapshot", "timestamp"]);
    repository
}

#[test]
fn one_bad_delegate_blocks_its_own_targets_and_no_others() {
    type Attack = fn(&mut Repository);
    let attacks: [(&str, Attack, &str); 8] = [
        ("missing", |r| drop(r.published.remove("bad")), "tuf.missing"),
        ("wrong key", |r| r.tamper("bad", |bad| bad["signatures"][0]["sig"] = "00".into()), "tuf.signature"),
        ("garbage", |r| *r.newest("bad") = b"{".to_vec(), "tuf.malformed"),
        ("endless", |r| *r.newest("bad") = vec![b' '; MAX_DELEGATED as usize + 1], "tuf.too_large"),
        ("another role's file", |r| *r.newest("bad") = r.published["snapshot"][0].clone(), "tuf.wrong_type"),
        (
            "expired",
            |r| {
                r.document("bad")["expires"] = stamp(day(-1));
                r.publish(&["bad", "snapshot", "timestamp"]);
            },
            "tuf.expired",
        ),
        (
            "another version than listed",
            |r| {
                r.document("bad")["version"] = 7.into();
                r.publish(&["bad"]);
                r.document("snapshot")["meta"]["bad.json"]["version"] = 2.into();
                r.publish(&["snapshot", "timestamp"]);
            },
            "tuf.mix_and_match",
        ),
        (
            "not listed",
            |r| {
                r.document("snapshot")["meta"].as_object_mut().unwrap().remove("bad.json");
                r.publish(&["snapshot", "timestamp"]);
            },
            "tuf.missing",
        ),
    ];
    for (name, attack, code) in attacks {
        let mut repository = families();
        attack(&mut repository);
        let mut device = Device::new(&repository);
        assert_eq!(device.download(&mut repository, &["bad/1"]), Err(code), "{name}");
        // It is trusted more than the one behind it, whose word must not count in its place.
        assert_eq!(device.download(&mut repository, &["both/1"]), Err(code), "{name}");
        device.download(&mut repository, &["good/1"]).unwrap();
        assert_eq!(device.contents(), [b"good"], "{name}");
        assert_eq!(device.version("bad"), None, "{name}");
    }
}

#[test]
fn what_a_delegate_says_of_targets_beyond_its_paths_is_ignored() {
    let mut repository = families();
    repository.add_artifact("bad", b"malicious", "good/1");
    repository.add_artifact("bad", b"malicious", "anything");
    repository.artifacts.get_mut("good/1").unwrap().bytes = b"good".to_vec();
    repository.publish(&["bad", "snapshot", "timestamp"]);
    let mut device = Device::new(&repository);
    assert_eq!(device.download(&mut repository, &["anything"]), Err("tuf.unknown_target"));
    // Its digest is the good role's.
    assert!(device.download(&mut repository, &["good/1"]).is_err());
    assert!(device.files.is_empty());
}

#[test]
fn a_delegate_that_was_rolled_back_is_refused_with_the_snapshot() {
    let mut repository = families();
    repository.publish(&["good", "snapshot", "timestamp"]);
    let mut device = Device::new(&repository);
    device.download(&mut repository, &["good/1"]).unwrap();
    repository.document("snapshot")["meta"]["good.json"]["version"] = 1.into();
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.rollback_targets"));
}

#[test]
fn a_stored_delegate_is_used_again_and_dropped_when_it_is_old() {
    let mut repository = families();
    let mut device = Device::new(&repository);
    device.download(&mut repository, &["good/1"]).unwrap();
    repository.requests.clear();
    device.download(&mut repository, &["good/1"]).unwrap();
    assert!(!repository.requests.iter().any(|(role, _)| role == "good"));
    repository.digests = true;
    repository.publish(&["good", "snapshot", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("good"), None);
    device.download(&mut repository, &["good/1"]).unwrap();
    assert_eq!(device.version("good"), Some(2));
    // What lies in its place now is not it.
    device.metadata.insert("good.json".to_owned(), b"{}".to_vec());
    repository.requests.clear();
    device.download(&mut repository, &["good/1"]).unwrap();
    assert!(repository.requests.contains(&("good".to_owned(), Some(2))));
}

#[test]
fn a_key_that_the_delegator_took_away_speaks_no_more() {
    let mut repository = families();
    let mut device = Device::new(&repository);
    device.download(&mut repository, &["good/1"]).unwrap();
    let key = repository.new_key().public();
    let delegations = &mut repository.document("targets")["delegations"];
    delegations["keys"][key.id()] = key.to_object();
    delegations["roles"][1]["keyids"] = json!([key.id()]);
    repository.publish(&BELOW_ROOT);
    assert_eq!(device.download(&mut repository, &["good/1"]), Err("tuf.unknown_key"));
}

#[test]
fn a_search_ends_at_its_bound() {
    for (roles, code) in [(MAX_DELEGATIONS, "tuf.unknown_target"), (MAX_DELEGATIONS + 1, "tuf.delegations")] {
        let mut repository = Repository::new();
        let names: Vec<String> = (0..roles).map(|at| format!("role-{at}")).collect();
        let mut from = "targets";
        for name in &names {
            repository.delegate(from, name, json!({ "paths": ["*"] }));
            from = name;
        }
        repository.publish(&names.iter().map(String::as_str).collect::<Vec<_>>());
        repository.publish(&BELOW_ROOT);
        let mut device = Device::new(&repository);
        assert_eq!(device.download(&mut repository, &["x"]), Err(code));
        assert_eq!(repository.requests.len(), 4 + MAX_DELEGATIONS);
    }
}

#[test]
fn hash_bins_are_searched_by_the_digest_of_the_path() {
    let mut repository = Repository::new();
    for bin in 0..16 {
        let name = format!("bin-{bin:x}");
        repository.delegate("targets", &name, json!({ "path_hash_prefixes": [format!("{bin:x}")] }));
    }
    let path = "some/target";
    let bin = &farlight_release::digest::sha256(path.as_bytes())[..1];
    repository.add_artifact(&format!("bin-{bin}"), b"content", path);
    for bin in 0..16 {
        repository.publish(&[&format!("bin-{bin:x}")]);
    }
    repository.publish(&BELOW_ROOT);
    let mut device = Device::new(&repository);
    device.download(&mut repository, &[path]).unwrap();
    assert_eq!(repository.requests.len(), 5);
}

#[test]
fn delegations_that_break_a_rule_are_malformed_though_they_are_signed() {
    type Change = fn(&mut Value);
    let changes: [Change; 9] = [
        |d| d["roles"][0]["threshold"] = 0.into(),
        |d| d["roles"][0]["name"] = "".into(),
        |d| d["roles"][0]["name"] = "snapshot".into(),
        |d| d["roles"][0]["name"] = "x".repeat(300).into(),
        |d| d["roles"][0]["name"] = d["roles"][1]["name"].clone(),
        |d| d["roles"][0]["path_hash_prefixes"] = json!(["00"]),
        |d| drop(d["roles"][0].as_object_mut().unwrap().remove("paths")),
        |d| drop(d["roles"][0].as_object_mut().unwrap().remove("terminating")),
        |d| d["roles"][0]["paths"] = "*".into(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut repository = families();
        change(&mut repository.document("targets")["delegations"]);
        repository.publish(&BELOW_ROOT);
        let mut device = Device::new(&repository);
        assert_eq!(device.refresh(&mut repository), Err("tuf.malformed"), "{number}");
    }
}

#[test]
fn a_repository_without_consistent_snapshots_is_followed() {
    let mut repository = Repository::new();
    repository.document("root")["consistent_snapshot"] = false.into();
    repository.delegate("targets", "family", json!({ "paths": ["a/*"] }));
    repository.add_artifact("family", b"content", "a/b");
    repository.publish(&["root", "family", "targets", "snapshot", "timestamp"]);
    let content = repository.artifacts["a/b"].bytes.clone();
    let mut device = Device::new(&repository);
    let mut get = |path: &str| match path {
        "targets/a/b" => Some(content.clone()),
        path => repository.get(path),
    };
    device.download_from(&mut get, &["a/b"], NOW).unwrap();
    let asked: Vec<&str> = repository.requests.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(asked, ["root", "root", "timestamp", "snapshot", "targets", "family"]);
    assert!(repository.requests[2..].iter().all(|(_, version)| version.is_none()));
}

#[test]
fn a_cut_between_root_and_deletion_leaves_no_fast_forwarded_file() {
    for rotated in ["timestamp", "snapshot"] {
        let mut repository = Repository::new();
        repository.publish(&["snapshot"; 50]);
        repository.publish(&["timestamp"; 50]);
        let mut device = Device::new(&repository);
        device.refresh(&mut repository).unwrap();
        let stored = device.metadata.clone();
        repository.rotate(rotated);
        repository.unpublish("snapshot");
        repository.unpublish("timestamp");
        repository.publish(&ALL);
        // The new root was stored, the old files were not deleted.
        device.metadata.insert("root.json".to_owned(), repository.newest("root").clone());
        assert_eq!(device.metadata.len(), stored.len());
        device.refresh(&mut repository).unwrap();
        assert_eq!(
            (device.version("timestamp"), device.version("snapshot")),
            (Some(1), Some(1)),
            "{rotated}"
        );
    }
}

#[test]
fn nothing_can_be_supplied_that_was_not_asked_for() {
    let repository = Repository::new();
    let mut client = Client::new(&repository.published["root"][0]).unwrap();
    assert_eq!(client.next(), Step::Done);
    assert_eq!(client.supply(Some(b"x")).unwrap_err().code().as_str(), "tuf.not_asked");
    // Before the first refresh there is nothing to look up.
    client.begin_lookup("a/b", NOW);
    assert_eq!(client.next(), Step::Done);
    assert_eq!(client.target("a/b").unwrap_err().code().as_str(), "tuf.incomplete");
}

/// A repository that says when it signed, valid for ten days from then on.
fn signed_on(days: i64) -> Repository {
    let mut repository = Repository::new();
    signed_again_on(&mut repository, days);
    repository
}

fn signed_again_on(repository: &mut Repository, days: i64) {
    repository.document("timestamp")["x-farlight-issued"] = stamp(day(days));
    repository.document("timestamp")["expires"] = stamp(day(days + 10));
    repository.publish(&["timestamp"]);
}

#[test]
fn a_clock_at_1970_does_not_switch_expiry_off() {
    let mut repository = signed_on(0);
    let mut device = Device::new(&repository);
    device.refresh_at(&mut repository, Millis(0)).unwrap();
    // A later date, also proved by a frozen mirror's own signature.
    signed_again_on(&mut repository, 20);
    device.refresh_at(&mut repository, Millis(0)).unwrap();
    repository.document("snapshot")["expires"] = stamp(day(19));
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh_at(&mut repository, Millis(0)), Err("tuf.expired"));
    // On a device that knows no time at all, the timestamp proves that the root has expired.
    signed_again_on(&mut repository, 40);
    let mut new = Device::new(&repository);
    assert_eq!(new.refresh_at(&mut repository, Millis(0)), Err("tuf.expired"));
    assert_eq!(new.version("timestamp"), None);
}

#[test]
fn a_clock_that_steps_back_changes_nothing_that_was_proved() {
    let mut repository = signed_on(15);
    let mut device = Device::new(&repository);
    device.refresh_at(&mut repository, day(16)).unwrap();
    repository.document("snapshot")["expires"] = stamp(day(14));
    repository.publish(&["snapshot", "timestamp"]);
    assert_eq!(device.refresh_at(&mut repository, day(1)), Err("tuf.expired"));
}

#[test]
fn a_clock_at_2100_stops_installs_only_as_long_as_it_is_wrong() {
    let mut repository = signed_on(0);
    let mut device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    let before = device.metadata.clone();
    repository.publish(&BELOW_ROOT);
    assert_eq!(device.refresh_at(&mut repository, day(28_000)), Err("tuf.expired"));
    assert_eq!(device.metadata, before);
    device.refresh_at(&mut repository, day(1)).unwrap();
    assert_eq!(device.version("targets"), Some(2));
}

#[test]
fn a_wrong_date_ends_with_the_next_timestamp() {
    let mut repository = signed_on(0);
    let mut device = Device::new(&repository);
    for role in ["root", "timestamp", "snapshot", "targets"] {
        repository.document(role)["expires"] = stamp(day(30_000));
    }
    repository.document("timestamp")["x-farlight-issued"] = stamp(day(29_000));
    repository.publish(&ALL);
    device.refresh(&mut repository).unwrap();
    // Everything with a true date has expired for this device now.
    for role in ["root", "snapshot", "targets"] {
        repository.document(role)["expires"] = stamp(day(30));
    }
    repository.publish(&["root"]);
    assert_eq!(device.refresh(&mut repository), Err("tuf.expired"));
    repository.publish(&["targets", "snapshot"]);
    signed_again_on(&mut repository, 1);
    device.refresh(&mut repository).unwrap();
    assert_eq!(device.version("targets"), Some(3));
}

#[test]
fn a_date_beyond_its_own_expiry_is_refused() {
    let mut repository = signed_on(0);
    repository.document("timestamp")["x-farlight-issued"] = stamp(day(11));
    repository.publish(&["timestamp"]);
    assert_eq!(Device::new(&repository).refresh(&mut repository), Err("tuf.expired"));
    repository.document("timestamp")["x-farlight-issued"] = "tomorrow".into();
    repository.publish(&["timestamp"]);
    assert_eq!(Device::new(&repository).refresh(&mut repository), Err("tuf.malformed"));
}
