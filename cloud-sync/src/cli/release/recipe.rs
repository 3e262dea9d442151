//! The recipe of a release, TOML beside the model: everything about it that is not the weights. It
//! names the evaluation data too, so that anybody can build the same release again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_inference::simplify::{Simplify, simplify};
use farlight_inference::{Item, Tensor, Values, golden, tensor};
use farlight_onnx::{Limits, Model, convert};
use farlight_release::manifest::{
    BatchAxis, Blob, Budgets, Datatype, FORMAT, Lineage, Manifest, OnViolation, PostStep, PreStep, Precision,
    Profile, Requires, Sampling, StateSpec, Task, TensorSpec, Variant,
};
use farlight_training::data::Samples;
use farlight_wire::{ModelName, ReleaseId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;

use crate::cli::error::CliError;
use crate::cli::files;
use crate::learning::recipe::Source;

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
    /// The main input and its data contract.
    pub input: Input,
    /// The other inputs.
    #[serde(default)]
    pub more_inputs: Vec<TensorSpec>,
    /// What the model hands from one call of a stream to the next.
    #[serde(default)]
    pub states: Vec<StateSpec>,
    /// Whether the graph has a batch axis.
    #[serde(default)]
    pub batch_axis: BatchAxis,
    /// What is fixed in the graph before anything else is done with it.
    #[serde(default)]
    pub graph: Graph,
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
    /// Other files of the same model, of which each device takes the fastest whose golden vectors pass.
    #[serde(default, rename = "variant")]
    pub variants: Vec<OtherFile>,
    /// What the build refuses to go below.
    #[serde(default)]
    pub gate: Gate,
    /// Where the evaluation data is; a model of tensors needs none.
    pub evaluation: Option<Source>,
}

/// What is fixed in a graph whose exporter kept it general.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Graph {
    /// Inputs that always have the same value, such as a sample rate; they are no inputs of the release.
    pub constants: BTreeMap<String, Constant>,
    /// Shapes of inputs, batch included, where what the file declares is open and something follows from it.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// The value of an input that is always the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Type of its elements.
    pub datatype: Datatype,
    /// Its shape; a single number when left out.
    #[serde(default)]
    pub shape: Vec<usize>,
    /// Its elements, row-major; numbers up to 2^24 are exact.
    pub data: Vec<f32>,
}

impl Graph {
    /// The graph with what is fixed; as it is when nothing is.
    ///
    /// # Errors
    /// When the graph has no such input, or it does not fit.
    pub fn fix(&self, onnx: Vec<u8>) -> Result<Vec<u8>, CliError> {
        if self.constants.is_empty() && self.shapes.is_empty() {
            return Ok(onnx);
        }
        let mut options = Simplify { shapes: self.shapes.clone(), ..Simplify::default() };
        for (name, constant) in &self.constants {
            let values = Values::from_f32(constant.datatype, &constant.data);
            let tensor = values.and_then(|values| Tensor::new(constant.shape.clone(), values));
            let wrong = || CliError::file(format!("graph.constants.{name}: data does not fill the shape"));
            options.constants.insert(name.clone(), tensor.ok_or_else(wrong)?);
        }
        let simplified = simplify(&onnx, &options);
        Ok(simplified.map_err(|error| CliError::file(format!("recipe, graph: {error}")))?.onnx)
    }
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

/// Another file of the same model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherFile {
    /// Precision of its weights, other than `fp32`.
    pub precision: Precision,
    /// The file, below the recipe's folder; made of the model's weights when left out.
    pub file: Option<PathBuf>,
}

impl OtherFile {
    /// Reads it from `folder`, or makes it of the model.
    ///
    /// # Errors
    /// When the file cannot be read, or the model has no such form.
    pub fn onnx(&self, folder: &Path, model: &[u8]) -> Result<Vec<u8>, CliError> {
        let wrong = |why: String| CliError::file(format!("recipe, variant {}: {why}", self.precision.name()));
        let made = match self.precision {
            Precision::Fp32 => return Err(wrong("that is the model itself: leave it out".to_owned())),
            Precision::F16 => convert::f16,
            Precision::Int8 => convert::int8,
        };
        if let Some(file) = &self.file {
            return files::read(&folder.join(file));
        }
        let model = Model::parse(model, &Limits::default()).map_err(|error| wrong(error.to_string()))?;
        Ok(made(&model).map_err(|error| wrong(error.to_string()))?.into_bytes())
    }
}

/// How golden vectors are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// How many, spread over the evaluation data; without data they are drawn at random from what the inputs'
    /// contracts allow.
    pub count: usize,
    /// Consecutive calls of each, for a model with states.
    #[serde(default = "one")]
    pub calls: usize,
    /// Largest absolute difference that a device may see.
    pub tolerance: f32,
}

fn one() -> usize {
    1
}

/// What the build refuses to go below.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Lowest accuracy on the evaluation data.
    #[serde(default)]
    pub min_accuracy: f64,
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

    /// Reads the evaluation data from files below `folder`; `None` where a model of tensors has none.
    ///
    /// # Errors
    /// [`CliError`] when it cannot be read or does not fit the input.
    pub fn samples(&self, folder: &Path) -> Result<Option<Samples>, CliError> {
        let Some(evaluation) = &self.evaluation else {
            if self.task == Task::Tensors {
                return Ok(None);
            }
            return Err(CliError::file("the recipe has no `evaluation`: name the data that never trains"));
        };
        let samples = evaluation.read(folder).map_err(|e| CliError::file(format!("evaluation data: {e}")))?;
        if samples.is_empty() {
            return Err(CliError::file("the evaluation data holds no sample"));
        }
        if samples.shape != self.input.shape {
            let (found, expected) = (&samples.shape, &self.input.shape);
            let message = format!("the evaluation data has shape {found:?}, `input.shape` is {expected:?}");
            return Err(CliError::file(message));
        }
        let classes = self.labels.len();
        let is_unknown = |label: &&u32| self.task != Task::Tensors && **label as usize >= classes;
        if let Some(label) = samples.y.iter().find(is_unknown) {
            return Err(CliError::file(format!("the evaluation data has class {label} of {classes} labels")));
        }
        Ok(Some(samples))
    }

    /// Streams of inputs for the golden vectors: of the samples at equal distances, because data is usually sorted by
    /// class or recording, or drawn at random, the same each time.
    pub fn golden_inputs(&self, samples: Option<&Samples>) -> Vec<Vec<Item>> {
        let calls = match self.states.is_empty() {
            true => 1,
            false => self.golden.calls.clamp(1, golden::MAX_CALLS),
        };
        let most = samples.map_or(golden::MAX_VECTORS, |samples| samples.x.len() / calls);
        let count = self.golden.count.min(most).clamp(1, golden::MAX_VECTORS);
        let mut random = StdRng::seed_from_u64(0);
        let input = &self.input;
        let mut draw = |datatype, shape: &[usize], min: f32, max: f32| {
            let elements = tensor::elements(shape).unwrap_or(0);
            let values: Vec<f32> = (0..elements).map(|_| random.random_range(min..=max)).collect();
            Values::from_f32(datatype, &values).unwrap_or_else(|| Values::zeros(datatype, elements))
        };
        let mut item = |number: usize| {
            let sample =
                samples.and_then(|samples| samples.x.get(number * samples.x.len() / (count * calls)));
            let main = match sample.and_then(|sample| Values::from_f32(input.datatype, sample)) {
                Some(main) => main,
                None => draw(input.datatype, &input.shape, input.min, input.max),
            };
            let more = &self.more_inputs;
            let more = more.iter().map(|spec| draw(spec.datatype, &spec.shape, spec.min, spec.max)).collect();
            Item { main, more }
        };
        (0..count).map(|vector| (0..calls).map(|call| item(vector * calls + call)).collect()).collect()
    }

    /// The manifest of one release by this recipe.
    pub fn manifest(
        &self,
        release: ReleaseId,
        variants: Vec<Variant>,
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
            more_inputs: self.more_inputs.clone(),
            states: self.states.clone(),
            batch_axis: self.batch_axis,
            pre: self.pre.clone(),
            post: self.post.clone(),
            labels: self.labels.clone(),
            variants,
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
        let only = Variant::onnx(Precision::Fp32, variant.clone(), Vec::new());
        self.manifest(release, vec![only], variant, empty, lineage)
    }
}
