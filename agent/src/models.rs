//! The model table and the inference path: queue → worker → reply. The table is swapped atomically; a request in
//! flight finishes on the model it began with. A request that finds a free place takes no lock; none touches a disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use farlight_device::pointer::Slot;
use farlight_inference::{Engines, Item, Prediction, RunError, State};

use crate::clock;
pub use crate::loaded::{How, Loaded, Scheduling};
use crate::loaded::{Ran, Work};
use crate::metrics::{Reason, Stage};
use crate::queue::{Priority, Refused, Turn};
use crate::recorder::{Recorder, Seen};
use crate::runtime::Runtime;
use crate::streams;

/// How the requests of every model are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Models that nothing else is said of.
    pub default: Scheduling,
    /// By model.
    pub models: HashMap<String, Scheduling>,
}

impl Plan {
    /// How requests of a model are run.
    pub fn of(&self, model: &str) -> Scheduling {
        self.models.get(model).copied().unwrap_or(self.default)
    }
}

/// The releases of one model that can answer.
#[derive(Clone)]
pub struct Entry {
    /// Answers requests that name no version.
    pub active: Arc<Loaded>,
    /// The last confirmed one while `active` is on probation: going back takes no loading.
    pub previous: Option<Arc<Loaded>>,
}

type Table = HashMap<String, Entry>;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// No such model or version.
    #[error("model {0:?} is not loaded")]
    Unknown(String),
    /// A configuration release switched it off.
    #[error("model {0:?} is switched off by the configuration")]
    Off(String),
    /// Too many requests wait, or one waited too long.
    #[error("model {model:?} is busy: {}", why.why())]
    Busy {
        /// The model.
        model: String,
        /// What there was no place or no time for.
        why: Refused,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request names a stream of a model that has none.
    #[error("model {0:?} has no state: leave out sequence_id")]
    Stateless(String),
    /// Another service did not answer.
    #[error("{0}")]
    Remote(String),
    /// The input or the engine failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// What a request asks besides its input.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Its id for cases and feedback.
    pub id: &'a str,
    /// When it came.
    pub arrived: Instant,
    /// Which is next.
    pub priority: Priority,
    /// Longest time from arrival to the answer, if shorter than the model's own.
    pub timeout: Option<Duration>,
    /// The stream that it belongs to.
    pub stream: Option<streams::Call<'a>>,
    /// The trace that it belongs to, in the form of the header `traceparent` (W3C Trace Context).
    pub trace: Option<&'a str>,
}

impl<'a> Ask<'a> {
    /// A request that comes now, and asks for nothing else.
    pub fn now(id: &'a str) -> Self {
        let (priority, arrived) = (Priority::default(), Instant::now());
        Self { id, arrived, priority, timeout: None, stream: None, trace: None }
    }
}

/// An answer with what the client wants to know.
pub struct Answer {
    /// The prediction.
    pub prediction: Prediction,
    /// The release that answered.
    pub loaded: Arc<Loaded>,
    /// How long each stage took.
    pub timing: Timing,
}

/// How long each stage of a request took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Until it had a place.
    pub queue: Duration,
    /// Contract and preprocessing.
    pub pre: Duration,
    /// The engine.
    pub infer: Duration,
    /// Postprocessing.
    pub post: Duration,
}

/// All models.
pub struct Models {
    table: ArcSwap<Table>,
    /// Releases that were taken out of memory on a client's wish.
    parked: ArcSwap<Vec<Slot>>,
    scheduling: Plan,
    engines: Engines,
    recorder: Recorder,
    runtime: Runtime,
}

impl Models {
    /// An empty table whose observations go to `recorder`, under the configuration `runtime`.
    pub fn new(scheduling: Plan, engines: Engines, recorder: Recorder, runtime: Runtime) -> Self {
        Self { table: ArcSwap::default(), parked: ArcSwap::default(), scheduling, engines, recorder, runtime }
    }

    /// The engines that are there.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// How requests of a model are scheduled.
    pub fn scheduling(&self, model: &str) -> Scheduling {
        self.scheduling.of(model)
    }

    /// Takes a model out of memory until it is activated again; `false` when it is not loaded.
    pub fn park(&self, model: &str) -> bool {
        let Ok(loaded) = self.find(model, None) else { return false };
        self.remove(model);
        self.parked.rcu(|parked| {
            let mut parked = Vec::clone(parked);
            parked.push(loaded.slot.clone());
            parked
        });
        true
    }

    /// Releases that were taken out of memory.
    pub fn parked(&self) -> Vec<Slot> {
        Vec::clone(&self.parked.load())
    }

    /// Puts a release in front; with `Keep::Previous` the one before stays loaded.
    pub fn activate(&self, loaded: Arc<Loaded>, keep: Keep) {
        let model = loaded.slot.release.model.to_string();
        self.unpark(&model);
        self.change(|table| {
            let before = table.remove(&model);
            let previous = match keep {
                Keep::Previous => before.map(|entry| entry.previous.unwrap_or(entry.active)),
                Keep::Nothing => None,
            };
            table.insert(model.clone(), Entry { active: Arc::clone(&loaded), previous });
        });
    }

    /// Lets go of the previous release of a model.
    pub fn confirm(&self, model: &str) {
        self.change(|table| {
            if let Some(entry) = table.get_mut(model) {
                entry.previous = None;
            }
        });
    }

    /// Puts the previous release in front again; `false` when it is not in memory.
    pub fn revert(&self, model: &str) -> bool {
        let mut done = false;
        self.change(|table| {
            if let Some(entry) = table.get_mut(model)
                && let Some(previous) = entry.previous.take()
            {
                entry.active = previous;
                done = true;
            }
        });
        done
    }

    fn unpark(&self, model: &str) {
        if self.parked.load().iter().any(|slot| slot.release.model.as_str() == model) {
            let others = |slot: &&Slot| slot.release.model.as_str() != model;
            self.parked.rcu(|parked| parked.iter().filter(others).cloned().collect::<Vec<_>>());
        }
    }

    /// Takes a model out.
    pub fn remove(&self, model: &str) {
        self.unpark(model);
        self.change(|table| {
            table.remove(model);
        });
    }

    fn change(&self, mut change: impl FnMut(&mut Table)) {
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            change(&mut table);
            table
        });
    }

    /// What is loaded, by name.
    pub fn list(&self) -> Vec<(String, Entry)> {
        let table = self.table.load();
        let mut list: Vec<_> = table.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    /// The release that answers for a model, or for one version of it.
    ///
    /// # Errors
    /// [`InferError::Unknown`].
    pub fn find(&self, model: &str, version: Option<&str>) -> Result<Arc<Loaded>, InferError> {
        let table = self.table.load();
        let unknown = || {
            InferError::Unknown(
                version.map_or_else(|| model.to_owned(), |version| format!("{model}/{version}")),
            )
        };
        let entry = table.get(model).ok_or_else(unknown)?;
        let Some(version) = version else { return Ok(Arc::clone(&entry.active)) };
        std::iter::once(&entry.active)
            .chain(&entry.previous)
            .find(|loaded| loaded.slot.release.version.to_string() == version)
            .cloned()
            .ok_or_else(unknown)
    }

    /// The release that was active before, where it is still in memory.
    pub fn previous(&self, model: &str) -> Option<Arc<Loaded>> {
        self.table.load().get(model)?.previous.clone()
    }

    /// Answers one item.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn infer(&self, loaded: Arc<Loaded>, item: Item, ask: &Ask<'_>) -> Result<Answer, InferError> {
        let name = loaded.slot.release.model.as_str();
        if self.runtime.is_off(name) {
            loaded.metrics.failed(Reason::Off, ask.arrived.elapsed());
            return Err(InferError::Off(name.to_owned()));
        }
        let policy = loaded.policy();
        let deadline = ask.arrived + ask.timeout.map_or(policy.deadline, |own| own.min(policy.deadline));
        let refused = |why: Refused| {
            loaded.metrics.failed(Reason::Busy, ask.arrived.elapsed());
            self.recorder.see(Seen::rejected(Arc::clone(&loaded)));
            InferError::Busy { model: name.to_owned(), why, retry_after: loaded.retry_after() }
        };
        let state = match &ask.stream {
            Some(call) => Some(self.stream(&loaded, call, deadline, refused).await?),
            None => None,
        };
        let work = Work { item, state };
        let turn = match loaded.queue.enter() {
            Some(place) => Turn::Run(place, work),
            None => {
                let turn = loaded.queue.turn(work, ask.priority, deadline).await;
                match turn.map_err(refused)? {
                    // An answer that comes too late is worth nothing, and takes its place from one that does not.
                    Turn::Run(..) if loaded.queue.is_late(deadline) => {
                        return Err(refused(Refused::Late));
                    }
                    turn => turn,
                }
            }
        };
        let ran = match turn {
            Turn::Run(place, work) => Arc::clone(&loaded).run(place, work, deadline).await,
            Turn::Done(ran) => ran,
        };
        if let Some(call) = ask.stream.filter(|call| call.end) {
            loaded.streams.end(call.id);
        }
        self.told(&loaded, ran, ask)
    }

    /// The state of the stream that a request belongs to, once the calls before it are done.
    async fn stream(
        &self,
        loaded: &Loaded,
        call: &streams::Call<'_>,
        deadline: Instant,
        refused: impl Fn(Refused) -> InferError,
    ) -> Result<tokio::sync::OwnedMutexGuard<State>, InferError> {
        let name = loaded.slot.release.model.as_str();
        if !loaded.has_state() {
            return Err(InferError::Stateless(name.to_owned()));
        }
        let shared = loaded.streams.open(call, || loaded.state(), Instant::now());
        let shared = shared.ok_or_else(|| refused(Refused::Streams))?;
        let locked = tokio::time::timeout_at(deadline.into(), shared.lock_owned()).await;
        locked.map_err(|_| refused(Refused::Late))
    }

    /// Tells everybody who wants to know how it went.
    fn told(&self, loaded: &Arc<Loaded>, ran: Ran, ask: &Ask<'_>) -> Result<Answer, InferError> {
        let Ran { item, mut result, started, times } = ran;
        let latency = ask.arrived.elapsed();
        let [pre, infer, post] = times;
        let timing = Timing { queue: started.saturating_duration_since(ask.arrived), pre, infer, post };
        let metrics = &loaded.metrics;
        match &mut result {
            Ok(prediction) => {
                if let Some(threshold) = self.runtime.abstain_below(loaded.slot.release.model.as_str()) {
                    prediction.abstain_below(threshold);
                }
                metrics.answered(clock::now().0);
                metrics.stage(Stage::Queue).add(timing.queue);
                for (stage, time) in [Stage::Pre, Stage::Infer, Stage::Post].into_iter().zip(times) {
                    metrics.stage(stage).add(time);
                }
                metrics.stage(Stage::Request).add(latency);
                if let Some(mirror) = &*loaded.mirror.load() {
                    mirror.offer(&item, prediction);
                }
            }
            Err(error) => metrics.failed(reason(error), latency),
        }
        let whole = pre + infer + post;
        let seen = match &result {
            Ok(prediction) => Seen::answered(Arc::clone(loaded), item, prediction, ask.id, latency, whole),
            Err(error) => Seen::failed(Arc::clone(loaded), item, error, latency),
        };
        self.recorder.see(seen);
        Ok(Answer { prediction: result?, loaded: Arc::clone(loaded), timing })
    }
}

fn reason(error: &RunError) -> Reason {
    match error {
        RunError::Contract { .. } => Reason::Contract,
        RunError::Length { .. } | RunError::Inputs(_) => Reason::Input,
        RunError::Engine(_) => Reason::Engine,
    }
}

/// Whether the release before stays loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// On probation: it does.
    Previous,
    /// At start or after a rollback: there is none.
    Nothing,
}
