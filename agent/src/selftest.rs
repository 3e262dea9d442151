//! The self-test of a release, in a child process with its own limits, so that a hostile or huge model
//! cannot take the daemon down. The child runs `farlight-agent self-test FOLDER DIGEST` and answers with
//! one line of JSON.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use farlight_device::update::Failure;
use farlight_inference::{Engines, Kind, OnnxRuntime, Options, Pipeline, golden};
use farlight_wire::codes::Code;
use rustix::process::{Resource, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::choice::Pins;
use crate::confine::{self, Drivers};
use crate::engines::QUIET;
use crate::slots::{self, File};

/// Address space beyond the manifest's memory budget that the process itself needs.
const OVERHEAD_BYTES: u64 = 512 * 1024 * 1024;
/// Addresses that one more thread reserves: its stack and its part of the heap.
const THREAD_BYTES: u64 = 80 * 1024 * 1024;
/// Longest answer of the child in bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// Last bytes of the child's log kept for the report.
const LOG_TAIL: usize = 2048;
/// Signals that end a child over its processor time: the warning, and what follows it.
const XCPU: i32 = Signal::XCPU.as_raw();
const KILL: i32 = Signal::KILL.as_raw();
/// The kernel counts processor time in whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// What the child runs a release with: what the agent will. As JSON on its command line, since it has no environment
/// and reads no configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Engine {
    kind: Kind,
    onnxruntime: Option<OnnxRuntime>,
    /// Id of the file; what was chosen before when left out.
    file: Option<String>,
    /// Threads of one inference.
    #[serde(default)]
    threads: usize,
}

impl Engine {
    /// An engine of those that are there; tract in the place of one that is not.
    pub fn new(kind: Kind, engines: &Engines) -> Self {
        if kind == Kind::Tract || engines.trouble().is_some() {
            return Self::default();
        }
        Self { kind, onnxruntime: engines.onnxruntime().cloned(), ..Self::default() }
    }

    /// The same on one of the release's files.
    #[must_use]
    pub fn with_file(self, id: &str) -> Self {
        Self { file: Some(id.to_owned()), ..self }
    }

    /// The same with so many threads for one inference.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Reads the JSON.
    ///
    /// # Errors
    /// When it is not of this form.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    fn drivers(&self) -> Drivers {
        match self.onnxruntime.as_ref().is_some_and(OnnxRuntime::has_drivers) {
            true => Drivers::Some,
            false if self.threads > 1 => Drivers::Threads,
            false => Drivers::None,
        }
    }
}

/// What the child found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// `None` when it passed.
    failure: Option<(String, String)>,
    /// What of its confinement the kernel did not give.
    without: Vec<String>,
    /// The engine that ran it.
    engine: String,
    /// Why it did not run as it was asked to.
    refused: Vec<String>,
    /// 95th percentile of the processor time of one inference, µs.
    p95_us: u64,
    /// Shortest time of one inference by the clock, µs.
    micros: u64,
    /// Peak resident memory of the child without what the engine's library takes, KiB.
    peak_kib: u64,
}

impl Outcome {
    /// What of its confinement the kernel did not give.
    pub fn without(&self) -> &[String] {
        &self.without
    }

    /// The engine that ran it: `tract`, `onnxruntime`.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Why it did not run as it was asked to.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// Shortest time of one inference, µs.
    pub fn micros(&self) -> u64 {
        self.micros
    }
}

/// Runs the self-test of a slot in a child process of `program`, the agent itself.
///
/// # Errors
/// `self_test.*` with what was found.
pub async fn run(
    program: &Path,
    folder: &Path,
    digest: &str,
    limit: Duration,
    engine: &Engine,
) -> Result<Outcome, Failure> {
    let crashed = |text: String| Failure::new(Code::SelfTestCrashed, text);
    let started = Instant::now();
    let engine = serde_json::to_string(engine).map_err(|e| crashed(format!("name the engine: {e}")))?;
    let mut command = Command::new(program);
    command
        .arg("self-test")
        .arg(folder)
        .arg(digest)
        .args(["--cpu-seconds", &limit.as_secs().to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .args(["--engine", &engine])
        .env_clear()
        .env(QUIET.0, QUIET.1)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let (mut child, _keeper) = start(command).await.map_err(|e| crashed(format!("start self-test: {e}")))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = async {
        let (mut answer, mut log) = (Vec::new(), Vec::new());
        let out = async {
            if let Some(stdout) = stdout {
                let _ = stdout.take(MAX_ANSWER).read_to_end(&mut answer).await;
            }
        };
        let err = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(MAX_ANSWER).read_to_end(&mut log).await;
            }
        };
        tokio::join!(out, err);
        (answer, log)
    };
    let Ok(((answer, log), status)) =
        tokio::time::timeout(limit, async { (read.await, child.wait().await) }).await
    else {
        return Err(Failure::new(
            Code::SelfTestTimeout,
            format!("not finished within {} s", limit.as_secs()),
        ));
    };
    let status = status.map_err(|e| crashed(format!("wait for self-test: {e}")))?;
    let Some(outcome) = status.success().then(|| serde_json::from_slice::<Outcome>(&answer).ok()).flatten()
    else {
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL)..]).into_owned();
        let text = format!("the self-test ended with {status}; its log ends: {tail}");
        let code = match status.signal() {
            _ if is_out_of_memory(&tail) => Code::SelfTestMemory,
            Some(XCPU | KILL) if started.elapsed() + SECOND >= limit => Code::SelfTestTimeout,
            _ => Code::SelfTestCrashed,
        };
        return Err(Failure::new(code, text));
    };
    for part in &outcome.without {
        tracing::warn!("the self-test ran without {part}");
    }
    for reason in &outcome.refused {
        tracing::warn!(engine = outcome.engine, "the self-test did not run as configured: {reason}");
    }
    match outcome.failure {
        None => {
            let Outcome { engine, p95_us, peak_kib, .. } = &outcome;
            tracing::info!(digest, engine, p95_us, peak_kib, "self-test passed");
            Ok(outcome)
        }
        // The child is this very program, so that it has no codes of its own.
        Some((code, message)) => {
            Err(Failure::new(Code::parse(&code).unwrap_or(Code::SelfTestCrashed), message))
        }
    }
}

/// Starts the child from a thread that lasts as long as the second value. The child asks to end with its parent,
/// which to the kernel is the thread that started it, and the threads of the runtime come and go.
async fn start(mut command: Command) -> std::io::Result<(Child, std::sync::mpsc::Sender<()>)> {
    let (keeper, kept) = std::sync::mpsc::channel();
    let (sender, started) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("self-test".to_owned()).spawn(move || {
        let _entered = runtime.enter();
        let _ = sender.send(command.spawn());
        let _ = kept.recv();
    })?;
    let child = started.await.map_err(std::io::Error::other)??;
    Ok((child, keeper))
}

/// Whether a text is how an engine, or the allocator, says that the memory limit was met.
fn is_out_of_memory(text: &str) -> bool {
    let signs =
        ["failed to allocate", "Failed to allocate", "memory allocation of", "bad_alloc", "bad allocation"];
    signs.iter().any(|sign| text.contains(sign))
}

/// The child's side: confines itself, runs the golden vectors, and says what it found to `parent`.
pub fn child(folder: &Path, digest: &str, cpu_seconds: u64, parent: u32, engine: Engine) -> Outcome {
    let (engine_name, refused) = (String::new(), Vec::new());
    let mut outcome = Outcome {
        failure: None,
        without: Vec::new(),
        engine: engine_name,
        refused,
        p95_us: 0,
        micros: 0,
        peak_kib: 0,
    };
    if let Err(failure) = test(folder, digest, cpu_seconds, parent, engine, &mut outcome) {
        outcome.failure = Some((failure.code.as_str().to_owned(), failure.message));
    }
    outcome
}

fn test(
    folder: &Path,
    digest: &str,
    cpu_seconds: u64,
    parent: u32,
    engine: Engine,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let fail = |code: Code, text: String| Failure::new(code, text);
    let crashed = |e: std::io::Error| Failure::new(Code::SelfTestCrashed, format!("confine self-test: {e}"));
    let (drivers, kind) = (engine.drivers(), engine.kind);
    // The library is the device owner's and is trusted; the model that it is to read is not. What the library takes by
    // itself is no part of the model's budget.
    let before = (own_kib("VmSize:"), own_kib("VmHWM:"));
    let engines = Engines::open(engine.onnxruntime.clone());
    let library = (own_kib("VmSize:").saturating_sub(before.0), own_kib("VmHWM:").saturating_sub(before.1));
    outcome.without = confine::enter(parent, drivers).map_err(crashed)?;
    confine::limit(Resource::Cpu, cpu_seconds.max(1)).map_err(crashed)?;
    let file = engine.file.as_deref().map_or(File::Chosen(Pins::default()), File::Of);
    let whole =
        slots::open_folder(folder, digest, file).map_err(|e| fail(Code::VerifyMismatch, e.to_string()))?;
    let budgets = whole.manifest.budgets.clone();
    let memory = budgets.memory_kib.saturating_add(library.0).saturating_mul(1024);
    let what = match drivers {
        Drivers::None | Drivers::Threads => Resource::As,
        Drivers::Some => Resource::Data,
    };
    let threads = engine.threads.max(1);
    let overhead = OVERHEAD_BYTES.saturating_add(THREAD_BYTES.saturating_mul(threads as u64 - 1));
    confine::limit(what, memory.saturating_add(overhead)).map_err(crashed)?;

    // One call at a time.
    let options = Options { engine: kind, workers: threads, threads, ..Options::default() };
    let pipeline = Pipeline::load_with(&whole.manifest, &whole.model, options, &engines)
        .map_err(|e| fail(e.code(), e.to_string()))?;
    outcome.engine = pipeline.engine().to_owned();
    outcome.refused = pipeline.refused().to_vec();
    // The agent has no such limit: it would run the release with an engine that was not tested.
    if let Some(reason) = outcome.refused.iter().find(|reason| is_out_of_memory(reason)) {
        return Err(fail(Code::SelfTestMemory, reason.clone()));
    }
    let vectors = golden::decode(&whole.golden).map_err(|e| fail(Code::SelfTestGolden, e.to_string()))?;
    let mut times = Vec::with_capacity(vectors.len());
    // Not by the clock: with the lowest priority the child waits for everything else that the device does.
    let mut last = ProcessTime::now();
    // The shortest by the clock is what is compared: it also knows what a device did, and waits are in the others.
    let (mut began, mut shortest) = (Instant::now(), Duration::MAX);
    golden::check(&pipeline, &vectors, whole.manifest.golden_tolerance, || {
        times.push(last.elapsed().as_micros() as u64);
        shortest = shortest.min(began.elapsed());
        (last, began) = (ProcessTime::now(), Instant::now());
    })
    .map_err(|error| {
        let text = error.to_string();
        let code = match &error {
            golden::GoldenError::Run { .. } if is_out_of_memory(&text) => Code::SelfTestMemory,
            golden::GoldenError::Run { .. } => Code::SelfTestCrashed,
            golden::GoldenError::Malformed(_)
            | golden::GoldenError::Mismatch { .. }
            | golden::GoldenError::Outputs { .. } => Code::SelfTestGolden,
        };
        fail(code, text)
    })?;

    outcome.micros = shortest.as_micros() as u64;
    times.sort_unstable();
    outcome.p95_us = times.get(times.len() * 95 / 100).copied().unwrap_or(0);
    outcome.peak_kib = own_kib("VmHWM:").saturating_sub(library.1);
    if outcome.p95_us > budgets.p95_us {
        let text = format!("p95 of {} µs is over the budget of {} µs", outcome.p95_us, budgets.p95_us);
        return Err(fail(Code::SelfTestBudget, text));
    }
    if outcome.peak_kib > budgets.memory_kib {
        let text =
            format!("peak of {} KiB is over the budget of {} KiB", outcome.peak_kib, budgets.memory_kib);
        return Err(fail(Code::SelfTestBudget, text));
    }
    Ok(())
}

/// A line of `/proc/self/status` in KiB; 0 where /proc is not there.
fn own_kib(line: &str) -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|found| found.strip_prefix(line)?.split_whitespace().next()?.parse().ok())
        })
        .unwrap_or(0)
}
