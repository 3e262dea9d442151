//! The differentiable executor of an ONNX graph: planned first (which says what it cannot train),
//! then run on any burn backend. Only this module and `fit` know burn.

mod attributes;
pub(crate) mod float;
mod host;
mod op;
mod plan;
mod run;
#[cfg(test)]
mod tests;

pub use plan::{NodeIssue, Parameter, Plan, PlanError};
pub use run::{BatchNorm, RunError};
pub(crate) use run::{Output, Runner};
