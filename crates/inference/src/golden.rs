//! Golden vectors: inputs with the outputs that the release's builder saw. A device runs them with its
//! own engine before it activates a release; some engines are silently wrong on some operators.

use std::iter;

use serde::{Deserialize, Serialize};

use crate::pipeline::{Item, Pipeline, RunError, Worker};
use crate::prediction::Prediction;
use crate::tensor::{Named, Tensor, Values};

/// Most golden vectors in one release: keeps the self-test short on slow boards.
pub const MAX_VECTORS: usize = 256;
/// Most calls of one stream in a golden vector.
pub const MAX_CALLS: usize = 64;
/// What a file of streams begins with; one of scores begins with a number of vectors that is not 0.
const STREAMS: [u8; 2] = [0, 2];

/// One golden vector: consecutive calls of one stream. A model without state has one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vector {
    /// At least one.
    pub calls: Vec<Call>,
}

/// One call and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Raw elements of the main input and the others, as an application sends them.
    pub inputs: Vec<Values>,
    /// The answer: its scores without a name, or tensors under their names.
    pub outputs: Vec<Named>,
}

/// The form of files before models could have several inputs, outputs and states. It stays the form of those that
/// have one of each in single precision, so that older agents read it.
#[derive(Serialize, Deserialize)]
struct Scores {
    input: Vec<f32>,
    output: Vec<f32>,
}

/// Why golden vectors did not pass.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GoldenError {
    /// The file cannot be read.
    #[error("golden vectors are not readable: {0}")]
    Malformed(String),
    /// A vector does not run.
    #[error("golden vector {index}: {source}")]
    Run {
        /// Which vector, from 0.
        index: usize,
        /// Why.
        source: RunError,
    },
    /// An output differs by more than the tolerance, or is not finite.
    #[error("golden vector {index}: output {output} is {got}, expected {expected} within {tolerance}")]
    Mismatch {
        /// Which vector, from 0.
        index: usize,
        /// Which element of the answer, from 0, over all its tensors.
        output: usize,
        /// What this device computed.
        got: f32,
        /// What the builder computed.
        expected: f32,
        /// The difference that was allowed.
        tolerance: f32,
    },
    /// Another number of outputs.
    #[error("golden vector {index}: {got} outputs, expected {expected}")]
    Outputs {
        /// Which vector, from 0.
        index: usize,
        /// Outputs on this device.
        got: usize,
        /// Outputs the builder saw.
        expected: usize,
    },
}

/// An answer as tensors: its scores have no name.
fn named(prediction: Prediction) -> Vec<Named> {
    if prediction.tensors.is_empty() {
        return vec![Named { name: String::new(), tensor: Tensor::floats(prediction.outputs) }];
    }
    prediction.tensors
}

/// Computes golden vectors from streams of items; those of a model without state have one item each.
///
/// # Errors
/// [`GoldenError::Run`] when an item does not run.
pub fn build(pipeline: &Pipeline, streams: &[Vec<Item>]) -> Result<Vec<Vector>, GoldenError> {
    let mut worker = worker(pipeline)?;
    let mut vectors = Vec::with_capacity(streams.len().min(MAX_VECTORS));
    for (index, stream) in streams.iter().take(MAX_VECTORS).enumerate() {
        let mut state = pipeline.state();
        let mut calls = Vec::with_capacity(stream.len());
        for item in stream.iter().take(MAX_CALLS) {
            let prediction = worker
                .answer(item, state.as_mut(), || {})
                .map_err(|source| GoldenError::Run { index, source })?;
            let inputs = iter::once(&item.main).chain(&item.more).cloned().collect();
            calls.push(Call { inputs, outputs: named(prediction) });
        }
        vectors.push(Vector { calls });
    }
    Ok(vectors)
}

fn worker(pipeline: &Pipeline) -> Result<Worker, GoldenError> {
    pipeline.worker().map_err(|error| GoldenError::Malformed(error.to_string()))
}

/// The file's bytes (postcard).
///
/// # Errors
/// [`GoldenError::Malformed`] when they cannot be serialised; does not occur for vectors from [`build`].
pub fn encode(vectors: &[Vector]) -> Result<Vec<u8>, GoldenError> {
    let malformed = |e: postcard::Error| GoldenError::Malformed(e.to_string());
    if let Some(scores) = vectors.iter().map(scores).collect::<Option<Vec<_>>>() {
        return postcard::to_allocvec(&scores).map_err(malformed);
    }
    postcard::to_extend(vectors, STREAMS.to_vec()).map_err(malformed)
}

/// The older form of a vector, where it has one.
fn scores(vector: &Vector) -> Option<Scores> {
    let [Call { inputs, outputs }] = vector.calls.as_slice() else { return None };
    match (inputs.as_slice(), outputs.as_slice()) {
        ([Values::Fp32(input)], [Named { name, tensor: Tensor { values: Values::Fp32(output), .. } }])
            if name.is_empty() =>
        {
            Some(Scores { input: input.clone(), output: output.clone() })
        }
        _ => None,
    }
}

/// Reads the file's bytes.
///
/// # Errors
/// [`GoldenError::Malformed`] for anything but 1 to [`MAX_VECTORS`] vectors of 1 to [`MAX_CALLS`] calls and nothing
/// after them.
pub fn decode(bytes: &[u8]) -> Result<Vec<Vector>, GoldenError> {
    let malformed = |e: postcard::Error| GoldenError::Malformed(e.to_string());
    let (vectors, rest) = match bytes.strip_prefix(&STREAMS) {
        Some(bytes) => postcard::take_from_bytes::<Vec<Vector>>(bytes).map_err(malformed)?,
        None => {
            let (scores, rest) = postcard::take_from_bytes::<Vec<Scores>>(bytes).map_err(malformed)?;
            (scores.into_iter().map(Vector::from).collect(), rest)
        }
    };
    if !rest.is_empty() || vectors.is_empty() || vectors.len() > MAX_VECTORS {
        return Err(GoldenError::Malformed(format!(
            "{} vectors and {} bytes after them; 1 to {MAX_VECTORS} and none are allowed",
            vectors.len(),
            rest.len()
        )));
    }
    if let Some(vector) = vectors.iter().find(|vector| !(1..=MAX_CALLS).contains(&vector.calls.len())) {
        let text = format!("a vector has {} calls; 1 to {MAX_CALLS} are allowed", vector.calls.len());
        return Err(GoldenError::Malformed(text));
    }
    Ok(vectors)
}

impl From<Scores> for Vector {
    fn from(scores: Scores) -> Self {
        let outputs = vec![Named { name: String::new(), tensor: Tensor::floats(scores.output) }];
        Self { calls: vec![Call { inputs: vec![Values::Fp32(scores.input)], outputs }] }
    }
}

/// Runs all vectors and compares. `tolerance` is absolute for scores, and for tensors relative to the largest
/// magnitude of each where that is above 1. `each` is called after every call.
///
/// # Errors
/// The first [`GoldenError`] found.
pub fn check(
    pipeline: &Pipeline,
    vectors: &[Vector],
    tolerance: f32,
    mut each: impl FnMut(),
) -> Result<(), GoldenError> {
    let mut worker = worker(pipeline)?;
    for (index, vector) in vectors.iter().enumerate() {
        let mut state = pipeline.state();
        for call in &vector.calls {
            let mut inputs = call.inputs.iter().cloned();
            let main =
                inputs.next().ok_or_else(|| GoldenError::Malformed("a call has no input".to_owned()))?;
            let item = Item { main, more: inputs.collect() };
            let got = worker
                .answer(&item, state.as_mut(), || {})
                .map_err(|source| GoldenError::Run { index, source })?;
            compare(index, &named(got), &call.outputs, tolerance)?;
            each();
        }
    }
    Ok(())
}

/// Compares one answer with the builder's.
fn compare(index: usize, got: &[Named], expected: &[Named], tolerance: f32) -> Result<(), GoldenError> {
    if got.len() != expected.len() {
        return Err(GoldenError::Outputs { index, got: got.len(), expected: expected.len() });
    }
    let mut before = 0;
    for (got, expected) in got.iter().zip(expected) {
        let (values, wanted) = (&got.tensor.values, &expected.tensor.values);
        let (number, wanted_number) = (values.len(), wanted.len());
        if got.name != expected.name || number != wanted_number {
            return Err(GoldenError::Outputs { index, got: number, expected: wanted_number });
        }
        let (Some(values), Some(wanted)) = (values.to_f32(), wanted.to_f32()) else {
            if values != wanted {
                let (got, expected) = (f32::NAN, f32::NAN);
                return Err(GoldenError::Mismatch { index, output: before, got, expected, tolerance });
            }
            before += number;
            continue;
        };
        let largest = match expected.name.is_empty() {
            true => 1.0,
            false => wanted.iter().fold(1.0_f32, |most, value| most.max(value.abs())),
        };
        let tolerance = tolerance * largest;
        for (output, (got, expected)) in values.iter().zip(wanted.iter()).enumerate() {
            let (got, expected) = (*got, *expected);
            let difference = (got - expected).abs();
            if difference.is_nan() || difference > tolerance {
                let output = before + output;
                return Err(GoldenError::Mismatch { index, output, got, expected, tolerance });
            }
        }
        before += number;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str, calls: usize) -> Vector {
        let tensor = Tensor::floats(vec![0.5, -2.0]);
        let outputs = vec![Named { name: name.to_owned(), tensor }];
        Vector { calls: vec![Call { inputs: vec![Values::Fp32(vec![1.0])], outputs }; calls] }
    }

    #[test]
    fn scores_keep_their_older_form_and_all_else_comes_back() {
        let scores = vec![vector("", 1), vector("", 1)];
        let bytes = encode(&scores).unwrap();
        assert_eq!(bytes[0], 2);
        assert_eq!(decode(&bytes).unwrap(), scores);
        for vectors in [vec![vector("y", 1)], vec![vector("", 3)]] {
            let bytes = encode(&vectors).unwrap();
            assert_eq!(bytes[..2], STREAMS);
            assert_eq!(decode(&bytes).unwrap(), vectors);
            assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!(decode(&encode(&[vector("y", 0)]).unwrap()).is_err());
        assert!(decode(&encode(&[]).unwrap()).is_err());
    }

    #[test]
    fn tensors_are_compared_relative_to_their_largest_element() {
        let (a, b) = (vector("y", 1).calls.remove(0).outputs, vector("y", 1).calls.remove(0).outputs);
        let shifted = |by: f32| {
            let mut outputs = b.clone();
            outputs[0].tensor.values = Values::Fp32(vec![0.5 + by, -2.0]);
            outputs
        };
        assert!(compare(0, &a, &shifted(0.0019), 0.001).is_ok());
        assert!(compare(0, &a, &shifted(0.0021), 0.001).is_err());
        assert!(compare(0, &shifted(f32::NAN), &a, 1e9).is_err());
        let mut scores = shifted(0.0019);
        scores[0].name.clear();
        let mut expected = b;
        expected[0].name.clear();
        assert!(compare(0, &scores, &expected, 0.001).is_err());
        assert!(compare(0, &[], &expected, 1.0).is_err());
    }
}
