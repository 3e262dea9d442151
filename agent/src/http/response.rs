//! The response to an inference request, JSON or JSON followed by binary tensors, compressed when the client
//! asks for it.

use std::io::Write as _;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::Response;
use farlight_inference::{Prediction, Tensor, Values};
use farlight_release::manifest::{Datatype, Manifest, Task};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::binary;
use super::request::{Asked, Output};

/// Name of the output with every class's score, `[N, outputs]`.
pub(super) const SCORES: &str = "scores";
/// Name of the output with the answer's label, `[N]`; empty text where the model abstained.
pub(super) const LABEL: &str = "label";
/// Bodies below are not worth compressing.
const MIN_COMPRESSED: usize = 1024;

/// A tensor of the response.
struct Given {
    name: String,
    tensor: Tensor,
}

/// What the response says besides its tensors.
pub(super) struct Frame<'a> {
    /// The name that the client asked for.
    pub(super) model: &'a str,
    pub(super) manifest: &'a Manifest,
    /// Whether the client takes gzip.
    pub(super) gzip: bool,
    /// Parameters of the response, such as the stage that answered.
    pub(super) parameters: Map<String, Value>,
}

/// Builds the response to a request.
///
/// # Errors
/// A text that names an output which the model does not have.
pub(super) fn build(
    frame: Frame<'_>,
    asked: &Asked,
    predictions: Vec<Prediction>,
) -> Result<Response, String> {
    let manifest = frame.manifest;
    let given = given(manifest, predictions);
    let all;
    let wanted = if asked.outputs.is_empty() {
        all = given.iter().map(|given| plain(&given.name)).collect::<Vec<_>>();
        &all
    } else {
        &asked.outputs
    };
    let mut outputs = Vec::with_capacity(wanted.len());
    let mut tail = Vec::new();
    for output in wanted {
        let found = given.iter().find(|given| given.name == output.name).ok_or_else(|| {
            let names: Vec<String> = given.iter().map(|given| format!("{:?}", given.name)).collect();
            format!("output {:?} is unknown; the model has {}", output.name, names.join(", "))
        })?;
        let classes;
        let tensor = match output.classification {
            Some(count) => {
                classes = classify(manifest, &found.tensor, count)
                    .ok_or_else(|| format!("output {:?} holds no numbers to classify", output.name))?;
                &classes
            }
            None => &found.tensor,
        };
        let mut document = Map::new();
        document.insert("name".into(), json!(found.name));
        document.insert("datatype".into(), json!(tensor.values.datatype().name()));
        document.insert("shape".into(), json!(tensor.shape));
        if output.binary.unwrap_or(asked.binary) {
            let before = tail.len();
            binary::write(&tensor.values, &mut tail);
            document.insert("parameters".into(), json!({ "binary_data_size": tail.len() - before }));
        } else {
            document.insert("data".into(), elements(&tensor.values));
        }
        outputs.push(Value::Object(document));
    }
    let mut document = json!({
        "model_name": frame.model,
        "model_version": manifest.release.version.to_string(),
        "outputs": outputs,
    });
    if let Some(id) = &asked.id {
        document["id"] = json!(id);
    }
    if !frame.parameters.is_empty() {
        document["parameters"] = Value::Object(frame.parameters);
    }
    let mut body = serde_json::to_vec(&document).map_err(|e| e.to_string())?;
    let header = body.len();
    let mut response = Response::builder();
    if tail.is_empty() {
        response = response.header(CONTENT_TYPE, "application/json");
    } else {
        body.extend_from_slice(&tail);
        response = response
            .header(CONTENT_TYPE, "application/octet-stream")
            .header("Inference-Header-Content-Length", HeaderValue::from(header));
    }
    if frame.gzip && body.len() >= MIN_COMPRESSED {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 2), Compression::fast());
        encoder.write_all(&body).map_err(|e| e.to_string())?;
        body = encoder.finish().map_err(|e| e.to_string())?;
        response = response.header(CONTENT_ENCODING, "gzip");
    }
    response.body(Body::from(body)).map_err(|e| e.to_string())
}

fn plain(name: &str) -> Output {
    Output { name: name.to_owned(), binary: None, classification: None }
}

/// The answers to all items as one tensor for each output.
fn given(manifest: &Manifest, predictions: Vec<Prediction>) -> Vec<Given> {
    let n = predictions.len();
    if manifest.task == Task::Tensors {
        return joined(predictions);
    }
    let width = predictions.first().map_or(0, |p| p.outputs.len());
    let label = |index: usize| manifest.labels.get(index).map(|label| label.clone().into_bytes());
    let labels = predictions.iter().map(|p| p.class.and_then(label).unwrap_or_default()).collect();
    let labels = Tensor { shape: vec![n], values: Values::Bytes(labels) };
    let scores = predictions.into_iter().flat_map(|p| p.outputs).collect();
    let scores = Tensor { shape: vec![n, width], values: Values::Fp32(scores) };
    let mut given = vec![Given { name: SCORES.to_owned(), tensor: scores }];
    if !manifest.labels.is_empty() {
        given.push(Given { name: LABEL.to_owned(), tensor: labels });
    }
    given
}

/// The tensors of all items behind one another along the first axis.
fn joined(predictions: Vec<Prediction>) -> Vec<Given> {
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
    joined.into_iter().map(|named| Given { name: named.name, tensor: named.tensor }).collect()
}

/// Elements as JSON. Numbers that are not finite are null, which JSON has in their place.
pub(crate) fn elements(values: &Values) -> Value {
    match values {
        Values::Bool(v) => json!(v),
        Values::Uint8(v) => json!(v),
        Values::Uint16(v) => json!(v),
        Values::Uint32(v) => json!(v),
        Values::Uint64(v) => json!(v),
        Values::Int8(v) => json!(v),
        Values::Int16(v) => json!(v),
        Values::Int32(v) => json!(v),
        Values::Int64(v) => json!(v),
        Values::Fp16(v) => v.iter().map(|x| json!(x.to_f32())).collect(),
        Values::Fp32(v) => json!(v),
        Values::Fp64(v) => json!(v),
        Values::Bytes(v) => v.iter().map(|x| json!(String::from_utf8_lossy(x))).collect(),
    }
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
pub(super) fn describe<'a>(
    manifest: &'a Manifest,
    ports: &'a [farlight_inference::Port],
) -> Vec<(String, Datatype, Vec<i64>)> {
    if manifest.task != Task::Tensors {
        let classes = if manifest.labels.is_empty() { -1 } else { manifest.labels.len() as i64 };
        let mut all = vec![(SCORES.to_owned(), Datatype::Fp32, vec![-1, classes])];
        if !manifest.labels.is_empty() {
            all.push((LABEL.to_owned(), Datatype::Bytes, vec![-1]));
        }
        return all;
    }
    let batched = manifest.batch_axis == farlight_release::manifest::BatchAxis::Leading;
    let size = |(axis, size): (usize, &Option<usize>)| match size {
        Some(_) if axis == 0 && batched => -1,
        Some(size) => *size as i64,
        None => -1,
    };
    let describe = |port: &farlight_inference::Port| {
        (port.name.clone(), port.datatype, port.shape.iter().enumerate().map(size).collect())
    };
    ports.iter().map(describe).collect()
}
