//! A window: what one device measured in one stretch of time. Everything in it merges by addition.
//! Version 1, frozen: a new field makes a `WindowV2` beside it, never a change here.

use serde::{Deserialize, Serialize};

use crate::counts::Counts;
use crate::ids::{Millis, ReleaseId};
use crate::sketch::Sketch;

/// The newest window version.
pub type Window = WindowV1;

/// One window of one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowV1 {
    /// Start, Unix time.
    pub start: Millis,
    /// Length, a duration; shorter than configured when the agent stopped early.
    pub length: Millis,
    /// One entry a release that served in the window.
    pub models: Vec<ModelWindowV1>,
    /// The gateway itself.
    pub vitals: VitalsV1,
}

/// What one release did in a window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelWindowV1 {
    /// The release that answered.
    pub release: ReleaseId,
    /// Requests answered with a prediction.
    pub ok: u64,
    /// Requests that failed in the engine or the pipeline.
    pub failed: u64,
    /// Requests refused because the queue was full or the deadline passed.
    pub rejected: u64,
    /// Inputs that broke the data contract (whether refused or flagged).
    pub contract_violations: u64,
    /// Answers with a NaN or infinite output.
    pub non_finite: u64,
    /// Answers withheld because the score was under the abstain threshold.
    pub abstained: u64,
    /// Processor time spent in the pipeline, µs.
    pub cpu_us: u64,
    /// Whole time in the agent, µs.
    pub latency_us: Sketch,
    /// Time in the engine alone, µs.
    pub infer_us: Sketch,
    /// Answers per class, in the order of the manifest's labels.
    pub classes: Counts,
    /// Answers per top-score bin of the manifest's reference profile.
    pub scores: Counts,
    /// Per feature of the reference profile, in its order: counts per reference bin, the last bin
    /// being missing or not finite.
    pub drift: Vec<Counts>,
}

/// The gateway's own state at the end of a window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VitalsV1 {
    /// Processor load of the agent, thousandths of one core.
    pub cpu_permille: u32,
    /// Resident memory of the agent, KiB.
    pub rss_kib: u64,
    /// Free memory of the machine, KiB.
    pub free_memory_kib: u64,
    /// Free space of the state directory's file system, KiB.
    pub free_disk_kib: u64,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Records evicted since the last window to hold the disk ceiling.
    pub evicted: u64,
    /// Observations dropped since the last window because the recorder's queue was full.
    pub dropped: u64,
}
