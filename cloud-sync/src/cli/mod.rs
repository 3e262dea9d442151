//! `farlight`, the operator's command line. One module a noun, each with its clap arguments and one
//! `run(args, &Context)`; this file is the table of contents. To add a noun: its module, a variant, an arm.

pub mod cases;
pub mod config;
pub mod context;
pub mod dataset;
pub mod device;
pub mod error;
pub mod files;
pub mod http;
pub mod keys;
pub mod output;
pub mod release;
pub mod repo;
pub mod rollout;
pub mod train;
pub mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use context::Context;
pub use error::{CliError, Exit};

/// Trains, releases and watches models on fleets of edge devices.
#[derive(Debug, Parser)]
#[command(name = "farlight", version, max_term_width = 110, after_help = error::EXIT_CODES)]
pub struct Cli {
    /// The operator's profile, written by `farlight-cloud` at its first start (`operator.json`)
    #[arg(long, global = true, env = "FARLIGHT_PROFILE", value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, show and rotate the offline keys that sign releases
    #[command(subcommand)]
    Keys(keys::Command),
    /// Begin and look after the signed release repository
    #[command(subcommand)]
    Repo(repo::Command),
    /// Build, sign, publish and list releases
    #[command(subcommand)]
    Release(release::Command),
    /// Build configuration releases
    #[command(subcommand)]
    Config(config::Command),
    /// Keep the data that models learn from
    #[command(subcommand)]
    Dataset(dataset::Command),
    /// Train models
    #[command(subcommand)]
    Train(train::Command),
    /// Invite devices and look at them
    #[command(subcommand)]
    Device(device::Command),
    /// Bring a release to a fleet in waves
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// Look at hard cases and label them
    #[command(subcommand)]
    Cases(cases::Command),
}

/// Reads the arguments, runs the command, says what went wrong and how the process is to end.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.profile, cli.json);
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failure(format!("start the asynchronous runtime: {e}")))
        .and_then(|runtime| runtime.block_on(run(cli.command, &context)));
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            output::error(&error, context.json());
            error.exit().into()
        }
    }
}

async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Keys(command) => keys::run(command, context).await,
        Command::Repo(command) => repo::run(command, context).await,
        Command::Release(command) => release::run(command, context).await,
        Command::Config(command) => config::run(command, context),
        Command::Dataset(command) => dataset::run(command, context).await,
        Command::Train(command) => train::run(command, context).await,
        Command::Device(command) => device::run(command, context).await,
        Command::Rollout(command) => rollout::run(command, context).await,
        Command::Cases(command) => cases::run(command, context).await,
    }
}
