//! The response to an inference request over HTTP, JSON or JSON followed by binary tensors, compressed when the client
//! asks for it.

use std::io::Write as _;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::Response;
use farlight_inference::Values;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use crate::protocol::binary;
use crate::protocol::infer::Answer;

/// Bodies below are not worth compressing.
const MIN_COMPRESSED: usize = 1024;

/// Builds the response of what the client called `model`; `gzip` when it takes that.
///
/// # Errors
/// When the answer cannot be written.
pub(super) fn build(model: &str, answer: Answer, gzip: bool) -> Result<Response, String> {
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    let mut tail = Vec::new();
    for given in answer.outputs {
        let tensor = &given.tensor;
        let mut document = Map::new();
        document.insert("name".into(), json!(given.name));
        document.insert("datatype".into(), json!(tensor.values.datatype().name()));
        document.insert("shape".into(), json!(tensor.shape));
        if given.binary {
            let before = tail.len();
            binary::write(&tensor.values, &mut tail);
            document.insert("parameters".into(), json!({ "binary_data_size": tail.len() - before }));
        } else {
            document.insert("data".into(), elements(&tensor.values));
        }
        outputs.push(Value::Object(document));
    }
    let mut document = json!({
        "model_name": model,
        "model_version": answer.version,
        "outputs": outputs,
    });
    if let Some(id) = answer.id {
        document["id"] = json!(id);
    }
    if let Some(stage) = answer.stage {
        document["parameters"] = json!({ "stage": stage });
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
    if gzip && body.len() >= MIN_COMPRESSED {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 2), Compression::fast());
        encoder.write_all(&body).map_err(|e| e.to_string())?;
        body = encoder.finish().map_err(|e| e.to_string())?;
        response = response.header(CONTENT_ENCODING, "gzip");
    }
    response.body(Body::from(body)).map_err(|e| e.to_string())
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
