//! The pipeline from a request's tensor to an answer: contract → preprocess → engine → postprocess.
//! The same code runs on the device, in `release build` and in the evaluation gate, so training and
//! serving cannot skew. No I/O, no clock; callers measure time.

mod contract;
mod engine;
pub mod golden;
mod outputs;
mod pipeline;
mod prediction;
pub mod profile;
pub mod simplify;
pub mod steps;
pub mod tensor;

pub use engine::choice::{Engines, Kind, OnnxRuntime, Provider};
pub use engine::{EngineError, Port, Resident};
pub use pipeline::{Item, LoadError, Options, Pipeline, RunError, State, Worker};
pub use prediction::Prediction;
pub use tensor::{Named, Tensor, Values};
