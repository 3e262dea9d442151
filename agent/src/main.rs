//! `farlight-agent`: arguments, tracing, one command, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use farlight_agent::cli;
use farlight_agent::logs::Ring;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let asked = asked.and_then(|text| text.parse::<Targets>().ok());
    let usual = || Targets::new().with_default(Level::INFO).with_target("rumqttc", Level::ERROR);
    let filter = asked.unwrap_or_else(usual);
    let colours = std::io::stderr().is_terminal();
    let shown = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
    let kept = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Ring::default);
    tracing_subscriber::registry().with(filter).with(shown).with(kept).init();
    // The one TLS provider of the process; installing it twice is the only way to fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::execute(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            let _ = writeln!(std::io::stderr(), "{fatal}");
            ExitCode::from(fatal.code as u8)
        }
    }
}
