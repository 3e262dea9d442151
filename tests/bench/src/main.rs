//! `cargo run --release --bin bench -- NAME [--json]`: measures one thing against its baseline.

mod delta;
mod report;
mod swap;

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
    /// Apply a delta and print the memory that took; `delta` calls it
    #[command(hide = true)]
    Apply(delta::memory::Args),
    /// Serve a model that is swapped by each line of input; `swap` calls it
    #[command(hide = true)]
    Serve(swap::server::Args),
}

const BENCHES: [(&str, &str); 2] = [
    ("delta", "bytes of a model update as a delta, and the memory to apply it"),
    ("swap", "failed requests and memory while the model is swapped under load"),
];

fn main() -> ExitCode {
    farlight_test_support::init();
    let args = Args::parse();
    let mut printer = Printer::new(args.json);
    let done = match &args.bench {
        Bench::List => list(args.json),
        Bench::Delta(args) => delta::run(args, &mut printer),
        Bench::Swap(args) => swap::run(args, &mut printer),
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
            writeln!(out, "{name:<8} {what}")?;
        }
    }
    Ok(())
}
