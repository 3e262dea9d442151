//! The update machine of one model (or of the runtime configuration): the only place where update decisions
//! are made.
//!
//! `Idle → Fetching → Verifying → SelfTest → Shadow? → Staged? → Activating → Probation → (confirmed) Idle`,
//! and from Activating on `→ RollingBack → Idle`. Each state carries its job, each phase has a deadline, each
//! end is reported, and only `Confirmed` is success. The shell performs the effects in order and answers each
//! step's effect with one event; it makes the pointer durable before it reports that a step is done.

mod words;

use farlight_wire::codes::Code;
use farlight_wire::report::{UpdateReport, UpdateState};
use farlight_wire::{Millis, ModelName};

pub use words::{Bad, BadList, Effect, Event, Failure, Job, KnownBad, State, Want};

use crate::health::{self, Health, Verdict};
use crate::pointer::Slot;
use crate::schedule::Hold;
use crate::shadow::{self, Shadowed};

/// Self-tests of one release for one rollout that may begin without coming to an end: a release that
/// brings the whole device down is not tried for ever.
pub const MAX_ATTEMPTS: u32 = 3;
/// Longest time to fetch a release: a slow link gets a day.
pub const FETCH_DEADLINE: Millis = Millis::from_secs(24 * 60 * 60);
/// Longest time to hash or to test what was fetched: the shell's own limits are shorter.
pub const TEST_DEADLINE: Millis = Millis::from_secs(60 * 60);
/// Longest wait for a window, a lock or a pause to end.
pub const STAGED_DEADLINE: Millis = Millis::from_secs(7 * 24 * 60 * 60);
/// Longest time to load and swap, forwards or back.
pub const SWAP_DEADLINE: Millis = Millis::from_secs(10 * 60);
/// Most releases remembered as bad; beyond it the oldest is forgotten, and may be tried once more.
pub const MAX_BAD: usize = 1_000;

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
    running: Option<Slot>,
    /// The last confirmed release while another is on probation.
    previous: Option<Slot>,
    state: State,
    next: Option<Next>,
    hold: Option<Hold>,
    bad: BadList,
}

impl Machine {
    /// A machine for a model of which `running` is confirmed (if anything).
    pub fn idle(model: ModelName, running: Option<Slot>, bad: BadList) -> Self {
        Self { model, running, previous: None, state: State::Idle, next: None, hold: None, bad }
    }

    /// A machine that starts in the middle of a probation, after a restart. `baseline` is what the
    /// previous release did here before.
    pub fn on_probation(
        want: Want,
        previous: Option<Slot>,
        baseline: Health,
        bad: BadList,
        now: Millis,
    ) -> Self {
        let running = Some(want.slot.clone());
        let model = want.slot.release.model.clone();
        let state = State::Probation {
            job: Job { want, began: now, since: now },
            candidate: Box::default(),
            previous: Box::new(baseline),
        };
        Self { model, running, previous, state, next: None, hold: None, bad }
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What runs.
    pub fn running(&self) -> Option<&Slot> {
        self.running.as_ref()
    }

    /// What an activation waits for, if anything.
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
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
            (state, Event::Tick) if state.is_overdue(now) => self.overdue(state, now, effects),
            (state, Event::Hold(hold)) => {
                self.hold = hold;
                match state {
                    State::Staged(job) => self.go(job, now, effects),
                    other => other,
                }
            }

            (State::Fetching(job), Event::Fetched) => {
                let job = self.enter(job, UpdateState::Verifying, now, effects);
                effects.push(Effect::Verify(job.want.slot.clone()));
                State::Verifying(job)
            }
            (State::Verifying(job), Event::Verified) => {
                let job = self.enter(job, UpdateState::SelfTest, now, effects);
                effects.push(Effect::SelfTest(job.want.clone()));
                State::SelfTest(job)
            }
            (State::SelfTest(job), Event::SelfTested) => match job.want.shadow {
                // Without a running release there is nothing to compare with.
                Some(policy) if self.running.is_some() => {
                    let job = self.enter(job, UpdateState::Shadow, now, effects);
                    effects.push(Effect::Shadow(job.want.slot.clone(), policy));
                    State::Shadow { job, policy, shadowed: Box::default() }
                }
                _ => self.stage(job, now, effects),
            },
            (State::Shadow { job, policy, mut shadowed }, Event::Shadowed(more)) => {
                shadowed.merge(&more);
                self.watch_shadow(job, policy, shadowed, now, effects)
            }
            (State::Shadow { job, policy, shadowed }, Event::Tick) => {
                self.watch_shadow(job, policy, shadowed, now, effects)
            }
            (State::Activating(job), Event::Activated { previous }) => {
                self.previous = self.running.replace(job.want.slot.clone());
                let job = self.enter(job, UpdateState::Probation, now, effects);
                if self.next.is_some() {
                    // Something else was asked for meanwhile: it does not wait for a whole probation.
                    let failure = Failure::new(Code::Superseded, "something else is wanted instead");
                    return self.roll_back(job, failure, now, effects);
                }
                State::Probation { job, candidate: Box::default(), previous }
            }
            (State::Probation { job, mut candidate, previous }, Event::Observed { slot, health }) => {
                if slot == job.want.slot {
                    candidate.merge(&health);
                }
                self.watch(job, candidate, previous, now, effects)
            }
            (State::Probation { job, candidate, previous }, Event::Tick) => {
                self.watch(job, candidate, previous, now, effects)
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
            (State::Shadow { job, .. }, Event::Failed(failure)) => {
                effects.push(Effect::Cancel);
                self.failed(&job, failure, now, effects)
            }
            (State::Activating(job), Event::Failed(failure)) => {
                // The pointer may or may not have been written: going back is right in both cases.
                self.previous = self.running.take();
                self.roll_back(job, failure, now, effects)
            }
            (State::RollingBack { job, failure }, Event::Failed(_)) => {
                // Going back does not give up before its deadline: the shell waits between attempts.
                effects.push(Effect::RollBack(job.want.slot.clone()));
                State::RollingBack { job, failure }
            }

            // Answers of cancelled steps, windows and ticks where they do not matter: nothing changes.
            (
                state @ (State::Idle
                | State::Fetching(_)
                | State::Verifying(_)
                | State::SelfTest(_)
                | State::Staged(_)
                | State::Activating(_)
                | State::RollingBack { .. }),
                Event::Tick | Event::Observed { .. } | Event::Shadowed(_),
            )
            | (state @ State::Shadow { .. }, Event::Observed { .. })
            | (state @ State::Probation { .. }, Event::Shadowed(_) | Event::Failed(_))
            | (state @ (State::Idle | State::Staged(_)), Event::Failed(_))
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

    /// A phase that does not end: before activation nothing changed; after it the device goes back.
    fn overdue(&mut self, state: State, now: Millis, effects: &mut Vec<Effect>) -> State {
        let late = |what: &str| Failure::new(Code::Deadline, format!("{what} did not end in time"));
        match state {
            State::Fetching(job) => self.give_up(job, late("fetching"), now, effects),
            State::Verifying(job) => self.give_up(job, late("verifying"), now, effects),
            State::SelfTest(job) => self.give_up(job, late("the self-test"), now, effects),
            State::Staged(job) => {
                let why = self.hold.as_ref().map_or_else(String::new, |hold| format!(": {hold}"));
                self.give_up(job, late(&format!("waiting{why}")), now, effects)
            }
            State::Activating(job) => {
                effects.push(Effect::Cancel);
                self.previous = self.running.take();
                self.roll_back(job, late("activation"), now, effects)
            }
            State::RollingBack { job, failure } => {
                // The pointer names the previous release: the next start loads it.
                effects.push(Effect::Cancel);
                self.remember_bad(&job, &failure, effects);
                self.running = None;
                self.previous = None;
                let text = format!(
                    "after {} ({}): the previous release did not come back",
                    failure.code.as_str(),
                    failure.message
                );
                let failure = Failure::new(Code::RollBackStuck, text);
                effects.push(self.report(&job, UpdateState::Failed, Some(failure), now));
                State::Idle
            }
            state @ (State::Idle | State::Shadow { .. } | State::Probation { .. }) => state,
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
            state @ (State::Fetching(_)
            | State::Verifying(_)
            | State::SelfTest(_)
            | State::Shadow { .. }
            | State::Staged(_))
                if state.job().is_some_and(|job| job.want.is_same_as(&want)) =>
            {
                state
            }
            State::Fetching(job)
            | State::Verifying(job)
            | State::SelfTest(job)
            | State::Shadow { job, .. }
            | State::Staged(job) => {
                let failure = instead(&want);
                self.next = Some(Next::Install(want, attempts));
                self.give_up(job, failure, now, effects)
            }
            State::Activating(job) => {
                self.queue(&job, want, attempts);
                State::Activating(job)
            }
            State::Probation { job, candidate, previous } => {
                if job.want.slot == want.slot {
                    return State::Probation { job, candidate, previous };
                }
                let failure = instead(&want);
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
            State::Fetching(job)
            | State::Verifying(job)
            | State::SelfTest(job)
            | State::Shadow { job, .. }
            | State::Staged(job) => {
                self.next = Some(Next::Remove);
                self.give_up(job, no_longer(), now, effects)
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
        if let Some(slot) = self.running.take() {
            effects.push(Effect::Remove(slot));
            effects.push(Effect::Collect);
        }
    }

    fn queue(&mut self, job: &Job, want: Want, attempts: u32) {
        self.next = (!job.want.is_same_as(&want)).then_some(Next::Install(want, attempts));
    }

    fn begin(&mut self, want: Want, attempts: u32, now: Millis, effects: &mut Vec<Effect>) -> State {
        let job = Job { want, began: now, since: now };
        let (slot, rollout) = (&job.want.slot, &job.want.rollout);
        if self.running.as_ref() == Some(slot) {
            effects.push(self.report(&job, UpdateState::Confirmed, None, now));
            return State::Idle;
        }
        if let Some(bad) = self.bad.get(&slot.digest)
            && (job.want.known_bad == KnownBad::Refuse || bad.rollout == *rollout)
        {
            let text = format!("{} failed here before: {}", slot.release, bad.code);
            let failure = Failure::new(Code::KnownBad, text);
            effects.push(self.report(&job, UpdateState::Failed, Some(failure), now));
            return State::Idle;
        }
        if attempts >= MAX_ATTEMPTS {
            let text = format!("{attempts} self-tests of {} did not end", slot.release);
            return self.failed(&job, Failure::new(Code::TooManyAttempts, text), now, effects);
        }
        effects.push(self.report(&job, UpdateState::Fetching, None, now));
        effects.push(Effect::Fetch(job.want.slot.clone()));
        State::Fetching(job)
    }

    /// Moves a job to its next phase and says so.
    fn enter(&self, job: Job, phase: UpdateState, now: Millis, effects: &mut Vec<Effect>) -> Job {
        effects.push(self.report(&job, phase, None, now));
        Job { since: now, ..job }
    }

    /// Ready to be activated: now, or once nothing holds it.
    fn stage(&mut self, job: Job, now: Millis, effects: &mut Vec<Effect>) -> State {
        if self.hold.is_some() {
            return State::Staged(self.enter(job, UpdateState::Staged, now, effects));
        }
        self.go(job, now, effects)
    }

    fn go(&mut self, job: Job, now: Millis, effects: &mut Vec<Effect>) -> State {
        if self.hold.is_some() {
            return State::Staged(job);
        }
        let job = self.enter(job, UpdateState::Activating, now, effects);
        effects.push(Effect::Activate(job.want.clone()));
        State::Activating(job)
    }

    fn watch_shadow(
        &mut self,
        job: Job,
        policy: shadow::Policy,
        shadowed: Box<Shadowed>,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> State {
        match shadow::judge(&shadowed, policy, now.since(job.since)) {
            Verdict::Wait => State::Shadow { job, policy, shadowed },
            Verdict::Pass => {
                effects.push(Effect::Cancel);
                self.stage(job, now, effects)
            }
            Verdict::Fail(code, message) => self.give_up(job, Failure::new(code, message), now, effects),
        }
    }

    fn watch(
        &mut self,
        job: Job,
        candidate: Box<Health>,
        previous: Box<Health>,
        now: Millis,
        effects: &mut Vec<Effect>,
    ) -> State {
        match health::judge(&candidate, &previous, job.want.policy, now.since(job.since)) {
            Verdict::Wait => State::Probation { job, candidate, previous },
            Verdict::Pass => {
                self.previous = None;
                self.bad.remove(&job.want.slot.digest);
                effects.push(Effect::Confirm(job.want.slot.clone()));
                effects.push(self.report(&job, UpdateState::Confirmed, None, now));
                effects.push(Effect::Collect);
                State::Idle
            }
            Verdict::Fail(code, message) => self.roll_back(job, Failure::new(code, message), now, effects),
        }
    }

    fn roll_back(&self, job: Job, failure: Failure, now: Millis, effects: &mut Vec<Effect>) -> State {
        // First the act, then the report: going back waits for nothing.
        effects.push(Effect::RollBack(job.want.slot.clone()));
        effects.push(self.report(&job, UpdateState::RollingBack, Some(failure.clone()), now));
        State::RollingBack { job: Job { since: now, ..job }, failure }
    }

    /// Stops the step that runs and ends the job; what runs is untouched.
    fn give_up(&mut self, job: Job, failure: Failure, now: Millis, effects: &mut Vec<Effect>) -> State {
        effects.push(Effect::Cancel);
        self.failed(&job, failure, now, effects)
    }

    fn failed(&mut self, job: &Job, failure: Failure, now: Millis, effects: &mut Vec<Effect>) -> State {
        self.remember_bad(job, &failure, effects);
        effects.push(self.report(job, UpdateState::Failed, Some(failure), now));
        effects.push(Effect::Collect);
        State::Idle
    }

    /// What failed by its own fault is not tried again; what the network or a newer wish ended may be.
    fn remember_bad(&mut self, job: &Job, failure: &Failure, effects: &mut Vec<Effect>) {
        if !failure.code.blames_release() {
            return;
        }
        let bad = Bad { rollout: job.want.rollout.clone(), code: failure.code.as_str().to_owned() };
        if self.bad.len() >= MAX_BAD {
            self.bad.pop_first();
        }
        self.bad.insert(job.want.slot.digest.clone(), bad.clone());
        effects.push(Effect::RememberBad(job.want.slot.clone(), bad));
    }

    fn report(&self, job: &Job, state: UpdateState, failure: Option<Failure>, now: Millis) -> Effect {
        Effect::Report(UpdateReport {
            model: self.model.clone(),
            release: job.want.slot.release.clone(),
            rollout: job.want.rollout.clone(),
            assignment: job.want.assignment,
            state,
            error: failure.map(Failure::report),
            running: self.running.as_ref().map(|slot| slot.release.clone()),
            elapsed: now.since(job.began),
        })
    }
}

fn instead(want: &Want) -> Failure {
    Failure::new(Code::Superseded, format!("{} is wanted instead", want.slot.release))
}

#[cfg(test)]
mod tests;
