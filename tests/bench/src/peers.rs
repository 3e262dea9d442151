//! `bench serve-peers`: the same model, machine and client against other servers: a FastAPI application that calls
//! ONNX Runtime, and MLServer. Each runs by itself; the agent takes its turn after it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use farlight_test_support::until;

use crate::client::{Endpoint, Form, clients, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Span, Subject, status};

/// Clients at once.
const CLIENTS: [usize; 2] = [1, 16];
/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `bench serve-peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that tests/bench/fetch-peers made
    #[arg(long, value_name = "FOLDER")]
    peers: PathBuf,
    #[command(flatten)]
    span: Span,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::reference("watch-gestures")?;
    let serving = Serving::with("", &[&subject])?;
    let time = args.span.each();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("model.onnx"), &subject.onnx)?;
    let fastapi = args.peers.join("fastapi/bin/python");
    ensure!(fastapi.exists(), "{} is not there: run tests/bench/fetch-peers", fastapi.display());
    for form in [Form::Binary, Form::Json] {
        let peer = Peer::fastapi(&fastapi, folder.path(), &subject, form)?;
        compare("fastapi", &peer, &serving, &subject, form, time, printer)?;
    }
    let mlserver = args.peers.join("mlserver/bin/mlserver");
    if !mlserver.exists() {
        printer.note("MLServer is not installed: tests/bench/fetch-peers FOLDER mlserver");
        return Ok(());
    }
    let peer = Peer::mlserver(&mlserver, folder.path(), &subject)?;
    compare("mlserver", &peer, &serving, &subject, Form::Json, time, printer)
}

fn compare(
    name: &str,
    peer: &Peer,
    serving: &Serving,
    subject: &Subject,
    form: Form,
    time: Duration,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let request = request(subject.name, form, subject.shape, &subject.input());
    for count in CLIENTS {
        let theirs = clients(&peer.endpoint, &request, count, time).with_context(|| format!("ask {name}"))?;
        let ours = clients(&serving.tcp(), &request, count, time)?;
        let name = |what| format!("serve-peers/{name}/{}/{count}-clients/{what}", form.name());
        let least = Goal { least_ratio: Some(1.0), ..Goal::default() };
        let report = Report::new(&name("rate"), ours.rate(), "requests/s", Some(theirs.rate()), least);
        printer.print(&report.detail("over HTTP; the baseline is the other server"))?;
        let most = Goal { ratio: Some(1.0), ..Goal::default() };
        let report = Report::new(&name("p50"), ours.permille(500), "µs", Some(theirs.permille(500)), most);
        printer.print(&report.detail(format!(
            "p99 {:.0} µs against {:.0} µs",
            ours.permille(990),
            theirs.permille(990)
        )))?;
    }
    Ok(())
}

/// Another server; it ends with this value.
struct Peer {
    child: Child,
    endpoint: Endpoint,
}

impl Peer {
    fn fastapi(python: &Path, folder: &Path, subject: &Subject, form: Form) -> anyhow::Result<Self> {
        let program = folder.join("peer_fastapi.py");
        std::fs::write(&program, include_str!("peers/fastapi_server.py"))?;
        let port = free_port()?;
        let mut command = Command::new(python);
        command.arg(program).arg(folder.join("model.onnx")).arg(port.to_string());
        Self::start(&mut command, folder, port, subject, form)
    }

    fn mlserver(program: &Path, folder: &Path, subject: &Subject) -> anyhow::Result<Self> {
        let [port, grpc, metrics] = [free_port()?, free_port()?, free_port()?];
        std::fs::write(folder.join("peer_mlserver.py"), include_str!("peers/mlserver_runtime.py"))?;
        let settings = serde_json::json!({
            "host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics,
            "parallel_workers": 0, "debug": false,
        });
        std::fs::write(folder.join("settings.json"), settings.to_string())?;
        let model = serde_json::json!({
            "name": subject.name, "implementation": "peer_mlserver.Onnx",
            "parameters": { "uri": folder.join("model.onnx") },
        });
        std::fs::write(folder.join("model-settings.json"), model.to_string())?;
        let mut command = Command::new(program);
        command.arg("start").arg(folder).env("PYTHONPATH", folder);
        Self::start(&mut command, folder, port, subject, Form::Json)
    }

    /// Starts a server and waits until it answers an inference.
    fn start(
        command: &mut Command,
        folder: &Path,
        port: u16,
        subject: &Subject,
        form: Form,
    ) -> anyhow::Result<Self> {
        let log = std::fs::File::create(folder.join("peer.log"))?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start the other server")?;
        let mut peer = Self { child, endpoint: Endpoint::Tcp(format!("127.0.0.1:{port}")) };
        let request = request(subject.name, form, subject.shape, &subject.input());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let log = || std::fs::read_to_string(folder.join("peer.log")).unwrap_or_default();
        let Peer { child, endpoint } = &mut peer;
        let answers = until("the other server answers or ends", PATIENCE, async || {
            let asked = (status(endpoint, &request) == Some(200)).then_some(None);
            Ok(asked.or(child.try_wait()?.map(Some)))
        });
        match runtime.block_on(answers).with_context(log)? {
            None => Ok(peer),
            Some(ended) => anyhow::bail!("the other server ended with {ended}:\n{}", log()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
