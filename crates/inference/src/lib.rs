//! The pipeline from a request's tensor to an answer: contract → preprocess → engine → postprocess.
//! The same code runs on the device, in `release build` and in the evaluation gate, so training and
//! serving cannot skew. No I/O, no clock; callers measure time.

mod contract;
mod engine;
pub mod golden;
mod pipeline;
pub mod profile;
mod steps;

pub use engine::EngineError;
pub use pipeline::{LoadError, Pipeline, Prediction, RunError, Worker};
