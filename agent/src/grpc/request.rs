//! An inference request over gRPC: contents in the field of their type, or raw. Everything a stranger can send ends in a
//! text that says what is wrong.

use std::collections::HashMap;

use bytes::Bytes;
use farlight_inference::Values;
use farlight_release::manifest::{Datatype, Manifest};

use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::{InferParameter, InferTensorContents, ModelInferRequest};
use crate::protocol::binary;
use crate::protocol::request::{Asked, Inputs, Output, Parameter, Parameters, all};

impl Parameters for HashMap<String, InferParameter> {
    fn parameter(&self, key: &str) -> Option<Parameter<'_>> {
        Some(match self.get(key)?.parameter_choice.as_ref()? {
            ParameterChoice::BoolParam(flag) => Parameter::Flag(*flag),
            ParameterChoice::Int64Param(number) => {
                u64::try_from(*number).map_or(Parameter::Other, Parameter::Number)
            }
            ParameterChoice::Uint64Param(number) => Parameter::Number(*number),
            ParameterChoice::StringParam(text) => Parameter::Text(text),
            ParameterChoice::DoubleParam(_) => Parameter::Other,
        })
    }
}

/// Reads a request to the model of a manifest. Its answer is raw where it is raw itself.
pub(super) fn read(manifest: &Manifest, request: ModelInferRequest) -> Result<Asked, String> {
    let ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents: raw, .. } = request;
    let is_raw = !raw.is_empty();
    if is_raw && raw.len() != inputs.len() {
        return Err(format!("raw_input_contents has {} entries for {} inputs", raw.len(), inputs.len()));
    }
    let mut tensors = Inputs::of(manifest);
    let mut raw = raw.into_iter();
    for tensor in inputs {
        input(&mut tensors, tensor, raw.next())?;
    }
    let output = |output: InferRequestedOutputTensor| {
        no_shared_memory(&output.parameters)
            .and_then(|()| Output::new(output.name.clone(), &output.parameters))
            .map_err(|error| format!("output {:?}: {error}", output.name))
    };
    let outputs = outputs.into_iter().map(output).collect::<Result<_, _>>()?;
    let asked = Asked::new(Some(id), tensors.items()?, outputs, &parameters)?;
    Ok(Asked { binary: is_raw, ..asked })
}

fn no_shared_memory(parameters: &HashMap<String, InferParameter>) -> Result<(), String> {
    match parameters.contains_key("shared_memory_region") {
        true => Err("tensors in shared memory are not taken; send them".to_owned()),
        false => Ok(()),
    }
}

/// One input, raw or from the field of its type.
fn input(inputs: &mut Inputs<'_>, tensor: InferInputTensor, raw: Option<Bytes>) -> Result<(), String> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = tensor;
    let size = |size: &i64| usize::try_from(*size).map_err(|_| format!("input {name:?}: shape {shape:?}"));
    let sizes = shape.iter().map(size).collect::<Result<Vec<usize>, _>>()?;
    inputs.add(&name, &datatype, &sizes, |datatype| match (raw, contents) {
        (Some(raw), None) => binary::read(&raw, datatype),
        (None, Some(contents)) => typed(contents, datatype),
        (Some(_), Some(_)) => Err("both contents and raw_input_contents".to_owned()),
        (None, None) => {
            no_shared_memory(&parameters)?;
            Err("neither contents nor raw_input_contents".to_owned())
        }
    })
}

/// The elements of a type, from its field; all others are to be empty.
fn typed(contents: InferTensorContents, datatype: Datatype) -> Result<Values, String> {
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let sent = [
        ("bool_contents", bool_contents.len()),
        ("int_contents", int_contents.len()),
        ("int64_contents", int64_contents.len()),
        ("uint_contents", uint_contents.len()),
        ("uint64_contents", uint64_contents.len()),
        ("fp32_contents", fp32_contents.len()),
        ("fp64_contents", fp64_contents.len()),
        ("bytes_contents", bytes_contents.len()),
    ];
    let Some(own) = field(datatype) else {
        return Err(format!("{} has no field of its own: send it in raw_input_contents", datatype.name()));
    };
    if let Some((other, _)) = sent.into_iter().find(|(name, count)| *name != own && *count > 0) {
        return Err(format!("{} elements are in {own}, not in {other}", datatype.name()));
    }
    Ok(match datatype {
        Datatype::Bool => Values::Bool(bool_contents),
        Datatype::Uint8 => Values::Uint8(all(uint_contents, datatype)?),
        Datatype::Uint16 => Values::Uint16(all(uint_contents, datatype)?),
        Datatype::Uint32 => Values::Uint32(uint_contents),
        Datatype::Uint64 => Values::Uint64(uint64_contents),
        Datatype::Int8 => Values::Int8(all(int_contents, datatype)?),
        Datatype::Int16 => Values::Int16(all(int_contents, datatype)?),
        Datatype::Int32 => Values::Int32(int_contents),
        Datatype::Int64 => Values::Int64(int64_contents),
        Datatype::Fp16 => Values::zeros(datatype, 0),
        Datatype::Fp32 => Values::Fp32(fp32_contents),
        Datatype::Fp64 => Values::Fp64(fp64_contents),
        Datatype::Bytes => Values::Bytes(bytes_contents.into_iter().map(Vec::from).collect()),
    })
}

/// The field that elements of a type are sent in; FP16 has none.
pub(super) fn field(datatype: Datatype) -> Option<&'static str> {
    Some(match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp16 => return None,
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Bytes => "bytes_contents",
    })
}
