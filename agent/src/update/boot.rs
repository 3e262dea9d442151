//! Starting: for each model, read the pointer, count a trial, load what is to run, and tell the cloud what
//! the last life did not come to report.

use farlight_device::health::Policy;
use farlight_device::pointer::{Boot, Pointer, Slot};
use farlight_device::update::{Bad, BadList, Failure, KnownBad, Machine, Want};
use farlight_release::assignment::{self, ModelAssignment};
use farlight_wire::codes::Code;
use farlight_wire::report::{self, UpdateReport, UpdateState};
use farlight_wire::{Millis, ModelName, ReleaseId, RolloutId};

use super::{Driver, Input, Model, steps};
use crate::clock;
use crate::models::Keep;

impl Driver {
    pub(super) async fn start_models(&mut self) {
        let models = self.parts.slots.models().unwrap_or_else(|error| {
            tracing::error!(%error, "releases cannot be listed");
            Vec::new()
        });
        let (assigned, bytes) = self.stored_assignment().await;
        for name in models {
            self.start_model(&name, &assigned);
        }
        // What was asked for last is asked again: an update that was cut off goes on.
        if let Some(bytes) = bytes {
            let _ = self.sender.send(Input::Desired(bytes)).await;
        }
    }

    /// The last accepted assignment. It was verified when it was accepted; its date does not matter for
    /// what it brought.
    async fn stored_assignment(&mut self) -> (Vec<ModelAssignment>, Option<Vec<u8>>) {
        let Some(trust) = &self.trust else { return (Vec::new(), None) };
        let trust = trust.lock().await;
        let (Some(bytes), Some(keys)) = (trust.assignment(), trust.assignment_keys()) else {
            return (Vec::new(), None);
        };
        match assignment::verify(&bytes, &keys, &self.parts.identity.device, Millis(0), None) {
            Ok(assignment) => {
                self.assignment = assignment.sequence;
                (assignment.models.clone(), Some(bytes))
            }
            Err(error) => {
                tracing::warn!(%error, "the stored assignment is not used");
                (Vec::new(), None)
            }
        }
    }

    fn start_model(&mut self, name: &ModelName, assigned: &[ModelAssignment]) {
        let (slots, models) = (self.parts.slots.clone(), std::sync::Arc::clone(&self.parts.models));
        let pointer = match slots.pointer(name) {
            Ok(Some(pointer)) => pointer,
            Ok(None) => self.without_pointer(name),
            Err(error) => {
                tracing::error!(%error, "a model is not started");
                return;
            }
        };
        let mut bad = self.parts.journal.bad().unwrap_or_default();
        let (pointer, crashed) = match pointer.boot() {
            Boot::Empty => (pointer, None),
            Boot::Run { write: None } => (pointer, None),
            Boot::Run { write: Some(next) } => {
                // Counted before it is loaded: a release that brings the agent down uses up its trials.
                match slots.write_pointer(name, &next) {
                    Ok(()) => (next, None),
                    // A trial that cannot be counted is not begun: on a full disk it would never end.
                    Err(error) => {
                        let text = format!("its trial cannot be counted: {error}");
                        let failed = pointer.active.clone();
                        let failure = Failure::new(Code::StorageFailed, text);
                        (pointer.revert(), failed.map(|failed| (failed, failure)))
                    }
                }
            }
            Boot::Revert { write, failed } => {
                let text = format!("{} was started too often without proving itself", failed.release);
                (write, Some((failed, Failure::new(Code::ProbationCrashes, text))))
            }
        };
        // What cannot be loaded is taken back, too.
        let (pointer, crashed) = match (&pointer.active, crashed) {
            (Some(slot), None) => match steps::load(&slots, slot, &models) {
                Ok(ready) => {
                    self.put_in_front(ready, Keep::Nothing);
                    (pointer, None)
                }
                Err(failure) => (pointer.revert(), Some((slot.clone(), failure))),
            },
            (_, crashed) => (pointer, crashed),
        };
        let Some((failed, failure)) = crashed else {
            let machine = self.machine(name, &pointer, assigned, bad);
            self.insert(name, machine, pointer);
            return;
        };
        let pointer = self.restore(name, pointer, &failed);
        let rollout = entry(assigned, &failed.release).and_then(|entry| entry.rollout.clone());
        if failure.code.blames_release() {
            let entry = Bad { rollout: rollout.clone(), code: failure.code.as_str().to_owned() };
            if let Err(error) = self.parts.journal.remember_bad(&failed, &entry, clock::now()) {
                tracing::error!(%error, "a failed release may be tried again");
            }
            bad.insert(failed.digest.clone(), entry);
        }
        self.report_taken_back(name, failed, rollout, failure, &pointer);
        let machine = Machine::idle(name.clone(), pointer.active.clone(), bad);
        self.insert(name, machine, pointer);
        self.report(report::Event::Running(self.running()));
    }

    fn insert(&mut self, name: &ModelName, machine: Machine, pointer: Pointer) {
        let origin = pointer.origin;
        let mut model = Model::new(machine, pointer);
        model.origin = origin;
        self.models.insert(name.clone(), model);
        self.tell_status(name);
    }

    /// A damaged pointer: any whole slot is better than none.
    fn without_pointer(&self, name: &ModelName) -> Pointer {
        let active = self.parts.slots.any(name, &[]);
        tracing::error!(model = %name, found = ?active.as_ref().map(|s| s.release.to_string()), "pointer is damaged");
        self.report(report::Event::Loss { what: format!("pointer of {name}"), records: 1 });
        let pointer = Pointer { sequence: 1, active, ..Pointer::default() };
        if let Err(error) = self.parts.slots.write_pointer(name, &pointer) {
            tracing::error!(%error, "pointer is not repaired");
        }
        pointer
    }

    /// Loads the previous release after the active one failed at start; when that fails too, any whole slot
    /// is better than none.
    fn restore(&self, name: &ModelName, mut pointer: Pointer, failed: &Slot) -> Pointer {
        let slots = &self.parts.slots;
        let mut tried = vec![failed.digest.clone()];
        loop {
            if let Err(error) = slots.write_pointer(name, &pointer) {
                tracing::error!(%error, "rollback is not durable yet");
            }
            if let Some(slot) = &pointer.active {
                match steps::load(slots, slot, &self.parts.models) {
                    Ok(ready) => {
                        self.put_in_front(ready, Keep::Nothing);
                        return pointer;
                    }
                    Err(failure) => {
                        let code = failure.code.as_str();
                        tracing::error!(release = %slot.release, code, "{}", failure.message);
                    }
                }
                tried.push(slot.digest.clone());
            }
            let tried: Vec<&str> = tried.iter().map(String::as_str).collect();
            let next = slots.any(name, &tried);
            let none = next.is_none();
            pointer = Pointer { sequence: pointer.sequence + 1, active: next, ..pointer };
            if none {
                return pointer;
            }
        }
    }

    fn report_taken_back(
        &self,
        name: &ModelName,
        failed: Slot,
        rollout: Option<RolloutId>,
        failure: Failure,
        pointer: &Pointer,
    ) {
        tracing::warn!(release = %failed.release, code = failure.code.as_str(), "taken back at start: {}", failure.message);
        let error = Failure { message: format!("taken back at start: {}", failure.message), ..failure };
        self.report(report::Event::Update(UpdateReport {
            model: name.clone(),
            release: failed.release,
            rollout,
            assignment: pointer.assignment,
            state: UpdateState::RolledBack,
            error: Some(error.report()),
            running: pointer.active.as_ref().map(|slot| slot.release.clone()),
            elapsed: Millis(0),
        }));
    }

    fn machine(
        &self,
        name: &ModelName,
        pointer: &Pointer,
        assigned: &[ModelAssignment],
        bad: BadList,
    ) -> Machine {
        let Some(active) = &pointer.active else { return Machine::idle(name.clone(), None, bad) };
        if pointer.trials.is_none() {
            return Machine::idle(name.clone(), Some(active.clone()), bad);
        }
        let entry = entry(assigned, &active.release);
        let want = match entry {
            Some(entry) => super::want(entry, active.clone(), pointer.assignment),
            // From a bundle, or of an assignment that is no longer known.
            None => Want {
                slot: active.clone(),
                rollout: None,
                assignment: pointer.assignment,
                policy: Policy { duration: Millis::from_secs(60), min_requests: 0 },
                shadow: None,
                known_bad: KnownBad::Refuse,
            },
        };
        let previous = pointer.previous.clone();
        let baseline = self.parts.journal.baseline(name).unwrap_or_else(|error| {
            tracing::warn!(%error, "the candidate is not compared with the release before it");
            Default::default()
        });
        Machine::on_probation(want, previous, baseline, bad, clock::now())
    }
}

fn entry<'a>(assigned: &'a [ModelAssignment], release: &ReleaseId) -> Option<&'a ModelAssignment> {
    assigned.iter().find(|entry| entry.release == *release)
}
