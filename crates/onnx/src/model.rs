//! A parsed model that certainly has a graph, its limits, and the errors of this crate.
//! Callers reach the raw protobuf through `graph()`.

use std::collections::HashSet;

use farlight_wire::codes::Code;
use prost::Message;

use crate::proto::{
    GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_shape_proto::dimension::Value as DimValue,
    type_proto::Value as TypeValue,
};
use crate::{scan, tensor};

/// What a model may at most be, checked before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: usize,
    /// Nodes of all graphs and functions.
    pub nodes: usize,
    /// Tensors in the file: initialisers and constants.
    pub tensors: usize,
    /// Graphs within graphs (the branches and bodies of `If` and `Loop`).
    pub graphs: usize,
    /// Bytes of a name.
    pub name: usize,
    /// Protobuf fields in all messages: bounds the memory that decoding takes.
    pub fields: usize,
}

impl Limits {
    /// Several times the largest model that an edge gateway runs, and still at most about half a gigabyte once
    /// decoded beside the weights. Exporters nest graphs two or three deep; names are paths of modules.
    pub const DEFAULT: Self =
        Self { bytes: 256 << 20, nodes: 20_000, tensors: 40_000, graphs: 8, name: 1_024, fields: 1_000_000 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why a file or a tensor in it cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// The file is larger than allowed.
    #[error("the model has {found} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// More fields than allowed.
    #[error("the model has more than {limit} protobuf fields")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// More nodes than allowed.
    #[error("the model has more than {limit} nodes")]
    TooManyNodes {
        /// The limit.
        limit: usize,
    },
    /// More tensors than allowed.
    #[error("the model has more than {limit} tensors")]
    TooManyTensors {
        /// The limit.
        limit: usize,
    },
    /// A name that is longer than allowed.
    #[error("a name in the model has {found} bytes, more than the {limit} allowed")]
    LongName {
        /// Its length.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A tensor that is read from another file.
    #[error("a tensor keeps its data in another file; export the model as one file")]
    External,
    /// Graphs or messages nested too deeply.
    #[error("graphs or messages are nested more than {limit} deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// Not protobuf, or cut short.
    #[error("the file is not a whole protobuf message: is it an ONNX file, and complete?")]
    Truncated,
    /// Protobuf, but not this schema.
    #[error("the file does not decode as an ONNX model: {0}")]
    Decode(String),
    /// A model without a graph.
    #[error("the model has no graph")]
    NoGraph,
    /// Two initialisers of one name.
    #[error("two initialisers are called {0:?}")]
    DuplicateInitialiser(String),
    /// No initialiser of that name.
    #[error("the graph has no initialiser {0:?}")]
    UnknownInitialiser(String),
    /// A tensor whose data cannot be read.
    #[error("tensor {name:?} cannot be read: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A replacement of another shape.
    #[error("initialiser {name:?} has shape {expected:?}, its replacement {found:?}")]
    ShapeChanged {
        /// Its name.
        name: String,
        /// Shape in the graph.
        expected: Vec<usize>,
        /// Shape offered.
        found: Vec<usize>,
    },
}

impl OnnxError {
    /// A stable code for reports and responses: over a limit, or not to be read at all.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. }
            | Self::TooManyFields { .. }
            | Self::TooManyNodes { .. }
            | Self::TooManyTensors { .. }
            | Self::LongName { .. }
            | Self::TooDeep { .. } => Code::ModelOverLimits,
            Self::External
            | Self::Truncated
            | Self::Decode(_)
            | Self::NoGraph
            | Self::DuplicateInitialiser(_)
            | Self::UnknownInitialiser(_)
            | Self::Tensor { .. }
            | Self::ShapeChanged { .. } => Code::ModelMalformed,
        }
    }
}

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A fixed size.
    Fixed(usize),
    /// A named or unknown size, such as the batch.
    Free(String),
}

/// Name and declared shape of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueShape {
    /// The value's name.
    pub name: String,
    /// ONNX element type (1 is f32).
    pub element: i32,
    /// Its dimensions, `None` where the file does not say.
    pub dims: Option<Vec<Dim>>,
}

/// A model with a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    proto: ModelProto,
    graph: GraphProto,
}

impl Model {
    /// Decodes a model.
    ///
    /// # Errors
    /// [`OnnxError`] when a limit is passed or the bytes are not an ONNX model with a graph.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, OnnxError> {
        scan::check(bytes, limits)?;
        let proto = ModelProto::decode(bytes).map_err(|error| OnnxError::Decode(error.to_string()))?;
        let model = Self::from_proto(proto)?;
        let mut names = HashSet::new();
        for tensor in &model.graph.initializer {
            if !names.insert(tensor.name()) {
                return Err(OnnxError::DuplicateInitialiser(tensor.name().to_owned()));
            }
        }
        Ok(model)
    }

    /// Takes a decoded message.
    ///
    /// # Errors
    /// [`OnnxError::NoGraph`] when it has none.
    pub fn from_proto(mut proto: ModelProto) -> Result<Self, OnnxError> {
        let graph = proto.graph.take().ok_or(OnnxError::NoGraph)?;
        Ok(Self { proto, graph })
    }

    /// Encodes the model; equal models give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.clone().into_bytes()
    }

    /// As [`Model::to_bytes`], without a second copy of the weights.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut proto = self.proto;
        proto.graph = Some(self.graph);
        proto.encode_to_vec()
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        &self.graph
    }

    /// The main graph, to change.
    pub fn graph_mut(&mut self) -> &mut GraphProto {
        &mut self.graph
    }

    /// Version of the default operator set, 1 when the file does not say.
    pub fn opset(&self) -> i64 {
        let default = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        self.proto.opset_import.iter().find(|set| default(set.domain())).map_or(1, |set| set.version())
    }

    /// The initialiser called `name`.
    pub fn initialiser(&self, name: &str) -> Option<&TensorProto> {
        self.graph.initializer.iter().find(|tensor| tensor.name() == name)
    }

    /// Puts new values into an f32 initialiser; name, type and shape stay.
    ///
    /// # Errors
    /// [`OnnxError`] when there is none of that name, it is not f32, or the number of values differs.
    pub fn replace_f32(&mut self, name: &str, values: &[f32]) -> Result<(), OnnxError> {
        let slot = self
            .graph
            .initializer
            .iter_mut()
            .find(|tensor| tensor.name() == name)
            .ok_or_else(|| OnnxError::UnknownInitialiser(name.to_owned()))?;
        let dims = tensor::dims(slot)?;
        if slot.data_type() != tensor::FLOAT {
            let reason = format!("its element type is {}, not f32", slot.data_type());
            return Err(OnnxError::Tensor { name: name.to_owned(), reason });
        }
        if dims.iter().product::<usize>() != values.len() {
            return Err(OnnxError::ShapeChanged {
                name: name.to_owned(),
                expected: dims,
                found: vec![values.len()],
            });
        }
        slot.float_data.clear();
        slot.raw_data = Some(values.iter().flat_map(|value| value.to_le_bytes()).collect());
        Ok(())
    }

    /// Inputs that are not initialisers: what a caller must supply.
    pub fn inputs(&self) -> Vec<ValueShape> {
        let fixed: HashSet<&str> = self.graph.initializer.iter().map(|tensor| tensor.name()).collect();
        self.graph.input.iter().filter(|input| !fixed.contains(input.name())).map(shape_of).collect()
    }

    /// Declared outputs.
    pub fn outputs(&self) -> Vec<ValueShape> {
        self.graph.output.iter().map(shape_of).collect()
    }
}

fn shape_of(value: &ValueInfoProto) -> ValueShape {
    let tensor = match value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    let dims = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| {
        shape
            .dim
            .iter()
            .map(|dim| match &dim.value {
                Some(DimValue::DimValue(size)) => {
                    usize::try_from(*size).map_or_else(|_| Dim::Free(String::new()), Dim::Fixed)
                }
                Some(DimValue::DimParam(name)) => Dim::Free(name.clone()),
                None => Dim::Free(String::new()),
            })
            .collect()
    });
    ValueShape {
        name: value.name().to_owned(),
        element: tensor.map_or(0, |tensor| tensor.elem_type.unwrap_or(0)),
        dims,
    }
}
