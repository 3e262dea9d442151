//! Why a delta was refused. A caller that gets any of these fetches the whole file instead.

use std::io;

use farlight_wire::codes::Code;

/// Why a delta could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Not a delta.
    #[error("the file is not a delta: it does not begin with its mark")]
    Mark,
    /// Written for another version of this software.
    #[error("the delta has version {found}, this build reads {}", super::format::VERSION)]
    Version {
        /// The version found.
        found: u8,
    },
    /// Made for another old file.
    #[error("the delta was made for an old file of {expected} bytes, this one has {found}")]
    Base {
        /// Length in the delta.
        expected: u64,
        /// Length of the old file.
        found: u64,
    },
    /// Makes a file of another length than expected.
    #[error("the delta makes {declared} bytes where {expected} are expected")]
    Length {
        /// Length in the delta.
        declared: u64,
        /// Length the caller expects.
        expected: u64,
    },
    /// Ends too early.
    #[error("the delta ends in the middle, after {made} bytes of the new file")]
    Truncated {
        /// Bytes made until then.
        made: u64,
    },
    /// A part of it breaks a rule of the format.
    #[error("the delta is malformed after {made} bytes of the new file: {why}")]
    Malformed {
        /// Bytes made until then.
        made: u64,
        /// The rule.
        why: &'static str,
    },
    /// A part of it expands beyond the length that it declares.
    #[error(
        "the delta is a bomb: after {made} bytes of the new file, a part goes on beyond its {declared} bytes"
    )]
    Bomb {
        /// Bytes made until then.
        made: u64,
        /// Length of the part.
        declared: u64,
    },
    /// The old file cannot be read.
    #[error("read the old file: {0}")]
    Old(#[source] io::Error),
    /// The delta cannot be read.
    #[error("read the delta: {0}")]
    Delta(#[source] io::Error),
    /// The new file cannot be written, or its receiver refused what came.
    #[error("write the new file: {0}")]
    New(#[source] io::Error),
}

impl DeltaError {
    /// A stable code for reports and responses: one for all that time and transport can do to a delta, for what is
    /// done about it is the same, and one for what only malice does.
    pub fn code(&self) -> Code {
        match self {
            Self::Mark
            | Self::Version { .. }
            | Self::Base { .. }
            | Self::Length { .. }
            | Self::Truncated { .. }
            | Self::Malformed { .. } => Code::DeltaMalformed,
            Self::Bomb { .. } => Code::DeltaBomb,
            Self::Old(_) | Self::Delta(_) | Self::New(_) => Code::StorageFailed,
        }
    }
}
