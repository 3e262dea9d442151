//! The update machine of one model: the only place where update decisions are made.
//!
//! `Idle → Fetching → Verifying → SelfTest → Activating → Probation → (confirmed) Idle`, and from
//! Activating on `→ RollingBack → Idle`. Each state carries its job, each job has a deadline, each end is
//! reported, and only `Confirmed` is success. The shell performs the effects in order and answers each
//! step's effect with one event; it makes the pointer durable before it reports that a step is done.

use std::collections::BTreeMap;

use farlight_wire::report::{ErrorReport, UpdateReport, UpdateState};
use farlight_wire::{Millis, ModelName, ReleaseId, RolloutId};

use crate::codes::Code;
use crate::health::{Health, Policy, Verdict, judge};

/// Self-tests of one release for one rollout that may begin without coming to an end: a release that
/// brings the whole device down is not tried for ever.
pub const MAX_ATTEMPTS: u32 = 3;
/// Longest time from assignment to activation.
pub const JOB_DEADLINE: Millis = Millis::from_secs(24 * 60 * 60);

/// What an assignment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The release.
    pub release: ReleaseId,
    /// The rollout that asks.
    pub rollout: Option<RolloutId>,
    /// Sequence number of the assignment.
    pub assignment: u64,
    /// How to watch it.
    pub policy: Policy,
}

impl Want {
    /// Whether both ask for the same release for the same rollout.
    fn is_same_as(&self, other: &Self) -> bool {
        self.release == other.release && self.rollout == other.rollout
    }
}

/// A release being installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What is wanted.
    pub want: Want,
    /// When it began, Unix time.
    pub began: Millis,
}

/// Why something failed: a code and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// What was tried, on what, and what went wrong.
    pub message: String,
}

impl Failure {
    /// A failure with one of the agent's own codes.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.as_str().to_owned(), message: message.into() }
    }
}

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
    /// The pointer is being written and the model swapped.
    Activating(Job),
    /// It runs and is watched.
    Probation {
        /// The job.
        job: Job,
        /// When probation began, on the shell's monotonic-or-later clock.
        since: Millis,
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
            | Self::Activating(job)
            | Self::Probation { job, .. }
            | Self::RollingBack { job, .. } => Some(job),
        }
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
    /// The pointer is durable and the model swapped in. Carries what the previous release did.
    Activated {
        /// The previous release's health on this device.
        previous: Box<Health>,
    },
    /// The running release did this since the last window.
    Observed {
        /// The release observed.
        release: ReleaseId,
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
    Fetch(ReleaseId),
    /// Hash what is on disk; answer `Verified` or `Failed`.
    Verify(ReleaseId),
    /// Raise the attempt counter durably, then run the self-test; answer `SelfTested` or `Failed`.
    SelfTest(Want),
    /// Write the pointer with trials, swap the model; answer `Activated` or `Failed`.
    Activate(Want),
    /// Write the pointer without trials.
    Confirm(ReleaseId),
    /// Write the pointer back, swap the model back; answer `RolledBack`.
    RollBack(ReleaseId),
    /// Write the pointer without any release and take the model out.
    Remove(ReleaseId),
    /// Stop the step that runs; its answer is dropped.
    Cancel,
    /// Delete what no pointer and no job names.
    Collect,
    /// Never try this release again for this rollout; durable.
    RememberBad(ReleaseId, Option<RolloutId>),
    /// Report durably.
    Report(UpdateReport),
}

/// What is to happen once the current job has ended.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Install(Want, u32),
    Remove,
}

/// The machine of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    model: ModelName,
    /// What runs: confirmed, or on probation.
    running: Option<ReleaseId>,
    /// The last confirmed release while another is on probation.
    previous: Option<ReleaseId>,
    state: State,
    next: Option<Next>,
    bad: BTreeMap<ReleaseId, Option<RolloutId>>,
}

impl Machine {
    /// A machine for a model of which `running` is confirmed (if anything).
    pub fn idle(
        model: ModelName,
        running: Option<ReleaseId>,
        bad: BTreeMap<ReleaseId, Option<RolloutId>>,
    ) -> Self {
        Self { model, running, previous: None, state: State::Idle, next: None, bad }
    }

    /// A machine that starts in the middle of a probation, after a restart. `baseline` is what the
    /// previous release did here before.
    pub fn on_probation(
        want: Want,
        previous: Option<ReleaseId>,
        baseline: Health,
        bad: BTreeMap<ReleaseId, Option<RolloutId>>,
        now: Millis,
    ) -> Self {
        let running = Some(want.release.clone());
        let state = State::Probation {
            job: Job { want: want.clone(), began: now },
            since: now,
            candidate: Box::default(),
            previous: Box::new(baseline),
        };
        Self { model: want.release.model, running, previous, state, next: None, bad }
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What runs.
    pub fn running(&self) -> Option<&ReleaseId> {
        self.running.as_ref()
    }

    /// The name of the state as reported; `None` when idle.
    pub fn phase(&self) -> Option<UpdateState> {
        match &self.state {
            State::Idle => None,
            State::Fetching(_) => Some(UpdateState::Fetching),
            State::Verifying(_) => Some(UpdateState::Verifying),
            State::SelfTest(_) => Some(UpdateState::SelfTest),
            State::Activating(_) => Some(UpdateState::Activating),
            State::Probation { .. } => Some(UpdateState::Probation),
            State::RollingBack { .. } => Some(UpdateState::RollingBack),
        }
    }

    /// Takes one event and says what to do. An event that does not apply in the current state (a late
    /// answer of a cancelled step) changes nothing.
    pub fn step(&mut self, event: Event, now: Millis) -> Vec<Effect> {
        let mut effects = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Idle);
        self.state = self.transition(state, event, now, &mut effects);
        if self.state == State::Idle {
            match self.next.take() {
                Some(Next::Install(want, attempts)) => {
                    self.state = self.begin(want, attempts, now, &mut effects);
                }
                Some(Next::Remove) => self.remove(&mut effects),
                None => {}
            }
        }
        effects
    }

    fn transition(&mut self, state: State, event: Event, now: Millis, effects: &mut Vec<Effect>) -> State {
        match (state, event) {
            (state, Event::Assigned { want, attempts }) => self.assigned(state, want, attempts, now, effects),
            (state, Event::Withdrawn) => self.withdrawn(state, now, effects),

            (State::Fetching(job), Event::Fetched) => {
                effects.push(self.report(&job, UpdateState::Verifying, None, now));
                effects.push(Effect::Verify(job.want.release.clone()));
                State::Verifying(job)
            }
            (State::Verifying(job), Event::Verified) => {
                effects.push(self.report(&job, UpdateState::SelfTest, None, now));
                effects.push(Effect::SelfTest(job.want.clone()));
                State::SelfTest(job)
            }
            (State::SelfTest(job), Event::SelfTested) => {
                effects.push(self.report(&job, UpdateState::Activating, None, now));
                effects.push(Effect::Activate(job.want.clone()));
                State::Activating(job)
            }
            (State::Activating(job), Event::Activated { previous }) => {
                self.previous = self.running.replace(job.want.release.clone());
                effects.push(self.report(&job, UpdateState::Probation, None, now));
                if self.next.is_some() {
                    // Something else was asked for meanwhile: it does not wait for a whole probation.
                    let failure = Failure::new(Code::Superseded, "something else is wanted instead");
                    return self.roll_back(job, failure, now, effects);
                }
                State::Probation { job, since: now, candidate: Box::default(), previous }
            }
            (
                State::Probation { job, since, mut candidate, previous },
                Event::Observed { release, health },
            ) => {
                if release == job.want.release {
                    candidate.merge(&health);
                }
                self.watch(job, since, candidate, previous, now, effects)
            }
            (State::Probation { job, since, candidate, previous }, Event::Tick) => {
                self.watch(job, since, candidate, previous, now, effects)
            }
            (State::RollingBack { job, failure }, Event::RolledBack) => {
                self.running = self.previous.take();
                self.remember_bad(&job, &failure, effects);
                effects.push(self.report(&job, UpdateState::RolledBack, Some(failure), now));
                effects.push(Effect::Collect);
                State::Idle
            }

            (State::Fetching(job) | State::Verifying(job) | State::SelfTest(job), Event::Failed(failure)) => {
                self.failed(&job, failure, now, effects)
            }
            (State::Activating(job), Event::Failed(failure)) => {
                // The pointer may or may not have been written: going back is right in both cases.
                self.previous = self.running.take();
                self.roll_back(job, failure, now, effects)
            }
            (State::RollingBack { job, failure }, Event::Failed(_)) => {
                // Going back must not give up: the shell waits between attempts.
                effects.push(Effect::RollBack(job.want.release.clone()));
                State::RollingBack { job, failure }
            }
            (State::Fetching(job), Event::Tick) if now.since(job.began) > JOB_DEADLINE => {
                effects.push(Effect::Cancel);
                let failure = Failure::new(Code::Deadline, "fetching did not end in time");
                self.failed(&job, failure, now, effects)
            }

            // Answers of cancelled steps, windows and ticks outside probation: nothing changes.
            (state @ State::Idle, Event::Tick | Event::Failed(_) | Event::Observed { .. })
            | (
                state @ (State::Fetching(_)
                | State::Verifying(_)
                | State::SelfTest(_)
                | State::Activating(_)
                | State::RollingBack { .. }),
                Event::Tick | Event::Observed { .. },
            )
            | (state @ State::Probation { .. }, Event::Failed(_))
            | (
                state,
                Event::Fetched
                | Event::Verified
                | Event::SelfTested
                | Event::Activated { .. }
                | Event::RolledBack,
            ) => state,
        }
    }

    fn assigned(
        &mut self,
        state: State,
        want: Want,
        attempts: u32,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> State {
        match state {
            State::Idle => {
                self.next = None;
                self.begin(want, attempts, now, effects)
            }
            state @ (State::Fetching(_) | State::Verifying(_) | State::SelfTest(_))
                if state.job().is_some_and(|job| job.want.is_same_as(&want)) =>
            {
                state
            }
            State::Fetching(job) | State::Verifying(job) | State::SelfTest(job) => {
                effects.push(Effect::Cancel);
                let failure = Failure::new(Code::Superseded, format!("{} is wanted instead", want.release));
                effects.push(self.report(&job, UpdateState::Failed, Some(failure), now));
                self.begin(want, attempts, now, effects)
            }
            State::Activating(job) => {
                self.queue(&job, want, attempts);
                State::Activating(job)
            }
            State::Probation { job, since, candidate, previous } => {
                if job.want.release == want.release {
                    return State::Probation { job, since, candidate, previous };
                }
                let failure = Failure::new(Code::Superseded, format!("{} is wanted instead", want.release));
                self.next = Some(Next::Install(want, attempts));
                self.roll_back(job, failure, now, effects)
            }
            State::RollingBack { job, failure } => {
                self.queue(&job, want, attempts);
                State::RollingBack { job, failure }
            }
        }
    }

    fn withdrawn(&mut self, state: State, now: Millis, effects: &mut Vec<Effect>) -> State {
        let no_longer = || Failure::new(Code::Superseded, "the model is no longer assigned");
        match state {
            State::Idle => {
                self.next = None;
                self.remove(effects);
                State::Idle
            }
            State::Fetching(job) | State::Verifying(job) | State::SelfTest(job) => {
                effects.push(Effect::Cancel);
                let ended = self.failed(&job, no_longer(), now, effects);
                self.next = Some(Next::Remove);
                ended
            }
            State::Probation { job, .. } => {
                self.next = Some(Next::Remove);
                self.roll_back(job, no_longer(), now, effects)
            }
            state @ (State::Activating(_) | State::RollingBack { .. }) => {
                self.next = Some(Next::Remove);
                state
            }
        }
    }

    fn remove(&mut self, effects: &mut Vec<Effect>) {
        if let Some(release) = self.running.take() {
            effects.push(Effect::Remove(release));
            effects.push(Effect::Collect);
        }
    }

    fn queue(&mut self, job: &Job, want: Want, attempts: u32) {
        self.next = (!job.want.is_same_as(&want)).then_some(Next::Install(want, attempts));
    }

    fn begin(&mut self, want: Want, attempts: u32, now: Millis, effects: &mut Vec<Effect>) -> State {
        let job = Job { want, began: now };
        let release = &job.want.release;
        if self.running.as_ref() == Some(release) {
            effects.push(self.report(&job, UpdateState::Confirmed, None, now));
            return State::Idle;
        }
        if self.bad.get(release).is_some_and(|rollout| *rollout == job.want.rollout) {
            let failure = Failure::new(Code::KnownBad, format!("{release} failed here before"));
            effects.push(self.report(&job, UpdateState::Failed, Some(failure), now));
            return State::Idle;
        }
        if attempts >= MAX_ATTEMPTS {
            let failure = Failure::new(
                Code::TooManyAttempts,
                format!("{attempts} self-tests of {release} did not end"),
            );
            return self.failed(&job, failure, now, effects);
        }
        effects.push(self.report(&job, UpdateState::Fetching, None, now));
        effects.push(Effect::Fetch(release.clone()));
        State::Fetching(job)
    }

    fn watch(
        &mut self,
        job: Job,
        since: Millis,
        candidate: Box<Health>,
        previous: Box<Health>,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> State {
        match judge(&candidate, &previous, job.want.policy, now.since(since)) {
            Verdict::Wait => State::Probation { job, since, candidate, previous },
            Verdict::Pass => {
                self.previous = None;
                self.bad.remove(&job.want.release);
                effects.push(Effect::Confirm(job.want.release.clone()));
                effects.push(self.report(&job, UpdateState::Confirmed, None, now));
                effects.push(Effect::Collect);
                State::Idle
            }
            Verdict::Fail(code, message) => self.roll_back(job, Failure::new(code, message), now, effects),
        }
    }

    fn roll_back(&self, job: Job, failure: Failure, now: Millis, effects: &mut Vec<Effect>) -> State {
        // First the act, then the report: going back waits for nothing.
        effects.push(Effect::RollBack(job.want.release.clone()));
        effects.push(self.report(&job, UpdateState::RollingBack, Some(failure.clone()), now));
        State::RollingBack { job, failure }
    }

    fn failed(&mut self, job: &Job, failure: Failure, now: Millis, effects: &mut Vec<Effect>) -> State {
        self.remember_bad(job, &failure, effects);
        effects.push(self.report(job, UpdateState::Failed, Some(failure), now));
        effects.push(Effect::Collect);
        State::Idle
    }

    /// What failed by its own fault is not tried again; what the network or a newer wish ended may be.
    fn remember_bad(&mut self, job: &Job, failure: &Failure, effects: &mut Vec<Effect>) {
        let innocent = [
            Code::Superseded,
            Code::FetchUnreachable,
            Code::FetchNoSpace,
            Code::Deadline,
            Code::StorageFailed,
        ];
        if innocent.iter().any(|code| code.as_str() == failure.code) {
            return;
        }
        self.bad.insert(job.want.release.clone(), job.want.rollout.clone());
        effects.push(Effect::RememberBad(job.want.release.clone(), job.want.rollout.clone()));
    }

    fn report(&self, job: &Job, state: UpdateState, failure: Option<Failure>, now: Millis) -> Effect {
        Effect::Report(UpdateReport {
            model: self.model.clone(),
            release: job.want.release.clone(),
            rollout: job.want.rollout.clone(),
            assignment: job.want.assignment,
            state,
            error: failure.map(|f| ErrorReport { code: f.code, message: f.message }),
            running: self.running.clone(),
            elapsed: now.since(job.began),
        })
    }
}

#[cfg(test)]
mod tests;
