//! Why a request is not answered: of which kind the reason is, which each form has a code for, and a text for people.

use std::time::Duration;

use farlight_inference::RunError;

use crate::models::InferError;
use crate::queue::Refused;

/// What a client that comes at a bad moment is told to wait where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

/// Of which kind the reason is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request is wrong, and will be next time.
    Wrong,
    /// No such model or version.
    Unknown,
    /// Clients may not ask this here.
    Forbidden,
    /// Not now: no place, switched off, or what would answer is away.
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// Its deadline passed before it was answered.
    Late {
        /// When to try again.
        retry_after: Duration,
    },
    /// The engine failed.
    Engine,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request is wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::new(Kind::Wrong, message)
    }

    /// Not now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable { retry_after: RETRY_AFTER }, message)
    }
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Self {
        let kind = match &error {
            InferError::Unknown(_) => Kind::Unknown,
            InferError::Busy { why: Refused::Late, retry_after, .. } => {
                Kind::Late { retry_after: *retry_after }
            }
            InferError::Busy { retry_after, .. } => Kind::Unavailable { retry_after: *retry_after },
            InferError::Off(_) | InferError::Remote(_) => Kind::Unavailable { retry_after: RETRY_AFTER },
            InferError::Stateless(_)
            | InferError::Run(RunError::Length { .. } | RunError::Inputs(_) | RunError::Contract { .. }) => {
                Kind::Wrong
            }
            InferError::Run(RunError::Engine(_)) => Kind::Engine,
        };
        Self::new(kind, error.to_string())
    }
}
