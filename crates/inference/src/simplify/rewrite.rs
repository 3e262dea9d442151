//! The two rewrites: a node whose inputs are known becomes its result, and an `If` whose condition is known becomes
//! its branch. Only small tensors are computed (shapes, indices, conditions); weights are left to the engine.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use farlight_onnx::proto::{GraphProto, NodeProto, TensorProto};
use farlight_onnx::{Model, tensor};

use super::constant::to_proto;
use super::fold;
use super::graph::{attribute, defined, inner_mut, is_standard, label};
use super::rename::Names;
use crate::tensor::{Tensor, Values};

/// Most elements that are computed for one node, by an upper bound known beforehand. Shapes, axes, indices and
/// conditions have a few; what is larger is weights, and folding those would only make the file larger.
const MAX_ELEMENTS: usize = 4_096;

/// Most elements that are computed for a whole model: bounds what a hostile file makes of the tensors it is allowed.
const MAX_TOTAL: usize = 1 << 22;

/// The operators that are computed: those that shapes and conditions are made with. Each gives at most as many
/// elements as the product (or the sum) of those of its inputs, except the four that [`bound`] looks into.
const FOLDABLE: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "Or",
    "Pow",
    "Range",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "Round",
    "ScatterND",
    "Sign",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// The small constants that a graph sees: its own and those of the graphs around it.
pub(super) struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    defined: HashSet<String>,
    constants: HashMap<String, TensorProto>,
}

impl<'a> Scope<'a> {
    fn of(graph: &GraphProto, outer: Option<&'a Self>) -> Self {
        let constants = (graph.initializer.iter().filter(|tensor| is_small(tensor)))
            .map(|tensor| (tensor.name().to_owned(), tensor.clone()))
            .collect();
        Self { outer, defined: defined(graph).map(str::to_owned).collect(), constants }
    }

    fn get(&self, name: &str) -> Option<&TensorProto> {
        match self.constants.get(name) {
            Some(constant) => Some(constant),
            // What is defined here hides an outer value of that name.
            None if self.defined.contains(name) => None,
            None => self.outer.and_then(|outer| outer.get(name)),
        }
    }

    fn learn(&mut self, constants: &[TensorProto]) {
        for tensor in constants.iter().filter(|tensor| is_small(tensor)) {
            self.constants.insert(tensor.name().to_owned(), tensor.clone());
        }
    }
}

/// Rewrites one model, and counts.
pub(super) struct Rewriter {
    opset: i64,
    names: Names,
    /// First outputs of nodes that the engine could not compute: asked once.
    refused: HashSet<String>,
    /// Elements that may still be computed.
    left: usize,
    /// Names of the `If` nodes that were replaced.
    pub(super) inlined: Vec<String>,
    /// Nodes that were computed, by operator.
    pub(super) folded: BTreeMap<String, usize>,
}

impl Rewriter {
    /// A rewriter for `model`.
    pub(super) fn new(model: &Model) -> Self {
        Self {
            opset: model.opset(),
            names: Names::of(model),
            refused: HashSet::new(),
            left: MAX_TOTAL,
            inlined: Vec::new(),
            folded: BTreeMap::new(),
        }
    }

    /// Rewrites `graph` and the graphs within it, in the order of execution. Says whether anything changed.
    /// Ends: each step takes a node away, or an `If` with its branch; depth is bounded by `Limits::graphs`.
    pub(super) fn graph(&mut self, graph: &mut GraphProto, outer: Option<&Scope<'_>>) -> bool {
        let mut scope = Scope::of(graph, outer);
        let outputs: HashSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
        let mut changed = false;
        let mut open: VecDeque<NodeProto> = std::mem::take(&mut graph.node).into();
        while let Some(mut node) = open.pop_front() {
            if let Some(branch) = decided(&mut node, &scope) {
                let inlined = self.inline(&node, branch);
                scope.defined.extend(defined(&inlined).map(str::to_owned));
                scope.learn(&inlined.initializer);
                graph.initializer.extend(inlined.initializer);
                graph.sparse_initializer.extend(inlined.sparse_initializer);
                inlined.node.into_iter().rev().for_each(|node| open.push_front(node));
                changed = true;
            } else if let Some(results) = self.compute(&node, &scope, &outputs) {
                scope.learn(&results);
                graph.initializer.extend(results);
                *self.folded.entry(node.op_type().to_owned()).or_default() += 1;
                changed = true;
            } else {
                scope.learn(constant(&node).as_slice());
                for inner in inner_mut(&mut node) {
                    changed |= self.graph(inner, Some(&scope));
                }
                graph.node.push(node);
            }
        }
        changed
    }

    /// The branch of an `If` as nodes for the graph around it: with new names, and its outputs handed on under those
    /// of the `If`.
    fn inline(&mut self, node: &NodeProto, mut branch: GraphProto) -> GraphProto {
        self.names.renew(&mut branch);
        for (inner, outer) in branch.output.iter().zip(&node.output).filter(|(_, outer)| !outer.is_empty()) {
            branch.node.push(NodeProto {
                input: vec![inner.name().to_owned()],
                output: vec![outer.clone()],
                name: Some(self.names.fresh(node.name())),
                op_type: Some("Identity".to_owned()),
                ..NodeProto::default()
            });
        }
        self.inlined.push(label(node).to_owned());
        branch
    }

    /// The results of a node whose inputs are all small constants, when the engine can compute them.
    fn compute(
        &mut self,
        node: &NodeProto,
        scope: &Scope<'_>,
        outputs: &HashSet<String>,
    ) -> Option<Vec<TensorProto>> {
        let first = node.output.first()?;
        let is_output = node.output.iter().any(|name| outputs.contains(name));
        if !is_standard(node)
            || !FOLDABLE.contains(&node.op_type())
            || is_output
            || self.refused.contains(first)
        {
            return None;
        }
        let mut inputs: BTreeMap<&str, &TensorProto> = BTreeMap::new();
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            inputs.insert(name, scope.get(name)?);
        }
        let in_order: Vec<&TensorProto> =
            node.input.iter().filter_map(|name| inputs.get(name.as_str()).copied()).collect();
        let is_finite = in_order.iter().all(|tensor| is_finite(tensor));
        if !is_finite || bound(node.op_type(), &in_order)? > MAX_ELEMENTS.min(self.left) {
            return None;
        }
        let named = inputs
            .iter()
            .map(|(name, tensor)| TensorProto { name: Some((*name).to_owned()), ..(*tensor).clone() });
        let results = fold::evaluate(node, named.collect(), self.opset)
            .filter(|results| results.iter().all(|tensor| tensor.values.len() <= MAX_ELEMENTS));
        if results.is_none() {
            self.refused.insert(first.clone());
        }
        let results = results?;
        self.left = results.iter().fold(self.left, |left, tensor| left.saturating_sub(tensor.values.len()));
        let names = node.output.iter().filter(|name| !name.is_empty());
        Some(results.iter().zip(names).map(|(tensor, name)| to_proto(name, tensor)).collect())
    }

    /// Replaces `Shape` and `Size` of values whose shape the engine derives from the inputs. Says whether there
    /// were any. Only values of the main graph: those of branches are not known before a branch is decided.
    pub(super) fn shapes(&mut self, model: &mut Model) -> bool {
        let outputs: HashSet<String> = model.outputs().into_iter().map(|output| output.name).collect();
        let asks = |node: &NodeProto| {
            is_standard(node)
                && matches!(node.op_type(), "Shape" | "Size")
                && node.output.iter().all(|name| !outputs.contains(name))
        };
        let wanted: HashSet<String> =
            model.graph().node.iter().filter(|node| asks(node)).flat_map(|node| node.input.clone()).collect();
        if wanted.is_empty() {
            return false;
        }
        let known = fold::shapes(&model.to_bytes(), &wanted);
        let mut found = Vec::new();
        let graph = model.graph_mut();
        graph.node.retain(|node| {
            let shape = node.input.first().filter(|_| asks(node)).and_then(|name| known.get(name));
            let result = shape.and_then(|shape| measured(node, shape)).zip(node.output.first());
            if let Some((tensor, name)) = result {
                found.push(to_proto(name, &tensor));
                *self.folded.entry(node.op_type().to_owned()).or_default() += 1;
                false
            } else {
                true
            }
        });
        let changed = !found.is_empty();
        graph.initializer.extend(found);
        changed
    }
}

fn is_small(tensor: &TensorProto) -> bool {
    tensor::dims(tensor).is_ok_and(|dims| dims.iter().product::<usize>() <= MAX_ELEMENTS)
}

/// Whether a tensor has no infinite values and no NaN. Engines differ in what they make of those.
fn is_finite(tensor: &TensorProto) -> bool {
    !tensor::is_float(tensor.data_type())
        || tensor::to_f32(tensor).is_ok_and(|values| values.iter().all(|value| value.is_finite()))
}

/// The branch that an `If` with a known condition takes, taken out of the node.
fn decided(node: &mut NodeProto, scope: &Scope<'_>) -> Option<GraphProto> {
    if !is_standard(node) || node.op_type() != "If" {
        return None;
    }
    let condition = scope.get(node.input.first()?)?;
    let values = tensor::to_i64(condition).ok()?;
    let name = match values.as_slice() {
        [0] => "else_branch",
        [_] => "then_branch",
        _ => return None,
    };
    let outputs = node.output.len();
    let attribute = node.attribute.iter_mut().find(|attribute| attribute.name() == name)?;
    let fits = |branch: &mut GraphProto| branch.output.len() == outputs && branch.input.is_empty();
    attribute.g.take_if(fits)
}

/// The value of a `Constant` node, under the name of its output.
fn constant(node: &NodeProto) -> Option<TensorProto> {
    if !is_standard(node) || node.op_type() != "Constant" {
        return None;
    }
    let scalar = |data| Tensor::new(Vec::new(), data);
    let list = |length: usize, data| Tensor::new(vec![length], data);
    let name = node.output.first()?;
    let of = |name| attribute(node, name);
    if let Some(value) = of("value").and_then(|attribute| attribute.t.as_ref()) {
        return is_small(value).then(|| TensorProto { name: Some(name.clone()), ..value.clone() });
    }
    let tensor = if let Some(value) = of("value_int") {
        scalar(Values::Int64(vec![value.i()]))
    } else if let Some(value) = of("value_float") {
        scalar(Values::Fp32(vec![value.f()]))
    } else if let Some(value) = of("value_ints") {
        list(value.ints.len(), Values::Int64(value.ints.clone()))
    } else if let Some(value) = of("value_floats") {
        list(value.floats.len(), Values::Fp32(value.floats.clone()))
    } else {
        None
    };
    tensor.map(|tensor| to_proto(name, &tensor))
}

/// Most elements that the node can give for these inputs; `None` when it cannot be said.
fn bound(operator: &str, inputs: &[&TensorProto]) -> Option<usize> {
    let elements = |tensor: &TensorProto| Some(tensor::dims(tensor).ok()?.iter().product::<usize>());
    let sizes = |tensor: &TensorProto| {
        tensor::to_i64(tensor).ok()?.iter().try_fold(1_usize, |product, size| {
            // A size of 1 or less keeps what the other input has.
            Some(product.saturating_mul(usize::try_from((*size).max(1)).ok()?))
        })
    };
    match (operator, inputs) {
        ("ConstantOfShape", [shape]) => sizes(shape),
        ("Expand" | "Tile", [data, shape]) => Some(elements(data)?.saturating_mul(sizes(shape)?)),
        ("Range", [start, limit, delta]) => {
            let number = |tensor: &TensorProto| match tensor::to_i64(tensor) {
                Ok(values) => values.first().map(|value| *value as f64),
                Err(_) => tensor::to_f32(tensor).ok()?.first().map(|value| f64::from(*value)),
            };
            let steps = ((number(limit)? - number(start)?) / number(delta)?).ceil();
            // A cast of a float saturates; it is finite here.
            steps.is_finite().then_some(steps.max(0.0) as usize)
        }
        ("ConstantOfShape" | "Expand" | "Tile" | "Range", _) => None,
        _ => {
            let sizes = inputs.iter().map(|tensor| elements(tensor)).collect::<Option<Vec<usize>>>()?;
            let product = sizes.iter().fold(1_usize, |product, size| product.saturating_mul((*size).max(1)));
            Some(product.max(sizes.iter().sum()))
        }
    }
}

/// What `Shape` or `Size` gives for a value of this shape.
fn measured(node: &NodeProto, shape: &[usize]) -> Option<Tensor> {
    let signed: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).ok()).collect::<Option<_>>()?;
    if node.op_type() == "Size" {
        let product = signed.iter().try_fold(1_i64, |product, size| product.checked_mul(*size))?;
        return Tensor::new(Vec::new(), Values::Int64(vec![product]));
    }
    // `start` and `end` count from the back below zero, and are clamped to the rank.
    let rank = i64::try_from(signed.len()).ok()?;
    let axis = |name, default| {
        let at = attribute(node, name).map_or(default, |attribute| attribute.i());
        usize::try_from(if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank)).ok()
    };
    let (start, end) = (axis("start", 0)?, axis("end", rank)?);
    let part = signed.get(start..end.max(start))?.to_vec();
    Tensor::new(vec![part.len()], Values::Int64(part))
}
