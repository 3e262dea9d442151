//! Turns a model into steps in the order of execution, and finds out before anything runs which
//! node cannot be trained through. The trainable part ends at the logits: a trailing Softmax or
//! Identity is cut off, because the loss contains it.

use std::collections::{BTreeSet, HashMap};

use farlight_onnx::proto::{NodeProto, TensorProto};
use farlight_onnx::{Dim, Model, OnnxError, tensor};

use super::host::Host;
use super::op::{Constant, Op};

/// A node that cannot be trained through, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NodeIssue {
    /// Name of the node, or of its first output.
    pub node: String,
    /// Operator.
    pub operator: String,
    /// Why.
    pub reason: String,
}

/// Why a model cannot be trained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nodes without a gradient.
    #[error("{} cannot be trained: {}", if issues.len() == 1 { "a node" } else { "nodes" }, list(issues))]
    Untrainable {
        /// Each of them.
        issues: Vec<NodeIssue>,
    },
    /// The graph is not a single-input, single-output network.
    #[error("the graph cannot be trained: {0}")]
    Graph(String),
    /// No initialiser is in a trainable place, or all are frozen.
    #[error("nothing to train: no f32 weight is in a trainable place, or all are frozen")]
    NothingToTrain,
    /// A tensor cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

fn list(issues: &[NodeIssue]) -> String {
    let one = |issue: &NodeIssue| format!("{} ({}): {}", issue.node, issue.operator, issue.reason);
    issues.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A trainable initialiser or running statistic.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name in the graph.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
    pub(super) slot: usize,
}

/// One node, ready to run.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) operator: String,
    pub(super) op: Op,
    pub(super) inputs: Vec<Option<usize>>,
    pub(super) output: usize,
    /// For BatchNorm: index of its running mean in the state; the variance follows it.
    pub(super) running: Option<usize>,
}

/// A graph ready to be run and trained.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) slots: usize,
    pub(super) input: usize,
    pub(super) logits: usize,
    pub(super) constants: Vec<(usize, Constant)>,
    input_name: String,
    input_dims: Option<Vec<Dim>>,
    parameters: Vec<Parameter>,
    state: Vec<Parameter>,
}

/// Whether a value is a tensor on the backend or integers on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Int,
}

impl Plan {
    /// Plans `model`; initialisers whose name matches a pattern of `freeze` (a name, or a prefix
    /// followed by `*`) stay as they are.
    ///
    /// # Errors
    /// [`PlanError`], for untrainable nodes with all of them.
    pub fn new(model: &Model, freeze: &[String]) -> Result<Self, PlanError> {
        let graph = model.graph();
        let inputs = model.inputs();
        let [input] = inputs.as_slice() else {
            return Err(PlanError::Graph(format!("it has {} inputs; one is supported", inputs.len())));
        };
        let Some(output) = graph.output.first().filter(|_| graph.output.len() == 1) else {
            return Err(PlanError::Graph(format!("it has {} outputs; one is supported", graph.output.len())));
        };
        if !tensor::is_float(input.element) {
            return Err(PlanError::Graph(format!("input {:?} is not a float tensor", input.name)));
        }
        let producers: HashMap<&str, usize> = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(at, node)| node.output.iter().map(move |name| (name.as_str(), at)))
            .filter(|(name, _)| !name.is_empty())
            .collect();
        let logits = cut(&graph.node, &producers, output.name());
        let order = order(&graph.node, &producers, logits)?;

        let mut build = Build { slots: HashMap::new(), kinds: Vec::new() };
        let input_slot = build.slot(&input.name, Kind::Float);
        let tensors: HashMap<&str, &TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name(), tensor)).collect();
        let mut plan = Self {
            steps: Vec::new(),
            slots: 0,
            input: input_slot,
            logits: 0,
            constants: Vec::new(),
            input_name: input.name.clone(),
            input_dims: input.dims.clone(),
            parameters: Vec::new(),
            state: Vec::new(),
        };
        let frozen = |name: &str| {
            freeze.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
        };
        let mut trainable = BTreeSet::new();
        let mut running = BTreeSet::new();
        for node in order.iter().map(|&at| &graph.node[at]) {
            for (place, name) in node.input.iter().enumerate() {
                let Some(tensor) = tensors.get(name.as_str()) else { continue };
                let elements: usize = tensor::dims(tensor)?.iter().product();
                if tensor.data_type() == tensor::FLOAT
                    && is_weight(node.op_type(), place, elements)
                    && !frozen(name)
                {
                    trainable.insert(name.as_str());
                }
                if node.op_type() == "BatchNormalization" && matches!(place, 3 | 4) {
                    running.insert(name.as_str());
                }
            }
        }
        let mut issues = Vec::new();
        for node in order.iter().map(|&at| &graph.node[at]) {
            for name in node.input.iter().filter(|name| !name.is_empty()) {
                if let (Some(tensor), false) = (tensors.get(name.as_str()), build.slots.contains_key(name)) {
                    plan.initialiser(&mut build, tensor, &trainable, &running)?;
                }
            }
            match plan.step(&mut build, node, model.opset()) {
                Ok(step) => plan.steps.push(step),
                Err(reason) => {
                    issues.push(NodeIssue {
                        node: named(node),
                        operator: node.op_type().chars().take(64).collect(),
                        reason,
                    });
                    // Later nodes are still looked at, as if this one gave a float tensor.
                    for name in &node.output {
                        build.slot(name, Kind::Float);
                    }
                }
            }
        }
        if !issues.is_empty() {
            return Err(PlanError::Untrainable { issues });
        }
        if plan.parameters.is_empty() {
            return Err(PlanError::NothingToTrain);
        }
        plan.logits = build.slots.get(logits).copied().unwrap_or(input_slot);
        plan.slots = build.kinds.len();
        Ok(plan)
    }

    /// Name of the input.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Declared shape of the input, with the batch first.
    pub fn input_dims(&self) -> Option<&[Dim]> {
        self.input_dims.as_deref()
    }

    /// What is trained, with the values of the file.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Running statistics of batch normalisation: mean and variance in turn.
    pub fn state(&self) -> &[Parameter] {
        &self.state
    }

    fn initialiser(
        &mut self,
        build: &mut Build,
        tensor: &TensorProto,
        trainable: &BTreeSet<&str>,
        running: &BTreeSet<&str>,
    ) -> Result<(), PlanError> {
        let dims = tensor::dims(tensor)?;
        let name = tensor.name();
        if !tensor::is_float(tensor.data_type()) {
            let slot = build.slot(name, Kind::Int);
            let values = tensor::to_i64(tensor)?;
            self.constants.push((slot, Constant::Int(Host { dims, values })));
            return Ok(());
        }
        let slot = build.slot(name, Kind::Float);
        let values = tensor::to_f32(tensor)?;
        if trainable.contains(name) {
            self.parameters.push(Parameter { name: name.to_owned(), dims, values, slot });
        } else if running.contains(name) {
            self.state.push(Parameter { name: name.to_owned(), dims, values, slot });
        } else {
            self.constants.push((slot, Constant::Float { dims, values }));
        }
        Ok(())
    }

    fn step(&self, build: &mut Build, node: &NodeProto, opset: i64) -> Result<Step, String> {
        let op = Op::parse(node, opset)?;
        let inputs = node
            .input
            .iter()
            .map(|name| match (name.is_empty(), build.slots.get(name)) {
                (true, _) => Ok(None),
                (false, Some(&slot)) => Ok(Some(slot)),
                (false, None) => Err(format!("its input {name:?} comes from nowhere")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let kind = |place: usize| inputs.get(place).copied().flatten().map(|slot| build.kinds[slot]);
        let kind = match (&op, kind(0)) {
            (Op::Constant(Constant::Float { .. }), _) => Kind::Float,
            (Op::Constant(Constant::Int(_)) | Op::Shape, _) => Kind::Int,
            (Op::Cast { to }, Some(kind)) => match (tensor::is_float(*to), kind) {
                (true, Kind::Float) => Kind::Float,
                (false, Kind::Int) => Kind::Int,
                _ => return Err("a cast between floats and integers has no gradient".into()),
            },
            (
                Op::Binary(_)
                | Op::Gather { .. }
                | Op::Concat { .. }
                | Op::Slice { .. }
                | Op::Squeeze(_)
                | Op::Unsqueeze(_)
                | Op::Unary(super::op::Unary::Identity)
                | Op::Reshape { .. },
                Some(kind),
            ) => kind,
            (_, Some(Kind::Float)) => Kind::Float,
            (_, Some(Kind::Int)) => return Err("it computes on integers".into()),
            (_, None) => return Err("its first input is missing".into()),
        };
        let mut running = None;
        if matches!(op, Op::BatchNorm { .. }) {
            let at = |place: usize| {
                let slot = inputs.get(place).copied().flatten();
                self.state.iter().position(|statistic| Some(statistic.slot) == slot)
            };
            match (at(3), at(4)) {
                (Some(mean), Some(variance)) if variance == mean + 1 => running = Some(mean),
                _ => return Err("its running mean and variance are not initialisers of its own".into()),
            }
        }
        let name = node.output.first().ok_or("it has no output")?;
        let output = build.slot(name, kind);
        Ok(Step { name: named(node), operator: node.op_type().to_owned(), op, inputs, output, running })
    }
}

/// Names to slots, while planning.
struct Build {
    slots: HashMap<String, usize>,
    kinds: Vec<Kind>,
}

impl Build {
    fn slot(&mut self, name: &str, kind: Kind) -> usize {
        if let Some(&slot) = self.slots.get(name) {
            return slot;
        }
        self.kinds.push(kind);
        self.slots.insert(name.to_owned(), self.kinds.len() - 1);
        self.kinds.len() - 1
    }
}

fn named(node: &NodeProto) -> String {
    let name =
        if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
    name.chars().take(200).collect()
}

/// The places of an operator's inputs where an initialiser is a weight.
fn is_weight(operator: &str, place: usize, elements: usize) -> bool {
    match operator {
        "Conv" | "Gemm" | "BatchNormalization" | "LayerNormalization" => matches!(place, 1 | 2),
        "MatMul" => true,
        "Add" | "Sub" | "Mul" | "Div" => elements > 1,
        _ => false,
    }
}

/// Walks back from the output over a trailing Softmax and Identity.
fn cut<'a>(nodes: &'a [NodeProto], producers: &HashMap<&str, usize>, output: &'a str) -> &'a str {
    let mut name = output;
    let mut softmax = false;
    for _ in 0..nodes.len() {
        let Some(node) = producers.get(name).map(|&at| &nodes[at]) else { break };
        let Some(input) = node.input.first() else { break };
        match node.op_type() {
            "Identity" => name = input,
            "Softmax" if !softmax => (name, softmax) = (input, true),
            _ => break,
        }
    }
    name
}

/// The nodes that `target` depends on, each after what it needs.
fn order(
    nodes: &[NodeProto],
    producers: &HashMap<&str, usize>,
    target: &str,
) -> Result<Vec<usize>, PlanError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; nodes.len()];
    let mut order = Vec::new();
    let mut stack: Vec<usize> = producers.get(target).copied().into_iter().collect();
    while let Some(&at) = stack.last() {
        if marks[at] == Mark::Done {
            stack.pop();
            continue;
        }
        let first_visit = marks[at] == Mark::New;
        marks[at] = Mark::Open;
        let needs: Vec<usize> = nodes[at]
            .input
            .iter()
            .filter_map(|name| producers.get(name.as_str()).copied())
            .filter(|&need| marks[need] != Mark::Done)
            .collect();
        if needs.is_empty() {
            marks[at] = Mark::Done;
            order.push(at);
            stack.pop();
        } else if !first_visit || needs.iter().any(|&need| marks[need] == Mark::Open) {
            return Err(PlanError::Graph(format!("node {:?} depends on itself", named(&nodes[at]))));
        } else {
            stack.extend(needs);
        }
    }
    Ok(order)
}
