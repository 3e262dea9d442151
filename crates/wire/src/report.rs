//! A report: something that happened on the device and that the cloud must know exactly once.
//! Version 1, frozen; new kinds are appended at the end of [`ReportV1`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Millis, ModelName, ReleaseId, RolloutId};

/// The newest report version.
pub type Report = ReportV1;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportV1 {
    /// When it happened, Unix time.
    pub at: Millis,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The agent connected and asks for its desired state; also its inventory.
    Hello(Inventory),
    /// An update moved to another state.
    Update(UpdateReport),
    /// Metadata, an assignment or a release was refused before an update began.
    Refused(Refusal),
    /// Something was lost: a store was quarantined, records were evicted.
    Loss {
        /// What was lost, for people.
        what: String,
        /// How many records; 0 when it cannot be known.
        records: u64,
    },
    /// Answer to a command.
    CommandResult {
        /// The command's id.
        id: String,
        /// Whether it was carried out.
        ok: bool,
        /// What came of it.
        detail: String,
    },
    /// What runs now, with digests: after each update's end and each removal.
    Running(Vec<Running>),
    /// How far a download is; at most a few a release.
    Progress(Progress),
    /// What a candidate did in the shadow, at its end.
    Shadow(ShadowReport),
    /// What a device was asked to collect for people to look at.
    Diagnostics {
        /// The command's id.
        id: String,
        /// A JSON document, at most [`crate::limits::MAX_DIAGNOSTICS`] bytes.
        document: String,
    },
    /// What an application found out about an answer, at once or long after.
    Feedback(Feedback),
    /// Which file of a release runs on the device, and with what, after it was measured there.
    Choice(Choice),
}

/// Which file of a release runs on a device, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The release.
    pub release: ReleaseId,
    /// Precision of the file's weights: `fp32`, `f16` or `int8`.
    pub precision: String,
    /// The engine: `tract` or `onnxruntime`.
    pub engine: String,
    /// Everything that was tried, in order.
    pub tried: Vec<Tried>,
}

/// A file and a way to run it that were tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Precision of the file's weights.
    pub precision: String,
    /// The engine, with its threads where one inference has several: `onnxruntime, 4 threads`.
    pub engine: String,
    /// Shortest time of one inference, µs; `None` where it does not run.
    pub micros: Option<u64>,
    /// Why it does not run; empty where it does.
    pub why: String,
}

/// What an application found out about an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    /// The model that was asked.
    pub model: ModelName,
    /// The request's id, as the application gave it.
    pub request_id: String,
    /// What is true.
    pub truth: Truth,
}

/// What is true of an input that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Truth {
    /// It is of this class, by its label; for a regression, this number in decimal.
    Is(String),
    /// The answer was right.
    Right,
    /// The answer was wrong; what is right is not known.
    Wrong,
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The release that is being fetched.
    pub release: ReleaseId,
    /// The rollout that asked for it, if one did.
    pub rollout: Option<RolloutId>,
    /// Bytes that are on disk and verified.
    pub done: u64,
    /// Bytes of the release.
    pub total: u64,
}

/// What a candidate did in the shadow: it saw live inputs and decided nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// The candidate.
    pub release: ReleaseId,
    /// The rollout that asked for it, if one did.
    pub rollout: Option<RolloutId>,
    /// Inputs it answered.
    pub ok: u64,
    /// Inputs it failed on, where the running release answered.
    pub failed: u64,
    /// Answers that are not finite.
    pub non_finite: u64,
    /// Answers of the same class as the running release's.
    pub agreed: u64,
    /// Inputs it did not see: over its CPU budget, or its queue was full.
    pub skipped: u64,
    /// Median of the absolute score difference, thousandths.
    pub score_delta_p50_permille: u32,
    /// 95th percentile of the inference time, µs.
    pub p95_us: u64,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of the agent.
    pub agent_version: String,
    /// Architecture, for example `aarch64`.
    pub arch: String,
    /// Operating system, for people.
    pub os: String,
    /// Processor cores.
    pub cores: u32,
    /// Memory of the machine, KiB.
    pub memory_kib: u64,
    /// Labels from the device's configuration.
    pub labels: BTreeMap<String, String>,
    /// What runs now.
    pub running: Vec<Running>,
    /// Sequence number of the newest assignment obeyed; 0 when none.
    pub assignment: u64,
}

/// One model that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The release.
    pub release: ReleaseId,
    /// SHA-256 of its manifest, hex.
    pub manifest_sha256: String,
    /// Whether it is confirmed or on probation.
    pub confirmed: bool,
}

/// A step of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateReport {
    /// The model.
    pub model: ModelName,
    /// The release that is being installed.
    pub release: ReleaseId,
    /// The rollout that asked for it, if one did.
    pub rollout: Option<RolloutId>,
    /// Sequence number of the assignment that asked for it.
    pub assignment: u64,
    /// The state reached.
    pub state: UpdateState,
    /// Why, for failures and rollbacks.
    pub error: Option<ErrorReport>,
    /// The release that runs after this step.
    pub running: Option<ReleaseId>,
    /// Milliseconds since the update began.
    pub elapsed: Millis,
}

/// States of an update as reported. Only `Confirmed` is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// The assignment was accepted.
    Assigned,
    /// Blobs are being fetched.
    Fetching,
    /// Everything is on disk and is being checked.
    Verifying,
    /// Tested and kept; it waits for a window, the application's lock or the end of a pause.
    Staged,
    /// Golden vectors are being run.
    SelfTest,
    /// It is being made active.
    Activating,
    /// It runs and is watched.
    Probation,
    /// It passed: the only success.
    Confirmed,
    /// It failed before it was active.
    Failed,
    /// It is being taken back.
    RollingBack,
    /// The previous release runs again.
    RolledBack,
    /// It sees a share of live inputs and decides nothing.
    Shadow,
}

/// An error as reported: a code from the closed list and a text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// Stable code, for example `self_test.golden_mismatch`; see `farlight_wire::codes`.
    pub code: String,
    /// What was tried, on what, and what went wrong.
    pub message: String,
}

/// Something refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused: a target path, `assignment`, a metadata file.
    pub what: String,
    /// Why.
    pub error: ErrorReport,
}
