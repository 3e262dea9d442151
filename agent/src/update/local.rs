//! What is asked of the driver besides assignments: commands of the cloud, and at the device itself the
//! update lock of the application and the installation from a bundle. None of these can install what the
//! signed release metadata does not vouch for.

use std::path::PathBuf;
use std::sync::Arc;

use farlight_device::health::Policy;
use farlight_device::pointer::{Origin, Slot};
use farlight_device::schedule::{MAX_LOCK, MAX_PAUSE};
use farlight_device::update::{Failure, KnownBad, State, Want};
use farlight_wire::codes::Code;
use farlight_wire::desired::Action;
use farlight_wire::report;
use farlight_wire::report::Feedback;
use farlight_wire::{Command, Millis, ModelName, ReleaseId, Report};
use tokio::sync::oneshot;

use super::{Driver, Ready, steps};
use crate::clock;
use crate::models::{Keep, Loaded};
use crate::source::Source;

/// Longest name of a lock's holder, in characters.
const MAX_HOLDER: usize = 64;

/// Something asked at the device.
pub enum Local {
    /// Hold activations while the application must not change under its feet.
    Lock {
        /// Who asks.
        holder: String,
        /// For how long at most.
        duration: Millis,
        /// Until when it is held, or who holds it.
        reply: oneshot::Sender<Result<Millis, Refused>>,
    },
    /// Give the lock back.
    Unlock {
        /// Who gives it back.
        holder: String,
        /// Done, or who holds it.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Install from a bundle.
    Install {
        /// The folder.
        bundle: PathBuf,
        /// Only this release of it.
        only: Option<ReleaseId>,
        /// How long it is watched.
        policy: Policy,
        /// What is being installed.
        reply: oneshot::Sender<Result<Vec<ReleaseId>, Failure>>,
    },
    /// Releases of a bundle that the signed metadata vouches for.
    Found {
        /// The bundle.
        bundle: Source,
        /// The releases.
        slots: Vec<Slot>,
        /// How long they are watched.
        policy: Policy,
        /// What is being installed.
        reply: oneshot::Sender<Result<Vec<ReleaseId>, Failure>>,
    },
    /// Keep what applications found out about answers until the cloud has it.
    Feedback {
        /// At least one.
        feedback: Vec<Feedback>,
        /// Done, or why not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Take a model out of memory until it is asked for again.
    Unload {
        /// Which.
        model: ModelName,
        /// Done, or why not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Bring a model back to memory.
    Load {
        /// Which.
        model: ModelName,
        /// Done, or why not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A model that was asked for is in memory.
    Reloaded {
        /// It, or why not.
        ready: Result<Arc<Loaded>, Failure>,
        /// Who waits for it.
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// The lock belongs to somebody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the update lock is held by {holder:?} until {} ms", .until.0)]
pub struct Refused {
    /// Who holds it.
    pub holder: String,
    /// Until when at most.
    pub until: Millis,
}

impl Driver {
    pub(super) fn command(&mut self, command: Command) {
        let outcome = match command.action {
            Action::Refresh | Action::Flush => {
                self.spawn_refresh();
                Ok(format!("{:?} begun", command.action))
            }
            Action::PauseUpdates { seconds } => {
                let until = clock::now().plus(Millis::from_secs(seconds).min(MAX_PAUSE));
                self.pause_until(until).map(|()| format!("updates are paused until {} ms", until.0))
            }
            Action::ResumeUpdates => self.pause_until(Millis(0)).map(|()| "updates go on".to_owned()),
            Action::Diagnostics => {
                let (id, document) = (command.id.clone(), self.diagnostics());
                self.report(report::Event::Diagnostics { id, document });
                Ok("collected".to_owned())
            }
        };
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(failure) => (false, failure.message),
        };
        self.report(report::Event::CommandResult { id: command.id, ok, detail });
    }

    /// Answers whoever asked; one that is gone wanted no answer.
    pub(super) fn local(&mut self, local: Local) {
        match local {
            Local::Lock { holder, duration, reply } => {
                let _ = reply.send(self.lock(holder, duration));
            }
            Local::Unlock { holder, reply } => {
                let held = self.held_by_other(&holder);
                if held.is_none() {
                    self.lock = None;
                    self.look_at_hold();
                }
                let _ = reply.send(held.map_or(Ok(()), Err));
            }
            Local::Install { bundle, only, policy, reply } => self.spawn_install(bundle, only, policy, reply),
            Local::Found { bundle, slots, policy, reply } => {
                let releases = slots.iter().map(|slot| slot.release.clone()).collect();
                for slot in slots {
                    let want = Want {
                        slot,
                        rollout: None,
                        assignment: self.assignment,
                        policy,
                        shadow: None,
                        // A person stands before the device.
                        known_bad: KnownBad::TryAgain,
                    };
                    self.want(want, Origin::Local, Some(bundle.clone()));
                }
                let _ = reply.send(Ok(releases));
            }
            Local::Feedback { feedback, reply } => {
                let _ = reply.send(self.feedback(feedback));
            }
            Local::Unload { model, reply } => {
                let _ = reply.send(self.unload(&model));
            }
            Local::Load { model, reply } => self.load_again(&model, reply),
            Local::Reloaded { ready, reply } => {
                let done = ready.map_err(|failure| failure.message).and_then(|loaded| self.reloaded(loaded));
                let _ = reply.send(done);
            }
        }
    }

    /// Feedback may fill half the room of reports: those of updates matter more.
    fn feedback(&mut self, feedback: Vec<Feedback>) -> Result<(), String> {
        let failed = |error: crate::store::StoreError| error.to_string();
        if self.parts.journal.reports_are_many().map_err(failed)? {
            return Err("too many reports wait for the cloud; try again when it was reached".to_owned());
        }
        let at = clock::now();
        for one in feedback {
            let report = Report { at, event: report::Event::Feedback(one) };
            self.parts.journal.report(&report).map_err(failed)?;
        }
        self.parts.reported.send_modify(|n| *n += 1);
        Ok(())
    }

    /// A model that is being updated stays: its update needs it.
    fn unload(&self, name: &ModelName) -> Result<(), String> {
        let settled = self.models.get(name).is_some_and(|model| {
            matches!(model.machine.state(), State::Idle) && model.pointer.active.is_some()
        });
        if !settled {
            return Err(format!("model {name} is not installed, or is being updated"));
        }
        // One that is out of memory already is unloaded, too.
        self.parts.models.park(name.as_str());
        tracing::info!(model = %name, "unloaded on a client's wish");
        Ok(())
    }

    fn load_again(&self, name: &ModelName, reply: oneshot::Sender<Result<(), String>>) {
        if self.parts.models.find(name.as_str(), None).is_ok() {
            let _ = reply.send(Ok(()));
            return;
        }
        let slot = self.models.get(name).and_then(|model| model.pointer.active.clone());
        let Some(slot) = slot.filter(|_| !super::is_config(name)) else {
            let _ = reply.send(Err(format!("model {name} is not installed")));
            return;
        };
        let (slots, models, sender) =
            (self.parts.slots.clone(), Arc::clone(&self.parts.models), self.sender.clone());
        tokio::spawn(async move {
            let loaded = tokio::task::spawn_blocking(move || steps::load(&slots, &slot, &models)).await;
            let ready = match loaded {
                Ok(Ok(Ready::Model(loaded))) => Ok(loaded),
                Ok(Ok(Ready::Config(_))) => return,
                Ok(Err(failure)) => Err(failure),
                Err(error) => Err(Failure::new(Code::SelfTestCrashed, error.to_string())),
            };
            let _ = sender.send(super::Input::Local(Local::Reloaded { ready, reply })).await;
        });
    }

    /// Puts a model in front again, unless something else is to run by now.
    fn reloaded(&self, loaded: Arc<Loaded>) -> Result<(), String> {
        let name = &loaded.slot.release.model;
        let active = self.models.get(name).and_then(|model| model.pointer.active.as_ref());
        if active != Some(&loaded.slot) {
            return Err(format!("{} was replaced meanwhile", loaded.slot.release));
        }
        if self.parts.models.find(name.as_str(), None).is_err() {
            self.parts.models.activate(loaded, Keep::Nothing);
        }
        Ok(())
    }

    fn lock(&mut self, holder: String, duration: Millis) -> Result<Millis, Refused> {
        if let Some(held) = self.held_by_other(&holder) {
            return Err(held);
        }
        let until = clock::now().plus(duration.min(MAX_LOCK));
        self.lock = Some((holder.chars().take(MAX_HOLDER).collect(), until));
        self.look_at_hold();
        Ok(until)
    }

    fn held_by_other(&self, holder: &str) -> Option<Refused> {
        let (by, until) = self.lock.as_ref().filter(|(_, until)| *until > clock::now())?;
        (by != holder).then(|| Refused { holder: by.clone(), until: *until })
    }

    /// Looks up a bundle's releases in the signed metadata, the bundle's own or what is trusted already.
    fn spawn_install(
        &mut self,
        bundle: PathBuf,
        only: Option<ReleaseId>,
        policy: Policy,
        reply: oneshot::Sender<Result<Vec<ReleaseId>, Failure>>,
    ) {
        let Some(trust) = self.trust.clone() else {
            let _ = reply.send(Err(steps::trust_lost()));
            return;
        };
        let source = Source::Folder(bundle);
        let (repository, sender) = (self.parts.repository.with_bundle(source.clone()), self.sender.clone());
        tokio::spawn(async move {
            let found = {
                let mut trust = trust.lock().await;
                steps::find_bundle(&repository, &source, &mut trust, only.as_ref()).await
            };
            match found {
                Ok(slots) => {
                    let local = Local::Found { bundle: source, slots, policy, reply };
                    let _ = sender.send(super::Input::Local(local)).await;
                }
                Err(failure) => {
                    tracing::warn!(code = failure.code.as_str(), "bundle refused: {}", failure.message);
                    let refusal = Self::refusal("bundle", failure.clone());
                    let _ = sender.send(refusal).await;
                    let _ = reply.send(Err(failure));
                }
            }
        });
    }
}
