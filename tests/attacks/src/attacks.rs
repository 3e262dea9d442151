//! The attacks, each made from the honest world by what the attacker can do to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use farlight_release::blob::describe;
use farlight_release::manifest::MAX_MANIFEST;
use farlight_release::tuf::signer::sign;
use farlight_release::tuf::{Snapshot, Targets};
use farlight_wire::Millis;
use serde_json::{Value, json};

use crate::fixture::{Attack, Delivery, Fixture, HONEST, table};
use crate::models::{self, Parts};
use crate::world::{DEVICE, FAR, PAST, World, forge, key, naming, target_path};

/// Files by their path.
type Files<P> = BTreeMap<P, Vec<u8>>;

/// The fixtures, and all files of `models/fixtures`.
///
/// # Errors
/// When one cannot be made.
pub fn all() -> anyhow::Result<(Vec<Fixture>, Files<PathBuf>)> {
    let honest = World::honest()?;
    let mut fixtures = Vec::new();
    fixtures.extend(metadata(&honest)?);
    fixtures.extend(assignments(&honest)?);
    fixtures.extend(releases(&honest)?);
    fixtures.extend(models(&honest)?);
    fixtures.sort_by(|a, b| a.name.cmp(&b.name));
    let mut files = BTreeMap::new();
    for (path, bytes) in &honest.files {
        files.insert(PathBuf::from(HONEST).join("repo").join(path), bytes.clone());
    }
    files.insert(PathBuf::from(HONEST).join("assignment.json"), honest.assignment(5, "1.0.0")?);
    for fixture in &fixtures {
        files.extend(fixture.to_files()?);
    }
    Ok((fixtures, files))
}

/// The document that lists the attacks.
///
/// # Errors
/// When a fixture cannot be made.
pub fn document() -> anyhow::Result<String> {
    let head = "# Attacks that are refused\n\nEach row is a folder of `models/fixtures/`: what an attacker serves or \
        sends, byte for byte. A device that runs an honest release meets each of them in `tests/attacks`, refuses it \
        with the code given, reports it, and runs on untouched. Made by `cargo run --release --bin attack-fixtures`.\n\n";
    Ok(format!("{head}{}", table(&all()?.0)))
}

fn attack(name: &str, title: &str, delivery: Delivery, code: &str) -> Fixture {
    Fixture {
        name: name.to_owned(),
        attack: Attack {
            title: title.to_owned(),
            delivery,
            code: code.to_owned(),
            endless: None,
            slow: None,
            link: None,
        },
        files: BTreeMap::new(),
        assignment: None,
    }
}

impl Fixture {
    fn with(mut self, world: &World, honest: &World) -> Self {
        self.files = world.beyond(honest);
        self
    }

    fn told(mut self, document: Vec<u8>) -> Self {
        self.assignment = Some(document);
        self
    }
}

fn metadata(honest: &World) -> anyhow::Result<Vec<Fixture>> {
    let at = |name, title, code| attack(name, title, Delivery::Metadata, code);
    let file = |path: &str| honest.files.get(path).with_context(|| format!("no {path}"));
    let mut all = Vec::new();

    let mut world = honest.clone();
    let forged = Targets::new(world.targets.version, FAR);
    world.publish_targets(&sign(&forged, &[&key(66), &key(67)])?)?;
    all.push(
        at("arbitrary-software", "targets metadata signed by keys of the attacker", "tuf.unknown_key")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    let named = std::mem::replace(&mut world.keys.timestamp, key(66)).public().id();
    world.publish()?;
    let timestamp = world.files.get_mut("metadata/timestamp.json").context("no timestamp")?;
    *timestamp = forge(timestamp, &key(66).public().id(), &named)?;
    all.push(
        at(
            "wrong-key",
            "a timestamp signed by another key under the name of the one in the root",
            "tuf.signature",
        )
        .with(&world, honest),
    );

    let mut world = honest.clone();
    let targets = sign(&world.targets, &[&world.keys.targets[0]])?;
    world.publish_targets(&targets)?;
    all.push(
        at(
            "below-threshold",
            "targets metadata with one of the two signatures that are needed",
            "tuf.below_threshold",
        )
        .with(&world, honest),
    );

    let mut world = honest.clone();
    let root = world.next_root(1)?;
    world.files.insert("metadata/3.root.json".into(), root);
    all.push(
        at("rollback-root", "an older root under the next root's name", "tuf.rollback_root")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    world.version = 2;
    world.publish()?;
    all.push(
        at("rollback-timestamp", "an older timestamp than the one that is trusted", "tuf.rollback_timestamp")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    let old = Snapshot::new(2, FAR, 3, file("metadata/3.targets.json")?);
    let old = sign(&old, &[&world.keys.snapshot])?;
    world.files.insert("metadata/2.snapshot.json".into(), old.clone());
    let timestamp = farlight_release::tuf::Timestamp::new(4, FAR, 2, &old);
    world.files.insert("metadata/timestamp.json".into(), sign(&timestamp, &[&world.keys.timestamp])?);
    all.push(
        at("rollback-snapshot", "a newer timestamp that names an older snapshot", "tuf.rollback_snapshot")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    world.targets.version = 2;
    world.publish()?;
    all.push(
        at("rollback-targets", "a newer snapshot that names older targets metadata", "tuf.rollback_targets")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    let snapshot = Snapshot::new(4, FAR, 3, file("metadata/3.targets.json")?);
    world.publish_snapshot(&sign(&snapshot, &[&world.keys.snapshot])?, PAST)?;
    all.push(
        at("freeze", "a timestamp that has expired, so that nothing newer is seen", "tuf.expired")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    world.publish()?;
    world.files.insert("metadata/4.snapshot.json".into(), file("metadata/3.snapshot.json")?.clone());
    all.push(
        at("mix-and-match", "a snapshot of another state than the timestamp names", "tuf.mix_and_match")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    world.publish()?;
    let torn = world.files.get_mut("metadata/4.targets.json").context("no targets")?;
    torn.truncate(torn.len() / 2);
    all.push(
        at("truncated-metadata", "targets metadata that ends half-way", "tuf.truncated").with(&world, honest),
    );

    let mut endless = at("endless-metadata", "a timestamp that never ends", "tuf.too_large");
    endless.attack.endless = Some("metadata/timestamp.json".into());
    all.push(endless);

    let mut world = honest.clone();
    let doubled = forge(
        file("metadata/timestamp.json")?,
        "\"_type\":\"timestamp\"",
        "\"_type\":\"timestamp\",\"_type\":\"timestamp\"",
    )?;
    world.files.insert("metadata/timestamp.json".into(), doubled);
    all.push(
        at(
            "duplicate-keys",
            "metadata with a JSON key twice, which readers understand differently",
            "tuf.duplicate_key",
        )
        .with(&world, honest),
    );

    let mut world = honest.clone();
    let deep = format!("{{\"signatures\":[],\"signed\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    world.files.insert("metadata/timestamp.json".into(), deep.into_bytes());
    all.push(
        at("deep-nesting", "metadata nested so deep that a reader runs out of stack", "tuf.malformed")
            .with(&world, honest),
    );

    let mut world = honest.clone();
    world.files.insert("metadata/timestamp.json".into(), file("metadata/3.snapshot.json")?.clone());
    all.push(
        at("role-confusion", "a snapshot in the place of the timestamp", "tuf.wrong_type")
            .with(&world, honest),
    );
    Ok(all)
}

fn assignments(honest: &World) -> anyhow::Result<Vec<Fixture>> {
    let at = |name, title, code, document| attack(name, title, Delivery::Assignment, code).told(document);
    let good = honest.assignment(6, "1.0.0")?;
    let signer = &honest.keys.assignment;
    let mut all = vec![
        at(
            "wrong-device",
            "the desired state of another device",
            "assignment.wrong_device",
            honest.assignment_with(6, "1.0.0", "gw-2", FAR, signer)?,
        ),
        at(
            "replayed-assignment",
            "an older desired state of this device",
            "assignment.replayed",
            honest.assignment(4, "1.0.0")?,
        ),
        at(
            "expired-assignment",
            "a desired state past its date",
            "assignment.expired",
            honest.assignment_with(6, "1.0.0", DEVICE, Millis(PAST.0 + 1), signer)?,
        ),
        at(
            "forged-assignment",
            "a desired state that was changed after it was signed",
            "assignment.signature",
            forge(&good, "\"sequence\":6", "\"sequence\":7")?,
        ),
        at(
            "path-traversal",
            "a release whose name leads out of the repository",
            "assignment.bad_name",
            naming(&good, "../../m/1.0.0", signer)?,
        ),
        at(
            "unknown-release",
            "a release that the release repository does not vouch for",
            "tuf.unknown_target",
            honest.assignment(6, "9.9.9")?,
        ),
    ];

    let mut world = honest.clone();
    world.release("0.9.0", &models::honest(1.0)?, &json!({}))?;
    world.targets.floor.insert("m".parse()?, semver::Version::new(1, 0, 0));
    world.publish()?;
    let old = world.assignment(6, "0.9.0")?;
    all.push(
        at("below-floor", "a release that was withdrawn for its flaws", "assignment.below_floor", old)
            .with(&world, honest),
    );

    // The key was replaced in the release repository, and a thief uses the old one.
    let mut world = honest.clone();
    let stolen = world.keys.assignment.clone();
    world.keys.assignment = key(8);
    world.add_keys()?;
    world.release("1.1.0", &models::honest(1.0)?, &json!({}))?;
    world.publish()?;
    let signed = world.assignment_with(6, "1.1.0", DEVICE, FAR, &stolen)?;
    all.push(
        at(
            "revoked-key",
            "a desired state signed by a key that was revoked",
            "assignment.unknown_key",
            signed,
        )
        .with(&world, honest),
    );
    Ok(all)
}

/// A world that has release 1.1.0 beside the honest one, and its assignment.
fn with_release(honest: &World, parts: &Parts, changes: &Value) -> anyhow::Result<(World, Vec<u8>)> {
    let mut world = honest.clone();
    world.release("1.1.0", parts, changes)?;
    world.publish()?;
    let assignment = world.assignment(6, "1.1.0")?;
    Ok((world, assignment))
}

fn releases(honest: &World) -> anyhow::Result<Vec<Fixture>> {
    let at = |name, title, code| attack(name, title, Delivery::Assignment, code);
    let good = models::honest(1.0)?;
    let blob = format!("blobs/{}", describe(&good.onnx).id);
    let (world, told) = with_release(honest, &good, &json!({}))?;
    let mut all = Vec::new();

    let change = |change: &dyn Fn(&mut Files<String>)| {
        let mut world = world.clone();
        change(&mut world.files);
        world
    };
    let bytes = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let changed = change(&|files| files.get_mut(&blob).into_iter().for_each(bytes));
    all.push(
        at("wrong-hash", "a model file with one bit changed", "fetch.chunk_mismatch")
            .with(&changed, honest)
            .told(told.clone()),
    );

    let longer = change(&|files| files.get_mut(&blob).into_iter().for_each(|file| file.push(0)));
    all.push(
        at("wrong-length", "a model file with a byte too many", "fetch.length")
            .with(&longer, honest)
            .told(told.clone()),
    );

    let shorter =
        change(&|files| files.get_mut(&blob).into_iter().for_each(|file| file.truncate(file.len() - 1)));
    all.push(
        at("truncated", "a model file that ends early", "fetch.truncated")
            .with(&shorter, honest)
            .told(told.clone()),
    );

    let missing = change(&|files| drop(files.remove(&blob)));
    all.push(
        at("missing-blob", "a manifest that names a file which is not there", "fetch.missing")
            .with(&missing, honest)
            .told(told.clone()),
    );

    let manifest =
        world.files.keys().find(|path| path.ends_with(".1.1.0.json")).context("no manifest")?.clone();
    let other = change(&|files| files.get_mut(&manifest).into_iter().for_each(bytes));
    all.push(
        at("wrong-manifest", "another manifest than the signed one", "tuf.hash_mismatch")
            .with(&other, honest)
            .told(told.clone()),
    );

    let mut endless = at("endless-data", "a model file that never ends", "fetch.too_long")
        .with(&world, honest)
        .told(told.clone());
    endless.attack.endless = Some(blob.clone());
    all.push(endless);

    let mut slow = at("slow-retrieval", "a model file that comes a byte at a time", "fetch.too_slow")
        .with(&world, honest)
        .told(told);
    slow.attack.slow = Some(blob);
    all.push(slow);

    let (agent, told) = with_release(honest, &good, &json!({ "requires": { "agent": ">=999.0.0" } }))?;
    all.push(
        at(
            "agent-too-old",
            "a release for a newer agent, which this one would run wrongly",
            "verify.agent_version",
        )
        .with(&agent, honest)
        .told(told),
    );

    let (board, told) = with_release(honest, &good, &json!({ "requires": { "architectures": ["pdp11"] } }))?;
    all.push(
        at("wrong-architecture", "a release for another processor", "verify.architecture")
            .with(&board, honest)
            .told(told),
    );

    // The holders of the keys signed what no reader should accept: they were tricked, or their tool was.
    let signed = |document: &[u8]| -> anyhow::Result<(World, Vec<u8>)> {
        let mut world = honest.clone();
        world.target("m/1.1.0.json", document);
        world.publish()?;
        let told = world.assignment(6, "1.1.0")?;
        Ok((world, told))
    };
    let text = world.files.get(&manifest).context("no manifest")?;
    let (doubled, told) = signed(&forge(text, "\"format\":1,", "\"format\":1,\"format\":1,")?)?;
    all.push(
        at("duplicate-manifest-keys", "a manifest with a JSON key twice", "manifest.malformed")
            .with(&doubled, honest)
            .told(told),
    );

    let (huge, told) = signed(&vec![b' '; MAX_MANIFEST as usize + 1])?;
    let mut fixture =
        at("oversized-manifest", "a manifest of more than four megabytes", "manifest.too_large")
            .with(&huge, honest)
            .told(told);
    // Not kept in full: the server makes it up, so that it is as long as announced.
    let path = target_path("m/1.1.0.json", &vec![b' '; MAX_MANIFEST as usize + 1]);
    fixture.files.remove(&path);
    fixture.attack.endless = Some(path);
    all.push(fixture);

    let bundle = json!({ "format": 1, "releases": ["m/1.1.0"] });
    let mut linked = attack(
        "symlink-in-bundle",
        "a stick on which a model file is a link to a file of the device",
        Delivery::Bundle,
        "fetch.outside_bundle",
    )
    .with(&world, honest);
    let path = linked.files.keys().find(|path| path.starts_with("blobs/")).context("no blob")?.clone();
    linked.files.remove(&path);
    linked.attack.link = Some((path, "/etc/passwd".into()));
    linked.files.insert("bundle.json".into(), serde_json::to_vec(&bundle)?);
    all.push(linked);

    let mut climbing = attack(
        "bundle-names-itself-out",
        "a stick whose list names a release outside of it",
        Delivery::Bundle,
        "fetch.bundle",
    );
    climbing.files.insert("bundle.json".into(), br#"{"format":1,"releases":["../../etc/1.0.0"]}"#.to_vec());
    all.push(climbing);
    Ok(all)
}

fn models(honest: &World) -> anyhow::Result<Vec<Fixture>> {
    let at = |name, title, code| attack(name, title, Delivery::Assignment, code);
    let good = models::honest(1.0)?;
    let mut all = Vec::new();
    let cases: [(&str, &str, &str, Parts, Value); 6] = [
        (
            "golden-mismatch",
            "a model that computes something else than its golden vectors say",
            "self_test.golden_mismatch",
            Parts { onnx: good.onnx.clone(), golden: models::honest(2.0)?.golden },
            json!({}),
        ),
        (
            "not-a-model",
            "a file that is no model at all",
            "model.malformed",
            Parts { onnx: b"\x08\x08this is no graph".to_vec(), golden: good.golden.clone() },
            json!({}),
        ),
        (
            "nested-model",
            "a model of graphs within graphs, so deep that a reader runs out of stack",
            "model.over_limits",
            models::nested()?,
            json!({}),
        ),
        (
            "greedy-model",
            "a model that allocates without end",
            "self_test.memory_limit",
            models::greedy()?,
            json!({}),
        ),
        ("endless-model", "a model that never returns", "self_test.timeout", models::endless()?, json!({})),
        (
            "over-budget",
            "a model that needs more memory than its release says",
            "self_test.over_budget",
            good.clone(),
            json!({ "budgets": { "memory_kib": 64, "p95_us": 1_000_000 } }),
        ),
    ];
    let (parts, delta) = models::bomb()?;
    let deltas = json!([{ "from": describe(&models::honest(0.0)?.onnx).id, "blob": describe(&delta) }]);
    let changes = json!({ "variants": [{ "precision": "fp32", "format": "onnx",
        "blob": describe(&parts.onnx), "deltas": deltas }] });
    let (mut world, told) = with_release(honest, &parts, &changes)?;
    world.blob(&delta);
    all.push(
        at("zstd-bomb", "a delta of four kilobytes of which a part unpacks to 128 megabytes", "delta.bomb")
            .with(&world, honest)
            .told(told),
    );
    for (name, title, code, parts, changes) in cases {
        let (world, told) = with_release(honest, &parts, &changes)?;
        all.push(at(name, title, code).with(&world, honest).told(told));
    }
    Ok(all)
}
