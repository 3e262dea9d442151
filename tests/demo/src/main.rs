//! `cargo run --release --bin demo`: the whole loop once, with real processes on real data.

mod attacks;
mod data;
mod ledger;
mod report;
mod scenario;
mod traffic;
mod view;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Starts a cloud and agents as real processes and shows the loop: field data → better model → safe rollout.
#[derive(Debug, Parser)]
#[command(
    name = "demo",
    version,
    after_help = "Example:\n  cargo run --release --bin demo -- --json result.json"
)]
pub(crate) struct Args {
    /// Devices to start.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(6..=64))]
    devices: u16,
    /// Write the numbers to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the folder with all data and logs.
    #[arg(long)]
    keep: bool,
    /// Leave out the second half (bad release, attacks): for a quick look.
    #[arg(long)]
    short: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    farlight_test_support::init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(scenario::run(&args)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
