//! Pairs of model files from our own trainer: a network as the one of `models/watch-gestures` but wider, trained
//! on the right arm and then again on the left one, as a retraining job does.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use farlight_cloud::learning::recipe::{RECIPE, TrainingRecipe};
use farlight_onnx::Model;
use farlight_training::{Examples, Network, Samples, Settings, fit};

use crate::report::Printer;
use farlight_onnx::convert;

/// An older and a newer file.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) name: String,
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
    /// Most that the delta may be, % of the file.
    pub(super) most_percent: Option<f64>,
    /// Most that it may be as a multiple of the best other tool's.
    pub(super) most_ratio: Option<f64>,
}

/// Channels after each convolution: 3 MB of weights, of which the head is a hundredth.
const WIDTHS: [usize; 3] = [64, 256, 512];
/// Passes over the data of the first training and of the fine-tuning.
const EPOCHS: [u32; 2] = [4, 3];
/// The usual learning rate of a fine-tuning with Adam.
const GENTLE: f32 = 1e-4;

/// Trains and converts the pairs.
pub(super) fn trained(printer: &Printer) -> anyhow::Result<Vec<Pair>> {
    let folder = models().join("watch-gestures");
    let recipe = TrainingRecipe::read(&folder.join(RECIPE))?;
    let Network::Conv1d { channels, window, classes, kernels, .. } = recipe.network else {
        anyhow::bail!("the network of watch-gestures is not the expected one");
    };
    let network = Network::Conv1d { channels, window, classes, widths: WIDTHS, kernels };
    let data = Data::read(&recipe, &folder, classes)?;

    printer.note("training the base model");
    let settings = Settings { epochs: EPOCHS[0], ..recipe.train.clone() };
    let base = train(&network.build(1)?, &data.right, &data.holdout, classes, &settings)?;
    let again = |learning_rate: f32, freeze: &[&str], change_bits: u32| -> anyhow::Result<Model> {
        let note = format!("fine-tuning, rate {learning_rate}, frozen {freeze:?}, {change_bits} digits kept");
        printer.note(&note);
        let freeze = freeze.iter().map(|&name| name.to_owned()).collect();
        let settings =
            Settings { epochs: EPOCHS[1], learning_rate, freeze, change_bits, ..recipe.retrain.clone() };
        train(&base, &data.both, &data.holdout, classes, &settings)
    };
    // As the product does it unless told otherwise.
    let (rate, kept) = (recipe.retrain.learning_rate, recipe.retrain.change_bits);
    let (full, strong) = (again(GENTLE, &[], kept)?, again(rate, &[], kept)?);
    let head = again(rate, &["conv*"], kept)?;
    let (full_exact, strong_exact) = (again(GENTLE, &[], 0)?, again(rate, &[], 0)?);

    let pair = |name: &str, old: &Model, new: &Model, most_percent, most_ratio| Pair {
        name: name.to_owned(),
        old: old.to_bytes(),
        new: new.to_bytes(),
        most_percent,
        most_ratio,
    };
    let mut pairs = vec![pair("head-only/f32", &base, &head, Some(12.0), None)];
    // At the learning rate of the recipe, twenty times that of a fine-tuning, more is left to write.
    for (name, tuned) in [("full", &full), ("strong", &strong)] {
        let name = |precision: &str| format!("{name}/{precision}");
        let (f16, int8) = (convert::f16, convert::int8);
        pairs.push(pair(&name("f32"), &base, tuned, Some(65.0), Some(0.75)));
        pairs.push(pair(&name("f16"), &f16(&base)?, &f16(tuned)?, None, Some(0.85)));
        pairs.push(pair(&name("int8"), &int8(&base)?, &int8(tuned)?, None, Some(1.05)));
    }
    // With every digit that training gave: shown beside, since the product asks for it only when told to.
    pairs.push(pair("full/f32-all-digits", &base, &full_exact, None, None));
    pairs.push(pair("strong/f32-all-digits", &base, &strong_exact, None, None));
    Ok(pairs)
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

struct Data {
    right: Examples,
    both: Examples,
    holdout: Examples,
}

impl Data {
    fn read(recipe: &TrainingRecipe, folder: &Path, classes: usize) -> anyhow::Result<Self> {
        let mut right = recipe.data.train.read(folder)?;
        let mut left = recipe.data.field.as_ref().context("the recipe has no field data")?.read(folder)?;
        let mut holdout = recipe.data.holdout.read(folder)?;
        let scale = Scale::of(&right);
        for samples in [&mut right, &mut left, &mut holdout] {
            scale.apply(samples);
        }
        let examples = |samples| Examples::labelled(samples, classes, 1.0);
        let right = examples(right);
        let mut both = right.clone();
        both.extend(examples(left));
        Ok(Self { right, both, holdout: examples(holdout) })
    }
}

/// Mean and deviation of each channel.
struct Scale(Vec<(f32, f32)>);

impl Scale {
    fn of(samples: &Samples) -> Self {
        let length = samples.shape[1];
        let channel = |channel: usize| {
            let values = || samples.x.iter().flat_map(move |x| &x[channel * length..(channel + 1) * length]);
            let count = values().count() as f32;
            let mean = values().sum::<f32>() / count;
            let square = values().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
            (mean, square.sqrt())
        };
        Self((0..samples.shape[0]).map(channel).collect())
    }

    fn apply(&self, samples: &mut Samples) {
        let length = samples.shape[1];
        for x in &mut samples.x {
            for (values, (mean, deviation)) in x.chunks_mut(length).zip(&self.0) {
                values.iter_mut().for_each(|value| *value = (*value - mean) / deviation);
            }
        }
    }
}

fn train(
    model: &Model,
    data: &Examples,
    holdout: &Examples,
    classes: usize,
    settings: &Settings,
) -> anyhow::Result<Model> {
    Ok(fit(model, data, holdout, classes, settings, &mut |_| ControlFlow::Continue(()))?.model)
}
