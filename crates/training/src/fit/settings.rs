//! Everything about a training run that is chosen, with its default. The same struct is read from a
//! model's `recipe.toml`, from a job's `job.json` and from the API.

use serde::{Deserialize, Serialize};

use crate::graph::BatchNorm;

/// Most epochs of a run.
pub const MAX_EPOCHS: u32 = 10_000;

/// Most digits of a change: with more, the step may be too small for a delta to look for.
const MAX_CHANGE_BITS: u32 = 16;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Most passes over the data.
    pub epochs: u32,
    /// Samples in a step.
    pub batch: usize,
    /// Learning rate at its peak.
    pub learning_rate: f32,
    /// Share of the run in which the rate rises to its peak; after that it falls as a cosine.
    pub warmup: f32,
    /// Decoupled weight decay (AdamW); biases and normalisation weights are exempt.
    pub weight_decay: f32,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f32,
    /// Longest gradient (L2 norm over all weights) of a step; longer ones are scaled down.
    pub clip_gradient: f32,
    /// Epochs without a better validation loss after which to stop; 0 runs to the end.
    pub patience: u32,
    /// Seed of order, noise and initial weights.
    pub seed: u64,
    /// Initialisers that stay: names, or prefixes followed by `*`.
    pub freeze: Vec<String>,
    /// Batch normalisation while training.
    pub batch_norm: BatchNorm,
    /// Most that a rare class may be weighted up by inverse frequency; 1 switches it off.
    pub class_weight_cap: f32,
    /// Weight of a labelled field case relative to a replayed sample.
    pub field_weight: f32,
    /// Binary digits that are kept of how far a weight moved, counted from the root mean square change of its
    /// tensor; 0 keeps all. A delta to the model trained from needs about two bits more than these for a weight.
    pub change_bits: u32,
    /// Noise added to inputs.
    pub augment: Augment,
}

/// Changes that do not alter what a sensor window shows; none by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Standard deviation of noise added to each element, in units of the model's input.
    pub jitter: f32,
    /// Standard deviation of a factor around 1 for the whole input.
    pub scale: f32,
    /// Standard deviation of a factor around 1 for each channel.
    pub channel_scale: f32,
    /// Most elements that the last axis is shifted by; the edge value fills the gap.
    pub shift: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            epochs: 60,
            batch: 32,
            learning_rate: 2e-3,
            warmup: 0.05,
            weight_decay: 1e-2,
            label_smoothing: 0.0,
            clip_gradient: 5.0,
            patience: 0,
            seed: 1,
            freeze: Vec::new(),
            batch_norm: BatchNorm::Frozen,
            class_weight_cap: 10.0,
            field_weight: 1.0,
            change_bits: 8,
            augment: Augment::default(),
        }
    }
}

impl Settings {
    /// Checks every value and names all that are wrong.
    ///
    /// # Errors
    /// The messages, one a field.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        let mut rule = |fits: bool, text: &str| {
            if !fits {
                wrong.push(text.to_owned());
            }
        };
        let share = |value: f32| (0.0..1.0).contains(&value);
        rule((1..=MAX_EPOCHS).contains(&self.epochs), "epochs: use 1 to 10000");
        rule((1..=65_536).contains(&self.batch), "batch: use 1 to 65536");
        rule(self.learning_rate > 0.0 && self.learning_rate <= 1.0, "learning_rate: use above 0, at most 1");
        rule(share(self.warmup), "warmup: use 0 to below 1");
        rule(share(self.weight_decay), "weight_decay: use 0 to below 1");
        rule(share(self.label_smoothing), "label_smoothing: use 0 to below 1");
        rule(self.clip_gradient > 0.0 && self.clip_gradient.is_finite(), "clip_gradient: use above 0");
        rule((1.0..=1000.0).contains(&self.class_weight_cap), "class_weight_cap: use 1 to 1000");
        rule((0.001..=1000.0).contains(&self.field_weight), "field_weight: use 0.001 to 1000");
        rule(self.change_bits <= MAX_CHANGE_BITS, "change_bits: use 1 to 16, or 0 to keep all digits");
        let small = |value: f32| (0.0..=1.0).contains(&value);
        rule(small(self.augment.jitter), "augment.jitter: use 0 to 1");
        rule(small(self.augment.scale), "augment.scale: use 0 to 1");
        rule(small(self.augment.channel_scale), "augment.channel_scale: use 0 to 1");
        rule(self.augment.shift <= 65_536, "augment.shift: use at most 65536");
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The learning rate at step `step` of `steps`.
    pub(super) fn rate(&self, step: usize, steps: usize) -> f32 {
        let at = step as f32 / steps.max(1) as f32;
        if at < self.warmup {
            return self.learning_rate * (step + 1) as f32 / (self.warmup * steps as f32).max(1.0);
        }
        let rest = (at - self.warmup) / (1.0 - self.warmup);
        self.learning_rate * 0.5 * (1.0 + (std::f32::consts::PI * rest.min(1.0)).cos())
    }
}
