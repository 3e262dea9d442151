//! The tract engine, the one module that names tract. It turns ONNX bytes into a shared plan. tract panics on
//! some malformed graphs, so loading and running catch it.

mod kept;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use farlight_release::manifest::Datatype;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid as _;
use tract_onnx::tract_hir::internal::{DimLike as _, bail, format_err};

use super::{Batch, Engine, EngineError, Port};
use crate::tensor::{Tensor as Plain, Values};
pub use kept::Resident;
use kept::{Mark, with_state};

/// A plan and what goes in and comes out of it.
pub(super) struct Tract {
    plan: Arc<TypedSimplePlan>,
    mark: Arc<Mark>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Tract {
    /// Loads a graph with inputs of these names and shapes.
    pub(super) fn load(
        onnx: &[u8],
        inputs: &[(&str, Vec<usize>)],
        batch: Batch,
    ) -> Result<Self, EngineError> {
        guarded(|| load(onnx, inputs, batch)).map_err(EngineError::Load)?
    }
}

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[&Plain]) -> Result<Vec<Plain>, EngineError> {
        guarded(|| -> TractResult<Vec<Plain>> {
            let inputs =
                inputs.iter().map(|tensor| Ok(to_tract(tensor)?.into())).collect::<TractResult<TVec<_>>>()?;
            with_state(&self.mark, &self.plan, |state| state.run(inputs))?.iter().map(from_tract).collect()
        })
        .map_err(EngineError::Run)?
        .map_err(|e| EngineError::Run(format!("{e:#}")))
    }
}

fn load(onnx: &[u8], wanted: &[(&str, Vec<usize>)], batch: Batch) -> Result<Tract, EngineError> {
    let fail = |e: TractError| EngineError::Load(format!("{e:#}"));
    // Stale or symbolic value_info clashes with a concrete input shape.
    let reader = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let proto = reader.proto_model_for_read(&mut &onnx[..]).map_err(fail)?;
    let (inputs, outputs) = names(&proto);
    let mut model = reader.model_for_proto_model(&proto).map_err(fail)?;
    drop(proto);
    let mut shapes = Vec::with_capacity(inputs.len());
    for name in &inputs {
        shapes.extend(wanted.iter().find(|(wanted, _)| wanted == name).map(|(_, shape)| shape));
    }
    if shapes.len() != inputs.len() || wanted.len() != inputs.len() {
        let manifest = wanted.iter().map(|(name, _)| (*name).to_owned()).collect();
        return Err(EngineError::Inputs { manifest, graph: inputs });
    }
    let symbol = model.symbols.sym("N");
    for (index, shape) in shapes.iter().enumerate() {
        let datum = model.input_fact(index).map_err(fail)?.datum_type.concretize();
        let datum =
            datum.ok_or_else(|| EngineError::Load(format!("input {:?} has no type", inputs[index])))?;
        let dims: TVec<TDim> = shape
            .iter()
            .enumerate()
            .map(|(axis, size)| match batch {
                Batch::Any if axis == 0 => symbol.clone().into(),
                _ => size.to_dim(),
            })
            .collect();
        model.set_input_fact(index, InferenceFact::dt_shape(datum, dims)).map_err(fail)?;
    }
    let model = model.into_typed().and_then(TypedModel::into_optimized).map_err(fail)?;
    let ports = |names: Vec<String>, facts: Vec<&TypedFact>| {
        names.into_iter().zip(facts).map(|(name, fact)| port(name, fact)).collect::<Result<Vec<_>, _>>()
    };
    let facts = |facts: TractResult<Vec<TypedFact>>| facts.map_err(fail);
    let given = facts(model.inputs.iter().map(|outlet| model.outlet_fact(*outlet).cloned()).collect())?;
    let taken = facts(model.outputs.iter().map(|outlet| model.outlet_fact(*outlet).cloned()).collect())?;
    let (inputs, outputs) = (ports(inputs, given.iter().collect())?, ports(outputs, taken.iter().collect())?);
    let plan = TypedSimplePlan::new(model).map_err(fail)?;
    // A graph whose states cannot be made is found when it is loaded, not at the first request.
    plan.spawn().map_err(fail)?;
    Ok(Tract { plan, mark: Arc::default(), inputs, outputs })
}

/// Names of the graph's inputs that are no initialisers, and of its outputs, in the order that tract has them.
fn names(proto: &ModelProto) -> (Vec<String>, Vec<String>) {
    let Some(graph) = &proto.graph else { return (Vec::new(), Vec::new()) };
    let initialised = |name: &String| graph.initializer.iter().any(|tensor| tensor.name == *name);
    let inputs = graph.input.iter().map(|input| input.name.clone()).filter(|name| !initialised(name));
    (inputs.collect(), graph.output.iter().map(|output| output.name.clone()).collect())
}

fn port(name: String, fact: &TypedFact) -> Result<Port, EngineError> {
    let datatype = datatype(fact.datum_type)
        .ok_or_else(|| EngineError::Load(format!("{name:?} is of type {:?}", fact.datum_type)))?;
    let shape = fact.shape.iter().map(|dim| dim.to_usize().ok()).collect();
    Ok(Port { name, datatype, shape })
}

fn datatype(datum: DatumType) -> Option<Datatype> {
    Some(match datum {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I8 => Datatype::Int8,
        DatumType::I16 => Datatype::Int16,
        DatumType::I32 => Datatype::Int32,
        // Shapes as data; numbers once the input is there.
        DatumType::I64 | DatumType::TDim => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        _ => return None,
    })
}

fn to_tract(plain: &Plain) -> TractResult<Tensor> {
    let shape = &plain.shape;
    match &plain.values {
        Values::Bool(v) => Tensor::from_shape(shape, v),
        Values::Uint8(v) => Tensor::from_shape(shape, v),
        Values::Uint16(v) => Tensor::from_shape(shape, v),
        Values::Uint32(v) => Tensor::from_shape(shape, v),
        Values::Uint64(v) => Tensor::from_shape(shape, v),
        Values::Int8(v) => Tensor::from_shape(shape, v),
        Values::Int16(v) => Tensor::from_shape(shape, v),
        Values::Int32(v) => Tensor::from_shape(shape, v),
        Values::Int64(v) => Tensor::from_shape(shape, v),
        Values::Fp16(v) => Tensor::from_shape(shape, v),
        Values::Fp32(v) => Tensor::from_shape(shape, v),
        Values::Fp64(v) => Tensor::from_shape(shape, v),
        Values::Bytes(v) => {
            let texts = v.iter().map(|bytes| String::from_utf8(bytes.clone())).collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|_| format_err!("text is not UTF-8"))?;
            tensor1(&texts).into_shape(shape)
        }
    }
}

pub(crate) fn from_tract(value: &TValue) -> TractResult<Plain> {
    let shape = value.shape().to_vec();
    let numbers;
    let tensor: &Tensor = if value.datum_type() == DatumType::TDim {
        numbers = value.cast_to::<i64>()?;
        &numbers
    } else {
        value
    };
    let plain = tensor.try_as_plain_ram()?;
    let values = match tensor.datum_type() {
        DatumType::Bool => Values::Bool(plain.as_slice::<bool>()?.to_vec()),
        DatumType::U8 => Values::Uint8(plain.as_slice::<u8>()?.to_vec()),
        DatumType::U16 => Values::Uint16(plain.as_slice::<u16>()?.to_vec()),
        DatumType::U32 => Values::Uint32(plain.as_slice::<u32>()?.to_vec()),
        DatumType::U64 => Values::Uint64(plain.as_slice::<u64>()?.to_vec()),
        DatumType::I8 => Values::Int8(plain.as_slice::<i8>()?.to_vec()),
        DatumType::I16 => Values::Int16(plain.as_slice::<i16>()?.to_vec()),
        DatumType::I32 => Values::Int32(plain.as_slice::<i32>()?.to_vec()),
        DatumType::I64 => Values::Int64(plain.as_slice::<i64>()?.to_vec()),
        DatumType::F16 => Values::Fp16(plain.as_slice::<f16>()?.to_vec()),
        DatumType::F32 => Values::Fp32(plain.as_slice::<f32>()?.to_vec()),
        DatumType::F64 => Values::Fp64(plain.as_slice::<f64>()?.to_vec()),
        DatumType::String => {
            Values::Bytes(plain.as_slice::<String>()?.iter().map(|text| text.clone().into_bytes()).collect())
        }
        other => bail!("an output is of type {other:?}"),
    };
    Ok(Plain { shape, values })
}

pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // The values touched are dropped or overwritten after a panic, never read again.
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("the engine panicked: {text}")
    })
}
