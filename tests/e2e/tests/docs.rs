//! Every command of README.md, docs/delivery.md and docs/signing.md is run as it stands there, line by line and
//! in its order, against a real cloud and a real device.
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use farlight_test_support::{
    Cloud, Device, DeviceOptions, Fleet, MODEL, Programs, changed_recipe, until, workspace_root,
};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(120);

/// The fenced blocks of a document in this language, each without the indentation of its fence.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace_root().join(document)).unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let fence = line.trim_start();
        let Some(found) = fence.strip_prefix("```") else { continue };
        let indented = line.len() - fence.len();
        let block = lines.by_ref().take_while(|line| line.trim_start() != "```");
        let block: Vec<&str> = block.map(|line| line.get(indented..).unwrap_or_default()).collect();
        if found == language {
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// The commands of a document.
fn commands(document: &str) -> Vec<String> {
    let blocks = blocks(document, "sh");
    blocks.iter().flat_map(|block| block.lines()).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Runs a line in a shell that finds the programs and the operator's profile.
fn run(line: &str, programs: &Programs, profile: &Path, folder: &Path, variables: &[(&str, &str)]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = programs.operator.parent().unwrap().to_path_buf();
    let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path))).unwrap();
    let output = Command::new("sh")
        .args(["-euc", line])
        .current_dir(folder)
        .env("PATH", path)
        .env("FARLIGHT_PROFILE", profile)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{line}: {}: {}", output.status, String::from_utf8_lossy(&said));
}

fn link_models(folder: &Path) {
    std::os::unix::fs::symlink(workspace_root().join("models"), folder.join("models")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_commands_work() {
    farlight_test_support::init();
    let programs = Programs::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&programs, &folder.path().join("cloud")).await.unwrap();
    link_models(folder.path());
    // The other lines build, start the cloud and set the profile: all done here.
    let lines: Vec<String> =
        commands("README.md").into_iter().filter(|line| line.starts_with("farlight ")).collect();
    assert!(lines.len() >= 8, "{lines:?}");
    for line in lines {
        run(&line, &programs, &cloud.folder().join("operator.json"), folder.path(), &[]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delivery_commands_work() {
    let fleet = Fleet::start().await.unwrap();
    let folder = fleet.folder.path();
    // A machine that is busy with other tests answers late, which is not what is looked at here.
    let recipe = changed_recipe(&folder.join("patient"), &[("p95_us = 20000", "p95_us = 20000000")]).unwrap();
    let model = workspace_root().join("models").join(MODEL).join("model.onnx");
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        fleet.publish_from(&recipe, &model, version).await.unwrap();
    }
    let options = DeviceOptions { tcp: true, ..DeviceOptions::default() };
    let device = fleet.device("gw-1", &options).await.unwrap();
    for version in ["1.0.0", "1.1.0"] {
        let rollout = fleet.roll_out(version).await.unwrap();
        fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    }
    link_models(folder);
    std::os::unix::fs::symlink(folder.join("1.0.0"), folder.join("r1")).unwrap();
    std::fs::rename(fleet.retrained_model().unwrap(), folder.join("candidate.onnx")).unwrap();
    let settings = blocks("docs/delivery.md", "toml");
    assert_eq!(settings.len(), 1, "{settings:?}");
    std::fs::write(folder.join("settings.toml"), &settings[0]).unwrap();

    let profile = fleet.cloud.folder().join("operator.json");
    let stick = folder.join("stick").display().to_string();
    let config = device.folder().join("agent.toml").display().to_string();
    let lines = commands("docs/delivery.md");
    assert!(lines.len() >= 18, "{lines:?}");
    for line in lines {
        if line.starts_with("farlight-agent install ") {
            settled(&device).await;
        }
        let rollout = last_rollout(&fleet).await;
        let variables = [
            ("ROLLOUT", rollout.as_str()),
            ("AGENT", device.address.as_str()),
            ("STICK", stick.as_str()),
            ("FARLIGHT_AGENT_CONFIG", config.as_str()),
        ];
        let (programs, profile, folder) = (&fleet.programs, &profile, folder);
        tokio::task::block_in_place(|| run(&line, programs, profile, folder, &variables));
    }
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.2.0"), "from the stick");
    let made = std::fs::read(folder.join("r3/manifest.json")).unwrap();
    let made: Value = serde_json::from_slice(&made).unwrap();
    assert_eq!(made["variants"][0]["deltas"].as_array().map(Vec::len), Some(1), "{made}");
}

/// Waits until the device is back where `rollback` took it.
async fn settled(device: &Device) {
    until("the device is back", WAIT, async || {
        let status = device.status().await?;
        anyhow::ensure!(status["updates"][MODEL].is_null(), "{}", status["updates"]);
        Ok((device.running(MODEL).await?.as_deref() == Some("1.0.0")).then_some(()))
    })
    .await
    .unwrap();
}

/// The id of the rollout that was created last.
async fn last_rollout(fleet: &Fleet) -> String {
    let rollouts = fleet.operator.run(&["rollout", "status"]).await.unwrap();
    rollouts[0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signing_commands_work() {
    farlight_test_support::init();
    let programs = Programs::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&programs, &folder.path().join("cloud")).await.unwrap();
    let operator = cloud.operator(&folder.path().join("offline"));
    let watch = workspace_root().join("models").join(MODEL);
    let own = watch.join("release.toml");
    let other = changed_recipe(&folder.path().join("vibration"), &[(MODEL, "vibration-pump")]).unwrap();
    for (bundle, recipe, version) in [("r1", &own, "1.0.0"), ("r2", &own, "1.1.0"), ("v1", &other, "1.0.0")] {
        operator
            .build(recipe, &watch.join("model.onnx"), version, &folder.path().join(bundle), &[])
            .await
            .unwrap();
    }
    std::fs::write(folder.path().join("settings.toml"), &blocks("docs/delivery.md", "toml")[0]).unwrap();
    let lines = commands("docs/signing.md");
    assert!(lines.len() >= 25, "{lines:?}");
    for line in lines {
        run(&line, &programs, &cloud.folder().join("operator.json"), folder.path(), &[]);
    }
    let status = operator.run(&["repo", "status"]).await.unwrap();
    assert_eq!(status["missing"].as_array().map(Vec::len), Some(0), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_commands_say_what_to_do() {
    let fleet = Fleet::start().await.unwrap();
    let broken = fleet.folder.path().join("broken.onnx");
    std::fs::write(&broken, b"this is no ONNX").unwrap();
    let recipe = workspace_root().join("models/watch-gestures/release.toml");
    let out = fleet.folder.path().join("out");
    let error = fleet.operator.build(&recipe, &broken, "1.0.0", &out, &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("broken.onnx"), "{error:#}");
    for (args, part) in [
        (&["release", "publish", "/nonexistent"][..], "/nonexistent"),
        (&["rollout", "create", "watch-gestures/9.9.9"][..], "9.9.9"),
        (&["device", "show", "nobody"][..], "nobody"),
    ] {
        let error = format!("{:#}", fleet.operator.run(args).await.unwrap_err());
        assert!(error.contains(part) && error.contains("hint"), "{args:?}: {error}");
    }
}
