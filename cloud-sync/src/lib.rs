//! The cloud shell: ingest, registry, rollout driver, drift, cases, API and console around the pure
//! core in `crates/`. The service is [`service::serve`]; `bin/farlight-cloud.rs` calls it.

pub mod api;
pub mod app;
pub mod broker;
pub mod cases;
pub mod cli;
pub mod clock;
pub mod console;
pub mod devices;
pub mod drift;
pub mod enrol;
pub mod exit;
pub mod files;
pub mod ingest;
pub mod learning;
pub mod metrics;
pub mod registry;
pub mod retention;
pub mod rollouts;
pub mod service;
pub mod settings;
pub mod store;
