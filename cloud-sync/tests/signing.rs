//! The operator's command line on real files and a real cloud: families, thresholds on several machines, key
//! rotation, configuration releases. What it publishes, a device's client follows.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{TestCloud, data_folder};
use farlight_release::blob::describe;
use farlight_release::tuf::{Client, Step, TufError};
use farlight_wire::ReleaseId;
use serde_json::{Value, json};

/// A graph without a node: what the registry takes for a model.
const BLOB: &[u8] = b"\x3a\x02\x12\x00";

/// A cloud, and an operator with offline keys beside it.
struct World {
    cloud: TestCloud,
    device: Client,
}

impl World {
    async fn new(generate: &[&str], init: &[&str]) -> Self {
        let data = data_folder();
        let root = data.path().join("repo/metadata/1.root.json");
        let offline = path(data.path(), "offline");
        run(data.path(), &[&["keys", "generate", &offline], generate].concat()).await.unwrap();
        let cloud = TestCloud::on(data).await;
        run(cloud.data.path(), &[&["repo", "init", "--keys", &offline], init].concat()).await.unwrap();
        Self { device: Client::new(&fs::read(root).unwrap()).unwrap(), cloud }
    }

    fn path(&self, name: &str) -> String {
        path(self.cloud.data.path(), name)
    }

    async fn run(&self, args: &[&str]) -> Value {
        run(self.cloud.data.path(), args).await.unwrap()
    }

    /// Exit code and error code of a command that must fail.
    async fn refused(&self, args: &[&str]) -> (i32, String) {
        let (exit, error) = run(self.cloud.data.path(), args).await.unwrap_err();
        (exit, error["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    /// A bundle that is not signed.
    fn bundle(&self, release: &str) -> String {
        let folder = PathBuf::from(self.path(&format!("bundle-{}", release.replace('/', "-"))));
        let blob = describe(BLOB);
        fs::create_dir_all(folder.join("blobs")).unwrap();
        fs::write(folder.join("blobs").join(&blob.id), BLOB).unwrap();
        let manifest = json!({
            "format": 1, "release": release, "task": "regression",
            "input": {"name": "x", "datatype": "FP32", "shape": [1], "min": 0.0, "max": 1.0, "on_violation": "flag"},
            "pre": [], "post": [], "labels": [],
            "variants": [{"precision": "fp32", "format": "onnx", "blob": blob}],
            "golden": blob, "golden_tolerance": 0.001,
            "profile": {"features": [], "score_edges": [], "score_counts": [0], "class_counts": []},
            "budgets": {"memory_kib": 1, "p95_us": 1},
            "sampling": {"hard_permille": 0, "control_permille": 0, "bytes_per_day": 0},
            "requires": {}, "lineage": {}
        });
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        folder.display().to_string()
    }

    /// Whether a device that knew only what it saw before takes this release now.
    fn device_takes(&mut self, release: &str) -> Result<(), TufError> {
        let release: ReleaseId = release.parse().unwrap();
        let now = farlight_cloud::clock::now();
        self.device.begin_refresh(now);
        drive(&mut self.device, self.cloud.data.path())?;
        self.device.begin_lookup(&release.target_path(), now);
        drive(&mut self.device, self.cloud.data.path())?;
        self.device.permits(&release).map(|_| ())
    }
}

fn drive(client: &mut Client, data: &Path) -> Result<(), TufError> {
    while let Step::Fetch { path, .. } = client.next() {
        client.supply(fs::read(data.join("repo").join(path)).ok().as_deref())?;
    }
    Ok(())
}

fn path(data: &Path, name: &str) -> String {
    data.join(name).display().to_string()
}

/// Runs `farlight --json`; its answer, or exit code and error.
async fn run(data: &Path, args: &[&str]) -> Result<Value, (i32, Value)> {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_farlight"))
        .arg("--profile")
        .arg(data.join("operator.json"))
        .arg("--json")
        .args(args)
        .output()
        .await
        .unwrap();
    let read = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_default();
    match output.status.success() {
        true => Ok(read(&output.stdout)),
        false => Err((output.status.code().unwrap_or(-1), read(&output.stderr))),
    }
}

#[tokio::test]
async fn a_family_signs_with_its_own_keys() {
    let mut world = World::new(&[], &[]).await;
    let (offline, family) = (world.path("offline"), world.path("family"));
    world.run(&["keys", "generate", &family, "--role", "vib=2"]).await;
    let delegate =
        ["repo", "delegate", "vib", "--models", "vib-*", "--keys", &offline, "--family-keys", &family];
    let status = world.run(&[&delegate[..], &["--threshold", "2"]].concat()).await;
    assert_eq!(status["roles"]["vib"]["threshold"], 2);
    assert_eq!(status["missing"], json!([]));

    // Its holder works on another machine, with a root that was handed over.
    let root = world.path("repo/metadata/1.root.json");
    world.run(&["repo", "trust", &root, "--keys", &family]).await;
    let bundle = world.bundle("vib-a/1.0.0");
    let signed = world.run(&["release", "sign", &bundle, "--keys", &family]).await;
    assert_eq!((signed["role"].as_str(), signed["targets_version"].as_u64()), (Some("vib"), Some(2)));
    world.run(&["release", "publish", &bundle]).await;
    world.device_takes("vib-a/1.0.0").unwrap();

    // Neither may sign for the other.
    let other = world.bundle("other/1.0.0");
    assert_eq!(
        world.refused(&["release", "sign", &other, "--keys", &family]).await,
        (6, "tuf.unknown_key".into())
    );
    let again = world.bundle("vib-a/1.1.0");
    assert_eq!(
        world.refused(&["release", "sign", &again, "--keys", &offline]).await,
        (6, "tuf.unknown_key".into())
    );
    world.run(&["release", "sign", &other, "--keys", &offline]).await;
    world.run(&["release", "publish", &other]).await;
    world.device_takes("other/1.0.0").unwrap();

    // The family's own keys keep it from expiring.
    let before = world.run(&["repo", "status"]).await;
    let after = world.run(&["repo", "refresh", "--keys", &family, "--days", "300"]).await;
    assert_eq!(after["roles"]["targets"], before["roles"]["targets"]);
    assert_eq!(after["roles"]["vib"]["version"], 3);
    assert_eq!(after["warnings"], json!([]));
    let soon = world.run(&["repo", "refresh", "--keys", &family, "--days", "5"]).await;
    assert!(soon["warnings"][0].as_str().unwrap().contains("vib expires"), "{soon}");

    world.run(&["repo", "revoke", "vib", "--keys", &offline]).await;
    assert_eq!(world.device_takes("vib-a/1.0.0").unwrap_err().code().as_str(), "tuf.unknown_target");
    world.device_takes("other/1.0.0").unwrap();

    // Other keys take it over; versions go on rising, and what was published stays taken.
    let heirs = world.path("heirs");
    world.run(&["keys", "generate", &heirs, "--role", "vib"]).await;
    let delegate =
        ["repo", "delegate", "vib", "--models", "vib-*", "--keys", &offline, "--family-keys", &heirs];
    assert_eq!(world.run(&delegate).await["roles"]["vib"]["version"], 5);
    world.run(&["repo", "trust", &root, "--keys", &heirs]).await;
    let next = world.bundle("vib-a/2.0.0");
    world.run(&["release", "sign", &next, "--keys", &heirs]).await;
    world.run(&["release", "publish", &next]).await;
    world.device_takes("vib-a/2.0.0").unwrap();
}

#[tokio::test]
async fn a_threshold_is_reached_on_two_machines() {
    let mut world = World::new(&["--targets", "2", "--root", "2"], &["--targets-threshold", "2"]).await;
    // The keys are parted.
    let (offline, second) = (world.path("offline"), world.path("second"));
    fs::create_dir(&second).unwrap();
    for key in ["root-2.pem", "targets-2.pem"] {
        fs::rename(Path::new(&offline).join(key), Path::new(&second).join(key)).unwrap();
    }
    let root = world.path("repo/metadata/1.root.json");
    world.run(&["repo", "trust", &root, "--keys", &second]).await;

    let bundle = world.bundle("m/1.0.0");
    let first = world.run(&["release", "sign", &bundle, "--keys", &offline]).await;
    assert_eq!(
        (&first["missing"][0]["signatures"], &first["missing"][0]["threshold"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(world.refused(&["release", "publish", &bundle]).await, (5, "tuf.below_threshold".into()));
    let both = world.run(&["release", "sign", &bundle, "--keys", &second]).await;
    assert_eq!((&both["missing"], &both["targets_version"]), (&json!([]), &json!(2)));
    world.run(&["release", "publish", &bundle]).await;
    world.device_takes("m/1.0.0").unwrap();

    // The first machine replaces its root key: the second must agree.
    let waiting = world.run(&["keys", "rotate", "root", "--keys", &offline]).await;
    assert_eq!(waiting["roles"]["root"]["version"], 1);
    assert_eq!(waiting["missing"][0]["role"], "root");
    let next = waiting["folder"].as_str().unwrap().to_owned();
    // Nothing else is begun meanwhile.
    assert_eq!(world.refused(&["repo", "refresh", "--keys", &offline]).await.0, 3);
    let stranger = world.path("stranger");
    world.run(&["keys", "generate", &stranger]).await;
    world.run(&["repo", "trust", &root, "--keys", &stranger]).await;
    assert_eq!(
        world.refused(&["repo", "sign", &next, "--keys", &stranger]).await,
        (6, "tuf.unknown_key".into())
    );
    let file = Path::new(&next).join("root.json").display().to_string();
    let signed = world.run(&["repo", "add-root-signature", &file, "--keys", &second, "--old", &root]).await;
    assert_eq!(signed, json!({ "version": 2, "added": 1, "complete": true }));
    let done = world.run(&["repo", "sign", &next, "--keys", &second]).await;
    assert_eq!((&done["roles"]["root"]["version"], &done["missing"]), (&json!(2), &json!([])));
    assert!(!Path::new(&next).exists());
    world.device_takes("m/1.0.0").unwrap();
    assert_eq!(world.device.root().root().version, 2);
}

#[tokio::test]
async fn keys_are_rotated_and_devices_follow() {
    let mut world = World::new(&["--root", "1", "--targets", "1", "--role", "vib"], &[]).await;
    let offline = world.path("offline");
    world.run(&["repo", "delegate", "vib", "--keys", &offline]).await;
    let bundle = world.bundle("vib/1.0.0");
    world.run(&["release", "sign", &bundle, "--keys", &offline]).await;
    world.run(&["release", "publish", &bundle]).await;
    world.device_takes("vib/1.0.0").unwrap();
    for (role, root) in [("targets", 2), ("vib", 2), ("root", 3), ("online", 4)] {
        let status = world.run(&["keys", "rotate", role, "--keys", &offline]).await;
        assert_eq!(
            (&status["missing"], &status["roles"]["root"]["version"]),
            (&json!([]), &json!(root)),
            "{role}"
        );
        world.device_takes("vib/1.0.0").unwrap();
        assert_eq!(world.device.root().root().version, root);
    }
    let keys = world.run(&["keys", "list", &offline]).await;
    let files: Vec<&str> = keys.as_array().unwrap().iter().map(|key| key["file"].as_str().unwrap()).collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.ends_with("-2.pem")), "{files:?}");
    assert!(Path::new(&offline).join("retired/root-1.pem").is_file());
    // What was signed before the rotations still is; what is signed now is by the new keys.
    let next = world.bundle("vib/1.1.0");
    world.run(&["release", "sign", &next, "--keys", &offline]).await;
    world.run(&["release", "publish", &next]).await;
    world.device_takes("vib/1.1.0").unwrap();
    world.device_takes("vib/1.0.0").unwrap();
    let status = world.run(&["repo", "refresh", "--keys", &offline, "--root", "--days", "20"]).await;
    assert!(status["warnings"][0].as_str().unwrap().contains("refresh --root"), "{status}");
}

#[tokio::test]
async fn a_configuration_is_built_signed_and_published() {
    let mut world = World::new(&[], &[]).await;
    let (offline, settings, out) =
        (world.path("offline"), world.path("settings.toml"), world.path("config-1"));
    fs::write(&settings, "kill_switch = false\n[models.m]\nabstain_below = 1.6\n").unwrap();
    let build = ["config", "build", &settings, "--version", "1.0.0", "--out", &out];
    assert_eq!(world.refused(&build).await.0, 3);
    fs::write(
        &settings,
        "[models.m]\nabstain_below = 0.6\ncase_bytes_per_day = 1000\n[flags]\nbeta = true\n",
    )
    .unwrap();
    world.run(&build).await;
    world.run(&["release", "sign", &out, "--keys", &offline]).await;
    world.run(&["release", "publish", &out]).await;
    world.device_takes("config/1.0.0").unwrap();
    let shown = world.run(&["release", "show", "config/1.0.0"]).await;
    assert_eq!(shown["manifest"]["runtime"]["flags"]["beta"], true);
    let listed = world.run(&["release", "list", "--model", "config"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
}
