//! `farlight dataset`: sends a model's data to the cloud, where training jobs replay it and the gate
//! holds candidates against it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use farlight_training::Samples;
use farlight_training::data::npy;

use super::context::Context;
use super::error::CliError;
use super::files;
use super::release::recipe::Recipe;
use crate::learning::api::{Arrays, ImportRequest};
use crate::learning::recipe::{RECIPE, RELEASE, TrainingRecipe};
use crate::learning::records::DatasetRecord;

/// Commands on data sets.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send the training and holdout data of a model's folder, with its retraining settings
    Import(Import),
    /// List the data sets
    List,
}

/// Arguments of `dataset import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Name to find it by; an existing name moves to the new data
    name: String,
    /// Folder with release.toml, and recipe.toml or {train,holdout}/{x,y}.npy
    folder: PathBuf,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Import(args) => import(&args, context).await,
        Command::List => {
            let all: Vec<DatasetRecord> = context.api()?.get("/api/v1/datasets").await?;
            context.list(&all, ["name", "model", "snapshot"], |record| {
                [record.name.clone(), record.model.clone(), record.snapshot.clone()]
            })
        }
    }
}

async fn import(args: &Import, context: &Context) -> Result<(), CliError> {
    let release = Recipe::load(&args.folder.join(RELEASE))?;
    let mut splits = BTreeMap::new();
    let mut settings = None;
    let path = args.folder.join(RECIPE);
    if path.is_file() {
        let recipe = TrainingRecipe::read(&path).map_err(|e| CliError::file(e.to_string()))?;
        for (name, source) in [("train", &recipe.data.train), ("holdout", &recipe.data.holdout)] {
            let samples = source.read(&args.folder).map_err(|e| CliError::file(e.to_string()))?;
            splits.insert(name.to_owned(), encode(&samples));
        }
        settings = Some(recipe.retrain);
    } else {
        for name in ["train", "holdout"] {
            let array = |file: &str| arrays(&args.folder.join(name).join(file));
            splits.insert(name.to_owned(), Arrays { x: array("x.npy")?, y: array("y.npy")? });
        }
    }
    let request = ImportRequest {
        name: args.name.clone(),
        model: release.model,
        classes: release.labels.len(),
        splits,
        settings,
    };
    let record: DatasetRecord = context.api()?.post("/api/v1/datasets", &request).await?;
    context.answer(&record, |record| format!("{} is snapshot {}", record.name, record.snapshot))
}

fn arrays(path: &Path) -> Result<String, CliError> {
    Ok(STANDARD.encode(files::read(path)?))
}

fn encode(samples: &Samples) -> Arrays {
    let dims = [&[samples.len()], samples.shape.as_slice()].concat();
    Arrays {
        x: STANDARD.encode(npy::write_f32(&dims, &samples.x.concat())),
        y: STANDARD.encode(npy::write_u32(&[samples.len()], &samples.y)),
    }
}
