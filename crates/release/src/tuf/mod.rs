//! The Update Framework, specification 1.0.34: metadata, the client workflow and signing, ed25519 only.
//! The client is driven step by step; it never fetches, stores or looks at a clock.

mod client;
mod delegation;
mod error;
mod held;
mod lookup;
mod metadata;
mod release;
mod root;
pub mod signer;
#[cfg(test)]
mod tests;
mod time;
mod verify;

use std::fmt;

pub use client::{Client, Keep, Step};
pub use delegation::{DelegatedRole, Delegations, MAX_ROLE_NAME, MAX_ROLES, encode_name};
pub use error::{SignatureFault, TufError};
pub use metadata::{
    Document, Hashes, Meta, RoleKeys, Root, SPEC_VERSION, Snapshot, Target, Targets, Timestamp,
};
pub use release::VerifyError;
pub use root::TrustedRoot;
pub use time::trusted_time;

/// The target that holds the public keys which may sign assignments.
pub const ASSIGNMENT_KEYS: &str = "keys/assignment.json";
/// Folder of the metadata below the repository's address.
pub const METADATA: &str = "metadata/";
/// Folder of the target files below the repository's address.
pub const TARGETS: &str = "targets/";
/// Largest root in bytes: dozens of keys and signatures.
pub const MAX_ROOT: u64 = 512_000;
/// Largest timestamp in bytes: it names one file.
pub const MAX_TIMESTAMP: u64 = 16_384;
/// Largest snapshot in bytes when the timestamp does not say its length.
pub const MAX_SNAPSHOT: u64 = 2_000_000;
/// Largest targets metadata in bytes when the snapshot does not say its length.
pub const MAX_TARGETS: u64 = 5_000_000;
/// Largest metadata of a delegated role in bytes: thousands of releases of one model family.
pub const MAX_DELEGATED: u64 = 512_000;
/// Most delegated roles that one lookup visits: a hostile role cannot make a device fetch without end. The
/// bound that python-tuf has.
pub const MAX_DELEGATIONS: usize = 32;
/// Most bytes of delegated metadata that a client holds and stores: several roles of the largest size.
/// Beyond it the others are dropped and fetched again when they are needed.
pub const MAX_ROLES_HELD: usize = 4_000_000;
/// Most roots followed in one refresh: bounds an endless chain; the next refresh goes on from there.
pub const MAX_ROOTS: u32 = 256;

/// The four top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Says which keys speak for each role.
    Root,
    /// Says which snapshot is the newest.
    Timestamp,
    /// Says which targets metadata belongs together.
    Snapshot,
    /// Says which target files are genuine.
    Targets,
}

impl Role {
    /// All of them, in the order of the workflow.
    pub const ALL: [Self; 4] = [Self::Root, Self::Timestamp, Self::Snapshot, Self::Targets];

    /// The name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }

    /// The file name without a version, under which a client stores it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Root => "root.json",
            Self::Timestamp => "timestamp.json",
            Self::Snapshot => "snapshot.json",
            Self::Targets => "targets.json",
        }
    }

    /// The largest file of this role when nothing signed says a length.
    pub fn max_len(self) -> u64 {
        match self {
            Self::Root => MAX_ROOT,
            Self::Timestamp => MAX_TIMESTAMP,
            Self::Snapshot => MAX_SNAPSHOT,
            Self::Targets => MAX_TARGETS,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
