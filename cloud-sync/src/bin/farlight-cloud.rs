//! The cloud service: arguments, tracing, settings, serve, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farlight_cloud::exit::Exit;
use farlight_cloud::learning::trainer;
use farlight_cloud::settings::{ServeArgs, Settings};

#[derive(Parser)]
#[command(name = "farlight-cloud", version, about = "Farlight's cloud service")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve devices and operators until SIGTERM
    Serve(ServeArgs),
    /// Train the model of a job's folder; the service calls this as a process of its own
    #[command(hide = true)]
    TrainJob {
        /// The folder
        folder: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Serve(args) => args,
        Command::TrainJob { folder } => return trainer::run(&folder).into(),
    };
    farlight_cloud::service::start_tracing();
    let outcome = Settings::from_args(args)
        .map_err(|error| (Exit::Usage, error.to_string()))
        .and_then(farlight_cloud::service::run);
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err((exit, message)) => {
            tracing::error!("{message}");
            exit.into()
        }
    }
}
