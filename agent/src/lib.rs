//! The device daemon: the shell around `farlight-device` and `farlight-inference`. It acts (files, SQLite,
//! sockets, processes); what to do is decided in `crates/`.

pub mod awake;
pub mod choice;
pub mod cli;
pub mod clock;
pub mod confine;
mod connections;
pub mod delta;
pub mod durable;
pub mod engines;
pub mod exit;
pub mod fetch;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod http;
pub mod identity;
pub mod journal;
pub mod link;
pub mod loaded;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod pages;
mod poll;
pub mod protocol;
pub mod queue;
pub mod recorder;
pub mod router;
pub mod run;
pub mod runtime;
mod seat;
pub mod selftest;
pub mod settings;
pub mod shadow;
pub mod slots;
pub mod source;
pub mod sources;
pub mod status;
pub mod store;
pub mod streams;
pub mod threads;
pub mod transfer;
pub mod trust;
pub mod update;
pub mod validator;
pub mod vitals;
