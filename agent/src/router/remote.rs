//! A stage elsewhere: a model of any service that speaks the Open Inference Protocol v2, asked with binary tensors.

use std::time::Duration;

use farlight_inference::{Item, Named, Prediction, Tensor, Values};
use farlight_release::manifest::{BatchAxis, Datatype, Manifest, Task, TensorSpec};
use serde::Deserialize;
use serde_json::json;

use crate::http::data::Data;
use crate::protocol::binary;

/// Largest answer in bytes: that of the largest input.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

#[derive(Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    data: Option<Data>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    binary_data_size: Option<usize>,
}

/// A model of another service.
pub(super) struct Remote<'a> {
    pub(super) client: &'a reqwest::Client,
    /// `http(s)://HOST/v2/models/NAME`.
    pub(super) url: &'a str,
    /// The trace that the request belongs to.
    pub(super) trace: Option<&'a str>,
}

impl Remote<'_> {
    /// Asks it within `timeout`.
    ///
    /// # Errors
    /// A text for the log: what was asked and what came instead of an answer.
    pub(super) async fn ask(
        &self,
        manifest: &Manifest,
        item: &Item,
        timeout: Duration,
    ) -> Result<Prediction, String> {
        let asked = self.exchange(manifest, item);
        let late = || Err("it did not answer in time".to_owned());
        let answer = tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| late());
        answer.map_err(|error| format!("ask {}: {error}", self.url))
    }

    async fn exchange(&self, manifest: &Manifest, item: &Item) -> Result<Prediction, String> {
        let (header, body) = request(manifest, item)?;
        let mut request = self
            .client
            .post(format!("{}/infer", self.url))
            .header("Content-Type", "application/octet-stream")
            .header("Inference-Header-Content-Length", header)
            .body(body);
        if let Some(trace) = self.trace {
            request = request.header("traceparent", trace);
        }
        let mut response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status();
        let header = response.headers().get("inference-header-content-length");
        let header = header.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| error.to_string())? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(format!("its answer has more than {MAX_ANSWER} bytes"));
            }
        }
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            return Err(format!("it answered {status}: {text}"));
        }
        answer(manifest, header, &body)
    }
}

/// The bytes of the JSON part, and the body.
fn request(manifest: &Manifest, item: &Item) -> Result<(usize, Vec<u8>), String> {
    let specs = std::iter::once(&manifest.input).chain(&manifest.more_inputs);
    let values = std::iter::once(&item.main).chain(&item.more);
    let mut tail = Vec::new();
    let mut input = |(spec, values): (&TensorSpec, &Values)| {
        let before = tail.len();
        binary::write(values, &mut tail);
        let batch = (manifest.batch_axis == BatchAxis::Leading).then_some(1);
        let shape: Vec<usize> = batch.into_iter().chain(spec.shape.iter().copied()).collect();
        json!({ "name": spec.name, "datatype": values.datatype().name(), "shape": shape,
            "parameters": { "binary_data_size": tail.len() - before } })
    };
    let inputs: Vec<serde_json::Value> = specs.zip(values).map(&mut input).collect();
    let document = json!({ "inputs": inputs, "parameters": { "binary_data_output": true } });
    let mut body = serde_json::to_vec(&document).map_err(|error| error.to_string())?;
    let header = body.len();
    body.extend_from_slice(&tail);
    Ok((header, body))
}

/// What an answer says; its tensors are the model's as they are, or scores.
fn answer(manifest: &Manifest, header: Option<usize>, body: &[u8]) -> Result<Prediction, String> {
    let (json, mut rest) = body.split_at_checked(header.unwrap_or(body.len())).ok_or("it is too short")?;
    let document: Answer = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let mut tensors = Vec::with_capacity(document.outputs.len());
    for output in document.outputs {
        let datatype = Datatype::parse(&output.datatype).ok_or("an output is of an unknown type")?;
        let values = match (output.parameters.binary_data_size, output.data) {
            (Some(size), _) => {
                let (bytes, after) = rest.split_at_checked(size).ok_or("an output is too short")?;
                rest = after;
                binary::read(bytes, datatype)?
            }
            (None, Some(data)) => data.into_values(datatype)?,
            (None, None) => return Err("an output has no data".to_owned()),
        };
        let tensor = Tensor::new(output.shape, values).ok_or("an output is not of its shape")?;
        tensors.push(Named { name: output.name, tensor });
    }
    if manifest.task == Task::Tensors {
        return Ok(Prediction::of_tensors(tensors, 0));
    }
    let scores = tensors.iter().find_map(|named| named.tensor.values.to_f32()).ok_or("it has no numbers")?;
    if manifest.task == Task::Classification && scores.len() != manifest.labels.len() {
        return Err(format!("it has {} scores for {} classes", scores.len(), manifest.labels.len()));
    }
    Ok(Prediction::of_scores(manifest.task, scores.into_owned(), None, 0))
}
