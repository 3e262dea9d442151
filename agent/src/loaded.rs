//! A release in memory and how it runs: the items of requests on the workers' buffers, one at a time or several
//! together. Who may run and when is the queue's; which release answers is the model table's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam_queue::ArrayQueue;
use farlight_device::pointer::Slot;
use farlight_device::window::Shape;
use farlight_inference::{
    EngineError, Engines, Item, Kind, LoadError, Options, Pipeline, Port, Prediction, RunError, State, Worker,
};
use farlight_release::Verified;
use farlight_release::manifest::Manifest;

use crate::metrics::Metrics;
use crate::queue::{Place, Policy, Queue};
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
    pub(crate) queue: Arc<Queue<Item, Ran>>,
    pub(crate) streams: Streams,
    /// A candidate that sees a share of the inputs, and decides nothing.
    pub(crate) mirror: ArcSwapOption<Mirror>,
}

/// How the requests of one model are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// Places and queue.
    pub queue: Policy,
    /// Streams of a model with state.
    pub streams: streams::Policy,
    /// What runs it, if it can.
    pub engine: Kind,
    /// Threads of one inference in ONNX Runtime; 0 for as many as the places leave.
    pub threads: usize,
}

/// An item that was run, for who sent it.
pub(crate) struct Ran {
    pub(crate) item: Item,
    pub(crate) result: Result<Prediction, RunError>,
    pub(crate) started: Instant,
    /// Time of contract and preprocessing, of the engine, and of postprocessing.
    pub(crate) times: [Duration; 3],
}

impl Loaded {
    /// Loads a verified release with the engine that is scheduled for it, or with tract.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn new(
        slot: Slot,
        manifest: &Verified<Manifest>,
        model: &[u8],
        scheduling: Scheduling,
        engines: &Engines,
    ) -> Result<Self, LoadError> {
        let Scheduling { queue, engine, threads, .. } = scheduling;
        let options = Options { batches: queue.batch > 1, engine, workers: queue.workers, threads };
        let pipeline = Pipeline::load_with(manifest, model, options, engines)?;
        for reason in pipeline.refused() {
            tracing::warn!(release = %slot.release, engine = pipeline.engine(), "not as configured: {reason}");
        }
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

    /// The execution provider that runs it, where the engine has several.
    pub fn provider(&self) -> Option<&str> {
        self.pipeline.provider()
    }

    /// Why it does not run as it was configured to; nothing when it does.
    pub fn refused(&self) -> &[String] {
        self.pipeline.refused()
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

    /// Whether its calls hand a state on.
    pub fn has_state(&self) -> bool {
        self.pipeline.has_state()
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
    pub(crate) async fn run(&self, place: Place<Item, Ran>, item: Item, state: Option<&mut State>) -> Ran {
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
