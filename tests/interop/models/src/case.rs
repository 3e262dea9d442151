//! One folder that `reference.py` wrote: a model, its inputs, and what ONNX Runtime gave for them.
//! Tensors are files of little-endian numbers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use farlight_inference::simplify::Simplify;
use farlight_inference::{Tensor, Values};
use serde::Deserialize;

/// Tensors by the name of their value.
pub(crate) type Tensors = HashMap<String, Tensor>;

/// An tensor on disk.
#[derive(Debug, Deserialize)]
pub(crate) struct Stored {
    element: i32,
    shape: Vec<usize>,
    file: String,
}

/// What a model is expected to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expectation {
    /// It runs and gives what ONNX Runtime gives.
    Runs,
    /// It is refused, naming the operator.
    Refused,
}

/// One call: inputs by name, and expected outputs by name. Inputs that carry state are only in the first.
#[derive(Debug, Deserialize)]
pub(crate) struct Call {
    inputs: BTreeMap<String, Stored>,
    outputs: BTreeMap<String, Stored>,
}

/// The file `case.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// Its name in the table.
    pub(crate) name: String,
    /// What is expected of it.
    pub(crate) expect: Expectation,
    /// An operator that a refusal must name.
    #[serde(default)]
    pub(crate) operator: Option<String>,
    shapes: BTreeMap<String, Vec<usize>>,
    constants: BTreeMap<String, Stored>,
    /// State: output to the input that takes it in the next call.
    pub(crate) state: BTreeMap<String, String>,
    /// Inputs that remain, in the order of the file.
    pub(crate) inputs: Vec<String>,
    /// Outputs, in the order of the file.
    pub(crate) outputs: Vec<String>,
    calls: Vec<Call>,
    /// Median of ONNX Runtime on one thread, in microseconds.
    pub(crate) ort_p50_us: f64,
    #[serde(skip)]
    folder: PathBuf,
}

impl Case {
    /// Reads the case in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("case.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let case: Self = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        Ok(Self { folder: folder.to_owned(), ..case })
    }

    /// The model as its package has it.
    pub(crate) fn model(&self) -> Result<Vec<u8>> {
        let path = self.folder.join("model.onnx");
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Leaves the simplified model beside the other, for `reference.py --simplified`.
    pub(crate) fn keep(&self, simplified: &[u8]) -> Result<()> {
        let path = self.folder.join("simplified.onnx");
        fs::write(&path, simplified).with_context(|| format!("write {}", path.display()))
    }

    /// What a release would fix about it.
    pub(crate) fn options(&self) -> Result<Simplify> {
        let constants = self.tensors(&self.constants)?.into_iter().collect();
        Ok(Simplify { constants, shapes: self.shapes.clone() })
    }

    /// Inputs and expected outputs, call by call.
    pub(crate) fn calls(&self) -> Result<Vec<(Tensors, Tensors)>> {
        self.calls
            .iter()
            .map(|call| Ok((self.tensors(&call.inputs)?, self.tensors(&call.outputs)?)))
            .collect()
    }

    fn tensors(&self, stored: &BTreeMap<String, Stored>) -> Result<Tensors> {
        let tensor = |(name, stored): (&String, &Stored)| {
            let path = self.folder.join(&stored.file);
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let tensor = Tensor::new(stored.shape.clone(), values(stored.element, &bytes)?);
            Ok((name.clone(), tensor.with_context(|| format!("{}: {name}", path.display()))?))
        };
        stored.iter().map(tensor).collect()
    }
}

/// Little-endian numbers of an ONNX element type.
fn values(element: i32, bytes: &[u8]) -> Result<Values> {
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
        bytes.as_chunks::<N>().0.iter().copied()
    }
    Ok(match element {
        1 => Values::Fp32(words(bytes).map(f32::from_le_bytes).collect()),
        2 => Values::Uint8(bytes.to_vec()),
        3 => Values::Int8(words(bytes).map(i8::from_le_bytes).collect()),
        6 => Values::Int32(words(bytes).map(i32::from_le_bytes).collect()),
        7 => Values::Int64(words(bytes).map(i64::from_le_bytes).collect()),
        9 => Values::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
        11 => Values::Fp64(words(bytes).map(f64::from_le_bytes).collect()),
        other => bail!("ONNX element type {other} is not read"),
    })
}
