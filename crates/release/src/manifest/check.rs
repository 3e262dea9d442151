//! The rules of a manifest beyond its types. Every refusal names the field and the rule, because the
//! reader is the engineer who wrote the recipe.

use std::collections::BTreeSet;

use farlight_wire::codes::Code;
use serde::Deserialize;

use crate::blob::{self, FetchError};
use crate::canonical::{self, Fractions};
use crate::digest;
use crate::manifest::steps::StepProblem;
use crate::manifest::{
    Blob, Datatype, FORMAT, FeatureProfile, MAX_MANIFEST, Manifest, PostStep, Profile, Task, TensorSpec,
    Variant,
};
use crate::verified::Verified;

/// Most axes of an input.
pub const MAX_RANK: usize = 8;
/// Most inputs and states beside the main input.
pub const MAX_TENSORS: usize = 32;
/// Most elements of one input: 64 MiB of floats.
pub const MAX_ELEMENTS: usize = 16 * 1024 * 1024;
/// Most pre- or postprocessing steps.
pub const MAX_STEPS: usize = 16;
/// Most variants of one release.
pub const MAX_VARIANTS: usize = 16;
/// Most deltas of one variant: a device that is further behind fetches the file.
pub const MAX_DELTAS: usize = 16;
/// Largest model file in bytes: what [`farlight_onnx::check`] reads, known before the first byte is fetched.
pub const MAX_MODEL: u64 = farlight_onnx::Limits::DEFAULT.bytes as u64;
/// Largest file of golden vectors in bytes: as many as are run, each a colour image of 224 × 224, are 150 MiB. They
/// are held in memory as a whole.
pub const MAX_GOLDEN: u64 = 256 * 1024 * 1024;
/// Most classes.
pub const MAX_LABELS: usize = farlight_wire::limits::MAX_BINS;
/// Longest name or label in characters.
pub const MAX_NAME: usize = 256;
/// Largest budget of memory, KiB (1 TiB), and of time, µs (20 min): more is a typing error.
const MAX_BUDGET: u64 = 1 << 30;

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST`].
    #[error("the manifest has {length} bytes, at most {MAX_MANIFEST} are allowed")]
    TooLarge {
        /// Its length.
        length: u64,
    },
    /// Not JSON, or not of a manifest's form.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// Written for another version of this software.
    #[error("the manifest has format {found}, this build reads {FORMAT}; update the agent")]
    Format {
        /// The format found.
        found: u64,
    },
    /// Stored bytes are not the ones that were verified.
    #[error("the stored manifest is not the one that was verified")]
    Digest,
    /// A field breaks its rule.
    #[error("manifest field `{field}` {rule}")]
    Invalid {
        /// The field's path, for example `pre[0].std`.
        field: String,
        /// The rule.
        rule: String,
    },
}

impl ManifestError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::ManifestTooLarge,
            Self::Malformed(_) => Code::ManifestMalformed,
            Self::Format { .. } => Code::ManifestFormat,
            Self::Digest => Code::ManifestDigest,
            Self::Invalid { .. } => Code::ManifestInvalid,
        }
    }
}

type Check = Result<(), ManifestError>;

fn invalid<T>(field: impl Into<String>, rule: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Invalid { field: field.into(), rule: rule.into() })
}

/// The refusal of step `i` of the list `list`.
fn broken<T>(list: &str, i: usize, problem: StepProblem) -> Result<T, ManifestError> {
    let field = match problem.field {
        "" => format!("{list}[{i}]"),
        name => format!("{list}[{i}].{name}"),
    };
    invalid(field, problem.rule)
}

impl Manifest {
    /// Reads a manifest and checks every rule of it.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field and the rule it breaks.
    pub fn parse_checked(bytes: &[u8]) -> Result<Self, ManifestError> {
        let length = bytes.len() as u64;
        if length > MAX_MANIFEST {
            return Err(ManifestError::TooLarge { length });
        }
        let malformed = |e: &dyn std::fmt::Display| ManifestError::Malformed(e.to_string());
        let document = canonical::parse(bytes, Fractions::Allow).map_err(|e| malformed(&e))?;
        // Before the fields: those of another format may differ.
        if let Some(found) = document.get("format").and_then(serde_json::Value::as_u64)
            && found != u64::from(FORMAT)
        {
            return Err(ManifestError::Format { found });
        }
        let manifest = Self::deserialize(document).map_err(|e| malformed(&e))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads a manifest that this device verified before and kept: its digest, which lies in the durable
    /// pointer beside it, stands for the signature that was checked when it was fetched.
    ///
    /// # Errors
    /// [`ManifestError::Digest`] when the bytes are not those, else as [`Self::parse_checked`].
    pub fn reopen(bytes: &[u8], sha256: &str) -> Result<Verified<Self>, ManifestError> {
        let manifest = Verified::new(Self::parse_checked(bytes)?, bytes);
        if manifest.sha256() == sha256 { Ok(manifest) } else { Err(ManifestError::Digest) }
    }

    /// Checks every rule; for a manifest that is being made.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] naming the field and the rule it breaks.
    pub fn check(&self) -> Check {
        if self.release.model.as_str() == crate::config::NAME {
            return invalid("release", "must not be named `config`, which configuration releases are");
        }
        check_input("input", &self.input)?;
        self.check_tensors()?;
        self.check_steps()?;
        self.check_labels()?;
        self.check_files()?;
        check_profile(&self.profile, &self.input, self.labels.len())?;
        self.check_limits()
    }

    /// The other inputs and the states: each name once.
    fn check_tensors(&self) -> Check {
        for (name, length) in [("more_inputs", self.more_inputs.len()), ("states", self.states.len())] {
            if length > MAX_TENSORS {
                return invalid(name, format!("has more than {MAX_TENSORS} entries"));
            }
        }
        let mut inputs = BTreeSet::from([&self.input.name]);
        for (i, input) in self.more_inputs.iter().enumerate() {
            check_input(&format!("more_inputs[{i}]"), input)?;
            if !inputs.insert(&input.name) {
                return invalid(
                    format!("more_inputs[{i}].name"),
                    format!("is {:?} a second time", input.name),
                );
            }
        }
        let mut outputs = BTreeSet::new();
        for (i, state) in self.states.iter().enumerate() {
            let field = |name: &str| format!("states[{i}].{name}");
            is_name(&field("input"), &state.input)?;
            is_name(&field("output"), &state.output)?;
            check_shape(&field("shape"), &state.shape)?;
            if state.datatype == Datatype::Bytes {
                return invalid(field("datatype"), "must be of numbers");
            }
            if !inputs.insert(&state.input) {
                return invalid(field("input"), format!("is {:?} a second time", state.input));
            }
            if !outputs.insert(&state.output) {
                return invalid(field("output"), format!("is {:?} a second time", state.output));
            }
        }
        Ok(())
    }

    fn check_steps(&self) -> Check {
        if self.pre.len() > MAX_STEPS {
            return invalid("pre", format!("has more than {MAX_STEPS} steps"));
        }
        if self.post.len() > MAX_STEPS {
            return invalid("post", format!("has more than {MAX_STEPS} steps"));
        }
        let mut shape = self.input.shape.clone();
        for (i, step) in self.pre.iter().enumerate() {
            shape = step.shape(&shape).or_else(|problem| broken("pre", i, problem))?;
        }
        for (i, step) in self.post.iter().enumerate() {
            step.check().or_else(|problem| broken("post", i, problem))?;
            let softmax_of = |step: &PostStep| match step {
                PostStep::Softmax { output, .. } => Some(output.clone()),
                _ => None,
            };
            let output = softmax_of(step);
            if output.is_some() && self.post.iter().take(i).any(|before| softmax_of(before) == output) {
                return invalid(format!("post[{i}]"), "is a second softmax of the same output");
            }
            if matches!(step, PostStep::Abstain { .. }) && self.task != Task::Classification {
                return invalid(format!("post[{i}]"), "needs a classification");
            }
        }
        Ok(())
    }

    fn check_labels(&self) -> Check {
        match self.task {
            Task::Classification if !(2..=MAX_LABELS).contains(&self.labels.len()) => {
                return invalid("labels", format!("must name 2 to {MAX_LABELS} classes"));
            }
            Task::Regression if !self.labels.is_empty() => {
                return invalid("labels", "must be empty for a regression");
            }
            Task::Tensors if self.labels.len() > MAX_LABELS => {
                return invalid("labels", format!("must name at most {MAX_LABELS} classes"));
            }
            Task::Classification | Task::Regression | Task::Tensors => {}
        }
        let mut seen = BTreeSet::new();
        for (i, label) in self.labels.iter().enumerate() {
            is_name(&format!("labels[{i}]"), label)?;
            if !seen.insert(label) {
                return invalid(format!("labels[{i}]"), format!("is {label:?} a second time"));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Check {
        if !(1..=MAX_VARIANTS).contains(&self.variants.len()) {
            return invalid("variants", format!("must name 1 to {MAX_VARIANTS} files"));
        }
        for (i, variant) in self.variants.iter().enumerate() {
            if !matches!(variant.precision.as_str(), "fp32" | "f16" | "int8") {
                return invalid(format!("variants[{i}].precision"), "must be fp32, f16 or int8");
            }
            if variant.format != "onnx" {
                return invalid(format!("variants[{i}].format"), "must be onnx");
            }
            check_blob(&format!("variants[{i}].blob"), &variant.blob)?;
            if variant.blob.length > MAX_MODEL {
                return invalid(
                    format!("variants[{i}].blob"),
                    format!("must have at most {MAX_MODEL} bytes"),
                );
            }
            check_deltas(&format!("variants[{i}].deltas"), variant)?;
        }
        check_blob("golden", &self.golden)?;
        if self.golden.length > MAX_GOLDEN {
            return invalid("golden", format!("must have at most {MAX_GOLDEN} bytes"));
        }
        if !self.golden_tolerance.is_finite() || self.golden_tolerance < 0.0 {
            return invalid("golden_tolerance", "must be finite and not negative");
        }
        Ok(())
    }

    fn check_limits(&self) -> Check {
        for (name, value) in [("memory_kib", self.budgets.memory_kib), ("p95_us", self.budgets.p95_us)] {
            if !(1..=MAX_BUDGET).contains(&value) {
                return invalid(format!("budgets.{name}"), format!("must be from 1 to {MAX_BUDGET}"));
            }
        }
        let shares = [
            ("hard_permille", self.sampling.hard_permille),
            ("control_permille", self.sampling.control_permille),
        ];
        match shares.into_iter().find(|(_, share)| *share > 1000) {
            Some((name, _)) => invalid(format!("sampling.{name}"), "must be from 0 to 1000"),
            None => Ok(()),
        }
    }
}

fn check_input(field: &str, input: &TensorSpec) -> Check {
    is_name(&format!("{field}.name"), &input.name)?;
    check_shape(&format!("{field}.shape"), &input.shape)?;
    if !input.min.is_finite() || !input.max.is_finite() || input.min >= input.max {
        let rule = format!("must be finite and below `{field}.max`, which must be finite too");
        return invalid(format!("{field}.min"), rule);
    }
    Ok(())
}

fn check_shape(field: &str, shape: &[usize]) -> Check {
    if !(1..=MAX_RANK).contains(&shape.len()) {
        return invalid(field, format!("must have 1 to {MAX_RANK} axes"));
    }
    let elements = shape.iter().try_fold(1usize, |all, axis| all.checked_mul(*axis));
    if !elements.is_some_and(|elements| (1..=MAX_ELEMENTS).contains(&elements)) {
        return invalid(field, format!("must hold 1 to {MAX_ELEMENTS} elements"));
    }
    Ok(())
}

fn check_profile(profile: &Profile, input: &TensorSpec, labels: usize) -> Check {
    let most = farlight_wire::limits::MAX_FEATURES;
    if profile.features.len() > most {
        return invalid("profile.features", format!("has more than {most} features"));
    }
    for (i, feature) in profile.features.iter().enumerate() {
        check_feature(&format!("profile.features[{i}]"), feature, input)?;
    }
    let (edges, counts) = (&profile.score_edges, &profile.score_counts);
    check_edges("profile.score_edges", edges)?;
    if counts.len() != edges.len() + 1 {
        return invalid("profile.score_counts", "must have one value more than `profile.score_edges`");
    }
    if profile.class_counts.len() != labels {
        return invalid("profile.class_counts", format!("must have {labels} values, as there are labels"));
    }
    Ok(())
}

fn check_feature(field: &str, feature: &FeatureProfile, input: &TensorSpec) -> Check {
    is_name(&format!("{field}.name"), &feature.name)?;
    if input.shape.first().is_none_or(|channels| feature.channel >= *channels) {
        return invalid(format!("{field}.channel"), "must be an index of the input's first axis");
    }
    check_edges(&format!("{field}.edges"), &feature.edges)?;
    if feature.counts.len() != feature.edges.len() + 2 {
        return invalid(format!("{field}.counts"), "must have two values more than the edges");
    }
    Ok(())
}

fn check_edges(field: &str, edges: &[f32]) -> Check {
    let most = farlight_wire::limits::MAX_BINS - 2;
    if edges.len() > most {
        return invalid(field, format!("has more than {most} edges"));
    }
    all_finite(field, edges)?;
    if edges.windows(2).all(|pair| pair[0] < pair[1]) {
        Ok(())
    } else {
        invalid(field, "must rise from edge to edge")
    }
}

fn check_deltas(field: &str, variant: &Variant) -> Check {
    if variant.deltas.len() > MAX_DELTAS {
        return invalid(field, format!("has more than {MAX_DELTAS} entries"));
    }
    let mut seen = BTreeSet::from([&variant.blob.id]);
    for (i, delta) in variant.deltas.iter().enumerate() {
        let field = |name: &str| format!("{field}[{i}].{name}");
        if !digest::is_sha256(&delta.from) {
            return invalid(field("from"), "must be the id of a blob");
        }
        if !seen.insert(&delta.from) {
            return invalid(field("from"), "must be another file than this one and those of other deltas");
        }
        check_blob(&field("blob"), &delta.blob)?;
        if delta.blob.length >= variant.blob.length {
            return invalid(field("blob"), "must be smaller than the file that it makes");
        }
    }
    Ok(())
}

fn check_blob(field: &str, blob: &Blob) -> Check {
    match blob::check(blob) {
        Ok(()) => Ok(()),
        Err(FetchError::Description { why, .. }) => invalid(field, format!("is not consistent: {why}")),
        Err(other) => invalid(field, other.to_string()),
    }
}

fn all_finite(field: &str, values: &[f32]) -> Check {
    if values.iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        invalid(field, "must be finite everywhere")
    }
}

fn is_name(field: &str, name: &str) -> Check {
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return invalid(field, format!("must be 1 to {MAX_NAME} characters without control characters"));
    }
    Ok(())
}
