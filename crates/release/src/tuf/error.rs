//! Why metadata or a target was refused, one variant an attack or fault, each with a stable code.

use farlight_wire::{Millis, ReleaseId};

use crate::timestamp;

/// Why a step of the workflow was refused. Whatever was trusted before stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    /// The file is not what the specification says.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// The file.
        what: String,
        /// The rule it breaks.
        why: String,
    },
    /// The file is longer than allowed.
    #[error("{what} has {length} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The file.
        what: String,
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// The file is of another type than the one asked for.
    #[error("{what} was expected, this is of type {found:?}")]
    WrongType {
        /// The file asked for.
        what: String,
        /// What its `_type` says.
        found: String,
    },
    /// Too few valid signatures.
    #[error("{what} has {valid} valid signatures by keys of the {signers} and needs {threshold}")]
    Signature {
        /// The file.
        what: String,
        /// Whose keys were asked for: `trusted root`, `new root` or `delegating role`.
        signers: &'static str,
        /// Distinct keys with a valid signature.
        valid: u64,
        /// What the role asks for.
        threshold: u64,
    },
    /// An older version than the one already trusted.
    #[error("{what} has version {offered}, and version {trusted} is already trusted")]
    Rollback {
        /// The file.
        what: String,
        /// The version that is trusted.
        trusted: u64,
        /// The version that was offered.
        offered: u64,
    },
    /// Another version than the one that was announced.
    #[error("{what} has version {found}, announced was {expected}")]
    MixAndMatch {
        /// The file.
        what: String,
        /// The version announced.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// Past its date: the repository is frozen, or the clock is wrong.
    #[error("{what} expired at {}; now is {}", timestamp::format(*.expires), timestamp::format(*.now))]
    Expired {
        /// The file.
        what: String,
        /// Its date.
        expires: Millis,
        /// The time of the check.
        now: Millis,
    },
    /// Digest or length differ from what was signed.
    #[error("{what} differs from its signed digest or length: {why}")]
    HashMismatch {
        /// The file.
        what: String,
        /// What differs.
        why: String,
    },
    /// The repository lacks a file that it announced.
    #[error("the repository has no {path}")]
    Missing {
        /// The path below the repository's address.
        path: String,
    },
    /// No target of this name is signed.
    #[error("no signed target is named {path:?}")]
    UnknownTarget {
        /// The target's name.
        path: String,
    },
    /// A role that is delegated to and not part of the snapshot: it cannot be told from an old one.
    #[error("the snapshot does not list the role {role:?}, which may speak for the target")]
    Unlisted {
        /// The role.
        role: String,
    },
    /// A search that does not end within its limit.
    #[error("more than {limit} delegated roles may speak for {path:?}")]
    TooManyDelegations {
        /// The target's name.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// A release below the signed floor of its model.
    #[error("release {release} is below {floor}, the signed floor of its model")]
    BelowFloor {
        /// The release.
        release: ReleaseId,
        /// The oldest version still allowed.
        floor: semver::Version,
    },
    /// No refresh has completed on what is trusted now.
    #[error("no complete and consistent metadata is trusted yet; refresh from the repository first")]
    Incomplete,
    /// A stored file was changed after it was accepted.
    #[error("the stored {what} is damaged ({why}); restore it, or enrol the device again")]
    Damaged {
        /// The file.
        what: String,
        /// What was seen.
        why: String,
    },
    /// A file was supplied that was not asked for.
    #[error("no file was asked for; call `begin_refresh` or `begin_lookup` first")]
    NotAsked,
}

impl TufError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "tuf.malformed",
            Self::TooLarge { .. } => "tuf.too_large",
            Self::WrongType { .. } => "tuf.wrong_type",
            Self::Signature { .. } => "tuf.signature",
            Self::Rollback { .. } => "tuf.rollback",
            Self::MixAndMatch { .. } => "tuf.mix_and_match",
            Self::Expired { .. } => "tuf.expired",
            Self::HashMismatch { .. } => "tuf.hash_mismatch",
            Self::Missing { .. } | Self::Unlisted { .. } => "tuf.missing",
            Self::UnknownTarget { .. } => "tuf.unknown_target",
            Self::TooManyDelegations { .. } => "tuf.delegations",
            Self::BelowFloor { .. } => "assignment.below_floor",
            Self::Incomplete => "tuf.incomplete",
            Self::Damaged { .. } => "tuf.damaged",
            Self::NotAsked => "tuf.not_asked",
        }
    }
}
