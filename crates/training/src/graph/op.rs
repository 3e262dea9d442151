//! The operators that can be trained through, with their attributes. Parsing a node is where an
//! unsupported operator or form of it is found, before anything runs.

use farlight_onnx::proto::NodeProto;
use farlight_onnx::tensor;

use super::attributes::Attributes;
use super::host::Host;

/// Padding of a convolution or pooling.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Padding {
    /// Before and after each spatial axis, in ONNX order: all befores, then all afters.
    Explicit(Vec<usize>),
    /// So that output = input / stride, the odd one at the end.
    SameUpper,
    /// The same, the odd one at the start.
    SameLower,
}

/// Sliding window over the spatial axes; empty vectors mean "all default".
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    pub(super) kernel: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) dilation: Vec<usize>,
    pub(super) padding: Padding,
}

/// Elementwise functions of one input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unary {
    Relu,
    LeakyRelu(f64),
    Sigmoid,
    HardSigmoid { alpha: f64, beta: f64 },
    HardSwish,
    Tanh,
    Gelu { tanh: bool },
    Erf,
    Exp,
    Log,
    Sqrt,
    Neg,
    Abs,
    Reciprocal,
    Identity,
}

/// Elementwise functions of two inputs with broadcasting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
}

/// Reductions over axes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reduction {
    Mean,
    Sum,
    Max,
}

/// Axes from an attribute (old operator sets) or the second input (new ones).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Axes {
    Fixed(Vec<i64>),
    Input,
}

/// An operator with its attributes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    Unary(Unary),
    Binary(Binary),
    Conv { window: Window, groups: usize },
    Gemm { alpha: f64, beta: f64, trans_a: bool, trans_b: bool },
    MatMul,
    BatchNorm { epsilon: f64, momentum: f64 },
    LayerNorm { axis: i64, epsilon: f64 },
    MaxPool(Window),
    AveragePool { window: Window, count_pad: bool },
    GlobalAveragePool,
    GlobalMaxPool,
    Reduce { how: Reduction, axes: Axes, keep: bool, noop_when_empty: bool },
    Softmax { axis: i64, flatten: bool, log: bool },
    Clip { min: Option<f64>, max: Option<f64> },
    Reshape { zero_is_zero: bool },
    Flatten { axis: i64 },
    Transpose { perm: Option<Vec<usize>> },
    Squeeze(Axes),
    Unsqueeze(Axes),
    Concat { axis: i64 },
    Slice { fixed: Option<[Vec<i64>; 3]> },
    Gather { axis: i64 },
    Constant(Constant),
    Shape,
    Cast { to: i32 },
}

/// The value of a Constant node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constant {
    Float { dims: Vec<usize>, values: Vec<f32> },
    Int(Host),
}

impl Op {
    /// The operator of `node` under operator set `opset`.
    ///
    /// Err: why this node cannot be trained through.
    pub(super) fn parse(node: &NodeProto, opset: i64) -> Result<Self, String> {
        let at = Attributes(node);
        if !matches!(node.domain(), "" | "ai.onnx") {
            return Err(format!("operators of domain {:?} are not known", node.domain()));
        }
        if node.output.iter().skip(1).any(|name| !name.is_empty()) && node.op_type() != "Dropout" {
            return Err("more than one output is used".into());
        }
        let axes = |name: &str| match at.ints(name) {
            Some(axes) => Axes::Fixed(axes.to_vec()),
            None if node.input.get(1).is_some_and(|name| !name.is_empty()) => Axes::Input,
            None => Axes::Fixed(Vec::new()),
        };
        let reduce = |how| Op::Reduce {
            how,
            axes: axes("axes"),
            keep: at.int("keepdims", 1) != 0,
            noop_when_empty: at.int("noop_with_empty_axes", 0) != 0,
        };
        let softmax = |log| Op::Softmax {
            axis: at.int("axis", if opset < 13 { 1 } else { -1 }),
            flatten: opset < 13,
            log,
        };
        Ok(match node.op_type() {
            "Relu" => Op::Unary(Unary::Relu),
            "LeakyRelu" => Op::Unary(Unary::LeakyRelu(at.float("alpha", 0.01))),
            "Sigmoid" => Op::Unary(Unary::Sigmoid),
            "HardSigmoid" => {
                Op::Unary(Unary::HardSigmoid { alpha: at.float("alpha", 0.2), beta: at.float("beta", 0.5) })
            }
            "HardSwish" => Op::Unary(Unary::HardSwish),
            "Tanh" => Op::Unary(Unary::Tanh),
            "Gelu" => Op::Unary(Unary::Gelu { tanh: at.text("approximate", "none") == "tanh" }),
            "Erf" => Op::Unary(Unary::Erf),
            "Exp" => Op::Unary(Unary::Exp),
            "Log" => Op::Unary(Unary::Log),
            "Sqrt" => Op::Unary(Unary::Sqrt),
            "Neg" => Op::Unary(Unary::Neg),
            "Abs" => Op::Unary(Unary::Abs),
            "Reciprocal" => Op::Unary(Unary::Reciprocal),
            // Dropout drops nothing here: few labelled cases and early stopping do its work.
            "Identity" | "Dropout" => Op::Unary(Unary::Identity),
            "Add" => Op::Binary(Binary::Add),
            "Sub" => Op::Binary(Binary::Sub),
            "Mul" => Op::Binary(Binary::Mul),
            "Div" => Op::Binary(Binary::Div),
            "Pow" => Op::Binary(Binary::Pow),
            "Conv" => Op::Conv { window: window(&at)?, groups: group(&at)? },
            "Gemm" => Op::Gemm {
                alpha: at.float("alpha", 1.0),
                beta: at.float("beta", 1.0),
                trans_a: at.int("transA", 0) != 0,
                trans_b: at.int("transB", 0) != 0,
            },
            "MatMul" => Op::MatMul,
            "BatchNormalization" => {
                if opset < 9 {
                    return Err(format!(
                        "BatchNormalization of operator set {opset} is too old: use 9 or later"
                    ));
                }
                Op::BatchNorm { epsilon: at.float("epsilon", 1e-5), momentum: at.float("momentum", 0.9) }
            }
            "LayerNormalization" => {
                Op::LayerNorm { axis: at.int("axis", -1), epsilon: at.float("epsilon", 1e-5) }
            }
            "MaxPool" => Op::MaxPool(pool(&at)?),
            "AveragePool" => {
                Op::AveragePool { window: pool(&at)?, count_pad: at.int("count_include_pad", 0) != 0 }
            }
            "GlobalAveragePool" => Op::GlobalAveragePool,
            "GlobalMaxPool" => Op::GlobalMaxPool,
            "ReduceMean" => reduce(Reduction::Mean),
            "ReduceSum" => reduce(Reduction::Sum),
            "ReduceMax" => reduce(Reduction::Max),
            "Softmax" => softmax(false),
            "LogSoftmax" => softmax(true),
            "Clip" => Op::Clip {
                min: at.has("min").then(|| at.float("min", 0.0)),
                max: at.has("max").then(|| at.float("max", 0.0)),
            },
            "Reshape" => Op::Reshape { zero_is_zero: at.int("allowzero", 0) != 0 },
            "Flatten" => Op::Flatten { axis: at.int("axis", 1) },
            "Transpose" => Op::Transpose { perm: at.sizes("perm", 0)? },
            "Squeeze" => Op::Squeeze(axes("axes")),
            "Unsqueeze" => Op::Unsqueeze(axes("axes")),
            "Concat" => Op::Concat { axis: at.int("axis", 0) },
            "Slice" => Op::Slice {
                fixed: at.ints("starts").map(|starts| {
                    [starts, at.ints("ends").unwrap_or_default(), at.ints("axes").unwrap_or_default()]
                        .map(<[i64]>::to_vec)
                }),
            },
            "Gather" => Op::Gather { axis: at.int("axis", 0) },
            "Constant" => Op::Constant(constant(&at)?),
            "Shape" if !at.has("start") && !at.has("end") => Op::Shape,
            "Cast" => Op::Cast { to: i32::try_from(at.int("to", 0)).unwrap_or(0) },
            _ => return Err("no gradient is known for this operator".into()),
        })
    }
}

fn group(at: &Attributes<'_>) -> Result<usize, String> {
    match at.int("group", 1) {
        groups @ 1..=65_536 => Ok(groups as usize),
        groups => Err(format!("group is {groups}")),
    }
}

fn pool(at: &Attributes<'_>) -> Result<Window, String> {
    if at.int("ceil_mode", 0) != 0 {
        return Err("ceil_mode is not supported: pad the input instead".into());
    }
    let window = window(at)?;
    if window.kernel.is_empty() { Err("kernel_shape is missing".into()) } else { Ok(window) }
}

fn window(at: &Attributes<'_>) -> Result<Window, String> {
    let padding = match at.text("auto_pad", "NOTSET") {
        "NOTSET" => Padding::Explicit(at.sizes("pads", 0)?.unwrap_or_default()),
        "VALID" => Padding::Explicit(Vec::new()),
        "SAME_UPPER" => Padding::SameUpper,
        "SAME_LOWER" => Padding::SameLower,
        other => return Err(format!("auto_pad is {other:?}")),
    };
    Ok(Window {
        kernel: at.sizes("kernel_shape", 1)?.unwrap_or_default(),
        stride: at.sizes("strides", 1)?.unwrap_or_default(),
        dilation: at.sizes("dilations", 1)?.unwrap_or_default(),
        padding,
    })
}

fn constant(at: &Attributes<'_>) -> Result<Constant, String> {
    if let Some(value) = at.tensor("value") {
        let dims = tensor::dims(value).map_err(|error| error.to_string())?;
        return if tensor::is_float(value.data_type()) {
            let values = tensor::to_f32(value).map_err(|error| error.to_string())?;
            Ok(Constant::Float { dims, values })
        } else {
            let values = tensor::to_i64(value).map_err(|error| error.to_string())?;
            Ok(Constant::Int(Host { dims, values }))
        };
    }
    if let Some(values) = at.ints("value_ints") {
        return Ok(Constant::Int(Host { dims: vec![values.len()], values: values.to_vec() }));
    }
    if at.has("value_int") {
        return Ok(Constant::Int(Host { dims: vec![], values: vec![at.int("value_int", 0)] }));
    }
    if at.has("value_float") {
        let values = vec![at.float("value_float", 0.0) as f32];
        return Ok(Constant::Float { dims: vec![], values });
    }
    Err("its value is neither a tensor nor a number".into())
}
