//! The self-test child, as the agent starts it: confined before it reads a model, and never left behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use farlight_agent::confine;
use farlight_agent::selftest::{self, Engine};
use farlight_attacks::models::{self, Parts};
use farlight_inference::{Engines, Kind, OnnxRuntime, Provider};
use farlight_release::{blob, digest};
use farlight_test_support::{Programs, onnxruntime_library, until};
use farlight_wire::codes::Code;
use serde_json::json;

const WAIT: Duration = Duration::from_secs(60);
/// Set for the process that a test starts to be confined itself.
const CONFINED: &str = "FARLIGHT_TEST_CONFINED";

/// A slot on disk.
struct Slot {
    folder: tempfile::TempDir,
    digest: String,
}

fn slot(parts: &Parts) -> Slot {
    let folder = tempfile::tempdir().unwrap();
    let manifest = models::manifest("m/1.0.0", &parts.onnx, &parts.golden, &json!({})).unwrap();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let digest = digest::sha256(&manifest);
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("manifest.json", &manifest);
    write(&blob::describe(&parts.onnx).id, &parts.onnx);
    write(&blob::describe(&parts.golden).id, &parts.golden);
    Slot { folder, digest }
}

async fn run(parts: &Parts, limit: Duration) -> Result<selftest::Outcome, Code> {
    run_with(parts, limit, &Engine::default()).await
}

async fn run_with(parts: &Parts, limit: Duration, engine: &Engine) -> Result<selftest::Outcome, Code> {
    let (slot, agent) = (slot(parts), Programs::find().unwrap().agent);
    let outcome = selftest::run(&agent, slot.folder.path(), &slot.digest, limit, engine).await;
    outcome.map_err(|failure| failure.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_child_passes_an_honest_model_and_refuses_a_hostile_one() {
    let outcome = run(&models::honest(1.0).unwrap(), WAIT).await.unwrap();
    assert_eq!(outcome.without(), [""; 0], "on this kernel all of it can be had");
    for (parts, limit, code) in [
        (models::greedy(), WAIT, Code::SelfTestMemory),
        (models::nested(), WAIT, Code::ModelOverLimits),
        (models::endless(), Duration::from_secs(2), Code::SelfTestTimeout),
    ] {
        assert_eq!(run(&parts.unwrap(), limit).await.unwrap_err(), code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_child_does_the_same_with_the_library_of_the_board() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let (providers, session_options) = (vec![Provider::cpu()], Default::default());
    let engines = Engines::open(Some(OnnxRuntime { library, providers, session_options }));
    let engine = Engine::new(Kind::OnnxRuntime, &engines);
    let outcome = run_with(&models::honest(1.0).unwrap(), WAIT, &engine).await.unwrap();
    assert_eq!(outcome.without(), [""; 0]);
    assert_eq!(outcome.engine(), "onnxruntime");
    for (parts, limit, code) in [
        (models::greedy(), WAIT, Code::SelfTestMemory),
        (models::nested(), WAIT, Code::ModelOverLimits),
        (models::endless(), Duration::from_secs(2), Code::SelfTestTimeout),
    ] {
        assert_eq!(run_with(&parts.unwrap(), limit, &engine).await.unwrap_err(), code);
    }
}

/// The self-test of a model that never returns, as the child of a shell, and its process id.
fn endless(slot: &Slot) -> (Child, u32) {
    let mut parent = Command::new("sh")
        .args(["-c", r#""$0" self-test "$1" "$2" --parent $$ & echo $!; wait"#])
        .arg(Programs::find().unwrap().agent)
        .arg(slot.folder.path())
        .arg(&slot.digest)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (parent, line.trim().parse().unwrap())
}

fn proc(child: u32, file: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(PathBuf::from(format!("/proc/{child}")).join(file))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_child_stands_last_in_line_and_ends_with_its_parent() {
    let slot = slot(&models::endless().unwrap());
    let (mut parent, child) = endless(&slot);
    until("the child is confined", WAIT, async || {
        let status = proc(child, "status")?;
        let limits = proc(child, "limits")?;
        let says = |text: &str, name: &str, value: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.is_some_and(|line| line.split_whitespace().next() == Some(value))
        };
        // The 19th field; the second one, the name, is in brackets and may hold anything.
        let nice = proc(child, "stat")?
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split(' ').nth(17))
            .map(str::to_owned);
        let confined = says(&status, "Seccomp:", "2")
            && says(&status, "NoNewPrivs:", "1")
            && nice.as_deref() == Some("19")
            && proc(child, "oom_score_adj")?.trim() == "1000"
            && says(&limits, "Max core file size", "0")
            && says(&limits, "Max file size", "0")
            && says(&limits, "Max processes", "0")
            && says(&limits, "Max open files", "16");
        Ok(confined.then_some(()))
    })
    .await
    .unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the child is gone", WAIT, async || Ok(is_gone(child).then_some(()))).await.unwrap();
}

/// Whether a process has ended: nobody may have fetched its exit status yet.
fn is_gone(child: u32) -> bool {
    let stat = proc(child, "stat").unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

#[test]
fn a_child_whose_parent_is_another_does_not_begin() {
    let slot = slot(&models::honest(1.0).unwrap());
    let output = Command::new(Programs::find().unwrap().agent)
        .arg("self-test")
        .arg(slot.folder.path())
        .args([&slot.digest, "--parent", "1"])
        .output()
        .unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("self_test.crashed") && answer.contains("is gone"), "{answer}");
}

#[test]
fn what_is_confined_reaches_nobody_and_starts_nothing() {
    if let Some(folder) = std::env::var_os(CONFINED) {
        return confined(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let name = "what_is_confined_reaches_nobody_and_starts_nothing";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CONFINED, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// The same test again, in the process that is confined.
fn confined(folder: &Path) {
    let parent = std::os::unix::process::parent_id();
    assert_eq!(confine::enter(parent, confine::Drivers::None).unwrap(), [""; 0]);
    let denied = |what: &str, done: std::io::Result<()>| {
        let Err(error) = done else { panic!("{what} is allowed") };
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{what}: {error}");
        assert_eq!(error.raw_os_error(), Some(1), "{what}: {error}");
    };
    denied("TCP", TcpStream::connect("127.0.0.1:1").map(drop));
    denied("UDP", std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
    denied("a local socket", UnixStream::connect(folder.join("none")).map(drop));
    denied("a pair of sockets", UnixStream::pair().map(drop));
    denied("another program", Err(Command::new("/bin/true").exec()));
}
