//! Learning as computation: reads samples from bytes, runs and differentiates an ONNX graph, trains
//! its initialisers and writes them back. No files, no clock, no randomness but from a given seed.

pub mod data;
pub mod fit;
pub mod graph;
pub mod network;
pub mod random;

pub use data::{DataError, Part, Samples};
pub use fit::{Examples, FitError, Fitted, Scores, Settings, fit, predict};
pub use graph::{BatchNorm, Plan, PlanError};
pub use network::Network;
