//! Why metadata or a target was refused, one variant an attack or fault, each with a stable code.

use farlight_wire::codes::Code;
use farlight_wire::{Millis, ReleaseId};

use super::Role;
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
    /// A key occurs twice in an object of the file: readers disagree about which of the two counts.
    #[error("{what} is ambiguous: {why}")]
    DuplicateKey {
        /// The file.
        what: String,
        /// The key.
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
    #[error("{what} has {valid} valid signatures by keys of the {signers} and needs {threshold}; {fault}")]
    Signature {
        /// The file.
        what: String,
        /// What is wrong with those that do not count.
        fault: SignatureFault,
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
        /// Its role; that of the top-level targets for a delegated one.
        role: Role,
        /// The version that is trusted.
        trusted: u64,
        /// The version that was offered.
        offered: u64,
    },
    /// Genuine, and of another version than the one that was announced.
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
    /// The file ends before the length that was signed.
    #[error("{what} ends after {found} bytes, signed are {expected}")]
    Truncated {
        /// The file.
        what: String,
        /// Its length.
        found: u64,
        /// The length signed.
        expected: u64,
    },
    /// The digest differs from what was signed.
    #[error("{what} differs from its signed digest: {why}")]
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

/// What is wrong with the signatures that do not count towards a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureFault {
    /// No signature is by a key that the role names.
    UnknownKeys,
    /// One stands under the name of such a key and is not by it.
    Forged,
    /// All of them are good, but there are too few.
    TooFew,
}

impl std::fmt::Display for SignatureFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownKeys => "none is by a key that the role names",
            Self::Forged => "one under the name of such a key is not by it",
            Self::TooFew => "more are needed",
        })
    }
}

impl TufError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed { .. } => Code::TufMalformed,
            Self::DuplicateKey { .. } => Code::TufDuplicateKey,
            Self::TooLarge { .. } => Code::TufTooLarge,
            Self::WrongType { .. } => Code::TufWrongType,
            Self::Signature { fault, .. } => match fault {
                SignatureFault::UnknownKeys => Code::TufUnknownKey,
                SignatureFault::Forged => Code::TufSignature,
                SignatureFault::TooFew => Code::TufBelowThreshold,
            },
            Self::Rollback { role, .. } => match role {
                Role::Root => Code::TufRollbackRoot,
                Role::Timestamp => Code::TufRollbackTimestamp,
                Role::Snapshot => Code::TufRollbackSnapshot,
                Role::Targets => Code::TufRollbackTargets,
            },
            Self::MixAndMatch { .. } => Code::TufMixAndMatch,
            Self::Expired { .. } => Code::TufExpired,
            Self::Truncated { .. } => Code::TufTruncated,
            Self::HashMismatch { .. } => Code::TufHashMismatch,
            Self::Missing { .. } | Self::Unlisted { .. } => Code::TufMissing,
            Self::UnknownTarget { .. } => Code::TufUnknownTarget,
            Self::TooManyDelegations { .. } => Code::TufDelegations,
            Self::BelowFloor { .. } => Code::BelowFloor,
            Self::Incomplete => Code::TufIncomplete,
            Self::Damaged { .. } => Code::TufDamaged,
            Self::NotAsked => Code::TufNotAsked,
        }
    }
}
