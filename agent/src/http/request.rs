//! An inference request over HTTP: JSON, or JSON followed by binary tensors (Open Inference Protocol v2 and its
//! binary extension). Everything a stranger can send ends in a clear 400.

use farlight_release::manifest::Manifest;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::data::Data;
use super::extract::Object;
use crate::protocol::binary;
use crate::protocol::request::{Asked, Inputs, Output, Parameter, Parameters, whole};

#[derive(Deserialize)]
struct Document {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Object<Tensor>>,
    #[serde(default)]
    outputs: Vec<Object<OutputDocument>>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct OutputDocument {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

impl Parameters for Map<String, Value> {
    fn parameter(&self, key: &str) -> Option<Parameter<'_>> {
        Some(match self.get(key)? {
            Value::Bool(flag) => Parameter::Flag(*flag),
            Value::Number(number) => number.as_u64().map_or(Parameter::Other, Parameter::Number),
            Value::String(text) => Parameter::Text(text),
            Value::Null | Value::Array(_) | Value::Object(_) => Parameter::Other,
        })
    }
}

/// Parses a body. `header_len` is the value of `Inference-Header-Content-Length` if it was sent.
pub(super) fn parse(manifest: &Manifest, body: &[u8], header_len: Option<usize>) -> Result<Asked, String> {
    if header_len == Some(0) {
        // The one input, no JSON at all.
        let items = whole(manifest, |datatype| binary::read(body, datatype))?;
        return Ok(Asked { items, binary: true, ..Asked::default() });
    }
    let header_len = header_len.unwrap_or(body.len());
    let (json, mut rest) = body.split_at_checked(header_len).ok_or_else(|| {
        format!("Inference-Header-Content-Length is {header_len}, the body has {}", body.len())
    })?;
    let Object(document): Object<Document> =
        serde_json::from_slice(json).map_err(|e| format!("request is not valid: {e}"))?;
    let mut inputs = Inputs::of(manifest);
    for Object(tensor) in document.inputs {
        input(&mut inputs, tensor, &mut rest)?;
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes are left after the last binary tensor", rest.len()));
    }
    let output = |Object(output): Object<OutputDocument>| Output::new(output.name, &output.parameters);
    let outputs = document.outputs.into_iter().map(output).collect::<Result<_, _>>()?;
    let parameters = &document.parameters;
    let binary = parameters.flag("binary_data_output")?.unwrap_or(false);
    let asked = Asked::new(document.id, inputs.items()?, outputs, parameters)?;
    Ok(Asked { binary, ..asked })
}

/// One input, from JSON or from what follows it.
fn input(inputs: &mut Inputs<'_>, tensor: Tensor, rest: &mut &[u8]) -> Result<(), String> {
    let size = match tensor.parameters.get("binary_data_size") {
        None => None,
        Some(size) => Some(size.as_u64().ok_or("binary_data_size is no number")?),
    };
    inputs.add(&tensor.name, &tensor.datatype, &tensor.shape, |datatype| match (size, tensor.data) {
        (Some(size), None) => {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let (bytes, after) = rest
                .split_at_checked(size)
                .ok_or_else(|| format!("binary_data_size is {size}, {} bytes follow the JSON", rest.len()))?;
            *rest = after;
            binary::read(bytes, datatype)
        }
        (None, Some(data)) => data.into_values(datatype),
        (Some(_), Some(_)) => Err("both data and binary_data_size".to_owned()),
        (None, None) => Err("neither data nor binary_data_size".to_owned()),
    })
}

#[cfg(test)]
mod tests;
