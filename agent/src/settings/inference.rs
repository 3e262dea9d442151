//! `[inference]`: queues, workers, streams and engines, for all models and for single ones.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use farlight_inference::{Kind, Provider};
use farlight_release::manifest::Precision;
use serde::Deserialize;

use crate::choice::{self, Pins};
use crate::models::{Plan, Scheduling};
use crate::queue::Policy;
use crate::streams;

/// Queues, workers and engines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inference {
    /// What runs models.
    pub engine: Engine,
    /// Which file of a release that has several.
    pub variant: File,
    /// Time in which a new release is tried with other files and engines than the first that passes, seconds.
    pub choose_seconds: u64,
    /// Where it is, and what it is to use.
    pub onnxruntime: OnnxRuntime,
    /// Requests that run at once for each model; 0 means one a core.
    pub workers: usize,
    /// Requests that may wait for each model; more are answered 503.
    pub queue: usize,
    /// Longest time from a request's arrival to its answer, milliseconds.
    #[serde(alias = "max_wait_ms")]
    pub deadline_ms: u64,
    /// Most requests that are run together.
    pub max_batch: usize,
    /// Longest time a request waits for others to be run together with, milliseconds.
    pub batch_window_ms: u64,
    /// Streams whose state is kept for each model that has one.
    pub max_streams: usize,
    /// A stream that is not used for so long may be forgotten, seconds.
    pub stream_idle_seconds: u64,
    /// Cores that requests are answered on; all when empty.
    pub cores: Vec<usize>,
    /// Longest time that a core may take to wake up, microseconds; none means that the kernel decides.
    pub wake_latency_us: Option<u32>,
    /// Longest time that a thread looks for the next request before it rests, while they come as quickly, microseconds; 0 means
    /// that it rests at once.
    pub poll_us: u64,
    /// What is different for single models.
    pub model: BTreeMap<String, Model>,
}

/// What is different for one model; what is left out is as for all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// As [`Inference::engine`].
    pub engine: Option<Engine>,
    /// As [`Inference::variant`].
    pub variant: Option<File>,
    /// As [`Inference::workers`].
    pub workers: Option<usize>,
    /// As [`Inference::queue`].
    pub queue: Option<usize>,
    /// As [`Inference::deadline_ms`].
    pub deadline_ms: Option<u64>,
    /// As [`Inference::max_batch`].
    pub max_batch: Option<usize>,
    /// As [`Inference::batch_window_ms`].
    pub batch_window_ms: Option<u64>,
    /// As [`Inference::max_streams`].
    pub max_streams: Option<usize>,
    /// As [`Inference::stream_idle_seconds`].
    pub stream_idle_seconds: Option<u64>,
}

/// What runs models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The faster, where the board has ONNX Runtime; measured before a release is first activated.
    #[default]
    Auto,
    /// Built in.
    Tract,
    /// Of the board.
    OnnxRuntime,
}

/// Which file of a release that has several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum File {
    /// The fastest whose golden vectors pass; all are fetched.
    #[default]
    Auto,
    /// Weights in single precision.
    Fp32,
    /// Weights in half precision.
    F16,
    /// Weights of eight bits.
    Int8,
}

/// ONNX Runtime of the board.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnnxRuntime {
    /// Its library; none when empty.
    pub library: PathBuf,
    /// Execution providers in order of preference, `cpu` being its own code for the processor.
    pub providers: Vec<Provider>,
    /// Threads of one inference; 0 means as many as the workers leave.
    pub threads: usize,
    /// Its own session options by name.
    pub session_options: BTreeMap<String, String>,
}

impl Default for OnnxRuntime {
    fn default() -> Self {
        let (library, session_options) = (PathBuf::new(), BTreeMap::new());
        Self { library, providers: vec![Provider::cpu()], threads: 0, session_options }
    }
}

impl OnnxRuntime {
    /// What is to be loaded; `None` without a library.
    pub fn open(&self) -> Option<farlight_inference::OnnxRuntime> {
        let Self { library, providers, session_options, .. } = self.clone();
        let named = !library.as_os_str().is_empty();
        named.then_some(farlight_inference::OnnxRuntime { library, providers, session_options })
    }
}

impl Default for Inference {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            variant: File::Auto,
            choose_seconds: 60,
            onnxruntime: OnnxRuntime::default(),
            workers: 0,
            queue: 64,
            deadline_ms: 1_000,
            max_batch: 1,
            batch_window_ms: 0,
            max_streams: 256,
            stream_idle_seconds: 600,
            cores: Vec::new(),
            wake_latency_us: None,
            poll_us: 250,
            model: BTreeMap::new(),
        }
    }
}

impl Inference {
    /// How the requests of every model are run on `cores` cores.
    pub fn plan(&self, cores: usize) -> Plan {
        let models = self.model.iter().map(|(name, own)| (name.clone(), self.scheduling(own, cores)));
        Plan { default: self.scheduling(&Model::default(), cores), models: models.collect::<HashMap<_, _>>() }
    }

    fn scheduling(&self, own: &Model, cores: usize) -> Scheduling {
        let workers = match own.workers.unwrap_or(self.workers) {
            0 => cores.max(1),
            workers => workers,
        };
        let queue = Policy {
            workers,
            queue: own.queue.unwrap_or(self.queue),
            deadline: Duration::from_millis(own.deadline_ms.unwrap_or(self.deadline_ms)),
            batch: own.max_batch.unwrap_or(self.max_batch),
            window: Duration::from_millis(own.batch_window_ms.unwrap_or(self.batch_window_ms)),
        };
        let streams = streams::Policy {
            streams: own.max_streams.unwrap_or(self.max_streams),
            idle: Duration::from_secs(own.stream_idle_seconds.unwrap_or(self.stream_idle_seconds)),
        };
        Scheduling { queue, streams }
    }

    /// What is set of the engine, the file and the threads of every model, on a device with so many cores.
    pub fn pins(&self, cores: usize) -> choice::Plan {
        let pins = |own: &Model| Pins {
            engine: match own.engine.unwrap_or(self.engine) {
                Engine::Auto => None,
                Engine::Tract => Some(Kind::Tract),
                Engine::OnnxRuntime => Some(Kind::OnnxRuntime),
            },
            precision: match own.variant.unwrap_or(self.variant) {
                File::Auto => None,
                File::Fp32 => Some(Precision::Fp32),
                File::F16 => Some(Precision::F16),
                File::Int8 => Some(Precision::Int8),
            },
            threads: self.onnxruntime.threads,
            cores,
        };
        let models = self.model.iter().map(|(name, own)| (name.clone(), pins(own)));
        choice::Plan { default: pins(&Model::default()), models: models.collect() }
    }

    /// Calls `check(holds, problem)` for what is no number.
    pub(super) fn check(&self, mut check: impl FnMut(bool, String)) {
        let library = &self.onnxruntime.library;
        let named = !library.as_os_str().is_empty();
        check(
            !named || library.is_absolute(),
            format!("inference.onnxruntime.library: {} is not an absolute path", library.display()),
        );
        check(
            !self.onnxruntime.providers.is_empty(),
            "inference.onnxruntime.providers: name one, or leave it out for cpu".into(),
        );
        let all = std::iter::once(("inference".to_owned(), Some(self.engine)));
        let single = self.model.iter().map(|(name, own)| (format!("inference.model.{name}"), own.engine));
        for (path, engine) in all.chain(single) {
            check(
                named || engine != Some(Engine::OnnxRuntime),
                format!("{path}.engine: onnxruntime needs inference.onnxruntime.library"),
            );
        }
    }

    /// Calls `range(key, value, low, high)` for every number.
    pub(super) fn ranges(&self, mut range: impl FnMut(&str, u64, u64, u64)) {
        let all = Model {
            engine: None,
            variant: None,
            workers: Some(self.workers),
            queue: Some(self.queue),
            deadline_ms: Some(self.deadline_ms),
            max_batch: Some(self.max_batch),
            batch_window_ms: Some(self.batch_window_ms),
            max_streams: Some(self.max_streams),
            stream_idle_seconds: Some(self.stream_idle_seconds),
        };
        let single = self.model.iter().map(|(name, own)| (format!("inference.model.{name}"), own));
        for (path, own) in std::iter::once(("inference".to_owned(), &all)).chain(single) {
            let size = |value: Option<usize>| value.map(|value| value as u64);
            for (key, value, low, high) in [
                ("workers", size(own.workers), 0, 256),
                ("queue", size(own.queue), 0, 65_536),
                ("deadline_ms", own.deadline_ms, 1, 600_000),
                ("max_batch", size(own.max_batch), 1, 256),
                ("batch_window_ms", own.batch_window_ms, 0, 1_000),
                ("max_streams", size(own.max_streams), 1, 65_536),
                ("stream_idle_seconds", own.stream_idle_seconds, 1, 86_400),
            ] {
                if let Some(value) = value {
                    range(&format!("{path}.{key}"), value, low, high);
                }
            }
        }
        range("inference.choose_seconds", self.choose_seconds, 0, 3_600);
        range("inference.onnxruntime.threads", self.onnxruntime.threads as u64, 0, 256);
        for (index, core) in self.cores.iter().enumerate() {
            range(&format!("inference.cores[{index}]"), *core as u64, 0, 1_023);
        }
        range("inference.poll_us", self.poll_us, 0, 10_000);
        range("inference.wake_latency_us", self.wake_latency_us.unwrap_or(0).into(), 0, 1_000_000);
    }
}
