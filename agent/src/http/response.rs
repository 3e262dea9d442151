//! An inference response: outputs as JSON, or JSON followed by binary tensors.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use serde_json::{Map, Value, json};

use farlight_inference::Prediction;
use farlight_release::manifest::Manifest;

use super::binary;
use super::request::Asked;

/// Name of the output with every class's score, `[N, outputs]`.
pub(super) const SCORES: &str = "scores";
/// Name of the output with the answer's label, `[N]`; empty text where the model abstained.
pub(super) const LABEL: &str = "label";

enum Values {
    Floats(Vec<f32>),
    Strings(Vec<String>),
}

struct Tensor {
    name: &'static str,
    shape: Vec<usize>,
    values: Values,
    binary: bool,
}

/// Builds the response to a request.
pub(super) fn build(
    manifest: &Manifest,
    asked: &Asked,
    predictions: &[Prediction],
) -> Result<Response, String> {
    let tensors = tensors(manifest, asked, predictions)?;
    let mut outputs = Vec::with_capacity(tensors.len());
    let mut tail = Vec::new();
    for tensor in tensors {
        let (datatype, data) = match &tensor.values {
            Values::Floats(values) => ("FP32", json!(values)),
            Values::Strings(values) => ("BYTES", json!(values)),
        };
        let mut output = Map::new();
        output.insert("name".into(), json!(tensor.name));
        output.insert("datatype".into(), json!(datatype));
        output.insert("shape".into(), json!(tensor.shape));
        if tensor.binary {
            let bytes = match &tensor.values {
                Values::Floats(values) => binary::floats(values),
                Values::Strings(values) => binary::strings(values),
            };
            output.insert("parameters".into(), json!({ "binary_data_size": bytes.len() }));
            tail.extend_from_slice(&bytes);
        } else {
            output.insert("data".into(), data);
        }
        outputs.push(Value::Object(output));
    }
    let mut document = json!({
        "model_name": manifest.release.model,
        "model_version": manifest.release.version.to_string(),
        "outputs": outputs,
    });
    if let Some(id) = &asked.id {
        document["id"] = json!(id);
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
    response.body(Body::from(body)).map_err(|e| e.to_string())
}

fn tensors(manifest: &Manifest, asked: &Asked, predictions: &[Prediction]) -> Result<Vec<Tensor>, String> {
    let n = predictions.len();
    let width = predictions.first().map_or(0, |p| p.outputs.len());
    let label = |index: usize| manifest.labels.get(index).cloned().unwrap_or_else(|| index.to_string());
    let scores = |binary| Tensor {
        name: SCORES,
        shape: vec![n, width],
        values: Values::Floats(predictions.iter().flat_map(|p| p.outputs.iter().copied()).collect()),
        binary,
    };
    let labels = |binary| Tensor {
        name: LABEL,
        shape: vec![n],
        values: Values::Strings(predictions.iter().map(|p| p.class.map(label).unwrap_or_default()).collect()),
        binary,
    };
    if asked.outputs.is_empty() {
        let mut all = vec![scores(asked.binary)];
        if !manifest.labels.is_empty() {
            all.push(labels(asked.binary));
        }
        return Ok(all);
    }
    asked
        .outputs
        .iter()
        .map(|output| {
            let binary = output.binary.unwrap_or(asked.binary);
            match (output.name.as_str(), output.classification) {
                (SCORES, Some(classes)) => {
                    let classes = classes.min(width);
                    let values = predictions.iter().flat_map(|p| top(p, classes, &label)).collect();
                    Ok(Tensor {
                        name: SCORES,
                        shape: vec![n, classes],
                        values: Values::Strings(values),
                        binary,
                    })
                }
                (SCORES, None) => Ok(scores(binary)),
                (LABEL, _) if !manifest.labels.is_empty() => Ok(labels(binary)),
                (other, _) => {
                    Err(format!("output {other:?} is unknown; the model has {SCORES:?} and {LABEL:?}"))
                }
            }
        })
        .collect()
}

/// The classification extension's `value:index:label`, best first.
fn top(prediction: &Prediction, classes: usize, label: &impl Fn(usize) -> String) -> Vec<String> {
    let mut order: Vec<usize> = (0..prediction.outputs.len()).collect();
    order.sort_by(|a, b| prediction.outputs[*b].total_cmp(&prediction.outputs[*a]));
    order
        .into_iter()
        .take(classes)
        .map(|index| format!("{}:{index}:{}", prediction.outputs[index], label(index)))
        .collect()
}
