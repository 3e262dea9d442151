//! Smaller forms of an f32 model: the weights in half precision or in eight bits, with a node that turns them back.
//! Engines do that once, when they load the file; the arithmetic stays f32.

use half::f16;

use crate::builder::int;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::{Model, OnnxError, tensor};

/// ONNX element types.
const INT8: i32 = 3;
const FLOAT16: i32 = 10;
/// The first opset whose `DequantizeLinear` has a scale for each slice along an axis.
const OPSET_OF_AXES: i64 = 13;
/// Largest integer of a weight: the scale is even, so that zero stays zero.
const LARGEST: f32 = 127.0;

/// Why a model has no smaller form.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Its weights cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// There is nothing to be made smaller.
    #[error("the model has no f32 weights of two dimensions or more")]
    NoWeights,
    /// The graph is of another time.
    #[error(
        "weights of eight bits need opset {OPSET_OF_AXES}, the model has {0}: export it anew, or name a file"
    )]
    Opset(i64),
}

/// Weights in half precision, cast back where they are used: half the file.
///
/// # Errors
/// [`ConvertError`].
pub fn f16(model: &Model) -> Result<Model, ConvertError> {
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

/// Weights as integers of eight bits, with a scale for each output channel: a quarter of the file. The scale is the
/// channel's largest weight by 127 (symmetric quantisation; ONNX `DequantizeLinear` with `axis`).
///
/// # Errors
/// [`ConvertError`].
pub fn int8(model: &Model) -> Result<Model, ConvertError> {
    if model.opset() < OPSET_OF_AXES {
        return Err(ConvertError::Opset(model.opset()));
    }
    let last = columns(model.graph());
    convert(model, |weights, values, graph| {
        let (stored, scale) = (format!("{}.int8", weights.name()), format!("{}.scale", weights.name()));
        let dims: Vec<usize> = weights.dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
        let axis = if last.contains(&weights.name()) { dims.len() - 1 } else { 0 };
        let channels = dims.get(axis).copied().unwrap_or(0);
        let inner: usize = dims.iter().skip(axis + 1).product();
        let channel = |index: usize| index / inner.max(1) % channels.max(1);
        let mut largest = vec![f32::MIN_POSITIVE; channels];
        for (index, value) in values.iter().enumerate() {
            if let Some(most) = largest.get_mut(channel(index)) {
                *most = most.max(value.abs());
            }
        }
        let steps: Vec<f32> = largest.iter().map(|most| most / LARGEST).collect();
        let step = |index| steps.get(channel(index)).copied().unwrap_or(1.0);
        let integer = |(index, value): (usize, &f32)| (value / step(index)).round() as i8 as u8;
        graph.initializer.push(TensorProto {
            name: Some(stored.clone()),
            dims: weights.dims.clone(),
            data_type: Some(INT8),
            raw_data: Some(values.iter().enumerate().map(integer).collect()),
            ..TensorProto::default()
        });
        graph.initializer.push(tensor::from_f32(&scale, &[channels], &steps));
        let axis = int("axis", axis as i64);
        NodeProto { attribute: vec![axis], ..node("DequantizeLinear", &[&stored, &scale], weights.name()) }
    })
}

/// Weights whose output channels are their last axis: the right side of products. Those of convolutions and of products
/// with a transposed right side have them first.
fn columns(graph: &GraphProto) -> Vec<&str> {
    let right = |node: &NodeProto| match node.op_type() {
        "MatMul" => true,
        "Gemm" => !node.attribute.iter().any(|a| a.name() == "transB" && a.i() == 1),
        _ => false,
    };
    let nodes = graph.node.iter().filter(|node| right(node));
    nodes.filter_map(|node| node.input.get(1).map(String::as_str)).collect()
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
) -> Result<Model, ConvertError> {
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
    if nodes.is_empty() {
        return Err(ConvertError::NoWeights);
    }
    nodes.append(&mut graph.node);
    graph.node = nodes;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dim, GraphBuilder};

    fn model(weights: &[f32]) -> Model {
        GraphBuilder::new("m")
            .input("x", &[Dim::Fixed(1), Dim::Fixed(2)])
            .f32("w", &[2, 3], weights)
            .f32("bias", &[3], &[0.0; 3])
            .node("MatMul", &["x", "w"], &["h"], &[])
            .node("Add", &["h", "bias"], &["y"], &[])
            .output("y", &[Dim::Fixed(1), Dim::Fixed(3)])
            .finish()
            .unwrap()
    }

    #[test]
    fn each_column_of_a_product_has_its_own_scale() {
        // One channel with small weights next to one with large ones keeps its digits.
        let small = int8(&model(&[0.001, 100.0, 0.0, -0.002, 50.0, 0.0])).unwrap();
        let weights = small.initialiser("w.int8").unwrap();
        assert_eq!(
            weights.raw_data().iter().map(|b| *b as i8).collect::<Vec<_>>(),
            [64, 127, 0, -127, 64, 0]
        );
        let scale = tensor::to_f32(small.initialiser("w.scale").unwrap()).unwrap();
        assert_eq!(scale[..2], [0.002 / 127.0, 100.0 / 127.0]);
        assert!(small.initialiser("bias").is_some() && small.initialiser("w").is_none());
        assert_eq!(small.graph().node[0].op_type(), "DequantizeLinear");
    }

    #[test]
    fn half_precision_is_half_the_file_and_what_has_no_weights_is_refused() {
        let many = vec![1.0; 6];
        let half = f16(&model(&many)).unwrap();
        assert_eq!(half.initialiser("w.f16").unwrap().raw_data().len(), 12);
        assert_eq!(half.graph().node[0].op_type(), "Cast");
        let bare = GraphBuilder::new("m")
            .input("x", &[Dim::Fixed(1)])
            .node("Relu", &["x"], &["y"], &[])
            .output("y", &[Dim::Fixed(1)])
            .finish()
            .unwrap();
        assert!(matches!(f16(&bare), Err(ConvertError::NoWeights)));
    }
}
