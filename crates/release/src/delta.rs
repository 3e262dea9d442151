//! Deltas of model files: what makes a new file of an old one, coded tensor by tensor. The format is
//! described in `DELTA.md`. Encoding needs both files; applying needs little memory and trusts nothing.

mod decode;
mod element;
mod encode;
mod error;
mod format;
mod range;
#[cfg(test)]
mod tests;

pub use decode::apply;
pub use encode::encode;
pub use error::DeltaError;
