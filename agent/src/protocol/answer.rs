//! What an answer holds: the predictions of all items as one tensor for each output that was asked for.

use farlight_inference::{Port, Prediction, Tensor, Values};
use farlight_release::manifest::{BatchAxis, Datatype, Manifest, Task};

use super::request::{Asked, Output};

/// Name of the output with every class's score, `[N, outputs]`.
pub(crate) const SCORES: &str = "scores";
/// Name of the output with the answer's label, `[N]`; empty text where the model abstained.
pub(crate) const LABEL: &str = "label";

/// A tensor of the answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    /// Whether the client wants it in binary form.
    pub(crate) binary: bool,
}

impl Given {
    fn new(name: impl Into<String>, tensor: Tensor, asked: &Asked) -> Self {
        Self { name: name.into(), tensor, binary: asked.binary }
    }
}

/// The tensors that a request asked for, in its order.
///
/// # Errors
/// A text that names an output which the model does not have, or has no classes in.
pub(crate) fn outputs(
    manifest: &Manifest,
    asked: &Asked,
    predictions: Vec<Prediction>,
) -> Result<Vec<Given>, String> {
    let mut given = match manifest.task {
        Task::Tensors => joined(asked, predictions),
        _ => scored(manifest, asked, predictions),
    };
    if asked.outputs.is_empty() {
        return Ok(given);
    }
    let wanted = |output: &Output| {
        let Some(found) = given.iter_mut().find(|given| given.name == output.name) else {
            let names: Vec<String> = given.iter().map(|given| format!("{:?}", given.name)).collect();
            return Err(format!("output {:?} is unknown; the model has {}", output.name, names.join(", ")));
        };
        // Each is asked for once, so that what is found can be taken.
        let empty = Tensor { shape: Vec::new(), values: Values::Uint8(Vec::new()) };
        let mut tensor = std::mem::replace(&mut found.tensor, empty);
        if let Some(count) = output.classification {
            tensor = classify(manifest, &tensor, count)
                .ok_or_else(|| format!("output {:?} holds no numbers to classify", output.name))?;
        }
        Ok(Given { name: output.name.clone(), tensor, binary: output.binary.unwrap_or(asked.binary) })
    };
    asked.outputs.iter().map(wanted).collect()
}

/// Scores and labels of all items.
fn scored(manifest: &Manifest, asked: &Asked, predictions: Vec<Prediction>) -> Vec<Given> {
    let n = predictions.len();
    let width = predictions.first().map_or(0, |p| p.outputs.len());
    let label = |index: usize| manifest.labels.get(index).map(|label| label.clone().into_bytes());
    let labels = predictions.iter().map(|p| p.class.and_then(label).unwrap_or_default()).collect();
    let labels = Tensor { shape: vec![n], values: Values::Bytes(labels) };
    let scores = predictions.into_iter().flat_map(|p| p.outputs).collect();
    let scores = Tensor { shape: vec![n, width], values: Values::Fp32(scores) };
    let mut given = vec![Given::new(SCORES, scores, asked)];
    if !manifest.labels.is_empty() {
        given.push(Given::new(LABEL, labels, asked));
    }
    given
}

/// The tensors of all items behind one another along the first axis.
fn joined(asked: &Asked, predictions: Vec<Prediction>) -> Vec<Given> {
    let mut predictions = predictions.into_iter();
    let mut joined = predictions.next().map(|first| first.tensors).unwrap_or_default();
    for prediction in predictions {
        for (all, one) in joined.iter_mut().zip(prediction.tensors) {
            all.tensor.values.append(&one.tensor.values);
            if let (Some(all), Some(one)) = (all.tensor.shape.first_mut(), one.tensor.shape.first()) {
                *all += one;
            }
        }
    }
    joined.into_iter().map(|named| Given::new(named.name, named.tensor, asked)).collect()
}

/// The classification extension: for each item the best elements as `value:index:label`, best first.
fn classify(manifest: &Manifest, tensor: &Tensor, count: usize) -> Option<Tensor> {
    let values = tensor.values.to_f32()?;
    let items = if tensor.shape.len() > 1 { tensor.shape.first().copied().unwrap_or(1) } else { 1 };
    let width = values.len().checked_div(items).unwrap_or(0);
    let count = count.min(width);
    let mut best = Vec::with_capacity(items * count);
    for item in values.chunks(width.max(1)) {
        let mut order: Vec<(usize, f32)> = item.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        best.extend(order.into_iter().take(count).map(|(index, value)| {
            let text = match manifest.labels.get(index) {
                Some(label) => format!("{value}:{index}:{label}"),
                None => format!("{value}:{index}"),
            };
            text.into_bytes()
        }));
    }
    Tensor::new(vec![items, count], Values::Bytes(best))
}

/// The outputs of a model as metadata: name, type, shape with -1 where it is not fixed.
pub(crate) fn describe(manifest: &Manifest, ports: &[Port]) -> Vec<(String, Datatype, Vec<i64>)> {
    if manifest.task != Task::Tensors {
        let classes = if manifest.labels.is_empty() { -1 } else { manifest.labels.len() as i64 };
        let mut all = vec![(SCORES.to_owned(), Datatype::Fp32, vec![-1, classes])];
        if !manifest.labels.is_empty() {
            all.push((LABEL.to_owned(), Datatype::Bytes, vec![-1]));
        }
        return all;
    }
    let batched = manifest.batch_axis == BatchAxis::Leading;
    let size = |(axis, size): (usize, &Option<usize>)| match size {
        Some(_) if axis == 0 && batched => -1,
        Some(size) => *size as i64,
        None => -1,
    };
    let describe =
        |port: &Port| (port.name.clone(), port.datatype, port.shape.iter().enumerate().map(size).collect());
    ports.iter().map(describe).collect()
}
