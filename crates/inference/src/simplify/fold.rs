//! What simplifying asks of tract: one node computed, the shapes of values, the operators there are. And a whole
//! graph run by the engine as it is, for the comparison with other engines.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use farlight_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use farlight_onnx::{Dim, Limits, Model, ValueShape};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

use crate::engine::Engine;
use crate::engine::choice::{Engines, Graph, Kind, Wish};
use crate::engine::tract::{from_tract, guarded};
use crate::tensor::Tensor as Plain;

/// The results of `node` for constant `inputs`, in the order of its outputs that have a name. `None` when tract
/// cannot compute it, or gives a type that tensors here do not hold. The caller has bounded the size.
pub(super) fn evaluate(node: &NodeProto, inputs: Vec<TensorProto>, opset: i64) -> Option<Vec<Plain>> {
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
    let tensors: Vec<Plain> = outputs.iter().map(|value| from_tract(value).ok()).collect::<Option<_>>()?;
    (tensors.len() == names.len()).then_some(tensors)
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

/// A whole graph that the engine has loaded, to compare it with other engines.
#[doc(hidden)]
pub struct Plan {
    engine: Arc<dyn Engine>,
    refused: Vec<String>,
}

impl Plan {
    /// Loads a graph whose input shapes are fixed, with tract.
    ///
    /// # Errors
    /// The engine's reason, with the operator that it stumbled over.
    pub fn load(onnx: &[u8]) -> Result<Self, String> {
        Self::load_with(onnx, Kind::Tract, &Engines::default())
    }

    /// As [`Plan::load`], with an engine that tract takes the place of when it cannot.
    ///
    /// # Errors
    /// The engine's reason, with the operator that it stumbled over.
    pub fn load_with(onnx: &[u8], kind: Kind, engines: &Engines) -> Result<Self, String> {
        let model = Model::parse(onnx, &Limits::DEFAULT).map_err(|e| e.to_string())?;
        let ports = model.inputs();
        let shape = |port: &ValueShape| {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => Ok(*size),
                Dim::Free(_) => Err(format!("input {:?} has no fixed shape", port.name)),
            };
            port.dims.iter().flatten().map(size).collect::<Result<Vec<usize>, String>>()
        };
        let inputs = ports
            .iter()
            .map(|port| Ok((port.name.as_str(), shape(port)?)))
            .collect::<Result<Vec<_>, String>>()?;
        let (graph, wish) = (Graph { inputs, batches: false }, Wish { kind, workers: 1, threads: 1 });
        let loaded = engines.load(onnx, &graph, wish).map_err(|e| e.to_string())?;
        Ok(Self { engine: loaded.engine, refused: loaded.refused })
    }

    /// The engine that runs it, and the execution provider.
    pub fn engine(&self) -> (&str, Option<&str>) {
        (self.engine.name(), self.engine.provider())
    }

    /// What was wished for and could not be had.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// Runs the graph; inputs and outputs in the order of the file.
    ///
    /// # Errors
    /// The engine's reason.
    pub fn run(&self, inputs: &[Plain]) -> Result<Vec<Plain>, String> {
        self.engine.run(&inputs.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())
    }
}

fn reader() -> tract_onnx::Onnx {
    // Declared shapes of inner values and outputs may be stale, and clash with the inputs'.
    onnx().with_ignore_value_info(true).with_ignore_output_shapes(true)
}
