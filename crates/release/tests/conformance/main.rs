//! The cases of the official TUF conformance suite, by its names, on a repository simulator in memory.
//! The suite itself drives `tests/interop/tuf-client`; this port needs neither Python nor sockets. What the
//! suite does not ask is in `beyond`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod basic;
mod beyond;
mod delegations;
mod device;
mod download;
mod expiration;
mod keys;
mod quoting;
mod repository;
mod rollback;
mod rotation;
mod statics;

/// The top-level roles but the root, in the order in which they are published.
const BELOW_ROOT: [&str; 3] = ["targets", "snapshot", "timestamp"];
/// All four.
const ALL: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];
