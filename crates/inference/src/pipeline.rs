//! The pipeline: a loaded release and the workers that run it.

use std::sync::Arc;

use farlight_release::manifest::{Manifest, PreStep, Task};
use farlight_wire::codes::Code;

use crate::engine::{Engine, EngineError, EngineState};
use crate::{contract, steps};

/// Largest input in elements (a 4-channel 2048 × 2048 image): bounds what a manifest can make a device
/// allocate for each request.
const MAX_INPUT_ELEMENTS: usize = 16 * 1024 * 1024;

/// Why a release cannot be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// A manifest field that does not fit.
    #[error("manifest field {field}: {problem}")]
    Manifest {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine refused the file.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl LoadError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Engine(EngineError::Onnx(error)) => error.code(),
            Self::Engine(_) | Self::Manifest { .. } => Code::SelfTestLoad,
        }
    }
}

/// Why a request cannot be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunError {
    /// Another number of elements than the manifest's shape has.
    #[error("input has {got} elements, but its shape asks for {expected}")]
    Length {
        /// Elements received.
        got: usize,
        /// Elements of the shape.
        expected: usize,
    },
    /// The input breaks the data contract, and the contract says to refuse.
    #[error("{violations} input elements break the data contract (not finite, or outside {min} to {max})")]
    Contract {
        /// How many elements.
        violations: u32,
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The answer to one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Outputs after postprocessing: probabilities for a classification.
    pub outputs: Vec<f32>,
    /// Best class; `None` when abstained, when outputs are not finite, or for a regression.
    pub class: Option<usize>,
    /// Index of the highest output, whether or not it abstained; 0 when there is none.
    pub top: usize,
    /// Highest output (0 when outputs are not finite).
    pub score: f32,
    /// Highest minus second highest output; 1 with a single output.
    pub margin: f32,
    /// Whether any output is NaN or infinite.
    pub non_finite: bool,
    /// Whether the score was under the abstain threshold.
    pub abstained: bool,
    /// Input elements that broke the contract.
    pub violations: u32,
}

impl Prediction {
    /// Withholds the class when the score is below `threshold`, and gives it when it is not, whatever the
    /// manifest's own threshold is. Outputs that are not finite have no class in any case.
    pub fn abstain_below(&mut self, threshold: f32) {
        if self.non_finite || (self.class.is_none() && !self.abstained) {
            return;
        }
        self.abstained = self.score < threshold;
        self.class = (!self.abstained).then_some(self.top);
    }
}

/// A loaded release. Cheap to clone: workers share the plan and its weights.
#[derive(Clone)]
pub struct Pipeline {
    engine: Engine,
    manifest: Arc<Manifest>,
    elements: usize,
}

impl Pipeline {
    /// Loads the ONNX bytes of a release under its manifest.
    ///
    /// # Errors
    /// [`LoadError`] naming the manifest field that does not fit, or the engine's reason.
    pub fn load(manifest: &Manifest, onnx: &[u8]) -> Result<Self, LoadError> {
        let shape = &manifest.input.shape;
        let field = |field, problem: String| LoadError::Manifest { field, problem };
        let elements = shape
            .iter()
            .try_fold(1_usize, |n, dim| n.checked_mul(*dim))
            .filter(|n| (1..=MAX_INPUT_ELEMENTS).contains(n))
            .ok_or_else(|| {
                field("input.shape", format!("{shape:?} has no elements or more than {MAX_INPUT_ELEMENTS}"))
            })?;
        for step in &manifest.pre {
            if let PreStep::Normalise { axis, mean, std } = step {
                let channels = shape
                    .get(*axis)
                    .copied()
                    .ok_or_else(|| field("pre.axis", format!("{axis} is not an axis of {shape:?}")))?;
                if mean.len() != channels || std.len() != channels {
                    return Err(field("pre.mean", format!("need {channels} means and deviations")));
                }
            }
        }
        for feature in &manifest.profile.features {
            if shape.first().is_none_or(|channels| feature.channel >= *channels) {
                return Err(field(
                    "profile.features.channel",
                    format!("{} is not a channel", feature.channel),
                ));
            }
        }
        let engine = Engine::load(onnx, &manifest.input.name, shape)?;
        Ok(Self { engine, manifest: Arc::new(manifest.clone()), elements })
    }

    /// The manifest it was loaded under.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Elements of one input.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The tensor that the engine sees for one raw input, after contract and preprocessing: what a
    /// trainer of the same graph must be fed.
    ///
    /// # Errors
    /// [`RunError`] for a wrong length or a refused contract violation.
    pub fn prepare(&self, raw: &[f32]) -> Result<Vec<f32>, RunError> {
        let mut input = Vec::with_capacity(self.elements);
        prepare(&self.manifest, self.elements, raw, &mut input)?;
        Ok(input)
    }

    /// A worker with a state of its own.
    ///
    /// # Errors
    /// [`LoadError::Engine`] when the engine cannot make a state.
    pub fn worker(&self) -> Result<Worker, LoadError> {
        Ok(Worker {
            state: self.engine.state()?,
            manifest: Arc::clone(&self.manifest),
            elements: self.elements,
            input: Vec::with_capacity(self.elements),
        })
    }
}

/// Runs one request after another; buffers are reused.
pub struct Worker {
    state: EngineState,
    manifest: Arc<Manifest>,
    elements: usize,
    input: Vec<f32>,
}

impl Worker {
    /// The manifest it runs under.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Answers one input of the manifest's shape, row-major, as the application sent it.
    ///
    /// # Errors
    /// [`RunError`] for a wrong length, a refused contract violation, or an engine failure.
    pub fn run(&mut self, raw: &[f32]) -> Result<Prediction, RunError> {
        let manifest = &*self.manifest;
        let violations = prepare(manifest, self.elements, raw, &mut self.input)?;
        let mut outputs = Vec::new();
        self.state.run(&self.input, &mut outputs)?;
        let threshold = steps::postprocess(&manifest.post, &mut outputs);
        Ok(judge(manifest.task, outputs, threshold, violations))
    }
}

/// Puts the engine's input for `raw` into `input` and says how many elements broke the contract.
fn prepare(manifest: &Manifest, elements: usize, raw: &[f32], input: &mut Vec<f32>) -> Result<u32, RunError> {
    if raw.len() != elements {
        return Err(RunError::Length { got: raw.len(), expected: elements });
    }
    input.clear();
    input.extend_from_slice(raw);
    let violations = contract::check(&manifest.input, input);
    if contract::refuses(&manifest.input, violations) {
        let (min, max) = (manifest.input.min, manifest.input.max);
        return Err(RunError::Contract { violations, min, max });
    }
    steps::preprocess(&manifest.pre, &manifest.input.shape, input);
    Ok(violations)
}

fn judge(task: Task, outputs: Vec<f32>, threshold: Option<f32>, violations: u32) -> Prediction {
    let non_finite = outputs.is_empty() || outputs.iter().any(|v| !v.is_finite());
    let (mut top, mut best, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    if !non_finite {
        for (index, value) in outputs.iter().enumerate() {
            if *value > best {
                (top, second, best) = (index, best, *value);
            } else if *value > second {
                second = *value;
            }
        }
    }
    let score = if non_finite { 0.0 } else { best };
    let margin = if non_finite {
        0.0
    } else if second.is_finite() {
        best - second
    } else {
        1.0
    };
    let abstained = !non_finite && threshold.is_some_and(|t| score < t);
    let class = (task == Task::Classification && !non_finite && !abstained).then_some(top);
    Prediction { outputs, class, top, score, margin, non_finite, abstained, violations }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judging_is_right_at_the_edges() {
        let p = judge(Task::Classification, vec![], None, 0);
        assert!(p.non_finite && p.class.is_none() && p.margin == 0.0);
        let p = judge(Task::Classification, vec![1.0], None, 0);
        assert_eq!((p.class, p.score, p.margin), (Some(0), 1.0, 1.0));
        let p = judge(Task::Classification, vec![0.2, f32::NAN], None, 0);
        assert!(p.non_finite && p.class.is_none());
        let p = judge(Task::Classification, vec![0.4, 0.6], Some(0.7), 0);
        assert!(p.abstained && p.class.is_none() && p.top == 1);
        let p = judge(Task::Regression, vec![0.4, 0.6], None, 0);
        assert_eq!(p.class, None);
    }
}
