//! The cloud from outside. One program, since linking each file with all of the cloud takes long.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod api;
mod ingest;
mod learning;
mod models;
mod repository;
mod rollouts;
mod signing;
mod support;
