//! Smaller variants of an f32 model, as the usual converters make them: the weights in f16 or int8 with a node
//! that turns them back.

use anyhow::ensure;
use farlight_onnx::builder::int;
use farlight_onnx::proto::{GraphProto, NodeProto, TensorProto};
use farlight_onnx::{Model, tensor};
use half::f16;

/// ONNX element types.
const INT8: i32 = 3;
const FLOAT16: i32 = 10;

/// Weights in half precision, cast back where they are used.
pub(crate) fn f16(model: &Model) -> anyhow::Result<Model> {
    convert(model, |weights, values, graph| {
        let stored = format!("{}.f16", weights.name());
        let bits = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes());
        graph.initializer.push(TensorProto {
            name: Some(stored.clone()),
            dims: weights.dims.clone(),
            data_type: Some(FLOAT16),
            raw_data: Some(bits.collect()),
            ..TensorProto::default()
        });
        let to = int("to", i64::from(tensor::FLOAT));
        NodeProto { attribute: vec![to], ..node("Cast", &[&stored], weights.name()) }
    })
}

/// Weights as 8-bit integers with one scale a tensor, which is the file's own: from its largest weight.
pub(crate) fn int8(model: &Model) -> anyhow::Result<Model> {
    convert(model, |weights, values, graph| {
        let (stored, scale) = (format!("{}.int8", weights.name()), format!("{}.scale", weights.name()));
        let largest = values.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let step = largest / 127.0;
        graph.initializer.push(TensorProto {
            name: Some(stored.clone()),
            dims: weights.dims.clone(),
            data_type: Some(INT8),
            raw_data: Some(values.iter().map(|value| (value / step).round() as i8 as u8).collect()),
            ..TensorProto::default()
        });
        graph.initializer.push(tensor::from_f32(&scale, &[], &[step]));
        node("DequantizeLinear", &[&stored, &scale], weights.name())
    })
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        name: Some(format!("{output}.{op}")),
        op_type: Some(op.to_owned()),
        ..NodeProto::default()
    }
}

/// Replaces each initialiser that is a matrix or more by what `change` puts into the graph instead; the node it
/// returns makes the weights again.
fn convert(
    model: &Model,
    change: impl Fn(&TensorProto, &[f32], &mut GraphProto) -> NodeProto,
) -> anyhow::Result<Model> {
    let mut model = model.clone();
    let graph = model.graph_mut();
    let mut nodes = Vec::new();
    for weights in std::mem::take(&mut graph.initializer) {
        if weights.data_type() == tensor::FLOAT && weights.dims.len() >= 2 {
            let values = tensor::to_f32(&weights)?;
            nodes.push(change(&weights, &values, graph));
        } else {
            graph.initializer.push(weights);
        }
    }
    ensure!(!nodes.is_empty(), "the model has no f32 weights");
    nodes.append(&mut graph.node);
    graph.node = nodes;
    Ok(model)
}
