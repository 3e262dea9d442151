//! Scores a model as a device would: the same pipeline, the same engine, one input at a time. What a
//! trainer says about its own candidate is never used.

use std::time::Instant;

use farlight_fleet::evaluation::Answer;
use farlight_inference::{LoadError, Pipeline, RunError};
use farlight_release::manifest::Manifest;
use farlight_training::Samples;

/// Why a model cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// It does not load.
    #[error("load the model: {0}")]
    Load(#[from] LoadError),
    /// An input does not run.
    #[error("score input {index}: {source}")]
    Run {
        /// Which input.
        index: usize,
        /// Why.
        #[source]
        source: RunError,
    },
}

/// What a model answers to a set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// Top class of each input.
    pub classes: Vec<usize>,
    /// Its score.
    pub scores: Vec<f32>,
    /// Difference to the second.
    pub margins: Vec<f32>,
    /// Median time of one input, µs.
    pub p50_us: f64,
}

impl Answers {
    /// Share of answers that are the label.
    pub fn accuracy(&self, labels: &[u32]) -> f64 {
        let right =
            self.classes.iter().zip(labels).filter(|(class, label)| **class == **label as usize).count();
        right as f64 / labels.len().max(1) as f64
    }
}

/// Answers every input of a set.
///
/// # Errors
/// [`ScoreError`] when the model does not load or an input does not run.
pub fn answers(manifest: &Manifest, onnx: &[u8], inputs: &[Vec<f32>]) -> Result<Answers, ScoreError> {
    let mut worker = Pipeline::load(manifest, onnx)?.worker()?;
    let mut answers = Answers::default();
    let mut times = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        let start = Instant::now();
        let prediction = worker.run(input).map_err(|source| ScoreError::Run { index, source })?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        answers.classes.push(prediction.top);
        answers.scores.push(prediction.score);
        answers.margins.push(prediction.margin);
    }
    times.sort_by(f64::total_cmp);
    answers.p50_us = times.get(times.len() / 2).copied().unwrap_or(0.0);
    Ok(answers)
}

/// Puts the answers of both models side by side.
pub fn pair(labels: &[u32], base: &Answers, candidate: &Answers) -> Vec<Answer> {
    (0..labels.len().min(base.classes.len()).min(candidate.classes.len()))
        .map(|at| Answer {
            label: labels[at] as usize,
            base: base.classes[at],
            base_score: base.scores[at],
            candidate: candidate.classes[at],
            candidate_score: candidate.scores[at],
        })
        .collect()
}

/// The inputs of the graph for a set of raw inputs: after contract and preprocessing.
///
/// # Errors
/// [`ScoreError`] when the manifest does not fit the model or an input breaks a refusing contract.
pub fn prepare(manifest: &Manifest, onnx: &[u8], samples: Samples) -> Result<Samples, ScoreError> {
    let pipeline = Pipeline::load(manifest, onnx)?;
    let x = samples
        .x
        .iter()
        .enumerate()
        .map(|(index, x)| pipeline.prepare(x).map_err(|source| ScoreError::Run { index, source }))
        .collect::<Result<_, _>>()?;
    Ok(Samples { x, ..samples })
}
