//! The evaluation gate: base and candidate answer the same raw inputs with the fleet's engine, and
//! `farlight_fleet::evaluation` judges. What the trainer says about itself plays no part.

use std::time::Instant;

use farlight_fleet::evaluation::{self, Costs, Criteria, Report};
use farlight_inference::{Pipeline, Worker};
use farlight_onnx::{Limits, Model};
use farlight_release::manifest::Manifest;
use farlight_training::Samples;

use super::score::{Answers, ScoreError, pair};

/// Why a candidate could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A model does not load or run.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// A model does not parse.
    #[error("read the model: {0}")]
    Onnx(#[from] farlight_onnx::OnnxError),
    /// The candidate is another kind of model.
    #[error("the candidate's {0} differ from those of the model it was trained from")]
    Interface(&'static str),
}

/// Judges a candidate against the model it was trained from, on raw inputs.
///
/// # Errors
/// [`GateError`] when either cannot be run, or their inputs or outputs differ.
pub fn judge(
    manifest: &Manifest,
    base: &[u8],
    candidate: &[u8],
    old: &Samples,
    field: &Samples,
    criteria: &Criteria,
) -> Result<Report, GateError> {
    let limits = Limits::default();
    let (was, is) = (Model::parse(base, &limits)?, Model::parse(candidate, &limits)?);
    if was.inputs() != is.inputs() {
        return Err(GateError::Interface("inputs"));
    }
    if was.outputs() != is.outputs() {
        return Err(GateError::Interface("outputs"));
    }
    let load = |onnx| -> Result<Worker, ScoreError> { Ok(Pipeline::load(manifest, onnx)?.worker()?) };
    let mut workers = [load(base)?, load(candidate)?];
    let on_old = both(&mut workers, old)?;
    let on_field = both(&mut workers, field)?;
    let costs = Costs {
        base_bytes: base.len() as u64,
        candidate_bytes: candidate.len() as u64,
        base_p50_us: on_old[0].p50_us,
        candidate_p50_us: on_old[1].p50_us,
    };
    let answers = |samples: &Samples, [base, candidate]: &[Answers; 2]| pair(&samples.y, base, candidate);
    Ok(evaluation::judge(
        &answers(old, &on_old),
        &answers(field, &on_field),
        &manifest.labels,
        &costs,
        criteria,
    ))
}

/// Both answer in turn, so that a busy moment of the machine falls on both.
fn both(workers: &mut [Worker; 2], samples: &Samples) -> Result<[Answers; 2], ScoreError> {
    let mut answers = [Answers::default(), Answers::default()];
    let mut times = [Vec::new(), Vec::new()];
    for (index, input) in samples.x.iter().enumerate() {
        for (which, worker) in workers.iter_mut().enumerate() {
            let start = Instant::now();
            let prediction = worker.run(input).map_err(|source| ScoreError::Run { index, source })?;
            times[which].push(start.elapsed().as_secs_f64() * 1e6);
            answers[which].classes.push(prediction.top);
            answers[which].scores.push(prediction.score);
            answers[which].margins.push(prediction.margin);
        }
    }
    for (times, answers) in times.iter_mut().zip(&mut answers) {
        times.sort_by(f64::total_cmp);
        answers.p50_us = times.get(times.len() / 2).copied().unwrap_or(0.0);
    }
    Ok(answers)
}
