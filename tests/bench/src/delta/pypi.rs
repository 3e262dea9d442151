//! Pairs of models that others publish, in the wheels that `tests/bench/fetch-pypi` unpacked: two releases of
//! silero-vad, and magika with its weights moved as a fine-tuning would (its own trainer is not public, and
//! ours does not take its integer input).

use std::path::Path;

use anyhow::Context;
use farlight_onnx::{Limits, Model, tensor};
use farlight_training::random::Random;

use super::pairs::Pair;
use farlight_onnx::convert;

/// Steps of the fine-tuning that is imitated, and its learning rate: as one pass over some thousands of
/// samples with Adam, whose steps are about as long as the learning rate whatever the gradient.
const STEPS: f32 = 100.0;
const LEARNING_RATE: f32 = 1e-4;

/// Reads the pairs from `folder`.
pub(super) fn pairs(folder: &Path) -> anyhow::Result<Vec<Pair>> {
    let read = |path: &str| {
        let path = folder.join(path);
        std::fs::read(&path).with_context(|| format!("read {}: run tests/bench/fetch-pypi", path.display()))
    };
    let silero = |version: &str| read(&format!("silero-vad-{version}/silero_vad/data/silero_vad.onnx"));
    let magika = Model::parse(&read("magika/magika/models/standard_v3_3/model.onnx")?, &Limits::default())?;
    let tuned = moved(&magika)?;
    let pair = |name: &str, old: Vec<u8>, new: Vec<u8>, most_percent, most_ratio| Pair {
        name: name.to_owned(),
        old,
        new,
        most_percent,
        most_ratio,
    };
    Ok(vec![
        pair("magika/f32", magika.to_bytes(), tuned.to_bytes(), Some(65.0), Some(0.75)),
        pair(
            "magika/f16",
            convert::f16(&magika)?.to_bytes(),
            convert::f16(&tuned)?.to_bytes(),
            None,
            Some(0.85),
        ),
        pair(
            "magika/int8",
            convert::int8(&magika)?.to_bytes(),
            convert::int8(&tuned)?.to_bytes(),
            None,
            Some(1.05),
        ),
        // Trained from scratch, so that little of the old is left in the new.
        pair("silero-vad/6.0-to-6.2", silero("6.0.0")?, silero("6.2.0")?, None, None),
        pair("silero-vad/5.1-to-6.0", silero("5.1.2")?, silero("6.0.0")?, None, None),
    ])
}

/// The model with every weight moved by the sum of `STEPS` steps of random sign.
fn moved(model: &Model) -> anyhow::Result<Model> {
    let mut moved = model.clone();
    let mut random = Random::new(1);
    for weights in &model.graph().initializer {
        if weights.data_type() != tensor::FLOAT {
            continue;
        }
        let deviation = LEARNING_RATE * STEPS.sqrt();
        let values: Vec<f32> =
            tensor::to_f32(weights)?.iter().map(|value| value + random.normal() * deviation).collect();
        moved.replace_f32(weights.name(), &values)?;
    }
    Ok(moved)
}
