//! An inference request: JSON, or JSON followed by binary tensors (Open Inference Protocol v2 and its
//! binary extension). Everything a stranger can send ends in a clear 400.

use std::collections::HashSet;
use std::time::Duration;

use farlight_inference::{Item, Values};
use farlight_release::manifest::{BatchAxis, Datatype, Manifest, TensorSpec};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::binary;
use super::data::Data;
use super::extract::Object;

/// Most items in one request.
pub(super) const MAX_BATCH: usize = 256;

/// What a client asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) id: Option<String>,
    /// One or more.
    pub(super) items: Vec<Item>,
    /// Outputs asked for by name; all when empty.
    pub(super) outputs: Vec<Output>,
    /// Whether outputs are binary unless they say otherwise.
    pub(super) binary: bool,
    pub(super) priority: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) stream: Option<Stream>,
}

/// An output asked for.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) binary: Option<bool>,
    /// Classes wanted by the classification extension.
    pub(super) classification: Option<usize>,
}

/// The stream that a request belongs to.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: String,
    pub(super) start: bool,
    pub(super) end: bool,
}

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

/// Elements of one input and how many items they are.
struct Input {
    values: Values,
    items: usize,
}

/// Parses a body. `header_len` is the value of `Inference-Header-Content-Length` if it was sent.
pub(super) fn parse(manifest: &Manifest, body: &[u8], header_len: Option<usize>) -> Result<Asked, String> {
    if header_len == Some(0) {
        return raw(manifest, body);
    }
    let header_len = header_len.unwrap_or(body.len());
    let (json, mut rest) = body.split_at_checked(header_len).ok_or_else(|| {
        format!("Inference-Header-Content-Length is {header_len}, the body has {}", body.len())
    })?;
    let Object(document): Object<Document> =
        serde_json::from_slice(json).map_err(|e| format!("request is not valid: {e}"))?;
    let specs: Vec<&TensorSpec> = specs(manifest).collect();
    let mut inputs: Vec<Option<Input>> = specs.iter().map(|_| None).collect();
    let names = || specs.iter().map(|spec| format!("{:?}", spec.name)).collect::<Vec<_>>().join(", ");
    for Object(tensor) in document.inputs {
        let known = specs.iter().position(|spec| spec.name == tensor.name);
        let index = known
            .ok_or_else(|| format!("input {:?} is unknown; the model takes {}", tensor.name, names()))?;
        let (spec, place) = (specs[index], &mut inputs[index]);
        if place.is_some() {
            return Err(format!("input {:?} is there twice", spec.name));
        }
        *place = Some(input(manifest, spec, tensor, &mut rest)?);
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes are left after the last binary tensor", rest.len()));
    }
    let missing = specs.iter().zip(&inputs).find(|(_, input)| input.is_none());
    if let Some((spec, _)) = missing {
        return Err(format!("input {:?} is missing; the model takes {}", spec.name, names()));
    }
    let items = split(&specs, inputs.into_iter().flatten().collect())?;
    let parameters = &document.parameters;
    let number = |key: &str| match parameters.get(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("parameter {key} is no whole number")),
    };
    Ok(Asked {
        id: document.id.filter(|id| !id.is_empty()),
        items,
        outputs: outputs(document.outputs.into_iter().map(|Object(output)| output).collect())?,
        binary: flag(parameters, "binary_data_output")?,
        priority: number("priority")?.unwrap_or(0).try_into().unwrap_or(u32::MAX),
        // Microseconds; 0 is the model's own.
        timeout: number("timeout")?.filter(|micros| *micros > 0).map(Duration::from_micros),
        stream: stream(parameters)?,
    })
}

fn flag(parameters: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match parameters.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("parameter {key} is neither true nor false")),
    }
}

/// The sequence extension's parameters; an id of 0 or none is no stream.
fn stream(parameters: &Map<String, Value>) -> Result<Option<Stream>, String> {
    let id = match parameters.get("sequence_id") {
        None => return Ok(None),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) if id.is_u64() => match id.as_u64() {
            Some(0) | None => return Ok(None),
            Some(id) => id.to_string(),
        },
        Some(_) => return Err("parameter sequence_id is neither a text nor a whole number".to_owned()),
    };
    let (start, end) = (flag(parameters, "sequence_start")?, flag(parameters, "sequence_end")?);
    Ok((!id.is_empty()).then_some(Stream { id, start, end }))
}

/// The inputs that clients send.
fn specs(manifest: &Manifest) -> impl Iterator<Item = &TensorSpec> {
    std::iter::once(&manifest.input).chain(&manifest.more_inputs)
}

/// A raw body: the one input, no JSON at all.
fn raw(manifest: &Manifest, body: &[u8]) -> Result<Asked, String> {
    if !manifest.more_inputs.is_empty() {
        return Err(format!("a raw body is one input; the model takes {}", 1 + manifest.more_inputs.len()));
    }
    let spec = &manifest.input;
    let values = binary::read(body, spec.datatype)?;
    let elements = elements(spec);
    let items = match values.len().checked_div(elements) {
        Some(items) if items * elements == values.len() => items,
        _ => return Err(format!("{} elements are no whole number of {:?}", values.len(), spec.shape)),
    };
    let items = split(&[spec], vec![Input { values, items: batch(manifest, items)? }])?;
    Ok(Asked { items, binary: true, ..Asked::default() })
}

fn elements(spec: &TensorSpec) -> usize {
    farlight_inference::tensor::elements(&spec.shape).unwrap_or(usize::MAX)
}

/// One input, from JSON or from what follows it.
fn input(manifest: &Manifest, spec: &TensorSpec, tensor: Tensor, rest: &mut &[u8]) -> Result<Input, String> {
    let name = &spec.name;
    let expected = spec.datatype.name();
    if Datatype::parse(&tensor.datatype) != Some(spec.datatype) {
        return Err(format!("input {name:?} has datatype {}, expected {expected}", tensor.datatype));
    }
    let size = match tensor.parameters.get("binary_data_size") {
        None => None,
        Some(size) => Some(size.as_u64().ok_or("binary_data_size is no number")?),
    };
    let values = match (size, tensor.data) {
        (Some(size), None) => {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let (bytes, after) = rest
                .split_at_checked(size)
                .ok_or_else(|| format!("binary_data_size is {size}, {} bytes follow the JSON", rest.len()))?;
            *rest = after;
            binary::read(bytes, spec.datatype)?
        }
        (None, Some(data)) => data.into_values(spec.datatype).map_err(|e| format!("input {name:?}: {e}"))?,
        (Some(_), Some(_)) => return Err(format!("input {name:?} has both data and binary_data_size")),
        (None, None) => return Err(format!("input {name:?} has neither data nor binary_data_size")),
    };
    let shape = tensor.shape.as_slice();
    let items = match (shape, manifest.batch_axis) {
        (shape, _) if shape == spec.shape => 1,
        ([items, rest @ ..], BatchAxis::Leading) if *rest == *spec.shape => *items,
        (_, BatchAxis::Leading) => {
            return Err(format!("input {name:?} has shape {shape:?}, expected [N] + {:?}", spec.shape));
        }
        (_, BatchAxis::None) => {
            return Err(format!("input {name:?} has shape {shape:?}, expected {:?}", spec.shape));
        }
    };
    let items = batch(manifest, items)?;
    if values.len() != items * elements(spec) {
        let wanted = items * elements(spec);
        return Err(format!("input {name:?} has {} elements, its shape asks for {wanted}", values.len()));
    }
    Ok(Input { values, items })
}

fn batch(manifest: &Manifest, items: usize) -> Result<usize, String> {
    match manifest.batch_axis {
        BatchAxis::None if items != 1 => Err("the model takes one item at a time".to_owned()),
        _ if !(1..=MAX_BATCH).contains(&items) => {
            Err(format!("batch of {items}; 1 to {MAX_BATCH} items are allowed"))
        }
        BatchAxis::Leading | BatchAxis::None => Ok(items),
    }
}

/// Each output once: a request of a few bytes for one a million times would be answered with as many copies.
fn outputs(documents: Vec<OutputDocument>) -> Result<Vec<Output>, String> {
    let mut names = HashSet::new();
    if let Some(twice) = documents.iter().find(|document| !names.insert(&document.name)) {
        return Err(format!("output {:?} is asked for twice", twice.name));
    }
    documents.into_iter().map(output).collect()
}

fn output(document: OutputDocument) -> Result<Output, String> {
    let classification = match document.parameters.get("classification") {
        None => None,
        Some(value) => Some(value.as_u64().ok_or("parameter classification is no whole number")?),
    };
    let binary = match document.parameters.contains_key("binary_data") {
        true => Some(flag(&document.parameters, "binary_data")?),
        false => None,
    };
    Ok(Output {
        classification: classification.filter(|n| *n > 0).map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        binary,
        name: document.name,
    })
}

/// Takes a batch apart: each item gets its part of every input.
fn split(specs: &[&TensorSpec], inputs: Vec<Input>) -> Result<Vec<Item>, String> {
    let count = inputs.first().map_or(0, |input| input.items);
    if let Some((spec, other)) = specs.iter().zip(&inputs).find(|(_, input)| input.items != count) {
        return Err(format!("input {:?} has {} items, the first one {count}", spec.name, other.items));
    }
    for (spec, input) in specs.iter().zip(&inputs) {
        let Values::Bytes(texts) = &input.values else { continue };
        if let Some(index) = texts.iter().position(|text| std::str::from_utf8(text).is_err()) {
            return Err(format!("input {:?}: element {index} is no text in UTF-8", spec.name));
        }
    }
    let mut inputs = inputs.into_iter().map(|input| input.values);
    let Some(main) = inputs.next() else { return Err("no input was sent".to_owned()) };
    let more: Vec<Values> = inputs.collect();
    if count == 1 {
        return Ok(vec![Item { main, more }]);
    }
    let part = |values: &Values, index: usize| {
        let size = values.len() / count.max(1);
        values.part(index * size, size)
    };
    let item = |index| Item {
        main: part(&main, index),
        more: more.iter().map(|values| part(values, index)).collect(),
    };
    Ok((0..count).map(item).collect())
}

#[cfg(test)]
mod tests;
