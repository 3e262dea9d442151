//! Whole systems: real clouds, agents, brokers. One program, since linking each file takes long.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod choice;
mod delivery;
mod docs;
mod grpc;
mod inference;
mod onnxruntime;
mod records;
mod sources;
mod updates;
mod watchdog;
