//! What runs a graph: the interface that the pipeline sees, and the choice of who is behind it. Each engine is
//! named by one module alone.

pub(crate) mod choice;
#[cfg(feature = "onnxruntime")]
mod ort;
pub(crate) mod tract;

use farlight_onnx::OnnxError;
use farlight_release::manifest::Datatype;

use crate::tensor::Tensor;

pub use tract::Resident;

/// Why the engine refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The file is over a limit, or no model; the engine did not see it.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The graph cannot be loaded.
    #[error("load ONNX graph: {0}; check that it is ONNX and uses operators that tract runs")]
    Load(String),
    /// The manifest names other inputs than the graph has.
    #[error("the manifest names the inputs {manifest:?}, but the ONNX graph takes {graph:?}")]
    Inputs {
        /// The manifest's names: inputs and states.
        manifest: Vec<String>,
        /// The graph's names, without initialisers.
        graph: Vec<String>,
    },
    /// Running failed.
    #[error("run ONNX graph: {0}")]
    Run(String),
}

/// An input or output of a loaded graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub datatype: Datatype,
    /// Its shape, batch included; `None` where it follows from the input.
    pub shape: Vec<Option<usize>>,
}

/// Whether a graph is to be run on one item or on several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Shapes are as they are given.
    Fixed,
    /// The first axis of every input and output is any number of items.
    Any,
}

/// A loaded graph, shared by all that run it.
pub(crate) trait Engine: Send + Sync {
    /// For people and metadata, for example `tract`.
    fn name(&self) -> &'static str;
    /// What runs it within the engine, where that is a choice.
    fn provider(&self) -> Option<&str> {
        None
    }
    /// What it takes, in order.
    fn inputs(&self) -> &[Port];
    /// What it gives, in order.
    fn outputs(&self) -> &[Port];
    /// Runs it on one tensor for each input, in order.
    fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EngineError>;
}
