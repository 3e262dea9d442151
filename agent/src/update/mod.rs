//! The update driver: the one owner of the update machines, pointers and the journal. It feeds events to
//! `farlight_device::update`, performs its effects and reports. Everything slow (network, hashing, engine)
//! runs in tasks that answer with an event, so that a rollback waits for nothing.

mod boot;
mod inventory;
mod local;
mod perform;
mod steps;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use farlight_device::health::{Health, Policy};
use farlight_device::pointer::{Origin, Pointer, Slot};
use farlight_device::schedule::{self, Hold};
use farlight_device::shadow::{self, Shadowed};
use farlight_device::update::{Event, Failure, KnownBad, Machine, State, Want};
use farlight_release::Verified;
use farlight_release::assignment::{Assignment, ModelAssignment};
use farlight_release::config;
use farlight_wire::report::{self, Progress, Refusal};
use farlight_wire::{Command, Millis, ModelName, Report, Seq};
use serde_json::json;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;

pub use local::Local;

use crate::clock::{self, Zone};
use crate::fetch::Repository;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::models::{Loaded, Models};
use crate::recorder::Healths;
use crate::runtime::{ConfigSlot, Runtime};
use crate::slots::Slots;
use crate::source::Source;
use crate::status::Status;
use crate::transfer;
use crate::trust::Trust;

/// Windows of the confirmed release that a candidate is compared with.
const BASELINE_WINDOWS: usize = 60;
/// How often time is told to the machines.
const TICK: Duration = Duration::from_millis(500);
/// Reports of how far one download is.
const PROGRESS_REPORTS: u64 = 4;

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
    /// A verified assignment, with the digest that signed metadata gives each of its releases.
    Assigned(Box<Verified<Assignment>>, Vec<Slot>),
    /// Metadata or an assignment was refused.
    Refused(Refusal),
    /// A step's task ended.
    Step(Step),
    /// Something that is asked at the device itself.
    Local(Local),
}

/// The answer of a step's task. An older generation's answer is dropped.
pub struct Step {
    model: ModelName,
    generation: u64,
    done: Done,
}

/// What runs under a name: a model, or the runtime configuration.
pub enum Ready {
    /// A model in memory.
    Model(Arc<Loaded>),
    /// A configuration.
    Config(ConfigSlot),
}

/// What a step's task did.
pub enum Done {
    /// The slot is on disk.
    Fetched(Slot),
    /// The slot was hashed again.
    Verified,
    /// Golden vectors passed; what was chosen to run, where there was a choice.
    SelfTested(Option<Box<report::Choice>>),
    /// The candidate is in memory, to be shadowed so.
    ShadowReady(Arc<Loaded>, shadow::Policy),
    /// The candidate did this in the shadow.
    Shadowed(Box<Shadowed>),
    /// It is in memory, ready to be swapped in.
    Loaded(Ready),
    /// The previous release is in memory again (`None`: there was none).
    Restored(Option<Ready>),
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
    /// What a configuration release changes.
    pub runtime: Runtime,
    /// Releases on disk.
    pub slots: Slots,
    /// The trust store; `None` when it is lost.
    pub trust: Option<Trust>,
    /// Where releases come from.
    pub repository: Repository,
    /// Reports, attempts, failures and history.
    pub journal: Journal,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// The agent's own program, which is its own child for self-tests.
    pub program: PathBuf,
    /// Longest self-test.
    pub self_test: Duration,
    /// Time in which other files and engines are tried than the first that passed.
    pub choose: Duration,
    /// How often metadata is looked at.
    pub metadata_every: Duration,
    /// When releases may be activated; always when empty.
    pub activation_windows: Vec<schedule::Window>,
    /// The time zone of the windows.
    pub zone: Zone,
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
    paused_until: Millis,
    lock: Option<(String, Millis)>,
    hold: Option<Hold>,
}

/// One model's update, or that of the configuration.
struct Model {
    machine: Machine,
    pointer: Pointer,
    staged: Option<Slot>,
    baseline: VecDeque<Health>,
    task: Option<AbortHandle>,
    generation: u64,
    progress: Arc<transfer::Progress>,
    received: Arc<AtomicU64>,
    /// Parts of the download that were reported.
    told: u64,
    /// Who asked for the job, and the bundle it came from.
    origin: Origin,
    bundle: Option<Source>,
    /// What the candidate did in the shadow so far; `None` when there is no shadow.
    shadowed: Option<Shadowed>,
}

impl Model {
    fn new(machine: Machine, pointer: Pointer) -> Self {
        Self {
            machine,
            pointer,
            staged: None,
            baseline: VecDeque::new(),
            task: None,
            generation: 0,
            progress: Arc::default(),
            received: Arc::default(),
            told: 0,
            origin: Origin::Cloud,
            bundle: None,
            shadowed: None,
        }
    }

    fn baseline(&self) -> Health {
        let mut sum = Health::default();
        self.baseline.iter().for_each(|health| sum.merge(health));
        sum
    }

    fn remember(&mut self, health: Health) {
        if self.baseline.len() == BASELINE_WINDOWS {
            self.baseline.pop_front();
        }
        self.baseline.push_back(health);
    }
}

fn is_config(name: &ModelName) -> bool {
    name.as_str() == config::NAME
}

impl Driver {
    /// Decides from the pointers what the last life was doing, loads what is to run, and returns the
    /// driver ready to run. `sender` is the driver's own inbox.
    pub async fn boot(mut parts: Parts, sender: mpsc::Sender<Input>) -> Self {
        let trust = parts.trust.take().map(|trust| Arc::new(Mutex::new(trust)));
        let paused_until = parts.journal.paused_until().unwrap_or_else(|error| {
            tracing::warn!(%error, "a pause of updates is forgotten");
            Millis(0)
        });
        let mut driver = Self {
            parts,
            trust,
            sender,
            models: HashMap::new(),
            assignment: 0,
            desired: None,
            last_refusal: None,
            paused_until,
            lock: None,
            hold: None,
        };
        driver.start_models().await;
        driver.look_at_hold();
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
                _ = tick.tick() => self.tick(),
                _ = metadata.tick() => self.spawn_refresh(),
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn tick(&mut self) {
        self.look_at_hold();
        for name in self.names() {
            self.step(&name, Event::Tick);
            self.tell_progress(&name);
        }
    }

    fn names(&self) -> Vec<ModelName> {
        self.models.keys().cloned().collect()
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
            Input::Assigned(assignment, slots) => self.assigned(&assignment, slots),
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
            Input::Local(local) => self.local(local),
        }
    }

    fn assigned(&mut self, assignment: &Verified<Assignment>, slots: Vec<Slot>) {
        self.assignment = assignment.sequence;
        self.last_refusal = None;
        // What a person installed at the device stays until an assignment that is newer than that.
        let stays = |model: &Model| {
            model.pointer.origin == Origin::Local && assignment.sequence <= model.pointer.assignment
        };
        let named = |model: &ModelName| assignment.models.iter().any(|entry| entry.release.model == *model);
        let withdrawn: Vec<ModelName> = self
            .models
            .iter()
            .filter(|(name, model)| !named(name) && !stays(model))
            .map(|(name, _)| name.clone())
            .collect();
        withdrawn.iter().for_each(|model| self.step(model, Event::Withdrawn));
        for (entry, slot) in assignment.models.iter().zip(slots) {
            if !self.models.get(&entry.release.model).is_some_and(stays) {
                self.want(want(entry, slot, assignment.sequence), Origin::Cloud, None);
            }
        }
    }

    /// Feeds a wish to its model's machine, which is made for a model that is new here.
    fn want(&mut self, want: Want, origin: Origin, bundle: Option<Source>) {
        let name = want.slot.release.model.clone();
        if !self.models.contains_key(&name) {
            let bad = self.parts.journal.bad().unwrap_or_default();
            let machine = Machine::idle(name.clone(), None, bad);
            self.models.insert(name.clone(), Model::new(machine, Pointer::default()));
            self.step(&name, Event::Hold(self.hold.clone()));
        }
        if let Some(model) = self.models.get_mut(&name) {
            (model.origin, model.bundle) = (origin, bundle);
        }
        let attempts =
            self.parts.journal.attempts(&want.slot.digest, want.rollout.as_ref()).unwrap_or_default();
        self.step(&name, Event::Assigned { want, attempts });
    }

    fn observe(&mut self, closed: Healths) {
        let mut all = Health::default();
        for (release, health) in closed {
            all.merge(&health);
            let Some(model) = self.models.get_mut(&release.model) else { continue };
            let running = model.machine.running().filter(|slot| slot.release == release).cloned();
            match running {
                Some(_) if model.machine.state() == &State::Idle => model.remember(health),
                Some(slot) => {
                    self.step(&release.model, Event::Observed { slot, health: Box::new(health) });
                }
                None => {}
            }
        }
        self.observe_config(all);
    }

    /// A configuration is judged by what all models do under it.
    fn observe_config(&mut self, all: Health) {
        let Ok(name) = config::NAME.parse::<ModelName>() else { return };
        let Some(model) = self.models.get_mut(&name) else { return };
        // Which class is most frequent says nothing across models.
        let health = Health { classes: farlight_wire::Counts::default(), ..all };
        match model.machine.running().cloned() {
            Some(slot) if model.machine.state() != &State::Idle => {
                self.step(&name, Event::Observed { slot, health: Box::new(health) });
            }
            _ => model.remember(health),
        }
    }

    /// Looks whether an activation has to wait now, and tells the machines when that changed.
    fn look_at_hold(&mut self) {
        let now = clock::now();
        let lock = self.lock.as_ref().map(|(holder, until)| (holder.as_str(), *until));
        let windows = &self.parts.activation_windows;
        let hold = schedule::hold(self.paused_until, lock, windows, now, self.parts.zone.offset_minutes(now));
        if hold == self.hold {
            return;
        }
        match &hold {
            Some(hold) => tracing::info!(%hold, "activations wait"),
            None => tracing::info!("activations go on"),
        }
        self.hold = hold;
        self.parts.status.set_hold(self.hold.as_ref().map(ToString::to_string));
        for name in self.names() {
            self.step(&name, Event::Hold(self.hold.clone()));
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

    fn tell_status(&self, name: &ModelName) {
        let Some(model) = self.models.get(name) else { return };
        let machine = &model.machine;
        let update = machine.state().job().zip(machine.state().phase()).map(|(job, phase)| {
            let progress = model.progress.get().filter(|_| matches!(machine.state(), State::Fetching(_)));
            json!({ "state": phase, "release": job.want.slot.release, "rollout": job.want.rollout,
                "assignment": job.want.assignment, "since": job.began, "phase_since": job.since,
                "origin": model.origin,
                "waits_for": machine.hold().filter(|_| matches!(machine.state(), State::Staged(_)))
                    .map(ToString::to_string),
                "progress": progress.map(|(done, total)| json!({ "done": done, "total": total })) })
        });
        self.parts.status.set_update(name.as_str(), update);
        if is_config(name) {
            let release = machine.running().map(|slot| slot.release.to_string());
            self.parts.status.set_config(release);
        }
    }

    /// Reports a download in quarters, so that a fleet sees which devices move.
    fn tell_progress(&mut self, name: &ModelName) {
        let Some(model) = self.models.get_mut(name) else { return };
        let State::Fetching(job) = model.machine.state() else { return };
        let Some((done, total)) = model.progress.get() else { return };
        let part = done.saturating_mul(PROGRESS_REPORTS) / total.max(1);
        if part <= model.told || part >= PROGRESS_REPORTS {
            self.tell_status(name);
            return;
        }
        model.told = part;
        let (release, rollout) = (job.want.slot.release.clone(), job.want.rollout.clone());
        self.report(report::Event::Progress(Progress { release, rollout, done, total }));
        self.tell_status(name);
    }

    fn refusal(what: &str, failure: Failure) -> Input {
        Input::Refused(Refusal { what: what.to_owned(), error: failure.report() })
    }
}

fn want(entry: &ModelAssignment, slot: Slot, assignment: u64) -> Want {
    Want {
        slot,
        rollout: entry.rollout.clone(),
        assignment,
        policy: Policy { duration: entry.probation.duration, min_requests: entry.probation.min_requests },
        shadow: entry.shadow.map(|shadow| shadow::Policy {
            trial: Policy { duration: shadow.duration, min_requests: shadow.min_requests },
            share_permille: shadow.share.get(),
            cpu_permille: shadow.cpu.get(),
            agreement_permille: shadow.agreement.get(),
        }),
        known_bad: if entry.retry_failed { KnownBad::TryAgain } else { KnownBad::Refuse },
    }
}
