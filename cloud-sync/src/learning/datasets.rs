//! Snapshots of data: a folder of `.npy` files named after the SHA-256 of its `dataset.json`, which
//! holds the digest of every file and where the samples come from. A snapshot never changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_release::digest::sha256;
use farlight_training::data::{DataError, MAX_SAMPLES, npy};
use farlight_training::{Samples, Settings};
use farlight_wire::ModelName;
use serde::{Deserialize, Serialize};

use crate::files::{self, Access, FileError};

/// Version of `dataset.json`.
const FORMAT: u32 = 1;
/// Name of the description in a snapshot.
const DESCRIPTION: &str = "dataset.json";

/// Why a snapshot cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Samples that do not decode.
    #[error("split {split}: {source}")]
    Data {
        /// Which split.
        split: String,
        /// What is wrong.
        #[source]
        source: DataError,
    },
    /// Samples that do not fit together.
    #[error("split {split}: {why}")]
    Refused {
        /// Which split.
        split: String,
        /// Why.
        why: String,
    },
    /// A snapshot on disk that is not what its name says.
    #[error("snapshot {digest} is missing or damaged: {why}")]
    Damaged {
        /// Its digest.
        digest: String,
        /// What is wrong.
        why: String,
    },
}

/// `dataset.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version, 1.
    pub format: u32,
    /// The model the data is for.
    pub model: ModelName,
    /// Shape of one input.
    pub shape: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// The splits by name.
    pub splits: BTreeMap<String, Split>,
    /// The snapshot that this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How a job retrains with it, if the importer said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Settings>,
}

/// One split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Samples.
    pub count: usize,
    /// SHA-256 of `‹split›.x.npy`, f32 `[count, shape…]`.
    pub x: String,
    /// SHA-256 of `‹split›.y.npy`, u32 `[count]`.
    pub y: String,
    /// Ids of the cases that samples come from, empty for old data; empty when all are old data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origin: Vec<String>,
}

/// Samples of a split with their origins.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Name of the split.
    pub name: String,
    /// The samples, in the unit that applications send.
    pub samples: Samples,
    /// Origins, or none.
    pub origin: Vec<String>,
}

/// The snapshots below a folder.
#[derive(Debug, Clone)]
pub struct Snapshots {
    folder: PathBuf,
}

impl Snapshots {
    /// Opens `DATA/datasets`.
    ///
    /// # Errors
    /// [`DatasetError::File`] when the folder cannot be made.
    pub fn open(data: &Path) -> Result<Self, DatasetError> {
        let folder = data.join("datasets");
        files::folder(&folder)?;
        Ok(Self { folder })
    }

    /// Keeps parts as a snapshot and returns its digest; the same content gives the same digest.
    ///
    /// # Errors
    /// [`DatasetError`] when samples do not fit together or cannot be written.
    pub fn keep(
        &self,
        model: &ModelName,
        classes: usize,
        parts: &[Part],
        parent: Option<String>,
        settings: Option<Settings>,
    ) -> Result<String, DatasetError> {
        let shape = parts.first().map(|part| part.samples.shape.clone()).unwrap_or_default();
        let mut splits = BTreeMap::new();
        let mut contents = Vec::new();
        for part in parts {
            check(part, &shape, classes)?;
            let dims = [&[part.samples.len()], shape.as_slice()].concat();
            let x = npy::write_f32(&dims, &part.samples.x.concat());
            let y = npy::write_u32(&[part.samples.len()], &part.samples.y);
            splits.insert(
                part.name.clone(),
                Split {
                    count: part.samples.len(),
                    x: sha256(&x),
                    y: sha256(&y),
                    origin: part.origin.clone(),
                },
            );
            contents.push((format!("{}.x.npy", part.name), x));
            contents.push((format!("{}.y.npy", part.name), y));
        }
        let description =
            Description { format: FORMAT, model: model.clone(), shape, classes, splits, parent, settings };
        let text = serde_json::to_vec_pretty(&description)
            .map_err(|error| DatasetError::Refused { split: "all".into(), why: error.to_string() })?;
        let digest = sha256(&text);
        let folder = self.folder.join(&digest);
        files::folder(&folder)?;
        for (name, bytes) in contents {
            files::replace(&folder.join(name), &bytes, Access::Private)?;
        }
        // The description comes last: a snapshot that has one is whole.
        files::replace(&folder.join(DESCRIPTION), &text, Access::Private)?;
        Ok(digest)
    }

    /// The description of a snapshot.
    ///
    /// # Errors
    /// [`DatasetError::Damaged`] when it is missing or its digest is another.
    pub fn describe(&self, digest: &str) -> Result<Description, DatasetError> {
        let damaged = |why: String| DatasetError::Damaged { digest: digest.to_owned(), why };
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(damaged("that is no digest".into()));
        }
        let text = files::read(&self.folder.join(digest).join(DESCRIPTION))?
            .ok_or_else(|| damaged("it has no dataset.json".into()))?;
        if sha256(&text) != digest {
            return Err(damaged("its dataset.json was changed".into()));
        }
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
    }

    /// The samples of a split, checked against the description.
    ///
    /// # Errors
    /// [`DatasetError`] when a file is missing, changed or does not decode.
    pub fn read(&self, digest: &str, split: &str) -> Result<Samples, DatasetError> {
        let damaged = |why: String| DatasetError::Damaged { digest: digest.to_owned(), why };
        let description = self.describe(digest)?;
        let declared =
            description.splits.get(split).ok_or_else(|| damaged(format!("it has no split {split:?}")))?;
        let file = |kind: &str, expected: &str| {
            let name = format!("{split}.{kind}.npy");
            let bytes = files::read(&self.folder.join(digest).join(&name))?
                .filter(|bytes| sha256(bytes) == expected)
                .ok_or_else(|| damaged(format!("{name} is missing or was changed")))?;
            Ok::<_, DatasetError>(bytes)
        };
        let samples = decode(split, &file("x", &declared.x)?, &file("y", &declared.y)?)?;
        if samples.shape != description.shape && !samples.is_empty() {
            return Err(damaged(format!("{split} has another shape")));
        }
        Ok(samples)
    }
}

/// Decodes an `x` and a `y` array into samples.
///
/// # Errors
/// [`DatasetError`] when they do not decode or fit together.
pub fn decode(split: &str, x: &[u8], y: &[u8]) -> Result<Samples, DatasetError> {
    let data = |error: npy::NpyError| DatasetError::Data { split: split.to_owned(), source: error.into() };
    let refuse = |why: String| DatasetError::Refused { split: split.to_owned(), why };
    let x = npy::parse(x).map_err(data)?;
    let y = npy::parse(y).and_then(|y| y.to_u32()).map_err(data)?;
    let Some((&count, shape)) = x.dims.split_first() else {
        return Err(refuse("x is a single number; expected [samples, …]".into()));
    };
    if count != y.len() {
        return Err(refuse(format!("x has {count} samples, y {}", y.len())));
    }
    let size: usize = shape.iter().product();
    if size == 0 {
        return Err(refuse(format!("x has shape {:?}", x.dims)));
    }
    let values = x.to_f32();
    Ok(Samples { shape: shape.to_vec(), x: values.chunks(size).map(<[f32]>::to_vec).collect(), y })
}

fn check(part: &Part, shape: &[usize], classes: usize) -> Result<(), DatasetError> {
    let refuse = |why: String| Err(DatasetError::Refused { split: part.name.clone(), why });
    let good = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    if part.name.is_empty() || part.name.len() > 32 || !part.name.bytes().all(good) {
        return refuse("use a name of 1 to 32 of a-z and _".into());
    }
    let samples = &part.samples;
    if samples.len() > MAX_SAMPLES || samples.len() != samples.y.len() {
        return refuse(format!("{} inputs and {} labels", samples.len(), samples.y.len()));
    }
    if samples.shape != shape {
        return refuse(format!("shape {:?}, other splits have {shape:?}", samples.shape));
    }
    if let Some(label) = samples.y.iter().find(|label| **label as usize >= classes) {
        return refuse(format!("label {label} of {classes} classes"));
    }
    if !part.origin.is_empty() && part.origin.len() != samples.len() {
        return refuse("origins and samples differ in number".into());
    }
    let size: usize = shape.iter().product();
    match samples.x.iter().position(|x| x.len() != size || x.iter().any(|value| !value.is_finite())) {
        Some(index) => refuse(format!("input {index} has another size or a value that is not finite")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, values: &[f32]) -> Part {
        let samples = Samples {
            shape: vec![2],
            x: values.chunks(2).map(<[f32]>::to_vec).collect(),
            y: vec![1; values.len() / 2],
        };
        Part { name: name.into(), samples, origin: Vec::new() }
    }

    #[test]
    fn a_snapshot_is_named_after_its_content_and_notices_changes() {
        let data = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(data.path()).unwrap();
        let model: ModelName = "m".parse().unwrap();
        let parts = [part("train", &[1.0, 2.0, 3.0, 4.0]), part("holdout", &[5.0, 6.0])];
        let digest = snapshots.keep(&model, 2, &parts, None, None).unwrap();
        assert_eq!(snapshots.keep(&model, 2, &parts, None, None).unwrap(), digest);
        assert_ne!(snapshots.keep(&model, 3, &parts, None, None).unwrap(), digest);
        assert_eq!(snapshots.read(&digest, "train").unwrap(), parts[0].samples);
        assert!(snapshots.read(&digest, "nope").is_err());
        std::fs::write(data.path().join("datasets").join(&digest).join("train.y.npy"), b"x").unwrap();
        assert!(matches!(snapshots.read(&digest, "train"), Err(DatasetError::Damaged { .. })));
        assert!(snapshots.read("../../etc", "train").is_err());
    }

    #[test]
    fn samples_that_do_not_fit_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(data.path()).unwrap();
        let model: ModelName = "m".parse().unwrap();
        let keep = |part: Part| snapshots.keep(&model, 2, &[part], None, None).unwrap_err().to_string();
        assert!(keep(part("../x", &[1.0, 2.0])).contains("a-z"));
        assert!(keep(part("train", &[1.0, f32::NAN])).contains("not finite"));
        let mut wrong = part("train", &[1.0, 2.0]);
        wrong.samples.y = vec![2];
        assert!(keep(wrong).contains("label 2"));
    }
}
