//! `recipe.toml` beside a model: how it is trained and on which data. Offline commands and the import
//! of data sets read it; `release.toml` belongs to the release builder.

use std::path::{Path, PathBuf};

use farlight_training::data::recordings::{Recordings, Selection};
use farlight_training::data::{DataError, images, npy};
use farlight_training::{Network, Part, Samples, Settings};
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
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Windows of sensor recordings.
    Recordings {
        /// The int16 array.
        array: PathBuf,
        /// Its index.
        index: PathBuf,
        /// Which windows.
        select: Selection,
    },
    /// Small images.
    Images {
        /// The uint8 array.
        images: PathBuf,
        /// The labels.
        labels: PathBuf,
        /// Which part; the one that only evaluates when left out.
        #[serde(default = "evaluate")]
        part: Part,
    },
    /// Plain arrays: `x` of shape `[n, …]`, `y` of shape `[n]`.
    Npy {
        /// The inputs.
        x: PathBuf,
        /// The classes.
        y: PathBuf,
    },
}

fn evaluate() -> Part {
    Part::Evaluate
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
            Self::Recordings { array, index, select } => {
                let path = folder.join(array);
                let recordings = Recordings::parse(&read(&path)?, &read(&folder.join(index))?)
                    .map_err(|source| RecipeError::Data { path, source })?;
                Ok(recordings.windows(select))
            }
            Self::Images { images: array, labels, part } => {
                let path = folder.join(array);
                images::parse(&read(&path)?, &read(&folder.join(labels))?, *part)
                    .map_err(|source| RecipeError::Data { path, source })
            }
            Self::Npy { x, y } => {
                let (x, y) = (folder.join(x), folder.join(y));
                let data = |path: &PathBuf| {
                    let path = path.clone();
                    |error: npy::NpyError| RecipeError::Data { path, source: error.into() }
                };
                let inputs = npy::parse(&read(&x)?).map_err(data(&x))?;
                let classes = npy::parse(&read(&y)?).and_then(|y| y.to_u32()).map_err(data(&y))?;
                plain(&inputs, classes).map_err(|why| RecipeError::Wrong { path: x, why })
            }
        }
    }
}

fn plain(x: &npy::Array, y: Vec<u32>) -> Result<Samples, String> {
    let (count, shape) = x.dims.split_first().map_or((0, [].as_slice()), |(count, shape)| (*count, shape));
    let size: usize = shape.iter().product();
    if count != y.len() || size == 0 {
        return Err(format!("x has shape {:?} and y {} classes; expected [n, …] and n", x.dims, y.len()));
    }
    let x = x.to_f32().chunks(size).map(<[f32]>::to_vec).collect();
    Ok(Samples { shape: shape.to_vec(), x, y })
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
