//! The recipe of a release, TOML beside the model: everything about it that is not the weights. It
//! names the evaluation data too, so that anybody can build the same release again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_release::manifest::{
    Blob, Budgets, Datatype, FORMAT, Lineage, Manifest, OnViolation, PostStep, PreStep, Profile, Requires,
    Sampling, Task, TensorSpec,
};
use farlight_training::data::recordings::{Recordings, Selection};
use farlight_training::data::{Part, Samples, images, npy};
use farlight_wire::{ModelName, ReleaseId};
use serde::Deserialize;

use crate::cli::error::CliError;
use crate::cli::files;

/// A recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model's name.
    pub model: ModelName,
    /// What it does.
    pub task: Task,
    /// Class names in the order of the output.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The input and its data contract.
    pub input: Input,
    /// Steps from the request's tensor to the engine's input.
    #[serde(default)]
    pub pre: Vec<PreStep>,
    /// Steps from the engine's output to the answer.
    #[serde(default)]
    pub post: Vec<PostStep>,
    /// What it may cost on a device.
    pub budgets: Budgets,
    /// Which inputs devices keep.
    pub sampling: Sampling,
    /// What it needs of a device.
    #[serde(default)]
    pub requires: Requires,
    /// The golden vectors.
    pub golden: Golden,
    /// What the build refuses to go below.
    #[serde(default)]
    pub gate: Gate,
    /// Where the evaluation data is.
    pub evaluation: Evaluation,
}

/// The input and its data contract.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name in the ONNX graph and in the protocol.
    pub name: String,
    /// Element type that applications send.
    pub datatype: Datatype,
    /// Shape without the batch.
    pub shape: Vec<usize>,
    /// Smallest allowed element.
    pub min: f32,
    /// Largest allowed element.
    pub max: f32,
    /// What to do with an element outside.
    pub on_violation: OnViolation,
    /// Names of the channels (first axis), for the drift features.
    #[serde(default)]
    pub channels: Vec<String>,
}

/// How golden vectors are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// How many, spread over the evaluation data.
    pub count: usize,
    /// Largest absolute difference that a device may see.
    pub tolerance: f32,
}

/// What the build refuses to go below.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Lowest accuracy on the evaluation data.
    #[serde(default)]
    pub min_accuracy: f64,
}

/// Where the evaluation data is; paths are relative to the recipe (or to `--data`).
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Evaluation {
    /// Windows cut from sensor recordings.
    Recordings {
        /// The int16 array.
        array: PathBuf,
        /// The JSON index.
        index: PathBuf,
        /// Which windows.
        select: Selection,
    },
    /// Small images; the part that only evaluates.
    Images {
        /// The uint8 array.
        images: PathBuf,
        /// Their labels.
        labels: PathBuf,
    },
    /// Plain arrays: `x` of shape `[n, …input.shape]`, `y` of shape `[n]`.
    Npy {
        /// The inputs.
        x: PathBuf,
        /// The classes.
        y: PathBuf,
    },
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`CliError`] naming the file, the line and the field.
    pub fn load(path: &Path) -> Result<Self, CliError> {
        let text = files::read_text(path)?;
        toml::from_str(&text).map_err(|e| CliError::file(format!("recipe {}: {e}", path.display())))
    }

    /// Reads the evaluation data from files below `folder`.
    ///
    /// # Errors
    /// [`CliError`] when it cannot be read or does not fit the input.
    pub fn samples(&self, folder: &Path) -> Result<Samples, CliError> {
        let read = |path: &PathBuf| files::read(&folder.join(path));
        let fail = |e: farlight_training::data::DataError| {
            CliError::file(format!("evaluation data in {}: {e}", folder.display()))
        };
        let samples = match &self.evaluation {
            Evaluation::Recordings { array, index, select } => {
                Recordings::parse(&read(array)?, &read(index)?).map_err(fail)?.windows(select)
            }
            Evaluation::Images { images, labels } => {
                images::parse(&read(images)?, &read(labels)?, Part::Evaluate).map_err(fail)?
            }
            Evaluation::Npy { x, y } => {
                let x = npy::parse(&read(x)?).map_err(fail)?;
                let y = npy::parse(&read(y)?).and_then(|y| y.to_u32()).map_err(fail)?;
                plain(&x, y)?
            }
        };
        if samples.is_empty() {
            return Err(CliError::file("the evaluation data holds no sample"));
        }
        if samples.shape != self.input.shape {
            let (found, expected) = (&samples.shape, &self.input.shape);
            let message = format!("the evaluation data has shape {found:?}, `input.shape` is {expected:?}");
            return Err(CliError::file(message));
        }
        let classes = self.labels.len();
        if let Some(label) = samples.y.iter().find(|label| **label as usize >= classes) {
            return Err(CliError::file(format!("the evaluation data has class {label} of {classes} labels")));
        }
        Ok(samples)
    }

    /// The manifest of one release by this recipe.
    pub fn manifest(
        &self,
        release: ReleaseId,
        variant: Blob,
        golden: Blob,
        profile: Profile,
        lineage: Lineage,
    ) -> Manifest {
        let input = &self.input;
        Manifest {
            format: FORMAT,
            release,
            task: self.task,
            input: TensorSpec {
                name: input.name.clone(),
                datatype: input.datatype,
                shape: input.shape.clone(),
                min: input.min,
                max: input.max,
                on_violation: input.on_violation,
            },
            pre: self.pre.clone(),
            post: self.post.clone(),
            labels: self.labels.clone(),
            variants: vec![farlight_release::manifest::Variant {
                precision: "fp32".to_owned(),
                format: "onnx".to_owned(),
                blob: variant,
            }],
            golden,
            golden_tolerance: self.golden.tolerance,
            profile,
            budgets: self.budgets.clone(),
            sampling: self.sampling.clone(),
            requires: self.requires.clone(),
            lineage,
        }
    }

    /// The manifest under which the model is loaded to make its profile and golden vectors.
    pub fn draft(&self, release: ReleaseId, variant: Blob) -> Manifest {
        let empty = Profile {
            features: Vec::new(),
            score_edges: Vec::new(),
            score_counts: vec![0],
            class_counts: vec![0; self.labels.len()],
        };
        let lineage = Lineage { metrics: BTreeMap::new(), ..Lineage::default() };
        self.manifest(release, variant.clone(), variant, empty, lineage)
    }
}

fn plain(x: &npy::Array, y: Vec<u32>) -> Result<Samples, CliError> {
    let (count, shape) = x.dims.split_first().map_or((0, [].as_slice()), |(count, shape)| (*count, shape));
    let size: usize = shape.iter().product();
    if count != y.len() || size == 0 {
        let message = format!("x has shape {:?} and y {} classes; expected [n, …] and n", x.dims, y.len());
        return Err(CliError::file(message));
    }
    let x = x.to_f32().chunks(size).map(<[f32]>::to_vec).collect();
    Ok(Samples { shape: shape.to_vec(), x, y })
}
