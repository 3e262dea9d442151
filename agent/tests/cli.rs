//! The command line as a person meets it: bad input ends in its own error, hint and exit code.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

fn agent(config: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farlight-agent"))
        .arg("--config")
        .arg(config)
        .args(args)
        .output()
        .unwrap()
}

fn refused(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

fn write(folder: &Path, text: &str) -> std::path::PathBuf {
    let path = folder.join("agent.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_wrong_configuration_names_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    refused(&agent(&dir.path().join("none.toml"), &["validate"]), 3, &["none.toml", "hint: "]);
    let config = write(dir.path(), "[telemetry]\nwindow_secons = 1\n");
    refused(&agent(&config, &["validate"]), 3, &["window_secons", "window_seconds"]);
    let config = write(dir.path(), "[telemetry]\nwindow_seconds = \"a\"\n");
    refused(&agent(&config, &["validate"]), 3, &["window_seconds"]);
    let config = write(dir.path(), "[http]\nlisten = \"x\"\n[inference]\ndeadline_ms = 0\n");
    refused(&agent(&config, &["validate"]), 3, &["http.listen", "inference.deadline_ms"]);
}

#[test]
fn the_sample_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let doc = agent(Path::new("/"), &["config", "doc"]);
    assert!(doc.status.success());
    let config = write(dir.path(), &String::from_utf8(doc.stdout).unwrap());
    let output = agent(&config, &["validate"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_device_that_is_not_enrolled_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let base = format!("[device]\nstate_dir = {state:?}\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let config = write(dir.path(), &base);
    refused(&agent(&config, &["run"]), 4, &["not enrolled", "farlight device enrol"]);
    refused(&agent(&config, &["enrol", "/nonexistent"]), 4, &["/nonexistent", "hint: "]);
    let broken = dir.path().join("enrolment.json");
    std::fs::write(&broken, "{}").unwrap();
    refused(&agent(&config, &["enrol", broken.to_str().unwrap()]), 4, &["enrolment.json", "cloud"]);
    std::fs::write(state.join("identity.json"), "{").unwrap();
    refused(&agent(&config, &["run"]), 4, &["identity.json", "hint: "]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let state = dir.path().join("state");
    let config =
        write(dir.path(), &format!("[device]\nstate_dir = {state:?}\n[http]\nlisten = \"{address}\"\n"));
    refused(&agent(&config, &["run"]), 5, &[&address.to_string(), "http.listen"]);
    let grpc = format!(
        "[device]\nstate_dir = {state:?}\n[http]\nlisten = \"127.0.0.1:0\"\ngrpc_listen = \"{address}\"\n"
    );
    let config = write(dir.path(), &grpc);
    refused(&agent(&config, &["run"]), 5, &[&address.to_string(), "http.grpc_listen"]);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let config = write(dir.path(), &format!("[device]\nstate_dir = {:?}\n", file.join("below")));
    refused(&agent(&config, &["run"]), 5, &["below", "hint: "]);
}

#[test]
fn asking_without_an_agent_or_a_model_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let socket = dir.path().join("none.sock");
    let config = write(
        dir.path(),
        &format!("[device]\nstate_dir = {state:?}\n[http]\nlisten = \"\"\nsocket = {socket:?}\n"),
    );
    refused(&agent(&config, &["status"]), 1, &["reach the agent", "hint: "]);
    refused(&agent(&config, &["infer", "-"]), 1, &["no release is installed", "hint: "]);
}
