//! A release in memory and how it runs: where the request is when it is quick, on threads of its own when it is long,
//! one request at a time or several together. Who may run and when is the queue's; which release answers is the model table's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam_queue::ArrayQueue;
use farlight_device::pointer::Slot;
use farlight_device::window::Shape;
use farlight_inference::{
    EngineError, Engines, Item, LoadError, Options, Pipeline, Port, Prediction, RunError, State, Worker,
};
use farlight_release::Verified;
use farlight_release::manifest::Manifest;

use tokio::sync::OwnedMutexGuard;

use crate::choice::Way;
use crate::metrics::Metrics;
use crate::queue::{Place, Policy, Queue, Reply, Turn};
use crate::seat::{Answers, Held, Job, Seat};
use crate::shadow::Mirror;
use crate::streams::{self, Streams};

/// A model that takes longer runs on a thread of its own; a change of threads costs a small one more than it takes.
const LONG: Duration = Duration::from_micros(500);

/// Runs before the first request, and how long they may take together.
const WARM_RUNS: usize = 3;
const WARM_TIME: Duration = Duration::from_millis(50);

/// A release in memory, ready to answer.
pub struct Loaded {
    /// Which.
    pub slot: Slot,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Sizes of its count vectors.
    pub shape: Shape,
    /// Precision of the weights that run.
    pub precision: String,
    /// What it did since it was loaded.
    pub metrics: Metrics,
    pipeline: Pipeline,
    seats: ArrayQueue<Seat>,
    pub(crate) queue: Arc<Queue<Work, Ran>>,
    /// Answers of its threads that wait for each other.
    pub(crate) held: Held,
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
}

/// What a release is loaded with.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// How its requests are run.
    pub scheduling: Scheduling,
    /// What runs it, if it can, and on how many threads.
    pub way: Way,
    /// The engines that are there.
    pub engines: &'a Engines,
    /// Precision of the file's weights, as the manifest has it.
    pub precision: &'a str,
}

/// A request that is to be run, with the state of its stream.
pub(crate) struct Work {
    pub(crate) item: Item,
    pub(crate) state: Option<OwnedMutexGuard<State>>,
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
        how: How<'_>,
    ) -> Result<Self, LoadError> {
        let How { scheduling, way, engines, precision } = how;
        let (Scheduling { queue, .. }, Way { engine, threads }) = (scheduling, way);
        let options = Options { batches: queue.batch > 1, engine, workers: queue.workers, threads };
        let pipeline = Pipeline::load_with(manifest, model, options, engines)?;
        for reason in pipeline.refused() {
            tracing::warn!(release = %slot.release, engine = pipeline.engine(), "not as configured: {reason}");
        }
        let seats = ArrayQueue::new(queue.workers.max(1));
        for _ in 0..seats.capacity() {
            // There is room for exactly these.
            let _ = seats.push(Seat::new(&pipeline)?);
        }
        let queue = Queue::new(queue);
        warm(&mut pipeline.worker()?, &pipeline, &queue);
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
            precision: precision.to_owned(),
            metrics: Metrics::default(),
            seats,
            pipeline,
            queue,
            held: Held::default(),
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

    /// Runs a request, and with it those that wait when several can be run at once. A model that is quick runs on
    /// the thread that asks; for a long one there are threads, so that the others of this thread need not wait.
    pub(crate) async fn run(self: Arc<Self>, place: Place<Work, Ran>, work: Work, deadline: Instant) -> Ran {
        let policy = *self.policy();
        // Worth waiting for others only when they came in numbers before.
        if self.pipeline.batches()
            && !policy.window.is_zero()
            && self.queue.length() > 0
            && self.queue.length() + 1 < policy.batch
        {
            tokio::time::sleep(policy.window).await;
        }
        let started = Instant::now();
        let mut seat = match self.seat() {
            Ok(seat) => seat,
            Err(error) => return Ran::failed(work.item, EngineError::Run(error.to_string()), started),
        };
        if self.queue.cost() <= LONG {
            let mut others = Answers::default();
            let ran = self.run_group(&mut seat.worker, work, &mut others);
            self.leave(seat);
            drop(place);
            others.send();
            return ran;
        }
        let (reply, answer) = Reply::here(deadline);
        let job = Box::new(Job { loaded: Arc::clone(&self), seat, place, work, reply });
        if let Err(job) = job.on_its_thread() {
            // Without a thread of its own a model holds up who asks, and answers.
            job.run();
        }
        match answer.await {
            Ok(Turn::Done(ran)) => ran,
            // The thread of a model answers whatever comes, or panics.
            Ok(Turn::Run(..)) | Err(_) => Ran::lost(started),
        }
    }

    /// Runs a request and as many of those that wait as can be run with it; the answer of the first, those of the others
    /// with `answers`.
    pub(crate) fn run_group(&self, worker: &mut Worker, first: Work, answers: &mut Answers) -> Ran {
        let most = if self.pipeline.batches() { self.policy().batch - 1 } else { 0 };
        let others = self.queue.more(most);
        if others.is_empty() {
            return self.run_one(worker, first);
        }
        let (mut items, mut senders) = (vec![first.item], Vec::with_capacity(others.len()));
        for waiting in others {
            let (work, sender) = waiting.split();
            items.push(work.item);
            senders.push(sender);
        }
        let mut clock = Clock::start();
        let results = worker.answer_all(&items.iter().collect::<Vec<_>>(), || clock.mark());
        let times = clock.stop();
        self.metrics.executed();
        self.queue.took(clock.started.elapsed(), items.len());
        let started = clock.started;
        let mut ran =
            items.into_iter().zip(results).map(|(item, result)| Ran { item, result, started, times });
        let first = ran.next();
        for (sender, ran) in senders.into_iter().zip(ran) {
            answers.add(sender, ran, Instant::now());
        }
        first.unwrap_or_else(|| Ran::lost(started))
    }

    /// What the next run takes, with as many of those that wait as can be run together, by what the model took lately.
    pub(crate) fn next_run(&self) -> Duration {
        let together =
            if self.pipeline.batches() { self.policy().batch.min(self.queue.length() + 1) } else { 1 };
        self.queue.cost().saturating_mul(u32::try_from(together).unwrap_or(u32::MAX))
    }

    fn run_one(&self, worker: &mut Worker, work: Work) -> Ran {
        let Work { item, mut state } = work;
        let mut clock = Clock::start();
        let mut fresh = None;
        // A call that is of no stream begins and ends one.
        let state = state.as_deref_mut().or_else(|| {
            fresh = self.pipeline.state();
            fresh.as_mut()
        });
        let result = worker.answer(&item, state, || clock.mark());
        let times = clock.stop();
        self.metrics.executed();
        self.queue.took(clock.started.elapsed(), 1);
        Ran { item, result, started: clock.started, times }
    }

    /// Places and seats are equally many, so that one is there; a new one is right too.
    fn seat(&self) -> Result<Seat, LoadError> {
        self.seats.pop().map_or_else(|| Seat::new(&self.pipeline), Ok)
    }

    pub(crate) fn leave(&self, seat: Seat) {
        let _ = self.seats.push(seat);
    }
}

impl Ran {
    fn failed(item: Item, error: EngineError, started: Instant) -> Self {
        Self { item, result: Err(RunError::Engine(error)), started, times: [Duration::ZERO; 3] }
    }

    /// The answer of a thread that gave none.
    pub(crate) fn lost(started: Instant) -> Self {
        Self::failed(Item::from(Vec::new()), EngineError::Run("the answer is missing".to_owned()), started)
    }
}

/// Runs a new release on zeros, so that its memory is there before the first request, and it is known how long it
/// takes. The last run counts: the first also pays for what is not in memory yet.
fn warm(worker: &mut Worker, pipeline: &Pipeline, queue: &Queue<Work, Ran>) {
    let zeros = Item::from(vec![0.0; pipeline.elements()]);
    let began = Instant::now();
    let mut took = Duration::ZERO;
    for _ in 0..WARM_RUNS {
        let started = Instant::now();
        // Whether zeros are within the contract of its data is of no interest.
        if worker.answer(&zeros, pipeline.state().as_mut(), || {}).is_err() {
            return;
        }
        took = started.elapsed();
        if began.elapsed() > WARM_TIME {
            break;
        }
    }
    queue.took(took, 1);
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
