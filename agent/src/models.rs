//! The model table and the inference path: queue → worker → reply. The table is swapped atomically; a request in
//! flight finishes on the model it began with. A request that finds a free place takes no lock; none touches a disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::ArrayQueue;
use farlight_device::pointer::Slot;
use farlight_device::window::Shape;
use farlight_inference::{
    EngineError, Item, LoadError, Options, Pipeline, Port, Prediction, RunError, State, Worker,
};
use farlight_release::Verified;
use farlight_release::manifest::Manifest;

use crate::clock;
use crate::metrics::{Metrics, Reason, Stage};
use crate::queue::{Place, Policy, Priority, Queue, Refused, Turn};
use crate::recorder::{Recorder, Seen};
use crate::runtime::Runtime;
use crate::shadow::Mirror;
use crate::streams::{self, Streams};

/// A model that takes longer makes way for the other tasks of its thread; a hop costs a small one more than it takes.
const LONG: Duration = Duration::from_micros(500);

/// A release in memory, ready to answer.
pub struct Loaded {
    /// Which.
    pub slot: Slot,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Sizes of its count vectors.
    pub shape: Shape,
    /// What it did since it was loaded.
    pub metrics: Metrics,
    pipeline: Pipeline,
    workers: ArrayQueue<Worker>,
    queue: Arc<Queue<Item, Ran>>,
    streams: Streams,
    /// A candidate that sees a share of the inputs, and decides nothing.
    mirror: ArcSwapOption<Mirror>,
}

/// How the requests of one model are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// Places and queue.
    pub queue: Policy,
    /// Streams of a model with state.
    pub streams: streams::Policy,
}

/// How the requests of every model are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Models that nothing else is said of.
    pub default: Scheduling,
    /// By model.
    pub models: HashMap<String, Scheduling>,
}

impl From<Scheduling> for Plan {
    fn from(default: Scheduling) -> Self {
        Self { default, models: HashMap::new() }
    }
}

/// An item that was run, for who sent it.
struct Ran {
    item: Item,
    result: Result<Prediction, RunError>,
    started: Instant,
    /// Time of contract and preprocessing, of the engine, and of postprocessing.
    times: [Duration; 3],
}

impl Loaded {
    /// Loads a verified release.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn new(
        slot: Slot,
        manifest: &Verified<Manifest>,
        model: &[u8],
        scheduling: Scheduling,
    ) -> Result<Self, LoadError> {
        let options = Options { batches: scheduling.queue.batch > 1 };
        let pipeline = Pipeline::load_with(manifest, model, options)?;
        let workers = ArrayQueue::new(scheduling.queue.workers.max(1));
        for _ in 0..workers.capacity() {
            // The queue has room for exactly these.
            let _ = workers.push(pipeline.worker()?);
        }
        let manifest = Arc::clone(pipeline.manifest());
        let profile = &manifest.profile;
        let shape = Shape {
            classes: manifest.labels.len(),
            scores: profile.score_edges.len() + 1,
            features: profile.features.iter().map(|f| f.edges.len() + 2).collect(),
        };
        Ok(Self {
            slot,
            shape,
            metrics: Metrics::default(),
            workers,
            pipeline,
            queue: Queue::new(scheduling.queue),
            streams: Streams::new(scheduling.streams),
            mirror: ArcSwapOption::empty(),
            manifest,
        })
    }

    /// Elements of one main input.
    pub fn elements(&self) -> usize {
        self.pipeline.elements()
    }

    /// What it answers with.
    pub fn outputs(&self) -> &[Port] {
        self.pipeline.outputs()
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &'static str {
        self.pipeline.engine()
    }

    /// How its requests are scheduled.
    pub fn policy(&self) -> &Policy {
        self.queue.policy()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.length()
    }

    /// Streams whose state it keeps.
    pub fn streams(&self) -> usize {
        self.streams.count()
    }

    /// What a client that was turned away is told to wait: as long as those that wait now take, at least a second,
    /// which is the unit of the header.
    pub fn retry_after(&self) -> Duration {
        self.queue.wait(self.queue.length()).max(Duration::from_secs(1))
    }

    /// One more worker, beside those that answer.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn worker(&self) -> Result<Worker, LoadError> {
        self.pipeline.worker()
    }

    /// What a stream begins with; `None` for a model without state.
    pub fn state(&self) -> Option<State> {
        self.pipeline.state()
    }

    /// Lets a candidate see what this release answers, or no longer.
    pub fn mirror(&self, mirror: Option<Arc<Mirror>>) {
        self.mirror.store(mirror);
    }

    /// Runs an item, and with it those that wait when several can be run at once.
    async fn run(&self, place: Place<Item, Ran>, item: Item, state: Option<&mut State>) -> Ran {
        let policy = self.policy();
        if !self.pipeline.batches() {
            return self.on_this_thread(1, || self.run_one(place, item, state));
        }
        // Worth waiting for others only when they came in numbers before.
        if !policy.window.is_zero() && self.queue.length() > 0 && self.queue.length() + 1 < policy.batch {
            tokio::time::sleep(policy.window).await;
        }
        let others = self.queue.more(policy.batch - 1);
        if others.is_empty() {
            return self.on_this_thread(1, || self.run_one(place, item, state));
        }
        self.on_this_thread(1 + others.len(), move || {
            let (mut items, mut senders) = (vec![item], Vec::with_capacity(others.len()));
            for mut waiting in others {
                items.push(std::mem::replace(&mut waiting.work, Item::from(Vec::new())));
                senders.push(waiting);
            }
            let mut clock = Clock::start();
            let results = self
                .with_worker(|worker| worker.answer_all(&items.iter().collect::<Vec<_>>(), || clock.mark()));
            let times = clock.stop();
            self.metrics.executed();
            self.queue.took(clock.started.elapsed(), items.len());
            drop(place);
            let results = results
                .unwrap_or_else(|error| items.iter().map(|_| Err(RunError::Engine(error.clone()))).collect());
            let started = clock.started;
            let mut ran =
                items.into_iter().zip(results).map(|(item, result)| Ran { item, result, started, times });
            let first = ran.next();
            for (sender, ran) in senders.into_iter().zip(ran) {
                // One whose sender is gone was run for nothing.
                sender.done(ran);
            }
            first.unwrap_or_else(|| Ran::lost(started))
        })
    }

    fn run_one(&self, place: Place<Item, Ran>, item: Item, state: Option<&mut State>) -> Ran {
        let mut clock = Clock::start();
        let mut fresh = None;
        // A call that is of no stream begins and ends one.
        let state = state.or_else(|| {
            fresh = self.pipeline.state();
            fresh.as_mut()
        });
        let result = self.with_worker(|worker| worker.answer(&item, state, || clock.mark()));
        let times = clock.stop();
        self.metrics.executed();
        self.queue.took(clock.started.elapsed(), 1);
        drop(place);
        let result = result.unwrap_or_else(|error| Err(RunError::Engine(error)));
        Ran { item, result, started: clock.started, times }
    }

    fn with_worker<T>(&self, run: impl FnOnce(&mut Worker) -> T) -> Result<T, EngineError> {
        // Places and workers are equally many, so that one is there; a new one is right too.
        let mut worker = match self.workers.pop() {
            Some(worker) => worker,
            None => self.pipeline.worker().map_err(|error| EngineError::Run(error.to_string()))?,
        };
        let result = run(&mut worker);
        let _ = self.workers.push(worker);
        Ok(result)
    }

    /// Small models run where they are; the runtime moves its other tasks away from a long one.
    fn on_this_thread<T>(&self, items: usize, run: impl FnOnce() -> T) -> T {
        let cost = self.queue.cost() * items as u32;
        if cost.is_zero() || cost > LONG { tokio::task::block_in_place(run) } else { run() }
    }
}

impl Ran {
    fn lost(started: Instant) -> Self {
        let result = Err(RunError::Engine(EngineError::Run("the answer is missing".to_owned())));
        Self { item: Item::from(Vec::new()), result, started, times: [Duration::ZERO; 3] }
    }
}

/// Takes the times of the stages of one run.
struct Clock {
    started: Instant,
    last: Instant,
    times: [Duration; 3],
    stage: usize,
}

impl Clock {
    fn start() -> Self {
        let started = Instant::now();
        Self { started, last: started, times: [Duration::ZERO; 3], stage: 0 }
    }

    fn mark(&mut self) {
        let now = Instant::now();
        if let Some(time) = self.times.get_mut(self.stage) {
            *time += now - self.last;
        }
        (self.last, self.stage) = (now, self.stage + 1);
    }

    fn stop(&mut self) -> [Duration; 3] {
        self.mark();
        self.times
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
    #[error("model {model:?} is busy: {why}")]
    Busy {
        /// The model.
        model: String,
        /// Queue full or deadline passed.
        why: &'static str,
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
    recorder: Recorder,
    runtime: Runtime,
}

impl Models {
    /// An empty table whose observations go to `recorder`, under the configuration `runtime`.
    pub fn new(scheduling: Plan, recorder: Recorder, runtime: Runtime) -> Self {
        Self { table: ArcSwap::default(), parked: ArcSwap::default(), scheduling, recorder, runtime }
    }

    /// How requests of a model are scheduled.
    pub fn scheduling(&self, model: &str) -> Scheduling {
        self.scheduling.models.get(model).copied().unwrap_or(self.scheduling.default)
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
        let refused = |why: &'static str| {
            loaded.metrics.failed(Reason::Busy, ask.arrived.elapsed());
            self.recorder.see(Seen::rejected(Arc::clone(&loaded)));
            InferError::Busy { model: name.to_owned(), why, retry_after: loaded.retry_after() }
        };
        let stream = match &ask.stream {
            Some(call) => Some(self.stream(&loaded, call, deadline, refused).await?),
            None => None,
        };
        let mut state = stream;
        let turn = match loaded.queue.enter() {
            Some(place) => Turn::Run(place, item),
            None => {
                let turn = loaded.queue.turn(item, ask.priority, deadline).await;
                match turn.map_err(|why| refused(why.why()))? {
                    // An answer that comes too late is worth nothing, and takes its place from one that does not.
                    Turn::Run(..) if loaded.queue.is_late(deadline) => {
                        return Err(refused(Refused::Late.why()));
                    }
                    turn => turn,
                }
            }
        };
        let ran = match turn {
            Turn::Run(place, item) => loaded.run(place, item, state.as_deref_mut()).await,
            Turn::Done(ran) => ran,
        };
        drop(state);
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
        refused: impl Fn(&'static str) -> InferError,
    ) -> Result<tokio::sync::OwnedMutexGuard<State>, InferError> {
        let name = loaded.slot.release.model.as_str();
        let fresh = loaded.state().ok_or_else(|| InferError::Stateless(name.to_owned()))?;
        let shared = loaded.streams.open(call, || fresh, Instant::now());
        let shared = shared.ok_or_else(|| refused("too many streams are open, or an id is too long"))?;
        let locked = tokio::time::timeout_at(deadline.into(), shared.lock_owned()).await;
        locked.map_err(|_| refused(Refused::Late.why()))
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
