//! The manifest: what a release is made of and how it is to be run. It is the TUF target
//! `‹model›/‹version›.json`; everything below trusts it only as `Verified<Manifest>`.

pub mod check;
pub mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use farlight_wire::ReleaseId;
use serde::{Deserialize, Serialize};

pub use check::ManifestError;
pub use steps::{PostStep, PreStep};

/// Version of the manifest format this build reads and writes.
pub const FORMAT: u32 = 1;
/// Largest manifest in bytes: a few hundred bins and chunk digests fit many times over.
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
/// Chunk size of blobs in bytes: a bad byte is refused within this distance.
pub const CHUNK: u64 = 1024 * 1024;

/// The manifest of one release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Model and version.
    pub release: ReleaseId,
    /// What the model does.
    pub task: Task,
    /// The main input of the model as an application sends it, with its data contract: the one that steps, drift
    /// profile and cases are about.
    pub input: TensorSpec,
    /// The other inputs that an application sends. They reach the model as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_inputs: Vec<TensorSpec>,
    /// What the model hands from one call to the next of the same stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<StateSpec>,
    /// Whether the graph's inputs and outputs have a batch axis.
    #[serde(default, skip_serializing_if = "BatchAxis::is_leading")]
    pub batch_axis: BatchAxis,
    /// Steps from the request's tensor to the engine's input, in order.
    pub pre: Vec<PreStep>,
    /// Steps from the engine's output to the answer, in order.
    pub post: Vec<PostStep>,
    /// Class names in the order of the output; empty for regression.
    pub labels: Vec<String>,
    /// Files that can run, in order of preference.
    pub variants: Vec<Variant>,
    /// Inputs with their expected outputs, run before activation.
    pub golden: Blob,
    /// Largest absolute difference a golden output may have on the device.
    pub golden_tolerance: f32,
    /// The reference that drift is measured against.
    pub profile: Profile,
    /// What it may cost.
    pub budgets: Budgets,
    /// Which inputs to keep.
    pub sampling: Sampling,
    /// What it needs.
    pub requires: Requires,
    /// Where it comes from.
    pub lineage: Lineage,
}

impl Manifest {
    /// Every file that it names, which is what must be there for it to be published.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        let deltas = self.variants.iter().flat_map(|variant| &variant.deltas).map(|delta| &delta.blob);
        self.variants.iter().map(|variant| &variant.blob).chain(deltas).chain([&self.golden])
    }
}

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One class of several; output is `[classes]`.
    Classification,
    /// Numbers; output is `[outputs]`.
    Regression,
    /// Whatever the graph's outputs are, under their own names.
    Tensors,
}

/// Whether a graph's inputs and outputs have a batch axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchAxis {
    /// The first axis is the batch; shapes in the manifest leave it out.
    #[default]
    Leading,
    /// There is none: shapes are the graph's own, and each request is one item.
    None,
}

impl BatchAxis {
    fn is_leading(&self) -> bool {
        *self == Self::Leading
    }
}

/// A tensor that the model hands from one call to the next of the same stream. It begins as zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateSpec {
    /// Name of the graph's input.
    pub input: String,
    /// Name of the graph's output that becomes the next call's input.
    pub output: String,
    /// Element type, one of floating point numbers or integers.
    pub datatype: Datatype,
    /// The graph's own shape, batch included, for example `[2, 1, 128]`.
    pub shape: Vec<usize>,
}

/// Element types, by their names in the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    /// Truth value, one byte.
    Bool,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE 754 half precision.
    Fp16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Byte strings of any length, text in UTF-8 for models.
    Bytes,
}

impl Datatype {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The inverse of [`Datatype::name`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// Bytes of one element; `None` where elements differ.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

/// A tensor and its data contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Name in the ONNX graph and in the protocol.
    pub name: String,
    /// Element type that applications send.
    pub datatype: Datatype,
    /// Shape without the batch dimension, for example `[6, 100]`.
    pub shape: Vec<usize>,
    /// Smallest allowed element, in the unit applications send.
    pub min: f32,
    /// Largest allowed element.
    pub max: f32,
    /// What to do with an element that is not finite or out of range.
    pub on_violation: OnViolation,
}

/// What to do with an input that breaks the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnViolation {
    /// Answer 400 and count it.
    Refuse,
    /// Answer, flag and count it; elements that are not finite become 0.
    Flag,
}

/// One file that can run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// `fp32`, `f16` or `int8`.
    pub precision: String,
    /// `onnx`.
    pub format: String,
    /// The file.
    pub blob: Blob,
    /// Ways to make the file of an older one that a device may have; each is smaller than the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<Delta>,
}

/// Precision of a file's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    Fp32,
    /// Half precision.
    F16,
    /// Integers of eight bits.
    Int8,
}

impl Precision {
    /// As the manifest has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl Variant {
    /// A file in the one format that there is.
    pub fn onnx(precision: Precision, blob: Blob, deltas: Vec<Delta>) -> Self {
        Self { precision: precision.name().to_owned(), format: "onnx".to_owned(), blob, deltas }
    }
}

/// What makes a file of an older one ([`crate::delta`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Id of the older file's blob.
    pub from: String,
    /// The delta.
    pub blob: Blob,
}

/// A file, known by the list of its chunk digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// SHA-256 over the concatenated chunk digests, hex: the blob's id and file name.
    pub id: String,
    /// Bytes.
    pub length: u64,
    /// SHA-256 of each chunk of [`CHUNK`] bytes (the last may be shorter), hex.
    pub chunks: Vec<String>,
}

/// The reference that drift is measured against, computed on data the release was evaluated on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Features of the raw input, in the order of the wire's drift counts.
    pub features: Vec<FeatureProfile>,
    /// Upper edges of the score bins, rising, the last bin open: `edges.len() + 1` bins.
    pub score_edges: Vec<f32>,
    /// Reference counts of the score bins.
    pub score_counts: Vec<u32>,
    /// Reference counts of predicted classes, in the order of the labels.
    pub class_counts: Vec<u32>,
}

/// One feature of the reference profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureProfile {
    /// For people, for example `ax mean`.
    pub name: String,
    /// How it is computed.
    pub statistic: Statistic,
    /// Channel (index of the first axis after the batch) it is computed over.
    pub channel: usize,
    /// Upper edges of the reference-quantile bins, rising; `edges.len() + 1` bins, plus one for
    /// missing values.
    pub edges: Vec<f32>,
    /// Reference counts, `edges.len() + 2` long.
    pub counts: Vec<u32>,
}

/// A statistic over one channel of one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Population standard deviation.
    Std,
}

/// What a release may cost on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Peak memory of the self-test, KiB.
    pub memory_kib: u64,
    /// 95th percentile of one inference, µs.
    pub p95_us: u64,
}

/// Which inputs to keep as cases. The device's own configuration may only lower it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Share of inputs kept as hard cases, thousandths.
    pub hard_permille: u16,
    /// Share of inputs kept as uniform random control, thousandths.
    pub control_permille: u16,
    /// Case bytes a day.
    pub bytes_per_day: u64,
}

/// What a release needs of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Oldest agent that can run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<semver::VersionReq>,
    /// Architectures it may run on; empty means any.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Labels a device must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Where a release comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// Digest of the dataset snapshot it was trained on.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The release it was trained from.
    #[serde(default)]
    pub parent: Option<ReleaseId>,
    /// The training job.
    #[serde(default)]
    pub job: Option<String>,
    /// The trainer and its version.
    #[serde(default)]
    pub trainer: Option<String>,
    /// Hyper-parameters as given to the trainer.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Results of the evaluation gate.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}
