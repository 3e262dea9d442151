//! Golden vectors: inputs with the outputs that the release's builder saw. A device runs them with its
//! own engine before it activates a release; some engines are silently wrong on some operators.

use serde::{Deserialize, Serialize};

use crate::pipeline::{RunError, Worker};

/// Most golden vectors in one release: keeps the self-test short on slow boards.
pub const MAX_VECTORS: usize = 256;

/// One golden vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vector {
    /// Raw input, row-major.
    pub input: Vec<f32>,
    /// Outputs after postprocessing.
    pub output: Vec<f32>,
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
        /// Which output, from 0.
        output: usize,
        /// What this device computed.
        got: f32,
        /// What the builder computed.
        expected: f32,
        /// The manifest's tolerance.
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

/// Computes golden vectors from inputs.
///
/// # Errors
/// [`GoldenError::Run`] when an input does not run.
pub fn build(worker: &mut Worker, inputs: &[Vec<f32>]) -> Result<Vec<Vector>, GoldenError> {
    let run = |(index, input): (usize, &Vec<f32>)| {
        let prediction = worker.run(input).map_err(|source| GoldenError::Run { index, source })?;
        Ok(Vector { input: input.clone(), output: prediction.outputs })
    };
    inputs.iter().take(MAX_VECTORS).enumerate().map(run).collect()
}

/// The file's bytes (postcard).
///
/// # Errors
/// [`GoldenError::Malformed`] when they cannot be serialised; does not occur for vectors from [`build`].
pub fn encode(vectors: &[Vector]) -> Result<Vec<u8>, GoldenError> {
    postcard::to_allocvec(vectors).map_err(|e| GoldenError::Malformed(e.to_string()))
}

/// Reads the file's bytes.
///
/// # Errors
/// [`GoldenError::Malformed`] for anything but 1 to [`MAX_VECTORS`] vectors and nothing after them.
pub fn decode(bytes: &[u8]) -> Result<Vec<Vector>, GoldenError> {
    let (vectors, rest) =
        postcard::take_from_bytes::<Vec<Vector>>(bytes).map_err(|e| GoldenError::Malformed(e.to_string()))?;
    if !rest.is_empty() || vectors.is_empty() || vectors.len() > MAX_VECTORS {
        return Err(GoldenError::Malformed(format!(
            "{} vectors and {} bytes after them; 1 to {MAX_VECTORS} and none are allowed",
            vectors.len(),
            rest.len()
        )));
    }
    Ok(vectors)
}

/// Runs all vectors and compares. `tolerance` is absolute. `each` is called after every vector.
///
/// # Errors
/// The first [`GoldenError`] found.
pub fn check(
    worker: &mut Worker,
    vectors: &[Vector],
    tolerance: f32,
    mut each: impl FnMut(),
) -> Result<(), GoldenError> {
    for (index, vector) in vectors.iter().enumerate() {
        let got = worker.run(&vector.input).map_err(|source| GoldenError::Run { index, source })?.outputs;
        if got.len() != vector.output.len() {
            let (got, expected) = (got.len(), vector.output.len());
            return Err(GoldenError::Outputs { index, got, expected });
        }
        for (output, (got, expected)) in got.into_iter().zip(&vector.output).enumerate() {
            let expected = *expected;
            let difference = (got - expected).abs();
            if difference.is_nan() || difference > tolerance {
                return Err(GoldenError::Mismatch { index, output, got, expected, tolerance });
            }
        }
        each();
    }
    Ok(())
}
