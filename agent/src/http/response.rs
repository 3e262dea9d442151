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
use serde::{Serialize, Serializer};

use crate::protocol::binary;
use crate::protocol::infer::Answer;

/// Bodies below are not worth compressing.
const MIN_COMPRESSED: usize = 1024;
/// Room for the JSON of an answer with one or two outputs, so that it need not grow.
const ROOM: usize = 512;

/// The JSON of a response.
#[derive(Serialize)]
struct Document<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Stage<'a>>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Stage<'a> {
    stage: &'a str,
}

/// A tensor of it, with its elements or the number of bytes that follow the JSON.
#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

/// Elements as JSON. Numbers that are not finite are null, which JSON has in their place.
pub(crate) struct Elements<'a>(pub(crate) &'a Values);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Values::Bool(v) => v.serialize(to),
            Values::Uint8(v) => v.serialize(to),
            Values::Uint16(v) => v.serialize(to),
            Values::Uint32(v) => v.serialize(to),
            Values::Uint64(v) => v.serialize(to),
            Values::Int8(v) => v.serialize(to),
            Values::Int16(v) => v.serialize(to),
            Values::Int32(v) => v.serialize(to),
            Values::Int64(v) => v.serialize(to),
            Values::Fp16(v) => to.collect_seq(v.iter().map(|x| x.to_f32())),
            Values::Fp32(v) => v.serialize(to),
            Values::Fp64(v) => v.serialize(to),
            Values::Bytes(v) => to.collect_seq(v.iter().map(|x| String::from_utf8_lossy(x))),
        }
    }
}

/// Builds the response of what the client called `model`; `gzip` when it takes that.
///
/// # Errors
/// When the answer cannot be written.
pub(super) fn build(model: &str, answer: &Answer, gzip: bool) -> Result<Response, String> {
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    let mut tail = Vec::new();
    for given in &answer.outputs {
        let values = &given.tensor.values;
        let before = tail.len();
        if given.binary {
            binary::write(values, &mut tail);
        }
        outputs.push(Output {
            name: &given.name,
            datatype: values.datatype().name(),
            shape: &given.tensor.shape,
            parameters: given.binary.then(|| Size { binary_data_size: tail.len() - before }),
            data: (!given.binary).then_some(Elements(values)),
        });
    }
    let document = Document {
        model_name: model,
        model_version: &answer.version,
        id: answer.id.as_deref(),
        parameters: answer.stage.as_deref().map(|stage| Stage { stage }),
        outputs,
    };
    let mut body = Vec::with_capacity(ROOM + tail.len());
    serde_json::to_writer(&mut body, &document).map_err(|e| e.to_string())?;
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
