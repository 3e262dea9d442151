//! Preprocessing and postprocessing as the manifest declares them. A plan is made once when a release is
//! loaded, with every shape and table; running it allocates nothing that lasts and cannot fail on data.
//! `docs/pipeline.md` has the formulas.

mod elements;
mod image;
mod layout;
mod nms;
mod post;
mod pre;
mod signal;
mod spectrogram;
#[cfg(test)]
mod tests;
mod text;

use farlight_release::manifest::steps::StepProblem;
use farlight_release::manifest::{PostStep, PreStep};

pub use post::Post;
pub use pre::{Pre, Scratch};

/// A row-major array of 32-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// As many elements as the shape has.
    pub values: Vec<f32>,
}

/// An array with the name of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedArray {
    /// The output.
    pub name: String,
    /// Its elements.
    pub array: Array,
}

/// Why a step cannot be planned or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A step that does not fit.
    #[error("step {step}: {problem}")]
    Step {
        /// Index of the step.
        step: usize,
        /// The field and the rule it breaks.
        problem: StepProblem,
    },
    /// More or fewer elements than planned for.
    #[error("the array has {got} elements, its shape asks for {expected}")]
    Length {
        /// Elements received.
        got: usize,
        /// Elements of the shape.
        expected: usize,
    },
}

/// Applies the preprocessing steps to one item of `shape`; plans anew for each item.
pub(crate) fn preprocess(steps: &[PreStep], shape: &[usize], values: &mut Vec<f32>) {
    let mut scratch = Scratch::default();
    let result = Pre::plan(steps, shape).and_then(|pre| pre.run(&mut scratch, values).map(<[f32]>::to_vec));
    // The engine refuses what has no elements.
    *values = result.unwrap_or_default();
}

/// Applies the postprocessing steps to the one output; returns the abstain threshold if one is declared.
pub(crate) fn postprocess(steps: &[PostStep], values: &mut Vec<f32>) -> Option<f32> {
    let shape = vec![values.len()];
    let post = Post::plan(steps, &[(String::new(), shape.clone())]);
    let array = Array { shape, values: std::mem::take(values) };
    let mut outputs = vec![NamedArray { name: String::new(), array }];
    let threshold = post.and_then(|post| post.run(&mut outputs));
    // Without values there is no answer: the prediction counts as not finite.
    let first = outputs.into_iter().next().filter(|_| threshold.is_ok());
    *values = first.map(|output| output.array.values).unwrap_or_default();
    threshold.ok().flatten()
}
