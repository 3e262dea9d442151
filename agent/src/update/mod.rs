//! The update driver: the one owner of the update machines, pointers and the journal. It feeds events to
//! `farlight_device::update`, performs its effects and reports. Everything slow (network, hashing, engine)
//! runs in tasks that answer with an event, so that a rollback waits for nothing.

mod boot;
mod steps;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use farlight_device::codes::Code;
use farlight_device::health::{Health, Policy};
use farlight_device::pointer::{Pointer, Slot};
use farlight_device::update::{Effect, Event, Failure, Machine, State, Want};
use farlight_release::Verified;
use farlight_release::assignment::Assignment;
use farlight_wire::report::{self, ErrorReport, Inventory, Refusal, Running};
use farlight_wire::{Command, ModelName, ReleaseId, Report, Seq};
use serde_json::json;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;

use crate::clock;
use crate::fetch::Repository;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::models::{Keep, Loaded, Models};
use crate::recorder::Healths;
use crate::slots::Slots;
use crate::status::Status;
use crate::trust::Trust;

/// Windows of the confirmed release that a candidate is compared with.
const BASELINE_WINDOWS: usize = 60;
/// How often time is told to the machines.
const TICK: Duration = Duration::from_millis(500);

/// What reaches the driver.
pub enum Input {
    /// The broker connection is up.
    Connected,
    /// The cloud's desired state, as signed.
    Desired(Vec<u8>),
    /// A command.
    Command(Command),
    /// The cloud has reports up to here.
    ReportsAcknowledged(Seq),
    /// A verified assignment.
    Assigned(Box<Verified<Assignment>>),
    /// Metadata or an assignment was refused.
    Refused(Refusal),
    /// A step's task ended.
    Step(Step),
}

/// The answer of a step's task. An older generation's answer is dropped.
pub struct Step {
    model: ModelName,
    generation: u64,
    done: Done,
}

/// What a step's task did.
pub enum Done {
    /// The slot is on disk.
    Fetched(Slot),
    /// The slot was hashed again.
    Verified,
    /// Golden vectors passed.
    SelfTested,
    /// It is in memory, ready to be swapped in.
    Loaded(Arc<Loaded>),
    /// The previous release is in memory again (`None`: there was none).
    Restored(Option<Arc<Loaded>>),
    /// It failed.
    Failed(Failure),
}

/// What the driver works on.
pub struct Parts {
    /// Who we are.
    pub identity: Identity,
    /// Labels from the configuration.
    pub labels: BTreeMap<String, String>,
    /// The model table.
    pub models: Arc<Models>,
    /// Releases on disk.
    pub slots: Slots,
    /// The trust store; `None` when it is lost.
    pub trust: Option<Trust>,
    /// Where releases come from.
    pub repository: Repository,
    /// Reports, attempts and failures.
    pub journal: Journal,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// Longest self-test.
    pub self_test: Duration,
    /// How often metadata is looked at.
    pub metadata_every: Duration,
    /// Changes when a report was committed.
    pub reported: watch::Sender<u64>,
}

/// The driver.
pub struct Driver {
    parts: Parts,
    trust: Option<Arc<Mutex<Trust>>>,
    sender: mpsc::Sender<Input>,
    models: HashMap<ModelName, Model>,
    assignment: u64,
    desired: Option<AbortHandle>,
    last_refusal: Option<String>,
}

/// One model's update.
struct Model {
    machine: Machine,
    pointer: Pointer,
    staged: Option<Slot>,
    baseline: VecDeque<Health>,
    task: Option<AbortHandle>,
    generation: u64,
}

impl Model {
    fn new(machine: Machine, pointer: Pointer) -> Self {
        Self { machine, pointer, staged: None, baseline: VecDeque::new(), task: None, generation: 0 }
    }

    fn baseline(&self) -> Health {
        let mut sum = Health::default();
        self.baseline.iter().for_each(|health| sum.merge(health));
        sum
    }
}

impl Driver {
    /// Decides from the pointers what the last life was doing, loads what is to run, and returns the
    /// driver ready to run. `sender` is the driver's own inbox.
    pub async fn boot(mut parts: Parts, sender: mpsc::Sender<Input>) -> Self {
        let trust = parts.trust.take().map(|trust| Arc::new(Mutex::new(trust)));
        let mut driver = Self {
            parts,
            trust,
            sender,
            models: HashMap::new(),
            assignment: 0,
            desired: None,
            last_refusal: None,
        };
        driver.start_models().await;
        driver
    }

    /// Writes a report durably and tells the uplink.
    pub fn report(&self, event: report::Event) {
        let report = Report { at: clock::now(), event };
        match self.parts.journal.report(&report) {
            Ok(()) => self.parts.reported.send_modify(|n| *n += 1),
            Err(error) => tracing::error!(%error, "a report was lost"),
        }
    }

    /// Runs until shutdown.
    pub async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut healths: mpsc::Receiver<Healths>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut metadata = tokio::time::interval(self.parts.metadata_every);
        loop {
            tokio::select! {
                input = inbox.recv() => match input {
                    Some(input) => self.handle(input),
                    None => return,
                },
                closed = healths.recv() => if let Some(closed) = closed { self.observe(closed) },
                _ = tick.tick() => {
                    let models: Vec<ModelName> = self.models.keys().cloned().collect();
                    models.iter().for_each(|model| self.step(model, Event::Tick));
                }
                _ = metadata.tick() => self.spawn_refresh(),
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Connected => self.report(report::Event::Hello(self.inventory())),
            Input::Desired(bytes) => self.spawn_desired(bytes),
            Input::Command(command) => self.command(command),
            Input::ReportsAcknowledged(upto) => {
                if let Err(error) = self.parts.journal.acknowledge(upto) {
                    tracing::warn!(%error, "acknowledged reports stay until the next acknowledgement");
                }
                self.parts.reported.send_modify(|n| *n += 1);
            }
            Input::Assigned(assignment) => self.assigned(&assignment),
            Input::Refused(refusal) => {
                // Told once, not at every try.
                let key = format!("{} {}", refusal.what, refusal.error.code);
                if self.last_refusal.as_ref() != Some(&key) {
                    tracing::warn!(
                        what = refusal.what,
                        code = refusal.error.code,
                        "{}",
                        refusal.error.message
                    );
                    self.report(report::Event::Refused(refusal));
                    self.last_refusal = Some(key);
                }
            }
            Input::Step(step) => self.step_done(step),
        }
    }

    fn command(&mut self, command: Command) {
        self.spawn_refresh();
        let detail = format!("{:?} begun", command.action);
        self.report(report::Event::CommandResult { id: command.id, ok: true, detail });
    }

    fn assigned(&mut self, assignment: &Verified<Assignment>) {
        self.assignment = assignment.sequence;
        self.last_refusal = None;
        let named = |model: &ModelName| assignment.models.iter().any(|entry| entry.release.model == *model);
        let withdrawn: Vec<ModelName> = self.models.keys().filter(|model| !named(model)).cloned().collect();
        withdrawn.iter().for_each(|model| self.step(model, Event::Withdrawn));
        for entry in &assignment.models {
            let want = Want {
                release: entry.release.clone(),
                rollout: entry.rollout.clone(),
                assignment: assignment.sequence,
                policy: Policy {
                    duration: entry.probation.duration,
                    min_requests: entry.probation.min_requests,
                },
            };
            let model = entry.release.model.clone();
            if !self.models.contains_key(&model) {
                let bad = self.parts.journal.bad().unwrap_or_default();
                let machine = Machine::idle(model.clone(), None, bad);
                self.models.insert(model.clone(), Model::new(machine, Pointer::default()));
            }
            let attempts =
                self.parts.journal.attempts(&want.release, want.rollout.as_ref()).unwrap_or_default();
            self.step(&model, Event::Assigned { want, attempts });
        }
    }

    fn observe(&mut self, closed: Healths) {
        for (release, health) in closed {
            let Some(model) = self.models.get_mut(&release.model) else { continue };
            if model.machine.state() == &State::Idle && model.machine.running() == Some(&release) {
                if model.baseline.len() == BASELINE_WINDOWS {
                    model.baseline.pop_front();
                }
                model.baseline.push_back(health);
            } else {
                let name = release.model.clone();
                self.step(&name, Event::Observed { release, health: Box::new(health) });
            }
        }
    }

    /// Feeds one event to a model's machine and performs what it says, in order.
    fn step(&mut self, name: &ModelName, event: Event) {
        let Some(model) = self.models.get_mut(name) else { return };
        let effects = model.machine.step(event, clock::now());
        let mut answers = Vec::new();
        for effect in effects {
            answers.extend(self.perform(name, effect));
        }
        self.tell_status(name);
        // Steps that were done on the spot answer after the effects of their own event.
        for event in answers {
            self.step(name, event);
        }
    }

    fn perform(&mut self, name: &ModelName, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Report(update) => {
                let (state, error) = (update.state, update.error.as_ref());
                tracing::info!(release = %update.release, ?state, code = error.map(|e| e.code.as_str()),
                    message = error.map(|e| e.message.as_str()), "update");
                self.report(report::Event::Update(update));
                None
            }
            Effect::Fetch(release) => {
                self.spawn_fetch(name, release);
                None
            }
            Effect::Verify(_) => {
                self.spawn_verify(name);
                None
            }
            Effect::SelfTest(want) => {
                if let Err(error) = self.parts.journal.count_attempt(&want.release, want.rollout.as_ref()) {
                    return Some(Event::Failed(Failure::new(Code::StorageFailed, error.to_string())));
                }
                self.spawn_self_test(name);
                None
            }
            Effect::Activate(_) => {
                self.spawn_load(name);
                None
            }
            Effect::Confirm(release) => {
                self.confirm(name, &release);
                None
            }
            Effect::RollBack(release) => self.roll_back(name, &release),
            Effect::Remove(release) => {
                self.remove(name, &release);
                None
            }
            Effect::Cancel => {
                if let Some(model) = self.models.get_mut(name) {
                    model.generation += 1;
                    if let Some(task) = model.task.take() {
                        task.abort();
                    }
                }
                None
            }
            Effect::Collect => {
                self.collect(name);
                None
            }
            Effect::RememberBad(release, rollout) => {
                let stored = self.parts.journal.remember_bad(&release, rollout.as_ref());
                if let Err(error) = stored.and_then(|()| self.parts.journal.clear_attempts(&release)) {
                    tracing::error!(%error, "a failed release may be tried again after a restart");
                }
                None
            }
        }
    }

    fn step_done(&mut self, step: Step) {
        let Some(model) = self.models.get_mut(&step.model) else { return };
        if step.generation != model.generation {
            return;
        }
        model.task = None;
        let event = match step.done {
            Done::Fetched(slot) => {
                model.staged = Some(slot);
                Event::Fetched
            }
            Done::Verified => Event::Verified,
            Done::SelfTested => Event::SelfTested,
            Done::Loaded(loaded) => self.activate(&step.model, loaded),
            Done::Restored(loaded) => {
                match loaded {
                    Some(loaded) => self.parts.models.activate(loaded, Keep::Nothing),
                    None => self.parts.models.remove(step.model.as_str()),
                }
                Event::RolledBack
            }
            Done::Failed(failure) => Event::Failed(failure),
        };
        self.step(&step.model, event);
    }

    /// Pointer first, then the swap: from the pointer on, a restart runs the candidate, with trials.
    fn activate(&mut self, name: &ModelName, loaded: Arc<Loaded>) -> Event {
        let Some(model) = self.models.get_mut(name) else {
            return Event::Failed(Failure::new(Code::StorageFailed, "model is gone"));
        };
        let previous = Box::new(model.baseline());
        // Before the pointer: a restart on probation compares with it.
        if let Err(error) = self.parts.journal.keep_baseline(name, &previous) {
            return Event::Failed(Failure::new(Code::StorageFailed, error.to_string()));
        }
        let assignment = model.machine.state().job().map_or(0, |job| job.want.assignment);
        let pointer = model.pointer.activate(loaded.slot.clone(), assignment);
        if let Err(error) = self.parts.slots.write_pointer(name, &pointer) {
            return Event::Failed(Failure::new(Code::StorageFailed, error.to_string()));
        }
        model.pointer = pointer;
        self.parts.models.activate(loaded, Keep::Previous);
        Event::Activated { previous }
    }

    fn confirm(&mut self, name: &ModelName, release: &ReleaseId) {
        let Some(model) = self.models.get_mut(name) else { return };
        let pointer = model.pointer.confirm();
        match self.parts.slots.write_pointer(name, &pointer) {
            Ok(()) => model.pointer = pointer,
            // Runs on; after a restart it is on probation again.
            Err(error) => tracing::error!(%error, "confirmation is not durable"),
        }
        model.baseline.clear();
        let journal = &self.parts.journal;
        if let Err(error) = journal.clear_attempts(release).and_then(|()| journal.forget_bad(release)) {
            tracing::warn!(%error, "what is known of earlier attempts is not cleared");
        }
        self.parts.models.confirm(name.as_str());
    }

    fn roll_back(&mut self, name: &ModelName, release: &ReleaseId) -> Option<Event> {
        let model = self.models.get_mut(name)?;
        // A failed activation may not have reached the pointer.
        if model.pointer.active.as_ref().is_some_and(|slot| slot.release == *release) {
            let pointer = model.pointer.revert();
            if let Err(error) = self.parts.slots.write_pointer(name, &pointer) {
                // The model in memory is taken back all the same; trials bring a restart back too.
                tracing::error!(%error, "rollback is not durable yet");
            }
            model.pointer = pointer;
        }
        let active = self.parts.models.find(name.as_str(), None).ok();
        if active.as_ref().is_some_and(|loaded| loaded.slot.release != *release)
            || self.parts.models.revert(name.as_str())
        {
            return Some(Event::RolledBack);
        }
        self.spawn_restore(name);
        None
    }

    /// Takes a model out that is no longer assigned, and tells the cloud what runs now.
    fn remove(&mut self, name: &ModelName, release: &ReleaseId) {
        let Some(model) = self.models.get_mut(name) else { return };
        let pointer = Pointer { sequence: model.pointer.sequence + 1, ..Pointer::default() };
        match self.parts.slots.write_pointer(name, &pointer) {
            Ok(()) => model.pointer = pointer,
            // After a restart it runs until the assignment is heard again.
            Err(error) => tracing::error!(%error, "removal is not durable"),
        }
        model.baseline.clear();
        self.parts.models.remove(name.as_str());
        tracing::info!(%release, "removed: no longer assigned");
        self.report(report::Event::Hello(self.inventory()));
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

    fn tell_status(&self, name: &ModelName) {
        let Some(model) = self.models.get(name) else { return };
        let update = model.machine.state().job().zip(model.machine.phase()).map(|(job, phase)| {
            json!({ "state": phase, "release": job.want.release, "rollout": job.want.rollout,
                "assignment": job.want.assignment, "since": job.began })
        });
        self.parts.status.set_update(name.as_str(), update);
    }

    fn inventory(&self) -> Inventory {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
        );
        let running = self.models.values().filter_map(|model| {
            let slot = model.pointer.active.as_ref()?;
            Some(Running {
                release: slot.release.clone(),
                manifest_sha256: slot.digest.clone(),
                confirmed: model.pointer.trials.is_none(),
            })
        });
        Inventory {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            os: sysinfo::System::long_os_version().unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_kib: system.total_memory() / 1024,
            labels: self.parts.labels.clone(),
            running: running.collect(),
            assignment: self.assignment,
        }
    }

    fn refusal(what: &str, failure: Failure) -> Input {
        let error = ErrorReport { code: failure.code, message: failure.message };
        Input::Refused(Refusal { what: what.to_owned(), error })
    }
}
