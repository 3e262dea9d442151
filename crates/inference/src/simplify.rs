//! Turns a graph that its exporter kept general into the one graph that a release runs: input shapes fixed,
//! inputs that never change made constants, what follows from them computed, branches that are then decided
//! inlined. `release build` calls it once; devices run the result. No I/O; the engine is reached through `fold`.

mod constant;
#[doc(hidden)]
pub mod fold;
mod graph;
mod inputs;
mod rename;
mod rewrite;
mod support;

use std::collections::BTreeMap;

use farlight_onnx::{Limits, Model, OnnxError};

use crate::tensor::Tensor;

pub use support::{Unsupported, unsupported};

/// Rounds of computing and of asking the engine for shapes. One round decides a branch and thereby the shapes
/// behind it, so this is how many branches may depend on each other in a row; exporters make two or three.
const MAX_ROUNDS: usize = 16;

/// What a release fixes about a graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Simplify {
    /// Inputs that get this value for good and are no inputs any more, such as a sample rate.
    pub constants: BTreeMap<String, Tensor>,
    /// Shapes of inputs, batch included. Inputs that are not named keep what the file declares.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// What was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Inputs that became constants.
    pub constants: Vec<String>,
    /// Inputs whose shape was fixed.
    pub shapes: Vec<String>,
    /// `If` nodes that one of their branches replaced, in the order of replacement.
    pub inlined: Vec<String>,
    /// How many nodes were computed and replaced by their results, by operator.
    pub folded: BTreeMap<String, usize>,
    /// Nodes that no output needed.
    pub dropped: usize,
}

/// A graph that was simplified.
#[derive(Debug, Clone, PartialEq)]
pub struct Simplified {
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// What was changed.
    pub report: Report,
}

/// Why a graph cannot be simplified as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimplifyError {
    /// The file is over a limit, or no model.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The graph has no such input.
    #[error("the graph has no input {name:?}; it has {inputs:?}")]
    UnknownInput {
        /// The name asked for.
        name: String,
        /// The inputs there are.
        inputs: Vec<String>,
    },
    /// An input is asked to be a constant and to have a shape.
    #[error("input {0:?} is a constant, so it cannot be given a shape as well")]
    ConstantWithShape(String),
    /// A constant has another number of elements than its shape.
    #[error("the constant for input {0:?} has not as many elements as its shape asks for")]
    Elements(String),
    /// The input is a sequence, a map or of no type.
    #[error("input {0:?} is not declared as a tensor")]
    NotTensor(String),
    /// The file declares another element type.
    #[error("input {name:?} has ONNX element type {declared}, but the constant has {given}")]
    Element {
        /// The input.
        name: String,
        /// Element type in the file.
        declared: i32,
        /// Element type of the constant.
        given: i32,
    },
    /// The file declares a shape that the one asked for does not fit.
    #[error("input {name:?} is declared as {declared}, which {given:?} does not fit")]
    Shape {
        /// The input.
        name: String,
        /// Shape in the file, `?` where it is open.
        declared: String,
        /// Shape asked for.
        given: Vec<usize>,
    },
}

/// Fixes what `options` says in the ONNX file `onnx` and computes what follows from it. The result gives the same
/// outputs for the inputs that remain. Inputs with a default value (initialisers that are inputs too) become
/// constants, as engines treat them; declared shapes of inner values are dropped, since they may no longer hold.
///
/// Computing a node needs the engine; a node that it cannot compute stays as it is. A graph that has nothing to
/// simplify is given back with the same meaning.
///
/// # Errors
/// [`SimplifyError`] when the file is no model or passes a limit, before or after, or when `options` do not fit it.
pub fn simplify(onnx: &[u8], options: &Simplify) -> Result<Simplified, SimplifyError> {
    let mut model = Model::parse(onnx, &Limits::DEFAULT)?;
    let mut report = Report::default();
    inputs::fix(model.graph_mut(), options, &mut report)?;
    let mut rewriter = rewrite::Rewriter::new(&model);
    for _ in 0..MAX_ROUNDS {
        let mut changed = rewriter.graph(model.graph_mut(), None);
        report.dropped += graph::prune(model.graph_mut());
        changed |= rewriter.shapes(&mut model);
        if !changed {
            break;
        }
    }
    report.inlined = rewriter.inlined;
    report.folded = rewriter.folded;
    let onnx = model.to_bytes();
    farlight_onnx::check(&onnx, &Limits::DEFAULT)?;
    Ok(Simplified { onnx, report })
}

#[cfg(test)]
mod tests;
