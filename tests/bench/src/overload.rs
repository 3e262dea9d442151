//! `bench overload`: ten times the requests that the machine can answer, sent whether earlier ones are answered or
//! not. What is accepted is in time, the rest is refused at once, memory stays, and it is over when the flood is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::bare::Bare;
use crate::client::{Connection, Endpoint, Form, Taken, client, head, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Subject};

/// Matrix products of the model: several milliseconds, so that ten times its capacity is a rate that the same
/// machine can also send.
const LAYERS: usize = 48;
/// Requests for each one that could be answered.
const TIMES: f64 = 10.0;
/// The flood's connections: more than the queue has places, so that it overflows, and enough to keep the rate.
const CONNECTIONS: u32 = 256;
/// Places of the queue.
const QUEUE: usize = 64;
/// Longest time from arrival to answer that the agent is told, ms.
const DEADLINE_MS: u64 = 1_000;
/// Longest time of a refusal, ms at the 99th percentile.
const REFUSAL_MS: f64 = 5.0;
/// The stated bound of memory: the buffers of each connection (16 KiB), bodies of requests that wait, and what the
/// allocator and the engine keep for each thread that runs a model, MiB.
const FLOOD_MIB: f64 = 16.0;
/// Once the flood has its own share, after so much of it, memory stands still but for what the allocator does, MiB.
const SETTLED: f64 = 0.2;
const GROWTH_MIB: f64 = 2.0;
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// First requests after the flood.
const FIRST: usize = 20;

/// Arguments of `bench overload`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds of the flood
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// 5 seconds
    #[arg(long)]
    short: bool,
}

/// An answer of the flood.
struct Answer {
    status: u16,
    ms: f64,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::made(LAYERS)?;
    let settings = format!("[inference]\nqueue = {QUEUE}\ndeadline_ms = {DEADLINE_MS}\n");
    let serving = Serving::with(&settings, &[&subject])?;
    let input = subject.input();
    let request = request(subject.name, Form::Binary, subject.shape, &input);
    let cores = std::thread::available_parallelism()?.get();
    let second = Duration::from_secs(1);
    let capacity = Bare::load(&subject.onnx, subject.shape, &input)?.run(cores, second)?.rate();
    let quiet = client(&serving.unix(), &request, 2 * second)?;
    let before = serving.memory("VmRSS")?;
    let flood = Duration::from_secs(if args.short { 5 } else { args.seconds });
    printer.note(&format!("{:.0} requests a second for {} s", capacity * TIMES, flood.as_secs()));
    let Endpoint::Unix(socket) = serving.unix() else { unreachable!("it is made as one") };
    let (answers, memory) = std::thread::scope(|scope| {
        let (flooding, over) = std::sync::mpsc::channel::<()>();
        let watched = scope.spawn(|| watch(&serving, over));
        let answers = flooded(&socket, &request, capacity * TIMES, flood);
        drop(flooding);
        (answers, watched.join())
    });
    let (answers, memory) = (answers?, memory.map_err(|_| anyhow::anyhow!("the watch of memory panicked"))??);
    let after = recovery(&serving, &request)?;
    report_answers(printer, &answers, flood, capacity, cores)?;
    report_memory(printer, before, &memory, serving.memory("VmRSS")?)?;
    let goal = Goal { ratio: Some(2.0), ..Goal::default() };
    let report = Report::new("overload/recovery", after.permille(500), "µs", Some(quiet.permille(500)), goal);
    printer.print(&report.detail(format!(
        "median of the first {FIRST} requests after the flood, the longest {:.0} µs; the baseline is before it",
        after.permille(1000)
    )))
}

/// Resident memory from time to time, MiB, until the flood is over.
fn watch(serving: &Serving, over: Receiver<()>) -> anyhow::Result<Vec<f64>> {
    let mut seen = Vec::new();
    while let Err(RecvTimeoutError::Timeout) = over.recv_timeout(LOOK_EVERY) {
        seen.push(serving.memory("VmRSS")?);
    }
    Ok(seen)
}

fn report_memory(printer: &mut Printer, before: f64, seen: &[f64], end: f64) -> anyhow::Result<()> {
    let most = seen.iter().copied().fold(before, f64::max);
    let goal = Goal { value: Some(FLOOD_MIB), ..Goal::default() };
    let report = Report::new("overload/memory", most - before, "MiB more", None, goal);
    printer.print(
        &report.detail(format!("resident {before:.1} MiB before, {most:.1} at most, {end:.1} after")),
    )?;
    let settled = seen.get((seen.len() as f64 * SETTLED) as usize).copied().unwrap_or(most);
    let goal = Goal { value: Some(GROWTH_MIB), ..Goal::default() };
    let report = Report::new("overload/memory/growth", most - settled, "MiB more", None, goal);
    printer.print(&report.detail(format!("{settled:.1} MiB after a fifth of the flood, {most:.1} at most")))
}

/// Sends at a steady rate for a time; every answer.
fn flooded(socket: &Path, request: &[u8], rate: f64, time: Duration) -> anyhow::Result<Vec<Answer>> {
    // So many wait for an answer all the time, and send nothing else meanwhile.
    let sending = f64::from(CONNECTIONS) - QUEUE as f64;
    let every = Duration::from_secs_f64(sending / rate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                tokio::spawn(connection(
                    socket.to_owned(),
                    request.to_vec(),
                    every,
                    every * number / CONNECTIONS,
                    time,
                ))
            })
            .collect();
        let mut answers = Vec::new();
        for connection in connections {
            answers.extend(connection.await??);
        }
        Ok(answers)
    })
}

async fn connection(
    socket: PathBuf,
    request: Vec<u8>,
    every: Duration,
    after: Duration,
    time: Duration,
) -> anyhow::Result<Vec<Answer>> {
    let mut stream = UnixStream::connect(&socket).await.context("connect to the agent")?;
    let begun = Instant::now();
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + after, every);
    // A connection that waits for an answer does not send: the others do.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut answers, mut buffer) = (Vec::new(), Vec::with_capacity(4096));
    while begun.elapsed() < time {
        tick.tick().await;
        let started = Instant::now();
        stream.write_all(&request).await?;
        buffer.clear();
        let status = loop {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the agent closed a connection");
            match head(&buffer)? {
                Some((status, length)) if buffer.len() >= length => break status,
                _ => {}
            }
        };
        answers.push(Answer { status, ms: started.elapsed().as_secs_f64() * 1e3 });
    }
    Ok(answers)
}

/// What the first requests after the flood take.
fn recovery(serving: &Serving, request: &[u8]) -> anyhow::Result<Taken> {
    let mut connection = Connection::open(&serving.unix())?;
    let mut taken = Taken::default();
    for _ in 0..FIRST {
        let started = Instant::now();
        let status = connection.ask(request)?;
        ensure!(status == 200, "after the flood a request is answered with status {status}");
        taken.micros.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(taken.sort())
}

fn report_answers(
    printer: &mut Printer,
    answers: &[Answer],
    flood: Duration,
    capacity: f64,
    cores: usize,
) -> anyhow::Result<()> {
    let mut by_status: BTreeMap<u16, Vec<f64>> = BTreeMap::new();
    for answer in answers {
        by_status.entry(answer.status).or_default().push(answer.ms);
    }
    by_status.values_mut().for_each(|all| all.sort_by(f64::total_cmp));
    let of = |status| by_status.get(&status).map_or(&[][..], Vec::as_slice);
    let p99 = |all: &[f64]| all.get(all.len() * 99 / 100).copied().unwrap_or(0.0);
    let most_of = |value| Goal { value: Some(value), ..Goal::default() };
    let seconds = flood.as_secs_f64();
    let sent = answers.len() as f64 / seconds;
    let detail = format!(
        "{sent:.0} requests a second, {:.1} times bare tract's {capacity:.0} on {cores} cores; {} accepted, {} refused",
        sent / capacity,
        of(200).len(),
        of(503).len(),
    );
    let accepted = of(200).len() as f64 / seconds;
    let report = Report::new("overload/accepted", accepted, "requests/s", Some(capacity), Goal::default());
    printer.print(&report.detail(detail))?;
    let report = Report::new("overload/accepted/p99", p99(of(200)), "ms", None, most_of(DEADLINE_MS as f64));
    printer
        .print(&report.detail(format!("the deadline is {DEADLINE_MS} ms, the queue has {QUEUE} places")))?;
    let report = Report::new("overload/refused/p99", p99(of(503)), "ms", None, most_of(REFUSAL_MS));
    printer.print(&report.detail(format!(
        "median {:.2} ms; seen by a client on the same cores",
        of(503).get(of(503).len() / 2).copied().unwrap_or(0.0)
    )))?;
    let other = answers.len() - of(200).len() - of(503).len();
    let report = Report::new("overload/other", other as f64, "requests", None, most_of(0.0));
    printer.print(&report.detail("answered with another status than 200 or 503"))
}
