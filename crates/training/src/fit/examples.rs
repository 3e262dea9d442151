//! What the trainer sees: inputs of the graph with soft targets and weights, and how they are varied.

use super::settings::Augment;
use crate::data::Samples;
use crate::random::Random;

/// Inputs, targets and weights of one set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    /// Shape of one input.
    pub shape: Vec<usize>,
    /// Inputs as the graph takes them: after the manifest's preprocessing.
    pub x: Vec<Vec<f32>>,
    /// A distribution over the classes each: one-hot for a label, softer for a teacher's answer.
    pub targets: Vec<Vec<f32>>,
    /// How much each counts.
    pub weights: Vec<f32>,
}

/// Why a set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("example {index} of the {set} set: {reason}")]
pub struct ExampleError {
    /// Which set.
    pub set: &'static str,
    /// Which example.
    pub index: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Examples {
    /// Labelled samples, all with the same weight; a label without a class gets an empty target,
    /// which [`Self::check`] refuses.
    pub fn labelled(samples: Samples, classes: usize, weight: f32) -> Self {
        let targets = samples
            .y
            .iter()
            .map(|&label| {
                let one_hot = |class| if class == label as usize { 1.0 } else { 0.0 };
                if (label as usize) < classes { (0..classes).map(one_hot).collect() } else { Vec::new() }
            })
            .collect();
        Self { shape: samples.shape, weights: vec![weight; samples.x.len()], x: samples.x, targets }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.x.len()
    }

    /// True without one.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// Appends another set of the same shape.
    pub fn extend(&mut self, other: Self) {
        if self.is_empty() {
            self.shape = other.shape;
        }
        self.x.extend(other.x);
        self.targets.extend(other.targets);
        self.weights.extend(other.weights);
    }

    /// Checks that every example fits `shape` and `classes` and is finite.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self, set: &'static str, shape: &[usize], classes: usize) -> Result<(), ExampleError> {
        let elements: usize = shape.iter().product();
        for index in 0..self.len() {
            let bad = |reason: String| Err(ExampleError { set, index, reason });
            let (x, target) = (&self.x[index], self.targets.get(index).map_or(&[][..], Vec::as_slice));
            if x.len() != elements {
                return bad(format!("{} values where {shape:?} needs {elements}", x.len()));
            }
            if x.iter().any(|value| !value.is_finite()) {
                return bad("a value is not finite".into());
            }
            if target.len() != classes || target.iter().any(|share| !(0.0..=1.0).contains(share)) {
                return bad(format!("its target is not a distribution over {classes} classes"));
            }
            if !self.weights.get(index).is_some_and(|weight| weight.is_finite() && *weight > 0.0) {
                return bad("its weight is not above 0".into());
            }
        }
        Ok(())
    }

    /// The most likely class of a target.
    pub fn label(&self, index: usize) -> usize {
        top(&self.targets[index])
    }

    /// Weights up rare classes by inverse frequency, at most `cap` times; the mean weight stays 1.
    pub(super) fn balance(&mut self, cap: f32) {
        let Some(classes) = self.targets.first().map(Vec::len) else { return };
        let mut mass = vec![0.0f32; classes];
        for (target, weight) in self.targets.iter().zip(&self.weights) {
            mass.iter_mut().zip(target).for_each(|(mass, share)| *mass += share * weight);
        }
        let most = mass.iter().copied().fold(0.0, f32::max);
        for (at, weight) in self.weights.iter_mut().enumerate() {
            let factor = most / mass[top(&self.targets[at])].max(f32::MIN_POSITIVE);
            *weight *= factor.clamp(1.0, cap);
        }
        let mean = self.weights.iter().sum::<f32>() / self.weights.len() as f32;
        self.weights.iter_mut().for_each(|weight| *weight /= mean);
    }
}

/// Index of the largest value, the first of equal ones.
pub fn top(values: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}

/// Varies one input in place.
pub(super) fn vary(x: &mut [f32], shape: &[usize], augment: &Augment, random: &mut Random) {
    let length = shape.last().copied().unwrap_or(1).max(1);
    let channel = x.len() / shape.first().copied().unwrap_or(1).max(1);
    if augment.shift > 0 {
        let by = random.below(2 * augment.shift + 1) as isize - augment.shift as isize;
        for row in x.chunks_mut(length) {
            let old = row.to_vec();
            for (at, value) in row.iter_mut().enumerate() {
                *value = old[at.saturating_add_signed(by).min(old.len() - 1)];
            }
        }
    }
    if augment.scale > 0.0 || augment.channel_scale > 0.0 {
        let whole = 1.0 + augment.scale * random.normal();
        for row in x.chunks_mut(channel.max(1)) {
            let factor = whole * (1.0 + augment.channel_scale * random.normal());
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
    if augment.jitter > 0.0 {
        x.iter_mut().for_each(|value| *value += augment.jitter * random.normal());
    }
}
