//! From what a graph gives to the answer: which outputs are answers and which are states, postprocessing, and what
//! clients are told that there is.

use farlight_release::manifest::{BatchAxis, Datatype, Manifest, PostStep, Task};

use crate::engine::{EngineError, Port};
use crate::pipeline::{LoadError, RunError};
use crate::prediction::Prediction;
use crate::steps::{Array, NamedArray, Post, StepError};
use crate::tensor::{Named, Tensor, Values};

/// The planned way from outputs to answers.
pub(crate) struct Outputs {
    task: Task,
    batch: BatchAxis,
    /// Names of the graph's outputs that are answers.
    names: Vec<String>,
    /// None where there are no steps.
    post: Option<Post>,
    ports: Vec<Port>,
}

impl Outputs {
    /// Plans for the graph's outputs that are answers.
    ///
    /// # Errors
    /// [`LoadError::Manifest`] naming the field that does not fit them.
    pub(crate) fn plan(manifest: &Manifest, answers: Vec<Port>) -> Result<Self, LoadError> {
        let refuse = |field, problem: String| LoadError::Manifest { field, problem };
        match (manifest.task, answers.len()) {
            (_, 0) => return Err(refuse("task", "the graph has no output".to_owned())),
            (Task::Classification | Task::Regression, 2..) if manifest.post.is_empty() => {
                let problem = format!(
                    "the graph has {} outputs; the task is `tensors`, or a step keeps one",
                    answers.len()
                );
                return Err(refuse("task", problem));
            }
            _ => {}
        }
        let batch = manifest.batch_axis;
        let names = answers.iter().map(|port| port.name.clone()).collect();
        let post = match manifest.post.is_empty() {
            true => None,
            false => Some(plan(manifest, &answers)?),
        };
        let ports = match &post {
            None => answers,
            Some(post) => {
                post.outputs().iter().map(|(name, shape)| described(manifest, name, shape)).collect()
            }
        };
        let width = match &post {
            Some(post) => post.outputs().first().map(|(_, shape)| shape.iter().product()),
            None => ports.first().and_then(|port| port.shape.iter().copied().product::<Option<usize>>()),
        };
        let classes = manifest.labels.len();
        if manifest.task == Task::Classification && width.is_some_and(|width| width != classes) {
            let problem = format!("{classes} are named, the model has {} scores", width.unwrap_or(0));
            return Err(refuse("labels", problem));
        }
        Ok(Self { task: manifest.task, batch, names, post, ports })
    }

    /// What clients are told that there is.
    pub(crate) fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The answer that these outputs are, in the order planned for.
    ///
    /// # Errors
    /// When they are of other shapes than planned for.
    pub(crate) fn answer(&self, outputs: Vec<Tensor>, violations: u32) -> Result<Prediction, RunError> {
        let Some(post) = &self.post else { return Ok(self.plain(outputs, violations)) };
        let mut arrays = Vec::with_capacity(outputs.len());
        for (name, tensor) in self.names.iter().zip(outputs) {
            arrays.push(NamedArray { name: name.clone(), array: self.array(tensor)? });
        }
        let failed =
            |error: StepError| RunError::Engine(EngineError::Run(format!("postprocessing: {error}")));
        let threshold = post.run(&mut arrays).map_err(failed)?;
        if self.task != Task::Tensors {
            let scores = arrays.into_iter().next().map(|output| output.array.values).unwrap_or_default();
            return Ok(Prediction::of_scores(self.task, scores, threshold, violations));
        }
        let named = |output: NamedArray| Named { name: output.name, tensor: self.tensor(output.array) };
        Ok(Prediction::of_tensors(arrays.into_iter().map(named).collect(), violations))
    }

    /// Without steps.
    fn plain(&self, outputs: Vec<Tensor>, violations: u32) -> Prediction {
        if self.task == Task::Tensors {
            let names = self.names.iter().cloned();
            let named = names.zip(outputs).map(|(name, tensor)| Named { name, tensor }).collect();
            return Prediction::of_tensors(named, violations);
        }
        let scores = outputs.into_iter().next().map(|tensor| floats(tensor.values)).unwrap_or_default();
        Prediction::of_scores(self.task, scores, None, violations)
    }

    /// An output without its batch axis.
    fn array(&self, tensor: Tensor) -> Result<Array, RunError> {
        let Tensor { mut shape, values } = tensor;
        if self.batch == BatchAxis::Leading {
            match shape.first() {
                Some(1) => drop(shape.remove(0)),
                _ => {
                    let text = format!("an output of one item has shape {shape:?}");
                    return Err(RunError::Engine(EngineError::Run(text)));
                }
            }
        }
        Ok(Array { shape, values: floats(values) })
    }

    /// An array with its batch axis.
    fn tensor(&self, array: Array) -> Tensor {
        let Array { mut shape, values } = array;
        if self.batch == BatchAxis::Leading {
            shape.insert(0, 1);
        }
        Tensor { shape, values: Values::Fp32(values) }
    }
}

fn floats(values: Values) -> Vec<f32> {
    match values {
        Values::Fp32(values) => values,
        // Text has no number: an answer of none is not finite.
        other => other.to_f32().map(|values| values.into_owned()).unwrap_or_default(),
    }
}

/// Plans the steps for outputs whose shapes are fixed.
fn plan(manifest: &Manifest, answers: &[Port]) -> Result<Post, LoadError> {
    let refuse = |problem: String| LoadError::Manifest { field: "post", problem };
    let batched = usize::from(manifest.batch_axis == BatchAxis::Leading);
    let mut shapes = Vec::with_capacity(answers.len());
    for port in answers {
        let shape: Option<Vec<usize>> = port.shape.iter().skip(batched).copied().collect();
        let shape = shape
            .ok_or_else(|| refuse(format!("output {:?} has no fixed shape, which steps need", port.name)))?;
        shapes.push((port.name.clone(), shape));
    }
    Post::plan(&manifest.post, &shapes).map_err(|error| refuse(error.to_string()))
}

/// An output after the steps; how many boxes are kept is known only when they run.
fn described(manifest: &Manifest, name: &str, shape: &[usize]) -> Port {
    let open = |step: &PostStep| matches!(step, PostStep::Nms(nms) if nms.name == name);
    let open = manifest.post.iter().any(open);
    let batch = (manifest.batch_axis == BatchAxis::Leading).then_some(Some(1));
    let size = |(axis, size): (usize, &usize)| (!open || axis > 0).then_some(*size);
    let shape = batch.into_iter().chain(shape.iter().enumerate().map(size)).collect();
    Port { name: name.to_owned(), datatype: Datatype::Fp32, shape }
}
