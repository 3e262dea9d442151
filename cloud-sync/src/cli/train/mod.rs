//! `farlight train`: makes reference models from their recipes, offline, and runs training jobs in the
//! cloud.

mod base;
mod jobs;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::base::{BaseError, Measured};
use super::context::Context;
use super::error::CliError;
use super::{files, output};
use crate::learning::recipe::MODEL;

/// Commands on training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the reference model of a folder from nothing by its recipe.toml, offline
    Base(Base),
    /// Measure how the model of a folder recovers with labelled field data, offline
    Recover(Recover),
    /// Start a training job in the cloud with the model's labelled cases
    Start(jobs::Start),
    /// Show training jobs
    Status(jobs::Status),
    /// Fetch the candidate of a job
    Fetch(jobs::Fetch),
    /// Stop a job
    Cancel {
        /// The job
        id: String,
    },
}

/// Arguments of `train base`.
#[derive(Debug, Args)]
pub struct Base {
    /// Folder with recipe.toml and release.toml
    folder: PathBuf,
    /// Where to write the model; by default only the figures are shown
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `train recover`.
#[derive(Debug, Args)]
pub struct Recover {
    /// Folder with recipe.toml, release.toml and model.onnx
    folder: PathBuf,
    /// Numbers of labels to measure with
    #[arg(long, value_delimiter = ',', default_value = "50,150,300")]
    labels: Vec<usize>,
    /// Number of seeds
    #[arg(long, default_value_t = 3)]
    seeds: u64,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Base(args) => train_base(&args, context),
        Command::Recover(args) => recover(&args, context),
        Command::Start(args) => jobs::start(args, context).await,
        Command::Status(args) => jobs::status(args, context).await,
        Command::Fetch(args) => jobs::fetch(args, context).await,
        Command::Cancel { id } => jobs::cancel(&id, context).await,
    }
}

fn offline(error: BaseError) -> CliError {
    match error {
        BaseError::Recipe(error) => CliError::file(error.to_string()),
        BaseError::Release(error) => error,
        error => CliError::failure(error.to_string()),
    }
}

fn rows(measured: &[Measured]) -> String {
    let row = |set: &Measured| [set.set.clone(), set.count.to_string(), format!("{:.3}", set.accuracy)];
    output::table(["set", "inputs", "accuracy"], &measured.iter().map(row).collect::<Vec<_>>())
}

fn train_base(args: &Base, context: &Context) -> Result<(), CliError> {
    let trained = base::train(&args.folder, |epoch| {
        output::note(&format!(
            "epoch {}/{}: loss {:.3}, chosen on {:.3}",
            epoch.epoch, epoch.of, epoch.train_loss, epoch.validation.accuracy
        ));
    })
    .map_err(offline)?;
    if let Some(out) = &args.out {
        files::write(out, &trained.onnx)?;
    }
    context.answer(&trained, |trained| {
        format!(
            "{} bytes, {} parameters, trained on {} inputs, epoch {} kept\n{}",
            trained.bytes,
            trained.parameters,
            trained.trained_on,
            trained.best_epoch,
            rows(&trained.measured)
        )
    })
}

fn recover(args: &Recover, context: &Context) -> Result<(), CliError> {
    let onnx = files::read(&args.folder.join(MODEL))?;
    let mut all = Vec::new();
    for &labels in &args.labels {
        for seed in 1..=args.seeds {
            let recovery = base::recover(&args.folder, &onnx, labels, seed).map_err(offline)?;
            if !context.json() {
                output::text(&format!("{labels} labels, seed {seed}\n{}", rows(&recovery.measured)))?;
            }
            all.push(recovery);
        }
    }
    if context.json() { output::json(&all) } else { Ok(()) }
}
