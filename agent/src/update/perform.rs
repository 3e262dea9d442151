//! The effects of the update machines: pointers, swaps, reports, garbage. Each is done on the spot or handed
//! to a task in `steps`.

use std::sync::Arc;

use farlight_device::pointer::{Pointer, Slot};
use farlight_device::update::{Effect, Event, Failure, State};
use farlight_wire::codes::Code;
use farlight_wire::limits::MAX_TEXT;
use farlight_wire::report::{self, ShadowReport, UpdateReport, UpdateState};
use farlight_wire::{Millis, ModelName};

use super::{Done, Driver, Ready, Step};
use crate::clock;
use crate::logs;
use crate::models::{Keep, Loaded};
use crate::shadow::Mirror;

/// Warnings and errors that a failed update's report carries.
const LOG_LINES: usize = 8;

impl Driver {
    pub(super) fn perform(&mut self, name: &ModelName, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Report(update) => {
                self.report_update(update);
                None
            }
            Effect::Fetch(slot) => {
                self.spawn_fetch(name, slot);
                None
            }
            Effect::Verify(_) => {
                self.spawn_verify(name);
                None
            }
            Effect::SelfTest(want) => {
                let counted = self.parts.journal.count_attempt(&want.slot.digest, want.rollout.as_ref());
                if let Err(error) = counted {
                    return Some(Event::Failed(Failure::new(Code::StorageFailed, error.to_string())));
                }
                self.spawn_self_test(name);
                None
            }
            Effect::Shadow(_, policy) => {
                self.spawn_shadow(name, policy);
                None
            }
            Effect::Activate(_) => {
                self.spawn_load(name);
                None
            }
            Effect::Confirm(slot) => {
                self.confirm(name, &slot);
                None
            }
            Effect::RollBack(slot) => self.roll_back(name, &slot),
            Effect::Remove(slot) => {
                self.remove(name, &slot);
                None
            }
            Effect::Cancel => {
                self.cancel(name);
                None
            }
            Effect::Collect => {
                self.collect(name);
                None
            }
            Effect::RememberBad(slot, bad) => {
                if let Err(error) = self.parts.journal.remember_bad(&slot, &bad, clock::now()) {
                    tracing::error!(%error, "a failed release may be tried again after a restart");
                }
                None
            }
        }
    }

    fn report_update(&self, mut update: UpdateReport) {
        let (state, error) = (update.state, update.error.as_ref());
        tracing::info!(release = %update.release, ?state, code = error.map(|e| e.code.as_str()),
            message = error.map(|e| e.message.as_str()), "update");
        let ended = matches!(state, UpdateState::Failed | UpdateState::RolledBack | UpdateState::Confirmed);
        if let Some(error) = update.error.as_mut().filter(|_| ended) {
            for line in logs::last(&[" WARN ", "ERROR "], LOG_LINES) {
                error.message.push_str("\nlog: ");
                error.message.push_str(&line);
            }
            let end =
                (0..=MAX_TEXT.min(error.message.len())).rev().find(|at| error.message.is_char_boundary(*at));
            error.message.truncate(end.unwrap_or(0));
        }
        self.report(report::Event::Update(update));
        if ended {
            self.report(report::Event::Running(self.running()));
        }
    }

    pub(super) fn step_done(&mut self, step: Step) {
        let Some(model) = self.models.get_mut(&step.model) else { return };
        if step.generation != model.generation {
            return;
        }
        if !matches!(step.done, Done::Shadowed(_)) {
            model.task = None;
        }
        let mut chosen = None;
        let event = match step.done {
            Done::Fetched(slot) => {
                model.staged = Some(slot);
                Event::Fetched
            }
            Done::Verified => Event::Verified,
            Done::SelfTested(choice) => {
                chosen = choice;
                let marked = model.staged.as_ref().map(|slot| self.parts.slots.mark_tested(slot));
                match marked {
                    Some(Err(error)) => Event::Failed(Failure::new(Code::StorageFailed, error.to_string())),
                    _ => Event::SelfTested,
                }
            }
            Done::ShadowReady(candidate, policy) => match self.begin_shadow(&step.model, candidate, policy) {
                Ok(()) => return,
                Err(failure) => Event::Failed(failure),
            },
            Done::Shadowed(found) => {
                if let Some(all) = &mut model.shadowed {
                    all.merge(&found);
                }
                Event::Shadowed(found)
            }
            Done::Loaded(ready) => self.activate(&step.model, ready),
            Done::Restored(ready) => {
                match ready {
                    Some(ready) => self.put_in_front(ready, Keep::Nothing),
                    None => self.take_out(&step.model),
                }
                Event::RolledBack
            }
            Done::Failed(failure) => Event::Failed(failure),
        };
        if let Some(choice) = chosen {
            self.report(report::Event::Choice(*choice));
        }
        self.step(&step.model, event);
    }

    pub(super) fn put_in_front(&self, ready: Ready, keep: Keep) {
        match ready {
            Ready::Model(loaded) => self.parts.models.activate(loaded, keep),
            Ready::Config(config) => {
                tracing::info!(release = %config.slot.release, "configuration in force");
                self.parts.runtime.apply(Some(&config));
            }
        }
    }

    fn take_out(&self, name: &ModelName) {
        if super::is_config(name) {
            self.parts.runtime.apply(None);
        } else {
            self.parts.models.remove(name.as_str());
        }
    }

    /// The candidate sees a share of what the running release answers from here on.
    fn begin_shadow(
        &mut self,
        name: &ModelName,
        candidate: Arc<Loaded>,
        policy: farlight_device::shadow::Policy,
    ) -> Result<(), Failure> {
        let failed = |text: String| Failure::new(Code::ShadowErrors, text);
        let running =
            self.parts.models.find(name.as_str(), None).map_err(|error| failed(error.to_string()))?;
        let Some(model) = self.models.get_mut(name) else {
            return Err(failed("the model is gone".to_owned()));
        };
        let (sender, generation, owner) = (self.sender.clone(), model.generation, name.clone());
        let tell = move |found| {
            let done = Done::Shadowed(Box::new(found));
            // A driver that is busy hears less; the next findings come soon.
            let _ = sender.try_send(super::Input::Step(Step { model: owner.clone(), generation, done }));
        };
        let mirror = Mirror::start(candidate, policy, tell)
            .map_err(|error| failed(format!("start the shadow: {error}")))?;
        running.mirror(Some(Arc::new(mirror)));
        model.shadowed = Some(Default::default());
        Ok(())
    }

    fn cancel(&mut self, name: &ModelName) {
        let Some(model) = self.models.get_mut(name) else { return };
        model.generation += 1;
        if let Some(task) = model.task.take() {
            task.abort();
        }
        let Some(shadowed) = model.shadowed.take() else { return };
        if let Ok(running) = self.parts.models.find(name.as_str(), None) {
            running.mirror(None);
        }
        let candidate = self.models.get(name).and_then(|model| model.staged.clone());
        let Some(candidate) = candidate else { return };
        let quantile = |sketch: &farlight_wire::Sketch, q| sketch.quantile(q).unwrap_or_default();
        self.report(report::Event::Shadow(ShadowReport {
            release: candidate.release,
            rollout: self.rollout(name),
            ok: shadowed.ok,
            failed: shadowed.failed,
            non_finite: shadowed.non_finite,
            agreed: shadowed.agreed,
            skipped: shadowed.skipped,
            score_delta_p50_permille: quantile(&shadowed.score_delta, 0.5) as u32,
            p95_us: quantile(&shadowed.infer_us, 0.95) as u64,
        }));
    }

    fn rollout(&self, name: &ModelName) -> Option<farlight_wire::RolloutId> {
        self.models.get(name)?.machine.state().job()?.want.rollout.clone()
    }

    /// Pointer first, then the swap: from the pointer on, a restart runs the candidate, with trials.
    fn activate(&mut self, name: &ModelName, ready: Ready) -> Event {
        let failed = |text: String| Event::Failed(Failure::new(Code::StorageFailed, text));
        let Some(model) = self.models.get_mut(name) else { return failed("model is gone".to_owned()) };
        if !matches!(model.machine.state(), State::Activating(_)) {
            return failed("the activation was called off".to_owned());
        }
        let previous = Box::new(model.baseline());
        // Before the pointer: a restart on probation compares with it.
        if let Err(error) = self.parts.journal.keep_baseline(name, &previous) {
            return failed(error.to_string());
        }
        let slot = match &ready {
            Ready::Model(loaded) => loaded.slot.clone(),
            Ready::Config(config) => config.slot.clone(),
        };
        let pointer = model.pointer.activate(slot, self.assignment, model.origin);
        if let Err(error) = self.parts.slots.write_pointer(name, &pointer) {
            return failed(error.to_string());
        }
        model.pointer = pointer;
        self.put_in_front(ready, Keep::Previous);
        Event::Activated { previous }
    }

    fn confirm(&mut self, name: &ModelName, slot: &Slot) {
        let Some(model) = self.models.get_mut(name) else { return };
        let pointer = model.pointer.confirm();
        match self.parts.slots.write_pointer(name, &pointer) {
            Ok(()) => model.pointer = pointer,
            // Runs on; after a restart it is on probation again.
            Err(error) => tracing::error!(%error, "confirmation is not durable"),
        }
        model.baseline.clear();
        if let Err(error) = self.parts.journal.forget(&slot.digest) {
            tracing::warn!(%error, "what is known of earlier attempts is not cleared");
        }
        self.parts.models.confirm(name.as_str());
    }

    fn roll_back(&mut self, name: &ModelName, slot: &Slot) -> Option<Event> {
        let model = self.models.get_mut(name)?;
        // A failed activation may not have reached the pointer.
        if model.pointer.active.as_ref() == Some(slot) {
            let pointer = model.pointer.revert();
            if let Err(error) = self.parts.slots.write_pointer(name, &pointer) {
                // The model in memory is taken back all the same; trials bring a restart back too.
                tracing::error!(%error, "rollback is not durable yet");
            }
            model.pointer = pointer;
        }
        let active = self.parts.models.find(name.as_str(), None).ok();
        if active.as_ref().is_some_and(|loaded| loaded.slot != *slot)
            || self.parts.models.revert(name.as_str())
        {
            return Some(Event::RolledBack);
        }
        self.spawn_restore(name);
        None
    }

    /// Takes a model out that is no longer assigned, and tells the cloud what runs now.
    fn remove(&mut self, name: &ModelName, slot: &Slot) {
        let Some(model) = self.models.get_mut(name) else { return };
        let pointer = Pointer { sequence: model.pointer.sequence + 1, ..Pointer::default() };
        match self.parts.slots.write_pointer(name, &pointer) {
            Ok(()) => model.pointer = pointer,
            // After a restart it runs until the assignment is heard again.
            Err(error) => tracing::error!(%error, "removal is not durable"),
        }
        model.baseline.clear();
        self.take_out(name);
        tracing::info!(release = %slot.release, "removed: no longer assigned");
        if let Err(error) = self.parts.journal.note_removal(clock::now(), slot) {
            tracing::warn!(%error, "a removal is missing from the history");
        }
        self.report(report::Event::Running(self.running()));
    }

    fn collect(&mut self, name: &ModelName) {
        let Some(model) = self.models.get_mut(name) else { return };
        model.staged = None;
        let pointer = &model.pointer;
        let keep: Vec<&str> =
            pointer.active.iter().chain(&pointer.previous).map(|slot| slot.digest.as_str()).collect();
        if let Err(error) = self.parts.slots.collect(name, &keep) {
            tracing::warn!(%error, "old releases stay on disk");
        }
    }

    /// Ends or begins a pause of activations; durable.
    ///
    /// # Errors
    /// When it cannot be stored; then nothing changed.
    pub(super) fn pause_until(&mut self, until: Millis) -> Result<(), Failure> {
        let stored = self.parts.journal.pause_until(until);
        stored.map_err(|error| Failure::new(Code::StorageFailed, error.to_string()))?;
        self.paused_until = until;
        self.look_at_hold();
        Ok(())
    }
}
