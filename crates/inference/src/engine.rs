//! The tract engine: the one file that names tract. It turns ONNX bytes into a shared plan and runs it
//! with one state per worker. tract panics on some malformed graphs, so loading and running catch it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use farlight_onnx::{Limits, OnnxError};
use tract_onnx::prelude::*;

/// Why the engine refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The file is over a limit, or no model; the engine did not see it.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The graph cannot be loaded.
    #[error("load ONNX graph: {0}; check that it is ONNX and uses operators that tract runs")]
    Load(String),
    /// The graph has another number of inputs or outputs than one each.
    #[error("ONNX graph has {inputs} inputs and {outputs} outputs; one of each is supported")]
    Arity {
        /// Inputs that are not initialisers.
        inputs: usize,
        /// Outputs.
        outputs: usize,
    },
    /// The manifest names another input.
    #[error("manifest field input.name is {manifest:?}, but the ONNX graph's input is {graph:?}")]
    InputName {
        /// The manifest's name.
        manifest: String,
        /// The graph's name.
        graph: String,
    },
    /// Running failed.
    #[error("run ONNX graph: {0}")]
    Run(String),
}

/// A loaded graph, shared by all workers.
#[derive(Clone)]
pub(crate) struct Engine {
    plan: Arc<TypedSimplePlan>,
    shape: Vec<usize>,
}

impl Engine {
    /// Loads a graph with one f32 input of `shape` (without batch) and one f32 output, at batch 1.
    pub(crate) fn load(onnx: &[u8], input_name: &str, shape: &[usize]) -> Result<Self, EngineError> {
        farlight_onnx::check(onnx, &Limits::DEFAULT)?;
        let mut batched = vec![1];
        batched.extend_from_slice(shape);
        let plan = guarded(|| plan(onnx, input_name, &batched)).map_err(EngineError::Load)??;
        Ok(Self { plan, shape: batched })
    }

    /// What one worker runs with; workers share the plan and its weights.
    pub(crate) fn state(&self) -> Result<EngineState, EngineError> {
        // A graph whose states cannot be made is found when it is loaded, not at the first request.
        self.plan.spawn().map_err(|e| EngineError::Load(format!("{e:#}")))?;
        Ok(EngineState { plan: Arc::clone(&self.plan), shape: self.shape.clone() })
    }
}

/// What one worker needs to run a graph.
pub(crate) struct EngineState {
    plan: Arc<TypedSimplePlan>,
    shape: Vec<usize>,
}

impl EngineState {
    /// Runs one item and writes the flattened output into `out`.
    pub(crate) fn run(&mut self, input: &[f32], out: &mut Vec<f32>) -> Result<(), EngineError> {
        let (plan, shape) = (&self.plan, &self.shape);
        guarded(|| -> TractResult<()> {
            // A state of its own for each run: tract keeps scratch space for a state on every thread that it ever
            // ran on, and a state that ends gives back only that of the thread where it ends. Workers are passed
            // from thread to thread, so states that last would leak with each release that is swapped in.
            let mut state = plan.spawn()?;
            let tensor = Tensor::from_shape(shape, input)?;
            let outputs = state.run(tvec!(tensor.into()))?;
            let values = outputs[0].try_as_plain_ram()?;
            out.clear();
            out.extend_from_slice(values.as_slice::<f32>()?);
            Ok(())
        })
        .map_err(EngineError::Run)?
        .map_err(|e| EngineError::Run(format!("{e:#}")))
    }
}

fn plan(onnx: &[u8], input_name: &str, batched: &[usize]) -> Result<Arc<TypedSimplePlan>, EngineError> {
    let load = |e: TractError| EngineError::Load(format!("{e:#}"));
    // Stale or symbolic value_info clashes with a concrete input shape.
    let model = onnx_reader().model_for_read(&mut &onnx[..]).map_err(load)?;
    let (inputs, outputs) = (model.inputs.len(), model.outputs.len());
    if inputs != 1 || outputs != 1 {
        return Err(EngineError::Arity { inputs, outputs });
    }
    let graph = model.node(model.inputs[0].node).name.clone();
    if graph != input_name {
        return Err(EngineError::InputName { manifest: input_name.into(), graph });
    }
    let model = model
        .with_input_fact(0, f32::fact(batched).into())
        .and_then(|model| model.into_typed())
        .and_then(|model| model.into_optimized())
        .map_err(load)?;
    let output = model.output_fact(0).map_err(load)?;
    if output.datum_type != f32::datum_type() {
        return Err(EngineError::Load(format!("output is {:?}, not f32", output.datum_type)));
    }
    TypedSimplePlan::new(model).map_err(load)
}

fn onnx_reader() -> tract_onnx::Onnx {
    onnx().with_ignore_value_info(true).with_ignore_output_shapes(true)
}

fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // The values touched are dropped or overwritten after a panic, never read again.
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("the engine panicked: {text}")
    })
}
