//! `bench swap`: requests at a steady rate while the model is swapped again and again between two versions. The
//! agent's own HTTP service and model table run in a process of their own, so that its memory is its own too.

pub(crate) mod server;

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use farlight_test_support::{Device, InferFailure, until};
use farlight_training::{Part, Samples, data::images};

use crate::report::{Goal, Printer, Report};

/// Connections that the requests are spread over.
const CONNECTIONS: u32 = 16;
/// Requests before the first swap, in seconds of the rate: what they cost without.
const QUIET: u32 = 3;
/// One in so many swaps comes before memory is looked at: allocator, queues and store have their size then.
const WARM_UP: u32 = 10;
/// Longest wait for one swap.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most that resident memory may grow, %.
const MOST_GROWTH: f64 = 5.0;

/// Arguments of `bench swap`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Swaps
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(WARM_UP as i64..=1_000_000))]
    swaps: u32,
    /// Requests a second
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(CONNECTIONS as i64..=100_000))]
    rate: u32,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("agent.sock");
    let mut server = Server::start(folder.path(), &socket)?;
    let load = Arc::new(Load::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let samples = Arc::new(digits()?);
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let every = Duration::from_secs_f64(f64::from(CONNECTIONS) / f64::from(args.rate));
            let client = reqwest::Client::builder().unix_socket(&*socket).timeout(PATIENCE).build()?;
            let (load, samples) = (Arc::clone(&load), Arc::clone(&samples));
            Ok(runtime.spawn(async move { load.requests(client, number, every, &samples).await }))
        })
        .collect::<anyhow::Result<_>>()?;

    printer.note(&format!("{} requests a second, {} swaps", args.rate, args.swaps));
    let enough = u64::from(args.rate * QUIET);
    runtime.block_on(until("requests are answered without swaps", PATIENCE, async || {
        Ok((load.ended() >= enough).then_some(()))
    }))?;
    let quiet = load.take();
    let started = Instant::now();
    let mut before = 0;
    for number in 0..args.swaps {
        server.swap()?;
        if number + 1 == args.swaps.div_ceil(WARM_UP) {
            before = server.resident_kib()?;
        }
    }
    let elapsed = started.elapsed();
    let after = server.resident_kib()?;
    load.stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for connection in connections {
            connection.await?;
        }
        anyhow::Ok(())
    })?;
    let swapped = load.take();
    let failed = quiet.failed + swapped.failed;
    let rate = swapped.micros.len() as f64 / elapsed.as_secs_f64();
    let detail =
        format!("{} answered, {rate:.0} a second, while swapped {} times", swapped.micros.len(), args.swaps);
    let first = load.first_failure.lock().map_or(None, |mut first| first.take());
    let detail = first.map_or(detail.clone(), |first| format!("{detail}; first failure: {first}"));
    let zero = Goal { value: Some(0.0), ..Goal::default() };
    printer.print(&Report::new("swap/failed", failed as f64, "requests", None, zero).detail(detail))?;
    ensure!(swapped.versions == 3, "not both versions answered: {:b}", swapped.versions);
    let growth = 100.0 * (after as f64 - before as f64) / before as f64;
    let detail = format!("resident {before} KiB after a tenth of the swaps, {after} KiB after all");
    let most = Goal { value: Some(MOST_GROWTH), ..Goal::default() };
    printer.print(&Report::new("swap/memory", growth, "% more", None, most).detail(detail))?;
    let p99 = |micros: &[u32]| f64::from(micros.get(micros.len() * 99 / 100).copied().unwrap_or(0));
    let detail =
        "99th percentile; the baseline is without swaps. Each swap loads the model anew beside the requests";
    let report =
        Report::new("swap/latency", p99(&swapped.micros), "µs", Some(p99(&quiet.micros)), Goal::default());
    printer.print(&report.detail(detail))
}

fn digits() -> anyhow::Result<Samples> {
    let images = include_bytes!("../../../models/digits/data/images.npy");
    let labels = include_bytes!("../../../models/digits/data/labels.npy");
    Ok(images::parse(images, labels, Part::Evaluate)?)
}

/// What came of the requests.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    failed: AtomicU64,
    first_failure: std::sync::Mutex<Option<String>>,
    /// Latencies, µs.
    micros: std::sync::Mutex<Vec<u32>>,
    /// A bit for each version that answered.
    versions: AtomicU64,
}

/// What [`Load`] held.
struct Taken {
    failed: u64,
    /// Sorted.
    micros: Vec<u32>,
    versions: u64,
}

impl Load {
    fn take(&self) -> Taken {
        let mut micros =
            self.micros.lock().map_or_else(|_| Vec::new(), |mut micros| std::mem::take(&mut *micros));
        micros.sort_unstable();
        Taken {
            failed: self.failed.swap(0, Ordering::Relaxed),
            micros,
            versions: self.versions.swap(0, Ordering::Relaxed),
        }
    }

    /// Requests that came to an end.
    fn ended(&self) -> u64 {
        let answered = self.micros.lock().map_or(0, |micros| micros.len() as u64);
        answered + self.failed.load(Ordering::Relaxed)
    }

    /// Asks once `every` until told to stop; what is late is asked at once, so the rate holds.
    async fn requests(&self, client: reqwest::Client, number: u32, every: Duration, samples: &Samples) {
        let mut tick =
            tokio::time::interval_at(tokio::time::Instant::now() + every * number / CONNECTIONS, every);
        let mut at = number as usize;
        while !self.stop.load(Ordering::Relaxed) {
            tick.tick().await;
            at = (at + 1) % samples.len();
            let started = Instant::now();
            match Device::infer(&client, server::MODEL, "bench", &samples.shape, &samples.x[at]).await {
                Ok(answer) => {
                    let version = server::VERSIONS.iter().position(|version| *version == answer.version);
                    self.versions.fetch_or(version.map_or(4, |version| 1 << version), Ordering::Relaxed);
                    let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
                    if let Ok(mut all) = self.micros.lock() {
                        all.push(micros);
                    }
                }
                Err(failure) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let text = match failure {
                        InferFailure::Unreachable(why) => why,
                        InferFailure::Refused(status, why) => format!("{status} {why}"),
                    };
                    if let Ok(mut first) = self.first_failure.lock() {
                        first.get_or_insert(text);
                    }
                }
            }
        }
    }
}

/// The child process; it ends with its input.
struct Server {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
}

impl Server {
    fn start(folder: &Path, socket: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .args([folder, socket])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start this program again")?;
        let commands = child.stdin.take().context("no input of the child")?;
        let output = child.stdout.take().context("no output of the child")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let server = Self { child, commands, lines };
        server.expect("ready")?;
        Ok(server)
    }

    fn expect(&self, what: &str) -> anyhow::Result<()> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) if line == what => Ok(()),
            Ok(line) => bail!("the server says {line:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("the server does not say {what:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the server ended"),
        }
    }

    fn swap(&mut self) -> anyhow::Result<()> {
        writeln!(self.commands, "swap")?;
        self.expect("swapped")
    }

    fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
