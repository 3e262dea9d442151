//! Trains a reference model from nothing by its recipe, offline, and measures it: the command behind
//! the figures of a model's card. Also measures how it recovers with so many labelled field inputs.

use std::ops::ControlFlow;
use std::path::Path;

use farlight_onnx::{Limits, Model, OnnxError};
use farlight_release::blob;
use farlight_release::manifest::Manifest;
use farlight_training::fit::Epoch;
use farlight_training::random::Random;
use farlight_training::{Examples, FitError, Samples, fit};
use farlight_wire::ReleaseId;
use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::release::recipe::Recipe;
use crate::learning::plan::{self, Labelled};
use crate::learning::recipe::{RECIPE, RELEASE, RecipeError, TrainingRecipe};
use crate::learning::score::{self, ScoreError};

/// One in so many training samples chooses the best epoch instead of training.
const VALIDATION_SHARE: usize = 10;

/// Why a reference model could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    /// The recipe or its data.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The release recipe.
    #[error(transparent)]
    Release(#[from] CliError),
    /// The training.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The scoring.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The model.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The recipe has no field data to retrain with.
    #[error("the recipe has no [data.field]")]
    NoField,
}

/// Accuracy on one set.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    /// The set.
    pub set: String,
    /// Inputs.
    pub count: usize,
    /// Accuracy with the fleet's engine.
    pub accuracy: f64,
}

/// The model and its figures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Base {
    /// The ONNX file.
    #[serde(skip)]
    pub onnx: Vec<u8>,
    /// Its size in bytes.
    pub bytes: usize,
    /// Trainable numbers.
    pub parameters: usize,
    /// Inputs trained on.
    pub trained_on: usize,
    /// Epoch that was kept.
    pub best_epoch: u32,
    /// Accuracy on the holdout and on what is reported beside.
    pub measured: Vec<Measured>,
}

/// One retraining with labelled field inputs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Recovery {
    /// Labels given.
    pub labels: usize,
    /// Seed of the choice and of the training.
    pub seed: u64,
    /// Accuracy on the sets of the recipe.
    pub measured: Vec<Measured>,
}

struct Folder<'a> {
    path: &'a Path,
    recipe: TrainingRecipe,
    release: Recipe,
}

impl<'a> Folder<'a> {
    fn open(path: &'a Path) -> Result<Self, BaseError> {
        let recipe = TrainingRecipe::read(&path.join(RECIPE))?;
        let release = Recipe::load(&path.join(RELEASE))?;
        let (network, declared) = (recipe.network.input(), &release.input.shape);
        if network != *declared || recipe.network.classes() != release.labels.len() {
            let why =
                format!("network takes {network:?}, release.toml declares {declared:?}, or labels differ");
            return Err(RecipeError::Wrong { path: path.join(RECIPE), why }.into());
        }
        Ok(Self { path, recipe, release })
    }

    fn manifest(&self, onnx: &[u8]) -> Manifest {
        let release = ReleaseId::new(self.release.model.clone(), semver::Version::new(0, 0, 0));
        self.release.draft(release, blob::describe(onnx))
    }

    fn measure(&self, onnx: &[u8]) -> Result<Vec<Measured>, BaseError> {
        let manifest = self.manifest(onnx);
        let holdout = ("holdout", &self.recipe.data.holdout);
        let beside = self.recipe.data.report.iter().map(|set| (set.name.as_str(), &set.source));
        std::iter::once(holdout)
            .chain(beside)
            .map(|(name, source)| {
                let samples = source.read(self.path)?;
                let accuracy = score::answers(&manifest, onnx, &samples.x)?.accuracy(&samples.y);
                Ok(Measured { set: name.to_owned(), count: samples.len(), accuracy })
            })
            .collect()
    }
}

/// Trains the model of a folder from nothing.
///
/// # Errors
/// [`BaseError`].
pub(super) fn train(folder: &Path, mut progress: impl FnMut(&Epoch)) -> Result<Base, BaseError> {
    let folder = Folder::open(folder)?;
    let settings = &folder.recipe.train;
    let start = folder.recipe.network.build(settings.seed)?;
    let file = start.to_bytes();
    let samples = folder.recipe.data.train.read(folder.path)?;
    let prepared = score::prepare(&folder.manifest(&file), &file, samples)?;
    let (chosen, rest) = split(prepared.len(), VALIDATION_SHARE, settings.seed);
    let classes = folder.release.labels.len();
    let train = Examples::labelled(prepared.select(&rest), classes, 1.0);
    let validation = Examples::labelled(prepared.select(&chosen), classes, 1.0);
    let fitted = fit(&start, &train, &validation, classes, settings, &mut |epoch| {
        progress(epoch);
        ControlFlow::Continue(())
    })?;
    let onnx = fitted.model.to_bytes();
    let parameters = start.graph().initializer.iter().map(|t| t.dims.iter().product::<i64>() as usize).sum();
    let measured = folder.measure(&onnx)?;
    Ok(Base {
        bytes: onnx.len(),
        onnx,
        parameters,
        trained_on: train.len(),
        best_epoch: fitted.best_epoch,
        measured,
    })
}

/// Retrains a model of a folder with `labels` labelled field inputs, half of lowest margin and half
/// random, as a job of the service does.
///
/// # Errors
/// [`BaseError`].
pub(super) fn recover(folder: &Path, onnx: &[u8], labels: usize, seed: u64) -> Result<Recovery, BaseError> {
    let folder = Folder::open(folder)?;
    let manifest = folder.manifest(onnx);
    let pool = folder.recipe.data.field.as_ref().ok_or(BaseError::NoField)?.read(folder.path)?;
    let margins = score::answers(&manifest, onnx, &pool.x)?.margins;
    let mut order: Vec<usize> = (0..pool.len()).collect();
    order.sort_by(|&a, &b| margins[a].total_cmp(&margins[b]));
    let (hard, rest) = order.split_at((labels / 2).min(order.len()));
    let mut rest = rest.to_vec();
    Random::new(seed).shuffle(&mut rest);
    rest.truncate(labels - hard.len());
    let picked = [hard, &rest].concat();
    let field = pool.select(&picked);
    let cases = (0..field.len()).map(|at| Labelled {
        id: format!("field-{}", picked[at]),
        device: format!("device-{}", picked[at] % 6),
        input: field.x[at].clone(),
        label: field.y[at],
    });
    let sets =
        plan::divide(cases.collect(), folder.recipe.data.train.read(folder.path)?, Samples::default(), seed);
    let prepared = |samples| score::prepare(&manifest, onnx, samples);
    let (train, validation) =
        plan::examples(sets.map(prepared)?, folder.release.labels.len(), folder.recipe.retrain.field_weight);
    let model = Model::parse(onnx, &Limits::default())?;
    let settings = farlight_training::Settings { seed, ..folder.recipe.retrain.clone() };
    let fitted = fit(&model, &train, &validation, folder.release.labels.len(), &settings, &mut |_| {
        ControlFlow::Continue(())
    })?;
    Ok(Recovery { labels, seed, measured: folder.measure(&fitted.model.to_bytes())? })
}

/// Splits `count` indices: one in `share` by chance, and the rest.
fn split(count: usize, share: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..count).collect();
    Random::new(seed).shuffle(&mut order);
    let rest = order.split_off(count.div_ceil(share.max(1)));
    (order, rest)
}
