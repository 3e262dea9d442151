//! The model table and the inference path: router → worker → reply. The table is swapped atomically; a
//! request in flight finishes on the model it began with. The path takes no lock and touches no disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::ArrayQueue;
use farlight_device::pointer::Slot;
use farlight_device::window::Shape;
use farlight_inference::{LoadError, Pipeline, Prediction, RunError, Worker};
use farlight_release::Verified;
use farlight_release::manifest::Manifest;
use tokio::sync::Semaphore;

use crate::recorder::{Recorder, Seen};
use crate::runtime::Runtime;
use crate::shadow::Mirror;

/// A release in memory, ready to answer.
pub struct Loaded {
    /// Which.
    pub slot: Slot,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Sizes of its count vectors.
    pub shape: Shape,
    pipeline: Pipeline,
    workers: ArrayQueue<Worker>,
    permits: Semaphore,
    waiting: AtomicUsize,
    /// A candidate that sees a share of the inputs, and decides nothing.
    mirror: ArcSwapOption<Mirror>,
}

/// How requests are scheduled.
#[derive(Debug, Clone, Copy)]
pub struct Scheduling {
    /// Requests that run at once.
    pub workers: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Longest wait.
    pub max_wait: Duration,
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
        let pipeline = Pipeline::load(manifest, model)?;
        let workers = ArrayQueue::new(scheduling.workers.max(1));
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
        let permits = Semaphore::new(workers.capacity());
        let (waiting, mirror) = (AtomicUsize::new(0), ArcSwapOption::empty());
        Ok(Self { slot, shape, permits, workers, pipeline, waiting, mirror, manifest })
    }

    /// Elements of one input.
    pub fn elements(&self) -> usize {
        self.pipeline.elements()
    }

    /// One more worker, beside those that answer.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn worker(&self) -> Result<Worker, LoadError> {
        self.pipeline.worker()
    }

    /// Lets a candidate see what this release answers, or no longer.
    pub fn mirror(&self, mirror: Option<Arc<Mirror>>) {
        self.mirror.store(mirror);
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
    },
    /// The input or the engine failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// An answer with what the client and the recorder want to know.
pub struct Answer {
    /// The prediction.
    pub prediction: Prediction,
    /// The release that answered.
    pub loaded: Arc<Loaded>,
}

/// All models.
pub struct Models {
    table: ArcSwap<Table>,
    scheduling: Scheduling,
    recorder: Recorder,
    runtime: Runtime,
}

impl Models {
    /// An empty table whose observations go to `recorder`, under the configuration `runtime`.
    pub fn new(scheduling: Scheduling, recorder: Recorder, runtime: Runtime) -> Self {
        Self { table: ArcSwap::default(), scheduling, recorder, runtime }
    }

    /// How requests are scheduled.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// Puts a release in front; with `Keep::Previous` the one before stays loaded.
    pub fn activate(&self, loaded: Arc<Loaded>, keep: Keep) {
        let model = loaded.slot.release.model.to_string();
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

    /// Takes a model out.
    pub fn remove(&self, model: &str) {
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

    /// Answers one input. `arrived` is when the request came; `id` is its id for cases and feedback.
    ///
    /// # Errors
    /// [`InferError`].
    pub async fn infer(
        &self,
        loaded: Arc<Loaded>,
        raw: Vec<f32>,
        id: &str,
        arrived: Instant,
    ) -> Result<Answer, InferError> {
        let name = loaded.slot.release.model.as_str();
        if self.runtime.is_off(name) {
            return Err(InferError::Off(name.to_owned()));
        }
        let abstain_below = self.runtime.abstain_below(name);
        let Some(permit) = self.permit(&loaded).await else {
            self.recorder.see(Seen::rejected(Arc::clone(&loaded)));
            let why = "its queue is full or the wait was too long";
            return Err(InferError::Busy { model: loaded.slot.release.model.to_string(), why });
        };
        let started = Instant::now();
        // Small models run where they are; the runtime moves its other tasks away from a long one.
        let mut result = tokio::task::block_in_place(|| match loaded.workers.pop() {
            Some(mut worker) => {
                let result = worker.run(&raw);
                let _ = loaded.workers.push(worker);
                result
            }
            // Permits and workers are equally many, so this does not happen; a new worker is right too.
            None => loaded
                .pipeline
                .worker()
                .map_err(|e| RunError::Engine(farlight_inference::EngineError::Run(e.to_string())))
                .and_then(|mut worker| worker.run(&raw)),
        });
        let infer = started.elapsed();
        drop(permit);
        let latency = arrived.elapsed();
        if let (Some(threshold), Ok(prediction)) = (abstain_below, &mut result) {
            prediction.abstain_below(threshold);
        }
        if let (Some(mirror), Ok(prediction)) = (&*loaded.mirror.load(), &result) {
            mirror.offer(&raw, prediction);
        }
        let seen = match &result {
            Ok(prediction) => Seen::answered(Arc::clone(&loaded), raw, prediction, id, latency, infer),
            Err(error) => Seen::failed(Arc::clone(&loaded), raw, error, latency),
        };
        self.recorder.see(seen);
        Ok(Answer { prediction: result?, loaded })
    }

    async fn permit<'a>(&self, loaded: &'a Loaded) -> Option<tokio::sync::SemaphorePermit<'a>> {
        if let Ok(permit) = loaded.permits.try_acquire() {
            return Some(permit);
        }
        let waiting = Waiting::enter(&loaded.waiting, self.scheduling.queue)?;
        let permit = tokio::time::timeout(self.scheduling.max_wait, loaded.permits.acquire()).await;
        drop(waiting);
        permit.ok()?.ok()
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

/// A place in the queue, given back on drop even when the client goes away.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        if count.fetch_add(1, Ordering::AcqRel) >= limit {
            count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
