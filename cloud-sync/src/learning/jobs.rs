//! Training jobs: collects labelled cases and old data, runs the trainer as a child process with a
//! deadline, judges its candidate, and records every step. One job at a time; killing is cancelling.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farlight_fleet::evaluation::{Criteria, Report, Verdict};
use farlight_release::Verified;
use farlight_release::digest::sha256;
use farlight_release::manifest::Manifest;
use farlight_training::{Samples, Settings};
use farlight_wire::{ModelName, ReleaseId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::datasets::{Part, Snapshots};
use super::gate;
use super::job::{CONTRACT, Folder, Job, Metrics, TaskSpec};
use super::plan::{self, Labelled, Sets, Traced};
use super::records::{self, JobRecord};
use super::score;
use crate::cases::labelled_cases;
use crate::registry::Registry;
use crate::store::Store;

/// Fewest labelled cases that are worth a training.
pub const MIN_LABELLED: usize = 10;
/// Longest that a job trains unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(3600);
/// How much of the trainer's standard error is kept.
const KEPT_STDERR: usize = 4096;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its turn.
    Queued,
    /// Collects cases and data.
    Preparing,
    /// The trainer runs.
    Training,
    /// The gate re-scores base and candidate.
    Evaluating,
    /// The gate passed: the candidate may be released.
    Passed,
    /// The gate failed.
    Refused,
    /// The gate has too little evidence.
    Inconclusive,
    /// The trainer found nothing better.
    NoImprovement,
    /// The model cannot be trained.
    NotTrainable,
    /// Something went wrong.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl State {
    /// True when nothing more happens.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Preparing | Self::Training | Self::Evaluating)
    }
}

/// What is known of a job beside its state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// Why it ended as it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Digest of the snapshot of everything it saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Labelled cases used: trained on, choosing the epoch, and for the gate alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases: Option<[usize; 3]>,
    /// Replayed old samples.
    #[serde(default)]
    pub replayed: usize,
    /// What the trainer says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainer: Option<Metrics>,
    /// The gate's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// SHA-256 of the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_sha256: Option<String>,
    /// Time from its turn to its end, ms.
    #[serde(default)]
    pub elapsed_ms: u64,
}

/// What to train.
#[derive(Debug, Clone)]
pub struct Order {
    /// The release to begin from.
    pub base: ReleaseId,
    /// Name of the data set with `train` and `holdout`.
    pub dataset: String,
    /// Its snapshot.
    pub snapshot: String,
    /// How to train.
    pub settings: Settings,
    /// What the gate asks for.
    pub criteria: Criteria,
    /// Longest time of training.
    pub deadline: Duration,
}

/// The part of the service that learns. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Learning {
    data: PathBuf,
    store: Store,
    registry: Registry,
    snapshots: Snapshots,
    trainer: PathBuf,
    slot: Arc<Semaphore>,
    running: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

/// How a run ended, when it did not go all the way.
struct End(State, String);

fn failed(error: impl std::fmt::Display) -> End {
    End(State::Failed, error.to_string())
}

impl Learning {
    /// Learning below a data folder; `trainer` is the program that knows `train-job DIR`.
    pub fn new(data: &Path, store: Store, registry: Registry, trainer: PathBuf) -> Result<Self, String> {
        Ok(Self {
            data: data.to_owned(),
            store,
            registry,
            snapshots: Snapshots::open(data).map_err(|error| error.to_string())?,
            trainer,
            slot: Arc::new(Semaphore::new(1)),
            running: Arc::default(),
        })
    }

    /// The snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// The folder of a job.
    pub fn folder(&self, id: &str) -> Folder {
        Folder(self.data.join("jobs").join(id))
    }

    /// Runs a recorded job in the background.
    pub fn begin(&self, id: String, order: Order) {
        let cancel = CancellationToken::new();
        self.lock().insert(id.clone(), cancel.clone());
        let learning = self.clone();
        tokio::spawn(async move {
            let Ok(_turn) = Arc::clone(&learning.slot).acquire_owned().await else { return };
            let start = Instant::now();
            let mut detail = Detail::default();
            let end = tokio::select! {
                end = learning.run(&id, &order, &mut detail) => end,
                () = cancel.cancelled() => Err(End(State::Cancelled, "cancelled by an operator".into())),
            };
            let state = end.unwrap_or_else(|End(state, message)| {
                detail.message = Some(message);
                state
            });
            detail.elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(job = id, ?state, elapsed_ms = detail.elapsed_ms, "training job ended");
            if let Err(error) = records::update(&learning.store, &id, state, &detail).await {
                tracing::error!(job = id, %error, "the end of a training job could not be recorded");
            }
            learning.lock().remove(&id);
        });
    }

    /// Stops a job; false when it is not running.
    pub fn cancel(&self, id: &str) -> bool {
        let running = self.lock();
        running.get(id).inspect(|token| token.cancel()).is_some()
    }

    /// Where the trainer is in a running job.
    pub fn progress(&self, job: &JobRecord) -> Option<farlight_training::fit::Epoch> {
        self.folder(&job.id).last_epoch()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manifest and the ONNX file of a release.
    ///
    /// # Errors
    /// What is missing.
    pub async fn release(&self, id: &ReleaseId) -> Result<(Verified<Manifest>, PathBuf), String> {
        let manifest = self
            .registry
            .manifest(id)
            .await
            .map_err(|error| error.to_string())?
            .ok_or_else(|| format!("release {id} is not published"))?;
        let variant = manifest
            .variants
            .iter()
            .find(|variant| variant.precision == "fp32" && variant.format == "onnx")
            .ok_or_else(|| format!("release {id} has no fp32 ONNX variant to train from"))?;
        let path = self.registry.blob(&variant.blob.id).await;
        Ok((manifest, path.ok_or_else(|| format!("the file of {id} is missing"))?))
    }

    async fn state(&self, id: &str, state: State, detail: &Detail) -> Result<(), End> {
        records::update(&self.store, id, state, detail).await.map_err(failed)
    }

    async fn run(&self, id: &str, order: &Order, detail: &mut Detail) -> Result<State, End> {
        self.state(id, State::Preparing, detail).await?;
        let (manifest, file) = self.release(&order.base).await.map_err(failed)?;
        let cases = labelled_cases(&self.store, &order.base.model).await.map_err(failed)?;
        let cases: Vec<Labelled> = cases
            .into_iter()
            .filter(|case| {
                case.shape == manifest.input.shape && (case.label as usize) < manifest.labels.len()
            })
            .map(|case| Labelled { id: case.id, device: case.device, input: case.input, label: case.label })
            .collect();
        if cases.len() < MIN_LABELLED {
            return Err(End(
                State::Failed,
                format!(
                    "{} labelled cases of {}; label at least {MIN_LABELLED}",
                    cases.len(),
                    order.base.model
                ),
            ));
        }
        let learning = self.clone();
        let (job, order_, manifest_) = (id.to_owned(), order.clone(), manifest.clone());
        let prepared = blocking(move || learning.prepare(&job, &order_, &manifest_, &file, cases)).await?;
        let Prepared { base, sets, snapshot } = prepared;
        let count = |set: &Traced| set.origin.iter().filter(|origin| !origin.is_empty()).count();
        detail.snapshot = Some(snapshot);
        detail.cases = Some([count(&sets.train), count(&sets.val), count(&sets.test_field)]);
        detail.replayed = sets.train.samples.len() - count(&sets.train);

        self.state(id, State::Training, detail).await?;
        self.train(id, order.deadline).await?;
        let folder = self.folder(id);
        detail.trainer =
            std::fs::read(folder.metrics()).ok().and_then(|text| serde_json::from_slice(&text).ok());

        self.state(id, State::Evaluating, detail).await?;
        let criteria = order.criteria;
        let report = blocking(move || {
            let candidate = super::job::read(&folder.candidate())?;
            let (old, field) = (&sets.test_old.samples, &sets.test_field.samples);
            let report = gate::judge(&manifest, &base, &candidate, old, field, &criteria);
            report.map(|report| (report, sha256(&candidate))).map_err(|error| error.to_string())
        })
        .await?;
        let (report, digest) = report;
        let state = match report.verdict {
            Verdict::Pass => State::Passed,
            Verdict::Fail => State::Refused,
            Verdict::Inconclusive => State::Inconclusive,
        };
        let missed = report.checks.iter().filter(|check| check.verdict != Verdict::Pass);
        let missed: Vec<String> = missed.map(|check| format!("{}: {}", check.name, check.detail)).collect();
        detail.message = (!missed.is_empty()).then(|| missed.join("; "));
        detail.candidate_sha256 = Some(digest);
        detail.report = Some(report);
        Ok(state)
    }

    fn prepare(
        &self,
        id: &str,
        order: &Order,
        manifest: &Manifest,
        file: &Path,
        cases: Vec<Labelled>,
    ) -> Result<Prepared, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let base = super::job::read(file)?;
        let read = |split| self.snapshots.read(&order.snapshot, split).map_err(|error| text(&error));
        let sets = plan::divide(cases, read("train")?, read("holdout")?, order.settings.seed);
        let part = |name: &str, set: &Traced| Part {
            name: name.to_owned(),
            samples: Samples { shape: manifest.input.shape.clone(), ..set.samples.clone() },
            origin: set.origin.clone(),
        };
        let parts = [
            part("train", &sets.train),
            part("val", &sets.val),
            part("test_old", &sets.test_old),
            part("test_field", &sets.test_field),
        ];
        let model: &ModelName = &order.base.model;
        let settings = Some(order.settings.clone());
        let snapshot = self
            .snapshots
            .keep(model, manifest.labels.len(), &parts, Some(order.snapshot.clone()), settings)
            .map_err(|error| text(&error))?;
        let prepared = sets
            .clone()
            .map(|samples| score::prepare(manifest, &base, samples))
            .map_err(|error| text(&error))?;
        let job = Job {
            contract: CONTRACT,
            job: id.to_owned(),
            device: "auto".into(),
            deadline_seconds: order.deadline.as_secs(),
            task: TaskSpec {
                kind: "classification".into(),
                classes: manifest.labels.clone(),
                input: manifest.input.name.clone(),
                shape: manifest.input.shape.clone(),
            },
            recipe: order.settings.clone(),
        };
        self.folder(id).write(&job, &base, &prepared).map_err(|error| text(&error))?;
        Ok(Prepared { base, sets, snapshot })
    }

    async fn train(&self, id: &str, deadline: Duration) -> Result<(), End> {
        let mut child = Command::new(&self.trainer)
            .arg("train-job")
            .arg(&self.folder(id).0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Cancelling a job drops this future, and that kills the process.
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("start {}: {error}", self.trainer.display())))?;
        let mut said = Vec::new();
        let stderr = child.stderr.take();
        let listen = async {
            let Some(mut stderr) = stderr else { return };
            let mut piece = [0; 1024];
            while let Ok(count @ 1..) = stderr.read(&mut piece).await {
                said.extend_from_slice(&piece[..count]);
                let old = said.len().saturating_sub(KEPT_STDERR);
                said.drain(..old);
            }
        };
        let ended = tokio::time::timeout(deadline, async { tokio::join!(child.wait(), listen).0 }).await;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let status = match ended {
            Err(_) => {
                let _ = child.kill().await;
                return Err(failed(format!("the trainer did not end within {} s", deadline.as_secs())));
            }
            Ok(status) => status.map_err(failed)?,
        };
        match status.code() {
            Some(0) => Ok(()),
            Some(3) => Err(End(State::NoImprovement, "no epoch was better than the model as it is".into())),
            Some(4) => Err(End(State::NotTrainable, said)),
            _ => Err(failed(format!("the trainer ended with {status}: {said}"))),
        }
    }
}

struct Prepared {
    base: Vec<u8>,
    sets: Sets,
    snapshot: String,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, End> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(failed),
        Err(error) => Err(failed(format!("it broke off: {error}"))),
    }
}

/// The program that knows `train-job`: this one, or `farlight-cloud` beside it.
pub fn trainer() -> PathBuf {
    const NAME: &str = "farlight-cloud";
    let this = std::env::current_exe().unwrap_or_else(|_| NAME.into());
    if this.file_name().is_some_and(|name| name == NAME) {
        return this;
    }
    let beside = this.ancestors().skip(1).take(2).map(|folder| folder.join(NAME));
    beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| NAME.into())
}
