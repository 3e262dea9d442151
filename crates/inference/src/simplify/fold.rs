//! What simplifying asks of the engine, and all of it that names tract: one node computed, the shapes of values,
//! the operators there are, and a whole graph run for the comparison with other engines.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use farlight_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use farlight_onnx::{Limits, Model};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

use super::array::{Array, Data};

/// The results of `node` for constant `inputs`, in the order of its outputs that have a name. `None` when tract
/// cannot compute it, or gives a type that arrays do not hold. The caller has bounded the size.
pub(super) fn evaluate(node: &NodeProto, inputs: Vec<TensorProto>, opset: i64) -> Option<Vec<Array>> {
    let names: Vec<&String> = node.output.iter().filter(|name| !name.is_empty()).collect();
    let graph = GraphProto {
        output: names
            .iter()
            .map(|name| ValueInfoProto { name: Some((*name).clone()), ..ValueInfoProto::default() })
            .collect(),
        node: vec![node.clone()],
        initializer: inputs,
        ..GraphProto::default()
    };
    let model = Model::from_proto(ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        graph: Some(graph),
        ..ModelProto::default()
    });
    let bytes = model.ok()?.to_bytes();
    let outputs = guarded(|| -> TractResult<TVec<TValue>> {
        let typed = reader().model_for_read(&mut bytes.as_slice())?.into_typed()?;
        TypedSimplePlan::new(typed)?.spawn()?.run(tvec!())
    })
    .ok()?
    .ok()?;
    let arrays: Vec<Array> = outputs.iter().map(|value| array(value).ok()).collect::<Option<_>>()?;
    (arrays.len() == names.len()).then_some(arrays)
}

/// The shapes of those values of the main graph in `wanted` that tract derives without running it. Empty when it
/// cannot read the graph.
pub(super) fn shapes(onnx: &[u8], wanted: &HashSet<String>) -> HashMap<String, Vec<usize>> {
    let analysed = guarded(|| -> TractResult<HashMap<String, Vec<usize>>> {
        let reader = reader();
        let proto = reader.proto_model_for_read(&mut &onnx[..])?;
        let mut parsed = reader.parse(&proto, None)?;
        // A node that cannot be analysed does not keep the others from it; the loader reports it.
        let _first_error = parsed.model.analyse(true);
        let known = wanted.iter().filter_map(|name| {
            let outlet = parsed.outlets_by_name.get(name)?;
            let fact = parsed.model.outlet_fact(*outlet).ok()?;
            let dims = fact.shape.concretize()?;
            let dims = dims
                .iter()
                .map(|dim| usize::try_from(dim.to_i64().ok()?).ok())
                .collect::<Option<Vec<usize>>>()?;
            Some((name.clone(), dims))
        });
        Ok(known.collect())
    });
    analysed.ok().and_then(Result::ok).unwrap_or_default()
}

/// The names of the operators that tract has, whatever their domain: it looks at the name alone.
pub(super) fn operators() -> HashSet<String> {
    reader().op_register.0.keys().cloned().collect()
}

/// A whole graph that tract has loaded, to compare it with other engines.
#[doc(hidden)]
pub struct Plan(Arc<TypedSimplePlan>);

impl Plan {
    /// Loads a graph whose input shapes are fixed.
    ///
    /// # Errors
    /// tract's reason, with the operator that it stumbled over.
    pub fn load(onnx: &[u8]) -> Result<Self, String> {
        farlight_onnx::check(onnx, &Limits::DEFAULT).map_err(|e| e.to_string())?;
        let plan = guarded(|| {
            let model = reader().model_for_read(&mut &onnx[..])?.into_optimized()?;
            TypedSimplePlan::new(model)
        });
        plan?.map(Self).map_err(|e| format!("{e:#}"))
    }

    /// Runs the graph; inputs and outputs in the order of the file.
    ///
    /// # Errors
    /// tract's reason.
    pub fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, String> {
        let run = guarded(|| -> TractResult<Vec<Array>> {
            let inputs = inputs.iter().map(|input| Ok(tensor(input)?.into()));
            let outputs = self.0.spawn()?.run(inputs.collect::<TractResult<_>>()?)?;
            outputs.iter().map(|value| array(value)).collect()
        });
        run?.map_err(|e| format!("{e:#}"))
    }
}

fn reader() -> tract_onnx::Onnx {
    // Declared shapes of inner values and outputs may be stale, and clash with the inputs'.
    onnx().with_ignore_value_info(true).with_ignore_output_shapes(true)
}

fn tensor(array: &Array) -> TractResult<Tensor> {
    let shape = array.shape();
    match array.data() {
        Data::Bool(v) => Tensor::from_shape(shape, v),
        Data::U8(v) => Tensor::from_shape(shape, v),
        Data::I8(v) => Tensor::from_shape(shape, v),
        Data::I32(v) => Tensor::from_shape(shape, v),
        Data::I64(v) => Tensor::from_shape(shape, v),
        Data::F32(v) => Tensor::from_shape(shape, v),
        Data::F64(v) => Tensor::from_shape(shape, v),
    }
}

fn array(tensor: &Tensor) -> TractResult<Array> {
    // tract counts sizes in a type of its own; in ONNX they are i64.
    let counted = (tensor.datum_type() == TDim::datum_type()).then(|| tensor.cast_to::<i64>()).transpose()?;
    let tensor = counted.as_deref().unwrap_or(tensor);
    let values = tensor.try_as_plain_ram()?;
    let data = match tensor.datum_type() {
        DatumType::Bool => Data::Bool(values.as_slice::<bool>()?.to_vec()),
        DatumType::U8 => Data::U8(values.as_slice::<u8>()?.to_vec()),
        DatumType::I8 => Data::I8(values.as_slice::<i8>()?.to_vec()),
        DatumType::I32 => Data::I32(values.as_slice::<i32>()?.to_vec()),
        DatumType::I64 => Data::I64(values.as_slice::<i64>()?.to_vec()),
        DatumType::F32 => Data::F32(values.as_slice::<f32>()?.to_vec()),
        DatumType::F64 => Data::F64(values.as_slice::<f64>()?.to_vec()),
        other => return Err(TractError::msg(format!("element type {other:?} is not supported"))),
    };
    Array::new(tensor.shape().to_vec(), data).map_err(TractError::msg)
}

/// tract panics on some malformed graphs. The values touched are dropped after a panic, never read again.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("the engine panicked: {text}")
    })
}
