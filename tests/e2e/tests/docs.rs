//! Every command of the README's operator blocks is run, in its order.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use farlight_test_support::{Fleet, Programs, workspace_root};

/// Lines of the README's code blocks that begin with `farlight `.
fn commands() -> Vec<String> {
    let text = std::fs::read_to_string(workspace_root().join("README.md")).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("farlight ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_commands_work() {
    farlight_test_support::init();
    let programs = Programs::find().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cloud = farlight_test_support::Cloud::start(&programs, &folder.path().join("cloud")).await.unwrap();
    std::os::unix::fs::symlink(workspace_root().join("models"), folder.path().join("models")).unwrap();
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for line in commands {
        let output = Command::new(&programs.operator)
            .args(line.split_whitespace())
            .current_dir(folder.path())
            .env("FARLIGHT_PROFILE", cloud.folder().join("operator.json"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "farlight {line}: {said}");
    }
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
