//! `farlight release`: build a bundle from a recipe and a model, sign it offline, publish it, look at
//! what is published. A bundle is a folder: see `bundle`.

mod build;
pub(super) mod bundle;
mod delta;
mod export;
mod publish;
pub mod recipe;
mod sign;

use clap::Subcommand;
use farlight_release::timestamp;
use farlight_wire::{Millis, ReleaseId};
use serde_json::Value;

use super::context::Context;
use super::error::CliError;
use crate::registry::Record;

/// Commands on releases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a bundle: check the model with the fleet's engine, measure it, write golden vectors and profile
    Build(build::Args),
    /// Sign a bundle with the offline keys of the role that may speak for it
    Sign(sign::Args),
    /// Upload a signed bundle; doing it again changes nothing
    Publish(publish::Args),
    /// Write a folder from which a device without a network installs releases
    Export(export::Args),
    /// List the releases
    List {
        /// Only those of this model
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Show one release
    Show {
        /// `‹model›/‹version›`
        release: ReleaseId,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Build(args) => build::run(&args, context),
        Command::Sign(args) => sign::run(&args, context).await,
        Command::Publish(args) => publish::run(&args, context).await,
        Command::Export(args) => export::run(&args, context).await,
        Command::List { model } => list(model.as_deref(), context).await,
        Command::Show { release } => show(&release, context).await,
    }
}

async fn list(model: Option<&str>, context: &Context) -> Result<(), CliError> {
    let query: Vec<(&str, &str)> = model.map(|model| ("model", model)).into_iter().collect();
    let records: Vec<Record> = context.api()?.get_with("/api/v1/releases", &query).await?;
    context.list(&records, ["RELEASE", "STATE", "PUBLISHED", "BY", "BYTES", "PARENT"], |record| {
        let parent = record.lineage.parent.as_ref().map_or_else(|| "-".to_owned(), ReleaseId::to_string);
        [
            record.release.to_string(),
            record.state.clone(),
            timestamp::format(Millis(record.published)),
            record.published_by.clone(),
            record.bytes.to_string(),
            parent,
        ]
    })
}

async fn show(release: &ReleaseId, context: &Context) -> Result<(), CliError> {
    let answer: Value = context.api()?.get(&format!("/api/v1/releases/{release}")).await?;
    context.answer(&answer, |answer| serde_json::to_string_pretty(answer).unwrap_or_default())
}
