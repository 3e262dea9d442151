//! The cloud service: arguments, tracing, settings, serve, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farlight_cloud::exit::Exit;
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
}

fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
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
