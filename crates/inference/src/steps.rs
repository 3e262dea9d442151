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
