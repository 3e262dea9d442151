//! The words of the update machine: what is wanted, where it stands, what happened, what the shell is to do.
//! No decision is made here.

use std::collections::BTreeMap;

use farlight_wire::codes::Code;
use farlight_wire::report::{ErrorReport, UpdateReport, UpdateState};
use farlight_wire::{Millis, RolloutId};

use super::{FETCH_DEADLINE, STAGED_DEADLINE, SWAP_DEADLINE, TEST_DEADLINE};
use crate::health::{Health, Policy};
use crate::pointer::Slot;
use crate::schedule::Hold;
use crate::shadow::{self, Shadowed};

/// What an assignment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The release, and the digest that the signed metadata gives its manifest.
    pub slot: Slot,
    /// The rollout that asks.
    pub rollout: Option<RolloutId>,
    /// Sequence number of the assignment.
    pub assignment: u64,
    /// How to watch it after activation.
    pub policy: Policy,
    /// How to watch it before activation, if at all.
    pub shadow: Option<shadow::Policy>,
    /// What to do when it failed here before.
    pub known_bad: KnownBad,
}

/// What to do with a release that failed here before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBad {
    /// Refuse it.
    Refuse,
    /// An operator insists: try it once more for this rollout.
    TryAgain,
}

impl Want {
    /// Whether both ask for the same release for the same rollout.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.slot == other.slot && self.rollout == other.rollout
    }
}

/// A release being installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What is wanted.
    pub want: Want,
    /// When it began, Unix time.
    pub began: Millis,
    /// When its present phase began, Unix time.
    pub since: Millis,
}

/// Why something failed: a code and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// From the closed list.
    pub code: Code,
    /// What was tried, on what, and what went wrong.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As it is reported.
    pub fn report(self) -> ErrorReport {
        ErrorReport { code: self.code.as_str().to_owned(), message: self.message }
    }
}

/// A release that failed here: by its manifest's digest it is not tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// The rollout it failed for.
    pub rollout: Option<RolloutId>,
    /// Why.
    pub code: String,
}

/// Releases that failed here, by the digest of their manifest.
pub type BadList = BTreeMap<String, Bad>;

/// Where the update stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nothing to do.
    Idle,
    /// Blobs are being fetched.
    Fetching(Job),
    /// What is on disk is being hashed again.
    Verifying(Job),
    /// Golden vectors are being run.
    SelfTest(Job),
    /// It sees live inputs and decides nothing.
    Shadow {
        /// The job.
        job: Job,
        /// How it is watched.
        policy: shadow::Policy,
        /// What it did so far.
        shadowed: Box<Shadowed>,
    },
    /// It is ready and waits: for a window, the application's lock, the end of a pause.
    Staged(Job),
    /// The pointer is being written and the model swapped.
    Activating(Job),
    /// It runs and is watched.
    Probation {
        /// The job.
        job: Job,
        /// What the candidate did so far.
        candidate: Box<Health>,
        /// What the previous release did before.
        previous: Box<Health>,
    },
    /// It is being taken back.
    RollingBack {
        /// The job.
        job: Job,
        /// Why.
        failure: Failure,
    },
}

impl State {
    /// The job it carries.
    pub fn job(&self) -> Option<&Job> {
        match self {
            Self::Idle => None,
            Self::Fetching(job)
            | Self::Verifying(job)
            | Self::SelfTest(job)
            | Self::Shadow { job, .. }
            | Self::Staged(job)
            | Self::Activating(job)
            | Self::Probation { job, .. }
            | Self::RollingBack { job, .. } => Some(job),
        }
    }

    /// The name of the state as reported; `None` when idle.
    pub fn phase(&self) -> Option<UpdateState> {
        Some(match self {
            Self::Idle => return None,
            Self::Fetching(_) => UpdateState::Fetching,
            Self::Verifying(_) => UpdateState::Verifying,
            Self::SelfTest(_) => UpdateState::SelfTest,
            Self::Shadow { .. } => UpdateState::Shadow,
            Self::Staged(_) => UpdateState::Staged,
            Self::Activating(_) => UpdateState::Activating,
            Self::Probation { .. } => UpdateState::Probation,
            Self::RollingBack { .. } => UpdateState::RollingBack,
        })
    }

    /// How long the phase may take; shadow and probation are ended by their own verdict.
    fn deadline(&self) -> Option<Millis> {
        match self {
            Self::Idle | Self::Shadow { .. } | Self::Probation { .. } => None,
            Self::Fetching(_) => Some(FETCH_DEADLINE),
            Self::Verifying(_) | Self::SelfTest(_) => Some(TEST_DEADLINE),
            Self::Staged(_) => Some(STAGED_DEADLINE),
            Self::Activating(_) | Self::RollingBack { .. } => Some(SWAP_DEADLINE),
        }
    }

    pub(super) fn is_overdue(&self, now: Millis) -> bool {
        self.job().zip(self.deadline()).is_some_and(|(job, deadline)| now.since(job.since) > deadline)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A verified assignment asks for a release. `attempts` are the self-tests already begun for it.
    Assigned {
        /// What is wanted.
        want: Want,
        /// Self-tests already begun.
        attempts: u32,
    },
    /// A verified assignment no longer names the model: it is to be removed.
    Withdrawn,
    /// Everything is on disk.
    Fetched,
    /// Everything on disk was hashed again.
    Verified,
    /// Golden vectors passed.
    SelfTested,
    /// The candidate did this in the shadow since the last time.
    Shadowed(Box<Shadowed>),
    /// Whether an activation has to wait, and why.
    Hold(Option<Hold>),
    /// The pointer is durable and the model swapped in. Carries what the previous release did.
    Activated {
        /// The previous release's health on this device.
        previous: Box<Health>,
    },
    /// The running release did this since the last window.
    Observed {
        /// The release observed.
        slot: Slot,
        /// Its counters in the window.
        health: Box<Health>,
    },
    /// The pointer is durable again and the previous model runs.
    RolledBack,
    /// The current step failed.
    Failed(Failure),
    /// Time passed.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Fetch manifest and blobs; answer `Fetched` or `Failed`.
    Fetch(Slot),
    /// Hash what is on disk; answer `Verified` or `Failed`.
    Verify(Slot),
    /// Raise the attempt counter durably, then run the self-test; answer `SelfTested` or `Failed`.
    SelfTest(Want),
    /// Load it and let it see a share of the live inputs; tell what it does by `Shadowed`, or `Failed`.
    Shadow(Slot, shadow::Policy),
    /// Write the pointer with trials, swap the model; answer `Activated` or `Failed`.
    Activate(Want),
    /// Write the pointer without trials.
    Confirm(Slot),
    /// Write the pointer back, swap the model back; answer `RolledBack`.
    RollBack(Slot),
    /// Write the pointer without any release and take the model out.
    Remove(Slot),
    /// Stop the step that runs, the shadow too; its answer is dropped.
    Cancel,
    /// Delete what no pointer and no job names.
    Collect,
    /// Never try this release again unless an operator insists; durable.
    RememberBad(Slot, Bad),
    /// Report durably.
    Report(UpdateReport),
}
