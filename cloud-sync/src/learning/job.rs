//! The contract of a trainer, built in or external: a folder with everything that goes in and comes
//! out. A trainer reads `job.json`, `base.onnx` and `data/`, writes `out/`, and says by its exit code how
//! it ended.

use std::path::{Path, PathBuf};

use farlight_training::data::npy;
use farlight_training::fit::Epoch;
use farlight_training::{Examples, Samples, Settings};
use serde::{Deserialize, Serialize};

use super::datasets::{self, DatasetError};
use super::plan::{Sets, Traced};
use crate::files::{self, Access, FileError};

/// Version of the contract.
pub const CONTRACT: u32 = 1;
/// Largest file of a job that is read.
const MAX_FILE: u64 = 4 << 30;

/// How a trainer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `out/candidate.onnx` is there.
    Candidate = 0,
    /// Nothing better was found.
    NoImprovement = 3,
    /// The model cannot be trained; the last line of standard error lists the operators.
    NotTrainable = 4,
    /// Anything else.
    Failed = 1,
}

impl From<Ending> for std::process::ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(ending as u8)
    }
}

/// `job.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// [`CONTRACT`].
    pub contract: u32,
    /// The job.
    pub job: String,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Seconds after which it is killed.
    pub deadline_seconds: u64,
    /// The task.
    pub task: TaskSpec,
    /// How to train.
    pub recipe: Settings,
}

/// What is learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// `classification`.
    pub kind: String,
    /// Class names.
    pub classes: Vec<String>,
    /// Name of the input.
    pub input: String,
    /// Shape of one input.
    pub shape: Vec<usize>,
}

/// `out/metrics.json`: what the trainer says about itself. Shown, never trusted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The epoch that was kept.
    pub best_epoch: u32,
    /// Validation loss and accuracy before training.
    pub before: farlight_training::Scores,
    /// And of the candidate.
    pub after: farlight_training::Scores,
}

/// The folder of a job.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// Where the base model is.
    pub fn base(&self) -> PathBuf {
        self.0.join("base.onnx")
    }

    /// Where the candidate comes to be.
    pub fn candidate(&self) -> PathBuf {
        self.0.join("out/candidate.onnx")
    }

    /// Where progress is written, one JSON [`Epoch`] a line.
    pub fn progress(&self) -> PathBuf {
        self.0.join("out/progress.jsonl")
    }

    /// Where the trainer's own figures are.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("out/metrics.json")
    }

    /// Writes everything that goes in. The samples are inputs of the graph: preprocessed already.
    ///
    /// # Errors
    /// [`FileError`] naming the file.
    pub fn write(&self, job: &Job, base: &[u8], sets: &Sets) -> Result<(), FileError> {
        files::folder(&self.0.join("out"))?;
        files::replace(&self.base(), base, Access::Private)?;
        for (name, set) in [
            ("train", &sets.train),
            ("val", &sets.val),
            ("test_old", &sets.test_old),
            ("test_field", &sets.test_field),
        ] {
            self.write_set(name, set, job.recipe.field_weight)?;
        }
        let text = serde_json::to_vec_pretty(job).unwrap_or_default();
        files::replace(&self.0.join("job.json"), &text, Access::Private)
    }

    fn write_set(&self, name: &str, set: &Traced, field_weight: f32) -> Result<(), FileError> {
        let folder = self.0.join("data").join(name);
        files::folder(&folder)?;
        let count = set.samples.len();
        let dims = [&[count], set.samples.shape.as_slice()].concat();
        let origin: Vec<u32> = set.origin.iter().map(|id| u32::from(!id.is_empty())).collect();
        let weight: Vec<f32> =
            origin.iter().map(|&origin| if origin == 1 { field_weight } else { 1.0 }).collect();
        for (file, bytes) in [
            ("x.npy", npy::write_f32(&dims, &set.samples.x.concat())),
            ("y.npy", npy::write_u32(&[count], &set.samples.y)),
            ("weight.npy", npy::write_f32(&[count], &weight)),
            ("origin.npy", npy::write_u32(&[count], &origin)),
        ] {
            files::replace(&folder.join(file), &bytes, Access::Private)?;
        }
        Ok(())
    }

    /// Reads `job.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn job(&self) -> Result<Job, String> {
        let path = self.0.join("job.json");
        let job: Job =
            serde_json::from_slice(&read(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        if job.contract == CONTRACT {
            Ok(job)
        } else {
            Err(format!("{}: contract {} is not {CONTRACT}", path.display(), job.contract))
        }
    }

    /// Reads a set as the trainer wants it: samples, and which of them are field cases.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set(&self, name: &str) -> Result<(Samples, Vec<f32>, Vec<u32>), String> {
        let folder = self.0.join("data").join(name);
        let file = |name: &str| read(&folder.join(name));
        let samples = datasets::decode(name, &file("x.npy")?, &file("y.npy")?)
            .map_err(|error: DatasetError| error.to_string())?;
        let array = |name: &str| npy::parse(&file(name)?).map_err(|error| error.to_string());
        let weights = array("weight.npy")?.to_f32();
        let origin = array("origin.npy")?.to_u32().map_err(|error| error.to_string())?;
        if weights.len() != samples.len() || origin.len() != samples.len() {
            return Err(format!("{}: the arrays differ in length", folder.display()));
        }
        Ok((samples, weights, origin))
    }

    /// The last epoch that the trainer reported.
    pub fn last_epoch(&self) -> Option<Epoch> {
        let text = std::fs::read_to_string(self.progress()).ok()?;
        text.lines().rev().find_map(|line| serde_json::from_str(line).ok())
    }
}

/// Reads a file of a job.
///
/// # Errors
/// Which file, and what the system said.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("read {}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > MAX_FILE {
        return Err(format!("{} has {length} bytes, more than {MAX_FILE}", path.display()));
    }
    std::fs::read(path).map_err(fail)
}

/// Examples of a set with the weights of the folder; in the validation set old and field data count
/// the same in sum.
pub fn examples(set: (Samples, Vec<f32>, Vec<u32>), classes: usize, even: bool) -> Examples {
    let (samples, mut weights, origin) = set;
    if even {
        let field = origin.iter().filter(|origin| **origin == 1).count();
        let old = origin.len() - field;
        for (weight, origin) in weights.iter_mut().zip(&origin) {
            *weight = 1.0 / if *origin == 1 { field } else { old } as f32;
        }
    }
    Examples { weights, ..Examples::labelled(samples, classes, 1.0) }
}
