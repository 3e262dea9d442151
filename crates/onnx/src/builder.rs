//! Builds a small ONNX graph in code: the untrained reference models, and graphs for tests.

use crate::model::{Dim, Model, OnnxError};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension::Value as DimValue, type_proto,
};
use crate::tensor;

/// IR version written: 8 is read by every engine of the last years.
const IR_VERSION: i64 = 8;
/// Operator set written, the newest that engines with IR 8 know.
const OPSET: i64 = 17;

/// A graph being built, in the order of execution.
#[derive(Debug, Clone)]
pub struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: Some(name.to_owned()), ..GraphProto::default() } }
    }

    /// Declares an f32 input.
    #[must_use]
    pub fn input(self, name: &str, dims: &[Dim]) -> Self {
        self.input_of(tensor::FLOAT, name, dims)
    }

    /// Declares an f32 output.
    #[must_use]
    pub fn output(self, name: &str, dims: &[Dim]) -> Self {
        self.output_of(tensor::FLOAT, name, dims)
    }

    /// Declares an input of another element type, by its number in `TensorProto.DataType`.
    #[must_use]
    pub fn input_of(mut self, data_type: i32, name: &str, dims: &[Dim]) -> Self {
        self.graph.input.push(value_info(data_type, name, dims));
        self
    }

    /// Declares an output of another element type, by its number in `TensorProto.DataType`.
    #[must_use]
    pub fn output_of(mut self, data_type: i32, name: &str, dims: &[Dim]) -> Self {
        self.graph.output.push(value_info(data_type, name, dims));
        self
    }

    /// Adds an f32 initialiser.
    #[must_use]
    pub fn f32(self, name: &str, dims: &[usize], values: &[f32]) -> Self {
        self.tensor(tensor::from_f32(name, dims, values))
    }

    /// Adds an i64 initialiser.
    #[must_use]
    pub fn i64(self, name: &str, dims: &[usize], values: &[i64]) -> Self {
        self.tensor(tensor::from_i64(name, dims, values))
    }

    /// Adds an initialiser.
    #[must_use]
    pub fn tensor(mut self, tensor: TensorProto) -> Self {
        self.graph.initializer.push(tensor);
        self
    }

    /// Adds a node; it is named after its first output.
    #[must_use]
    pub fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[AttributeProto],
    ) -> Self {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            name: outputs.first().map(|&name| name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        self
    }

    /// The finished model.
    ///
    /// # Errors
    /// [`OnnxError::DuplicateInitialiser`] when a name was given twice.
    pub fn finish(self) -> Result<Model, OnnxError> {
        let mut names = std::collections::HashSet::new();
        for tensor in &self.graph.initializer {
            if !names.insert(tensor.name()) {
                return Err(OnnxError::DuplicateInitialiser(tensor.name().to_owned()));
            }
        }
        Model::from_proto(ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("farlight".to_owned()),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
            graph: Some(self.graph),
            ..ModelProto::default()
        })
    }
}

fn value_info(data_type: i32, name: &str, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Dim::Fixed(size) => DimValue::DimValue(i64::try_from(*size).unwrap_or(i64::MAX)),
                Dim::Free(name) => DimValue::DimParam(name.clone()),
            }),
            ..Dimension::default()
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: Some(data_type), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..AttributeProto::default() }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// A list of integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

/// A float attribute.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// A text attribute.
pub fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec()), ..attribute(name, AttributeType::String) }
}
