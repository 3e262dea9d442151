//! `cargo run --release --bin bench -- NAME [--json]`: measures one thing against its baseline.

mod bare;
mod client;
mod coldstart;
mod delta;
mod engines;
mod footprint;
mod overhead;
mod overload;
mod peers;
mod report;
mod routing;
mod serving;
mod swap;
mod throughput;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Printer;

/// Measures Farlight against what else there is. Exits with 1 when a goal is not met.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    version,
    after_help = "Example:\n  cargo run --release --bin bench -- delta --json"
)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Show the benchmarks
    List,
    /// Bytes of a model update as a delta, and the memory to apply it, against zstd, bsdiff and HDiffPatch
    Delta(delta::Args),
    /// Failed requests and memory while the model is swapped under load
    Swap(swap::Args),
    /// What a request costs over the model itself, by socket and form
    Overhead(overhead::Args),
    /// Requests a second with 1, 4 and 16 clients against tract alone on every core
    Throughput(throughput::Args),
    /// Ten times the requests that can be answered: deadlines, refusals, memory, recovery
    Overload(overload::Args),
    /// From the start of the process to the first answer
    Coldstart(coldstart::Args),
    /// Size of the program, memory and processor time while idle
    Footprint(footprint::Args),
    /// Weights in f32, f16 and int8, and ONNX Runtime
    Engines(engines::Args),
    /// The same model served by FastAPI with ONNX Runtime and by MLServer
    ServePeers(peers::Args),
    /// What a route, a shadow and an open breaker cost over no route
    Routing(routing::Args),
    /// Apply a delta and print the memory that took; `delta` calls it
    #[command(hide = true)]
    Apply(delta::memory::Args),
    /// Serve a model that is swapped by each line of input; `swap` calls it
    #[command(hide = true)]
    Serve(swap::server::Args),
}

const BENCHES: [(&str, &str); 10] = [
    ("delta", "bytes of a model update as a delta, and the memory to apply it"),
    ("swap", "failed requests and memory while the model is swapped under load"),
    ("overhead", "what a request costs over the model itself, by socket and form"),
    ("throughput", "requests a second with 1, 4 and 16 clients against tract alone on every core"),
    ("overload", "ten times the requests that can be answered: deadlines, refusals, memory, recovery"),
    ("coldstart", "from the start of the process to the first answer"),
    ("footprint", "size of the program, memory and processor time while idle"),
    ("engines", "weights in f32, f16 and int8, and ONNX Runtime"),
    ("serve-peers", "the same model served by FastAPI with ONNX Runtime and by MLServer"),
    ("routing", "what a route, a shadow and an open breaker cost over no route"),
];

fn main() -> ExitCode {
    farlight_test_support::init();
    let args = Args::parse();
    let mut printer = Printer::new(args.json);
    if !matches!(args.bench, Bench::List | Bench::Apply(_) | Bench::Serve(_)) {
        printer.begin();
    }
    let done = match &args.bench {
        Bench::List => list(args.json),
        Bench::Delta(args) => delta::run(args, &mut printer),
        Bench::Swap(args) => swap::run(args, &mut printer),
        Bench::Overhead(args) => overhead::run(args, &mut printer),
        Bench::Throughput(args) => throughput::run(args, &mut printer),
        Bench::Overload(args) => overload::run(args, &mut printer),
        Bench::Coldstart(args) => coldstart::run(args, &mut printer),
        Bench::Footprint(args) => footprint::run(args, &mut printer),
        Bench::Engines(args) => engines::run(args, &mut printer),
        Bench::ServePeers(args) => peers::run(args, &mut printer),
        Bench::Routing(args) => routing::run(args, &mut printer),
        Bench::Apply(args) => delta::memory::apply(args),
        Bench::Serve(args) => swap::server::serve(args),
    };
    match done {
        Ok(()) if printer.missed() == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            printer.note(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (name, what) in BENCHES {
        if json {
            writeln!(out, "{}", serde_json::json!({ "name": name, "what": what }))?;
        } else {
            writeln!(out, "{name:<11} {what}")?;
        }
    }
    Ok(())
}
