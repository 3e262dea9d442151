//! Learning as computation: reads samples from bytes, runs and differentiates an ONNX graph, trains
//! its initialisers and writes them back. No files, no clock, no randomness but from a given seed.

pub mod data;
