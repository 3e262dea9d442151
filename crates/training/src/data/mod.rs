//! Samples and the formats they come in, decoded from bytes that the caller has read.

pub mod images;
pub mod recordings;

pub use farlight_npy as npy;

/// Most samples of one set.
pub const MAX_SAMPLES: usize = 10_000_000;

/// Inputs with their classes, ready for a pipeline or the trainer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    /// Shape of one input, without the batch.
    pub shape: Vec<usize>,
    /// Inputs in the unit that applications send, row-major.
    pub x: Vec<Vec<f32>>,
    /// The class of each input.
    pub y: Vec<u32>,
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.x.len()
    }

    /// True without a sample.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// The samples at `indices`; those that do not exist are left out.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        let picked = indices.iter().filter(|&&index| index < self.len());
        Self {
            shape: self.shape.clone(),
            x: picked.clone().map(|&index| self.x[index].clone()).collect(),
            y: picked.map(|&index| self.y[index]).collect(),
        }
    }

    /// Appends the samples of `other`, which has the same shape.
    pub fn extend(&mut self, other: Self) {
        if self.is_empty() {
            self.shape = other.shape;
        }
        self.x.extend(other.x);
        self.y.extend(other.y);
    }
}

/// Which part in time of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// May be trained on or labelled.
    Train,
    /// Only evaluates.
    Evaluate,
}

/// Why data cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Not a `.npy` file of a supported kind.
    #[error(transparent)]
    Npy(#[from] npy::NpyError),
    /// An index that does not decode or does not fit the array.
    #[error("the index of the recordings is wrong: {0}")]
    Index(String),
    /// An array of another shape than asked for.
    #[error("{what} has shape {found:?}; expected {expected}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// In words.
        expected: String,
    },
}
