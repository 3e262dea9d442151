//! The recorder: one thread that owns the telemetry store. It counts observations into the current window,
//! samples cases, commits in batches and deletes what the cloud acknowledged. The inference path only
//! tries to send to it: a full queue is a counted drop, never a wait.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use farlight_device::health::Health;
use farlight_device::sampling::{Candidate, Keep, Policy, Sampler};
use farlight_device::window::{Answer, Builder, Observation, Outcome};
use farlight_inference::{Item, Prediction, RunError, Values, profile};
use farlight_release::manifest::Datatype;
use farlight_wire::case::{CaseTensor, TensorEncoding};
use farlight_wire::limits::MAX_CASE_TENSOR;
use farlight_wire::{Case, Millis, ReleaseId, Seq, Stream};
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::models::Loaded;
use crate::runtime::{self, Runtime};
use crate::store::Store;
use crate::vitals::Vitals;

/// Observations that may wait: at 10,000 requests a second, what arrives in 100 ms.
const QUEUE: usize = 1_024;
/// After a request the thread rests for so long, so that those that follow need not wake it: a wake-up per request
/// costs the request more than the counting does. What comes meanwhile fits the queue many times over.
const REST: Duration = Duration::from_millis(5);
/// Longest time a record stays uncommitted.
const COMMIT_EVERY: Duration = Duration::from_millis(250);
/// Cases committed at once.
const COMMIT_CASES: usize = 100;
/// Longest request id kept, bytes.
const MAX_ID: usize = 128;

/// What the inference path saw of one request.
pub struct Seen {
    loaded: Arc<Loaded>,
    outcome: Outcome,
    raw: Vec<f32>,
    id: String,
    violated: bool,
    latency: Duration,
    answer: Option<(Summary, Duration)>,
}

/// What sampling and counting need of a prediction.
#[derive(Clone, Copy)]
struct Summary {
    class: Option<usize>,
    top: usize,
    score: f32,
    margin: f32,
    non_finite: bool,
    abstained: bool,
}

impl Seen {
    /// An answered request.
    pub fn answered(
        loaded: Arc<Loaded>,
        item: Item,
        prediction: &Prediction,
        id: &str,
        latency: Duration,
        infer: Duration,
    ) -> Self {
        let summary = Summary {
            class: prediction.class,
            top: prediction.top,
            score: prediction.score,
            margin: prediction.margin,
            non_finite: prediction.non_finite,
            abstained: prediction.abstained,
        };
        let violated = prediction.violations > 0;
        let id = id.chars().take(MAX_ID).collect();
        let raw = floats(item);
        Self { loaded, outcome: Outcome::Ok, raw, id, violated, latency, answer: Some((summary, infer)) }
    }

    /// A request that the pipeline refused or that failed.
    pub fn failed(loaded: Arc<Loaded>, item: Item, error: &RunError, latency: Duration) -> Self {
        let (outcome, violated) = match error {
            RunError::Contract { .. } => (Outcome::Refused, true),
            RunError::Length { .. } | RunError::Inputs(_) => (Outcome::Refused, false),
            RunError::Engine(_) => (Outcome::Failed, false),
        };
        let raw = floats(item);
        Self { loaded, outcome, raw, id: String::new(), violated, latency, answer: None }
    }

    /// A request that found no place.
    pub fn rejected(loaded: Arc<Loaded>) -> Self {
        Self {
            loaded,
            outcome: Outcome::Rejected,
            raw: Vec::new(),
            id: String::new(),
            violated: false,
            latency: Duration::ZERO,
            answer: None,
        }
    }
}

/// The main input for profile and cases; none where it is text.
fn floats(item: Item) -> Vec<f32> {
    match item.main {
        Values::Fp32(values) => values,
        other => other.to_f32().map(|values| values.into_owned()).unwrap_or_default(),
    }
}

enum Message {
    Seen(Box<Seen>),
    Acknowledged(Stream, Seq),
    Flush,
    Turn(oneshot::Sender<()>),
    Stop,
}

/// A closed window's health of each release.
pub type Healths = Vec<(ReleaseId, Health)>;

/// The sending side; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// How the recorder works.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Length of a window.
    pub window: Duration,
    /// Ceiling of the store, bytes.
    pub store_max_bytes: u64,
    /// Whether raw inputs may be kept.
    pub cases: bool,
    /// Bytes of cases a day.
    pub case_bytes_per_day: u64,
}

/// The running recorder.
pub struct Running {
    /// The sending side.
    pub recorder: Recorder,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    /// Closes the current window, commits everything and ends the thread.
    pub fn stop(self) {
        let _ = self.recorder.sender.send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the recorder ended by a panic");
        }
    }
}

/// Starts the recorder. Closed windows' health goes to `healths`; `committed` changes after each commit.
///
/// # Errors
/// When no thread can be started.
pub fn start(
    store: Store,
    plan: Plan,
    vitals: Vitals,
    runtime: Runtime,
    healths: tokio::sync::mpsc::Sender<Healths>,
    committed: watch::Sender<u64>,
) -> std::io::Result<Running> {
    let (sender, receiver) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let recorder = Recorder { sender, dropped: Arc::clone(&dropped) };
    let writer = Writer {
        store,
        plan,
        vitals,
        runtime,
        healths,
        committed,
        dropped,
        window: Builder::open(clock::now()),
        closes: Instant::now() + plan.window,
        samplers: HashMap::new(),
        cases: Vec::new(),
        commit_by: None,
        bins: Vec::new(),
    };
    let thread = std::thread::Builder::new().name("recorder".into()).spawn(move || writer.run(&receiver))?;
    Ok(Running { recorder, thread })
}

impl Recorder {
    /// Hands over an observation, or counts it as dropped when the queue is full.
    pub fn see(&self, seen: Seen) {
        if self.sender.try_send(Message::Seen(Box::new(seen))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells that the cloud has everything up to `upto`.
    pub fn acknowledged(&self, stream: Stream, upto: Seq) {
        // Lost when the queue is full; the cloud acknowledges again.
        let _ = self.sender.try_send(Message::Acknowledged(stream, upto));
    }

    /// Returns when the thread has done all that it was told before: never, when it hangs.
    pub async fn turn(&self) {
        let (done, turned) = oneshot::channel();
        // A full queue is work that it has not done yet.
        let mut message = Message::Turn(done);
        while let Err(TrySendError::Full(unsent)) = self.sender.try_send(message) {
            message = unsent;
            tokio::time::sleep(REST).await;
        }
        let _ = turned.await;
    }

    /// Closes the window now.
    pub fn flush(&self) {
        let _ = self.sender.try_send(Message::Flush);
    }
}

struct Writer {
    store: Store,
    plan: Plan,
    vitals: Vitals,
    runtime: Runtime,
    healths: tokio::sync::mpsc::Sender<Healths>,
    committed: watch::Sender<u64>,
    dropped: Arc<AtomicU64>,
    window: Builder,
    closes: Instant,
    samplers: HashMap<ReleaseId, Sampler>,
    cases: Vec<Case>,
    commit_by: Option<Instant>,
    bins: Vec<(usize, usize)>,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut asked = false;
        loop {
            let due = self.commit_by.map_or(self.closes, |by| by.min(self.closes));
            let wait = || due.saturating_duration_since(Instant::now());
            let message = match receiver.try_recv() {
                Ok(message) => Ok(message),
                Err(_) => {
                    if std::mem::take(&mut asked) {
                        std::thread::sleep(REST.min(wait()));
                    }
                    receiver.recv_timeout(wait())
                }
            };
            asked |= matches!(message, Ok(Message::Seen(_)));
            match message {
                Ok(Message::Seen(seen)) => self.see(*seen),
                Ok(Message::Acknowledged(stream, upto)) => {
                    if let Err(error) = self.store.acknowledge(stream, upto) {
                        tracing::warn!(%error, "acknowledged records stay until the next acknowledgement");
                    }
                    self.committed.send_modify(|n| *n += 1);
                }
                Ok(Message::Flush) => self.close_window(),
                Ok(Message::Turn(done)) => {
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.close_window();
                    return;
                }
            }
            let now = Instant::now();
            if now >= self.closes {
                self.close_window();
            } else if self.commit_by.is_some_and(|by| now >= by) || self.cases.len() >= COMMIT_CASES {
                self.commit(&[]);
            }
        }
    }

    fn see(&mut self, seen: Seen) {
        let loaded = &*seen.loaded;
        let manifest = &loaded.manifest;
        let release = &loaded.slot.release;
        self.bins.clear();
        if seen.raw.len() == loaded.elements() {
            let bins = &mut self.bins;
            profile::bins(manifest, &seen.raw, |feature, bin| bins.push((feature, bin)));
        }
        let answer = seen.answer.map(|(summary, infer)| Answer {
            class: summary.class,
            score_bin: profile::score_bin(manifest, summary.score),
            non_finite: summary.non_finite,
            abstained: summary.abstained,
            infer_us: infer.as_micros() as u64,
        });
        self.window.observe(&Observation {
            release,
            shape: &loaded.shape,
            outcome: seen.outcome,
            violated: seen.violated,
            latency_us: seen.latency.as_micros() as u64,
            answer,
            bins: &self.bins,
        });
        if let Some((summary, _)) = seen.answer
            && self.plan.cases
        {
            self.sample(&seen, summary);
        }
    }

    fn sample(&mut self, seen: &Seen, summary: Summary) {
        let manifest = &seen.loaded.manifest;
        let release = &seen.loaded.slot.release;
        let now = clock::now();
        let wanted = &manifest.sampling;
        let runtime = self.runtime.get();
        let changed = runtime::find(&runtime, release.model.as_str());
        let bytes_per_day = changed.and_then(|c| c.case_bytes_per_day).unwrap_or(wanted.bytes_per_day);
        let policy = Policy {
            hard_permille: changed.and_then(|c| c.hard_permille).unwrap_or(wanted.hard_permille),
            control_permille: changed.and_then(|c| c.control_permille).unwrap_or(wanted.control_permille),
            // The owner's own ceiling holds whatever is released.
            bytes_per_day: bytes_per_day.min(self.plan.case_bytes_per_day),
        };
        let (encoding, width) = match manifest.input.datatype {
            Datatype::Fp32 | Datatype::Fp16 => (TensorEncoding::F16, 2),
            Datatype::Uint8 | Datatype::Bool => (TensorEncoding::U8, 1),
            // What half precision cannot hold.
            Datatype::Uint16
            | Datatype::Uint32
            | Datatype::Uint64
            | Datatype::Int8
            | Datatype::Int16
            | Datatype::Int32
            | Datatype::Int64
            | Datatype::Fp64 => (TensorEncoding::F32, 4),
            // Text is never kept.
            Datatype::Bytes => return,
        };
        let bytes = seen.raw.len() * width;
        if bytes > MAX_CASE_TENSOR {
            return;
        }
        let mut hasher = DefaultHasher::new();
        (summary.top, &self.bins).hash(&mut hasher);
        let candidate = Candidate {
            score: summary.score,
            margin: summary.margin,
            novelty: profile::novelty(manifest, &self.bins),
            undecided: summary.abstained || summary.non_finite,
            violation: seen.violated,
            class: summary.top as u32,
            classes: manifest.labels.len() as u32,
            fingerprint: hasher.finish(),
            bytes: bytes as u64,
        };
        if !self.samplers.contains_key(release) {
            // Samplers of releases that are gone are few and small; the table is still bounded.
            if self.samplers.len() >= farlight_wire::limits::MAX_MODELS {
                self.samplers.clear();
            }
            self.samplers.insert(release.clone(), Sampler::new(policy));
        }
        let Some(sampler) = self.samplers.get_mut(release) else { return };
        sampler.set_policy(policy);
        if let Some(keep) = sampler.decide(&candidate, rand::random(), now) {
            let case = case(seen, summary, keep, encoding, now);
            self.cases.push(case);
            self.commit_by.get_or_insert(Instant::now() + COMMIT_EVERY);
        }
    }

    fn close_window(&mut self) {
        self.closes = Instant::now() + self.plan.window;
        let mut vitals = self.vitals.read();
        vitals.evicted = self.store.take_evicted();
        vitals.dropped = self.dropped.swap(0, Ordering::Relaxed);
        let (window, health) = self.window.close(clock::now(), vitals);
        if !health.is_empty() && self.healths.try_send(health).is_err() {
            tracing::warn!("the update machine is busy; a window's health was not looked at");
        }
        self.commit(&[window]);
    }

    fn commit(&mut self, windows: &[farlight_wire::Window]) {
        self.commit_by = None;
        if let Err(error) = self.store.commit(windows, &self.cases) {
            // A full disk: make room and try once more, else the records are lost and counted.
            tracing::warn!(%error, "commit failed; evicting");
            let evicted = self.store.evict(self.plan.store_max_bytes / 2);
            let again = evicted.and_then(|_| self.store.commit(windows, &self.cases));
            if let Err(error) = again {
                let lost = windows.len() + self.cases.len();
                self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
                tracing::error!(%error, records = lost, "records lost");
            }
        }
        self.cases.clear();
        if let Err(error) = self.store.evict(self.plan.store_max_bytes) {
            tracing::warn!(%error, "eviction failed");
        }
        self.committed.send_modify(|n| *n += 1);
    }
}

fn case(seen: &Seen, summary: Summary, keep: Keep, encoding: TensorEncoding, at: Millis) -> Case {
    let bytes = match encoding {
        TensorEncoding::U8 => seen.raw.iter().map(|v| v.clamp(0.0, 255.0) as u8).collect(),
        TensorEncoding::F16 => seen.raw.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        TensorEncoding::F32 => seen.raw.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Case {
        at,
        release: seen.loaded.slot.release.clone(),
        request_id: seen.id.clone(),
        kind: keep.kind,
        kept_permille: keep.kept_permille,
        hardness_permille: keep.hardness_permille,
        class: summary.top as u32,
        score_permille: (summary.score.clamp(0.0, 1.0) * 1000.0) as u16,
        input: CaseTensor {
            shape: seen.loaded.manifest.input.shape.iter().map(|d| *d as u32).collect(),
            encoding,
            bytes,
        },
    }
}
