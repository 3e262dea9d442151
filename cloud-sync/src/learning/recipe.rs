//! The two files beside a model: `release.toml` (how a release of it is described) and `recipe.toml`
//! (how it is trained), and the data they name. Offline commands and the release builder read them.

use std::path::{Path, PathBuf};

use farlight_release::manifest::{
    Blob, Budgets, FORMAT, Lineage, Manifest, PostStep, PreStep, Profile, Requires, Sampling, Task,
    TensorSpec, Variant,
};
use farlight_training::data::recordings::{Recordings, Selection, Side};
use farlight_training::data::{DataError, images};
use farlight_training::{Network, Part, Samples, Settings};
use farlight_wire::{ModelName, ReleaseId};
use serde::{Deserialize, Serialize};

/// Name of the training recipe in a model's folder.
pub const RECIPE: &str = "recipe.toml";
/// Name of the release recipe in a model's folder.
pub const RELEASE: &str = "release.toml";
/// Name of the trained model in a model's folder.
pub const MODEL: &str = "model.onnx";

/// Why a recipe or its data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file that cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A recipe with an error in it.
    #[error("{path}: {why}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Which key, and what is wrong with it.
        why: String,
    },
    /// Data that does not decode.
    #[error("{path}: {source}")]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: DataError,
    },
}

/// `release.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRecipe {
    /// The model.
    pub model: ModelName,
    /// What it does.
    pub task: Task,
    /// Class names.
    pub labels: Vec<String>,
    /// Precision of the file.
    pub precision: String,
    /// Largest absolute difference a golden output may have on the device.
    pub golden_tolerance: f32,
    /// The input.
    pub input: TensorSpec,
    /// Steps before the engine.
    #[serde(default)]
    pub pre: Vec<PreStep>,
    /// Steps after the engine.
    #[serde(default)]
    pub post: Vec<PostStep>,
    /// What it may cost.
    pub budgets: Budgets,
    /// Which inputs to keep.
    pub sampling: Sampling,
    /// What it needs.
    #[serde(default)]
    pub requires: Requires,
    /// What profile and golden vectors are computed on.
    pub reference: Reference,
}

/// What profile and golden vectors are computed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Names of the channels, for the features of the profile.
    pub channels: Vec<String>,
    /// Number of golden vectors.
    pub golden: usize,
    /// The inputs.
    pub data: Source,
}

/// `recipe.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecipe {
    /// The network it starts from.
    pub network: Network,
    /// The data.
    pub data: Data,
    /// Training from nothing.
    pub train: Settings,
    /// Retraining with labelled cases.
    pub retrain: Settings,
}

/// The data of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Trained on.
    pub train: Source,
    /// Only evaluates.
    pub holdout: Source,
    /// May be labelled in the field, if the model has such data.
    #[serde(default)]
    pub field: Option<Source>,
    /// Reported beside.
    #[serde(default)]
    pub report: Vec<Reported>,
}

/// A set that is reported beside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// For people.
    pub name: String,
    /// The inputs.
    #[serde(flatten)]
    pub source: Source,
}

/// Where samples are, by paths relative to the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Windows of sensor recordings.
    Recordings {
        /// The int16 array.
        array: PathBuf,
        /// Its index.
        index: PathBuf,
        /// Arm.
        side: Side,
        /// People.
        subjects: Vec<u32>,
        /// Half of each recording.
        part: Part,
        /// Samples in a window.
        window: usize,
        /// Samples from one window to the next.
        stride: usize,
    },
    /// Small images.
    Images {
        /// The uint8 array.
        images: PathBuf,
        /// The labels.
        labels: PathBuf,
        /// Which part.
        part: Part,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, RecipeError> {
    std::fs::read(path).map_err(|source| RecipeError::Read { path: path.to_owned(), source })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, RecipeError> {
    let wrong = |why: String| RecipeError::Wrong { path: path.to_owned(), why };
    let text = String::from_utf8(read(path)?).map_err(|_| wrong("it is not text".into()))?;
    toml::from_str(&text).map_err(|error| wrong(error.to_string()))
}

impl Source {
    /// Reads the samples, in the unit that applications send.
    ///
    /// # Errors
    /// [`RecipeError`] naming the file.
    pub fn read(&self, folder: &Path) -> Result<Samples, RecipeError> {
        match self {
            Self::Recordings { array, index, side, subjects, part, window, stride } => {
                let path = folder.join(array);
                let recordings = Recordings::parse(&read(&path)?, &read(&folder.join(index))?)
                    .map_err(|source| RecipeError::Data { path, source })?;
                Ok(recordings.windows(&Selection {
                    side: *side,
                    subjects: subjects.clone(),
                    part: *part,
                    window: *window,
                    stride: *stride,
                }))
            }
            Self::Images { images: array, labels, part } => {
                let path = folder.join(array);
                images::parse(&read(&path)?, &read(&folder.join(labels))?, *part)
                    .map_err(|source| RecipeError::Data { path, source })
            }
        }
    }
}

impl TrainingRecipe {
    /// Reads `recipe.toml`.
    ///
    /// # Errors
    /// [`RecipeError`] naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let recipe: Self = parse(path)?;
        for (name, settings) in [("train", &recipe.train), ("retrain", &recipe.retrain)] {
            settings.check().map_err(|wrong| RecipeError::Wrong {
                path: path.to_owned(),
                why: format!("[{name}] {}", wrong.join("; ")),
            })?;
        }
        Ok(recipe)
    }
}

impl ReleaseRecipe {
    /// Reads `release.toml`.
    ///
    /// # Errors
    /// [`RecipeError`] naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        parse(path)
    }

    /// A manifest without profile and golden vectors: enough to load the pipeline, so that those
    /// can be computed, and to score a model offline.
    pub fn draft(&self, version: semver::Version, file: Blob) -> Manifest {
        let nothing = Blob { id: String::new(), length: 0, chunks: Vec::new() };
        Manifest {
            format: FORMAT,
            release: ReleaseId::new(self.model.clone(), version),
            task: self.task,
            input: self.input.clone(),
            pre: self.pre.clone(),
            post: self.post.clone(),
            labels: self.labels.clone(),
            variants: vec![Variant { precision: self.precision.clone(), format: "onnx".into(), blob: file }],
            golden: nothing,
            golden_tolerance: self.golden_tolerance,
            profile: Profile {
                features: Vec::new(),
                score_edges: Vec::new(),
                score_counts: Vec::new(),
                class_counts: Vec::new(),
            },
            budgets: self.budgets.clone(),
            sampling: self.sampling.clone(),
            requires: self.requires.clone(),
            lineage: Lineage::default(),
        }
    }
}
