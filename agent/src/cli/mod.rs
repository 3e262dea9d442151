//! The command line of the agent.

mod install;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use farlight_inference::{Options, Pipeline};
use farlight_release::timestamp;
use farlight_wire::ModelName;
use farlight_wire::codes::{Again, Code};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::choice::Way;
use crate::exit::{ExitCode, Fatal};
use crate::journal::Journal;
use crate::settings::{self, Settings};
use crate::slots::{Opened, Slots};
use crate::{durable, engines, identity, run, selftest, sources};

const DEFAULT_CONFIG: &str = "/etc/farlight/agent.toml";
/// Largest answer of the local service that `status` reads.
const MAX_STATUS: u64 = 4 * 1024 * 1024;

/// Runs machine-learning models on this device and keeps them good.
#[derive(Debug, Parser)]
#[command(
    name = "farlight-agent",
    version,
    about,
    after_help = "Example:\n  farlight-agent validate --config /etc/farlight/agent.toml\n\nExit codes: 0 done, 1 failure, 2 usage, 3 configuration, 4 identity, 5 file, folder or port"
)]
pub struct Args {
    /// Configuration file.
    #[arg(long, global = true, default_value = DEFAULT_CONFIG, env = "FARLIGHT_AGENT_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Check the configuration and say every problem.
    Validate,
    /// Enrol this device with a file from `farlight device enrol`.
    Enrol {
        /// The enrolment file.
        file: PathBuf,
    },
    /// Ask the running agent how it is.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Install the releases of a bundle from a USB stick or folder, with all checks.
    Install(install::Args),
    /// Show what ran when, and why: newest first.
    History {
        /// Only of this model.
        #[arg(long)]
        model: Option<ModelName>,
        /// Most lines.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Explain an error code, or list all of them.
    Errors {
        /// The code, for example self_test.golden_mismatch.
        code: Option<String>,
    },
    /// About the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run the active release of a model on an input file: {"data": [numbers]}.
    Infer {
        /// The input file; `-` reads standard input.
        file: PathBuf,
        /// The model; may be left out when there is one.
        #[arg(long)]
        model: Option<ModelName>,
    },
    /// Run the self-test of a slot under limits (called by the daemon).
    #[command(hide = true)]
    SelfTest {
        folder: PathBuf,
        digest: String,
        #[arg(long, default_value_t = 120)]
        cpu_seconds: u64,
        /// Process id of the daemon: the self-test ends with it.
        #[arg(long)]
        parent: u32,
        /// What runs it, as JSON.
        #[arg(long, value_parser = selftest::Engine::parse)]
        engine: Option<selftest::Engine>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the commented sample, which names every key.
    Doc,
}

#[derive(Deserialize)]
struct InferFile {
    data: Vec<f32>,
}

/// Carries out one command.
///
/// # Errors
/// [`Fatal`] with the exit code.
pub fn execute(args: Args) -> Result<(), Fatal> {
    match args.command {
        Command::Config(ConfigCommand::Doc) => print(settings::SAMPLE),
        Command::SelfTest { folder, digest, cpu_seconds, parent, engine } => {
            let outcome = selftest::child(&folder, &digest, cpu_seconds, parent, engine.unwrap_or_default());
            print(&serde_json::to_string(&outcome).context("print outcome")?)
        }
        Command::Validate => {
            read(&args.config)?;
            print(&format!("{}: ok\n", args.config.display()))
        }
        Command::Run => {
            let settings = read(&args.config)?;
            if settings.inference.onnxruntime.open().is_some() {
                engines::be_quiet()?;
            }
            runtime()?.block_on(run::run(settings))
        }
        Command::Enrol { file } => {
            let settings = read(&args.config)?;
            let state_dir = settings.device.state_dir;
            durable::create_folder(&state_dir).context("create the state directory")?;
            let identity = runtime()?.block_on(identity::enrol(&state_dir, &file))?;
            print(&format!("{} is enrolled in fleet {}\n", identity.device, identity.fleet))
        }
        Command::Status { json } => {
            let settings = read(&args.config)?;
            let document = runtime()?.block_on(status(&settings))?;
            print(&if json { format!("{document}\n") } else { summary(&document) })
        }
        Command::Install(install) => {
            let settings = read(&args.config)?;
            runtime()?.block_on(install::run(&settings, install))
        }
        Command::History { model, limit, json } => history(&read(&args.config)?, model.as_ref(), limit, json),
        Command::Errors { code } => errors(code.as_deref()),
        Command::Infer { file, model } => infer(&read(&args.config)?, &file, model),
    }
}

fn print(text: &str) -> Result<(), Fatal> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that closed the pipe has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("print").into())
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Settings, Fatal> {
    Settings::read(path)
        .map_err(|error| Fatal::new(ExitCode::Config, error, "see every key with: farlight-agent config doc"))
}

fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    // Requests are answered elsewhere; one of them may be busy with the disk.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.context("start the async runtime")?)
}

/// Asks the running agent over one of its sockets; the JSON of its answer.
async fn ask(
    path: &str,
    settings: &Settings,
    body: Option<&serde_json::Value>,
) -> Result<serde_json::Value, Fatal> {
    let hint = "is the agent running? Try: systemctl status farlight-agent";
    let fail = |error: anyhow::Error| Fatal::new(ExitCode::Failure, error, hint);
    let request = match body {
        None => format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"),
        Some(body) => {
            let body = body.to_string();
            format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
    };
    // What changes something goes over the administrator's socket.
    let admin = settings.device.admin_socket();
    let answer = if body.is_some() {
        exchange(tokio::net::UnixStream::connect(&admin).await, &request).await
    } else if settings.http.listen.is_empty() {
        exchange(tokio::net::UnixStream::connect(&settings.http.socket).await, &request).await
    } else {
        exchange(tokio::net::TcpStream::connect(&settings.http.listen).await, &request).await
    };
    let answer = answer.context("reach the agent").map_err(fail)?;
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).context("understand the agent's answer").map_err(fail)
}

async fn exchange<S>(stream: std::io::Result<S>, request: &str) -> std::io::Result<Vec<u8>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut stream = stream?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_STATUS).read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn status(settings: &Settings) -> Result<serde_json::Value, Fatal> {
    ask("/farlight/status", settings, None).await
}

fn history(settings: &Settings, model: Option<&ModelName>, limit: u32, json: bool) -> Result<(), Fatal> {
    let path = settings.device.state_dir.join("state.db");
    let rows = Journal::history(&path, model, limit)
        .map_err(|error| Fatal::new(ExitCode::Resource, error, "is device.state_dir right, and readable?"))?;
    if json {
        return print(&format!("{}\n", serde_json::to_string(&rows).context("print history")?));
    }
    let mut out = String::new();
    for row in &rows {
        let running = if row.running.is_empty() { "nothing" } else { &row.running };
        let why = match (row.code.is_empty(), row.rollout.is_empty()) {
            (false, _) => format!("{}: {}", row.code, row.message.lines().next().unwrap_or_default()),
            (true, false) => format!("rollout {}", row.rollout),
            (true, true) => format!("assignment {}", row.assignment),
        };
        out.push_str(&format!(
            "{}  {:<28} {:<12} runs {running}; {why}\n",
            timestamp::format(row.at),
            row.release,
            row.state
        ));
    }
    if rows.is_empty() {
        out.push_str("nothing happened yet\n");
    }
    print(&out)
}

fn errors(code: Option<&str>) -> Result<(), Fatal> {
    let Some(text) = code else {
        let lines = Code::ALL.iter().map(|code| format!("{:<28} {}\n", code.as_str(), code.meaning()));
        return print(&lines.collect::<String>());
    };
    let unknown = || anyhow!("there is no error code {text:?}");
    let code = Code::parse(text).ok_or_else(unknown);
    let code =
        code.map_err(|e| Fatal::new(ExitCode::Failure, e, "see all of them: farlight-agent errors"))?;
    let again = match code.again() {
        Again::Later => "the same attempt may succeed later by itself",
        Again::Never => "the same attempt will fail again until something is changed",
    };
    print(&format!("{}: {}\nhint: {}\n{again}\n", code.as_str(), code.meaning(), code.hint()))
}

fn summary(document: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut out = format!(
        "device     {} in fleet {}\ncloud      {}\nwaiting    {} windows, {} cases, {} reports\n",
        text(&document["device"]),
        text(&document["fleet"]),
        if document["connected"] == true { "connected" } else { "not connected" },
        document["waiting"]["tel"],
        document["waiting"]["case"],
        document["waiting"]["rep"],
    );
    let models = document["models"].as_array().cloned().unwrap_or_default();
    for model in &models {
        out.push_str(&format!("model      {} {}\n", text(&model["model"]), text(&model["version"])));
        for reason in model["refused"].as_array().into_iter().flatten() {
            out.push_str(&format!("           runs with {}: {}\n", text(&model["engine"]), text(reason)));
        }
    }
    if models.is_empty() {
        out.push_str("model      none yet\n");
    }
    if let Some(config) = document["config"].as_str() {
        out.push_str(&format!("config     {config}\n"));
    }
    if let Some(hold) = document["updates_wait_for"].as_str() {
        out.push_str(&format!("waiting    {hold}\n"));
    }
    for (model, update) in document["updates"].as_object().into_iter().flatten() {
        out.push_str(&format!(
            "update     {model}: {} of {}{}\n",
            text(&update["state"]),
            text(&update["release"]),
            match (update["progress"]["done"].as_u64(), update["progress"]["total"].as_u64()) {
                (Some(done), Some(total)) => format!(", {} of {} KiB", done >> 10, total >> 10),
                _ => String::new(),
            }
        ));
    }
    out
}

fn infer(settings: &Settings, file: &Path, model: Option<ModelName>) -> Result<(), Fatal> {
    let fail = |error: anyhow::Error, hint: &str| Fatal::new(ExitCode::Failure, error, hint);
    let slots = Slots::new(&settings.device.state_dir).pinned(settings.inference.pins(1));
    let mut models = slots.models().map_err(|e| fail(e.into(), "check device.state_dir"))?;
    models.retain(|model| model.as_str() != farlight_release::config::NAME);
    let model = match (model, models.as_slice()) {
        (Some(model), _) => model,
        (None, [one]) => one.clone(),
        (None, []) => return Err(fail(anyhow!("no release is installed"), "roll one out to this device")),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(ModelName::as_str).collect();
            return Err(fail(
                anyhow!("several models are installed"),
                &format!("choose with --model: {}", names.join(", ")),
            ));
        }
    };
    let pointer = slots.pointer(&model).map_err(|e| fail(e.into(), "check device.state_dir"))?;
    let slot = pointer.and_then(|pointer| pointer.active);
    let slot =
        slot.ok_or_else(|| fail(anyhow!("no release of {model} is active"), "roll one out to this device"))?;
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read standard input")
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
    };
    let text = text.map_err(|e| fail(e, "name a readable file"))?;
    let form = "write {\"data\": [numbers]}, row-major";
    let input: InferFile =
        serde_json::from_str(&text).context("understand the input").map_err(|e| fail(e, form))?;
    let opened = slots.open(&slot).map_err(|e| fail(e.into(), "the release is damaged; assign it again"))?;
    let Opened::Model(whole) = opened else {
        return Err(fail(anyhow!("{model} is a configuration"), "choose a model with --model"));
    };
    let Way { engine, threads } = whole.way;
    let options = Options { engine, threads, ..Options::default() };
    let engines = engines::open(&settings.inference.onnxruntime)?;
    let mut worker = Pipeline::load_with(&whole.manifest, &whole.model, options, &engines)
        .and_then(|pipeline| pipeline.worker())
        .map_err(|e| fail(e.into(), "the release does not load"))?;
    let shape = format!("the model takes {:?}", whole.manifest.input.shape);
    let prediction = worker.run(&input.data).map_err(|e| fail(e.into(), &shape))?;
    let answer = sources::describe("", &slot.release.to_string(), &whole.manifest.labels, &prediction);
    print(&format!("{answer}\n"))
}
