//! Names the operators of a graph that the engine does not have, or gets wrong without saying so. `release build`
//! refuses a model by this list, so that nobody learns of it on a device.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use farlight_onnx::proto::{GraphProto, NodeProto};
use farlight_onnx::{Limits, Model, OnnxError};

use super::fold;
use super::graph::{attribute, defined, each, inner, is_standard, label};
use super::inputs::{FLOAT16, is_half};

/// The domains of which the engine knows operators. It looks an operator up by its name alone, so one of another
/// domain that happens to have a known name would be run as what it is not.
const DOMAINS: &[&str] = &["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// An operator that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Its name, such as `ZipMap`.
    pub operator: String,
    /// Its domain, empty for ONNX's own operators.
    pub domain: String,
    /// The first node that needs it, by name, or else by its first output.
    pub node: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = if self.domain.is_empty() { "" } else { "." };
        write!(f, "operator {}{domain}{} (node {:?}): {}", self.domain, self.operator, self.node, self.reason)
    }
}

/// The operators of a graph and the graphs within it that tract cannot run, each with the first node that needs it:
/// those it does not have, which calls of a model's own functions are too, and forms of those it has for which it
/// gives wrong results.
///
/// An empty list is no promise: only loading shows whether shapes fit, and only reference outputs whether numbers do.
///
/// # Errors
/// [`OnnxError`] when the bytes are no model within the limits.
pub fn unsupported(onnx: &[u8]) -> Result<Vec<Unsupported>, OnnxError> {
    let model = Model::parse(onnx, &Limits::DEFAULT)?;
    let known = fold::operators();
    let mut search =
        Search { known, has_halves: has_halves(model.graph()), seen: BTreeSet::new(), found: Vec::new() };
    search.graph(model.graph(), None);
    Ok(search.found)
}

/// What was found so far, and what to find it with.
struct Search {
    known: HashSet<String>,
    has_halves: bool,
    seen: BTreeSet<(String, String, &'static str)>,
    found: Vec<Unsupported>,
}

impl Search {
    /// Looks through a graph and those within it; depth is bounded by `Limits::graphs`.
    fn graph(&mut self, graph: &GraphProto, outer: Option<&Fixed<'_>>) {
        let uses = Uses::of(graph);
        let fixed = Fixed::of(graph, outer);
        for node in &graph.node {
            if !DOMAINS.contains(&node.domain()) || !self.known.contains(node.op_type()) {
                self.add(node.domain(), node.op_type(), label(node), "the engine does not have it");
            } else if let Some(reason) = wrong(node, &uses, &fixed, self.has_halves) {
                self.add(node.domain(), node.op_type(), label(node), reason);
            }
            inner(node).for_each(|inner| self.graph(inner, Some(&fixed)));
        }
        if let Some(tensor) = graph.sparse_initializer.first() {
            let name = tensor.values.as_ref().map_or("", |values| values.name());
            self.add("", "SparseTensor", name, "the engine has no sparse constants");
        }
    }

    fn add(&mut self, domain: &str, operator: &str, node: &str, reason: &'static str) {
        let (domain, operator) = (domain.to_owned(), operator.to_owned());
        if self.seen.insert((domain.clone(), operator.clone(), reason)) {
            self.found.push(Unsupported { operator, domain, node: node.to_owned(), reason });
        }
    }
}

/// The values of a graph that do not depend on any input but its shape, which the engine computes when it loads.
struct Fixed<'a> {
    outer: Option<&'a Fixed<'a>>,
    defined: HashSet<&'a str>,
    names: HashSet<&'a str>,
}

impl<'a> Fixed<'a> {
    fn of(graph: &'a GraphProto, outer: Option<&'a Fixed<'a>>) -> Self {
        let names = graph.initializer.iter().map(|tensor| tensor.name()).collect();
        let mut fixed = Self { outer, defined: defined(graph).collect(), names };
        for node in &graph.node {
            let measures = matches!(node.op_type(), "Shape" | "Size");
            let follows = node.input.iter().all(|name| name.is_empty() || fixed.has(name));
            // What graphs within a node take from outside is not looked at: such a node is not counted as fixed.
            if measures || (follows && inner(node).next().is_none()) {
                fixed.names.extend(node.output.iter().map(String::as_str));
            }
        }
        fixed
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
            || (!self.defined.contains(name) && self.outer.is_some_and(|outer| outer.has(name)))
    }
}

/// Which operators make and take the values of a graph.
struct Uses<'a> {
    made_by: HashMap<&'a str, &'a str>,
    taken_by_quantize: HashSet<&'a str>,
}

impl<'a> Uses<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let made = |node: &'a NodeProto| node.output.iter().map(|name| (name.as_str(), node.op_type()));
        let quantize = graph.node.iter().filter(|node| node.op_type() == "QuantizeLinear");
        Self {
            made_by: graph.node.iter().flat_map(made).collect(),
            taken_by_quantize: quantize.filter_map(|node| node.input.first()).map(String::as_str).collect(),
        }
    }
}

/// Why tract would compute this node wrongly without saying so.
fn wrong(node: &NodeProto, uses: &Uses<'_>, fixed: &Fixed<'_>, has_halves: bool) -> Option<&'static str> {
    if !is_standard(node) {
        return None;
    }
    let text = |name| attribute(node, name).map(|attribute| attribute.s());
    match node.op_type() {
        "LSTM" | "GRU" | "RNN" if text("direction") == Some(b"reverse") => {
            Some("the engine computes direction \"reverse\" wrongly; use \"forward\" on a reversed sequence")
        }
        "If" => {
            // tract hands on the facts of the first branch, its value included.
            let then = attribute(node, "then_branch")?.g.as_ref()?;
            let branch = Fixed::of(then, Some(fixed));
            (then.output.iter().any(|output| branch.has(output.name()))).then_some(
                "the engine takes its first branch in any case when that gives a constant; swap the branches",
            )
        }
        "Celu" if has_halves || attribute(node, "alpha").is_some_and(|alpha| alpha.f() != 1.0) => {
            Some("the engine is right for f32 and alpha 1 only; use Elu")
        }
        "SpaceToDepth" if text("mode") == Some(b"CRD") => {
            Some("the engine computes mode \"CRD\" wrongly; use \"DCR\"")
        }
        "Softmax" | "LogSoftmax" => {
            let input = node.input.first().and_then(|name| uses.made_by.get(name.as_str()));
            let quantized =
                node.output.first().is_some_and(|name| uses.taken_by_quantize.contains(name.as_str()));
            // tract takes what stands between the two for a function of one number, and makes a table of it.
            (quantized && input == Some(&"DequantizeLinear"))
                .then_some("the engine computes it wrongly between quantised tensors; quantise Conv, Gemm and MatMul only")
        }
        _ => None,
    }
}

/// Whether any value may be f16: an input, a constant or a cast.
fn has_halves(graph: &GraphProto) -> bool {
    let mut found = false;
    each(graph, &mut |graph| {
        let constants =
            graph.node.iter().flat_map(|node| &node.attribute).filter_map(|value| value.t.as_ref());
        found |= graph.initializer.iter().chain(constants).any(|tensor| tensor.data_type() == FLOAT16);
        found |= graph.input.iter().any(is_half);
        let casts = graph.node.iter().filter(|node| node.op_type() == "Cast");
        found |= casts.filter_map(|node| attribute(node, "to")).any(|to| to.i() == i64::from(FLOAT16));
    });
    found
}

#[cfg(test)]
mod tests {
    use farlight_onnx::builder::{float, text};
    use farlight_onnx::proto::attribute_proto::AttributeType;
    use farlight_onnx::proto::{AttributeProto, TensorProto};
    use farlight_onnx::{Dim, GraphBuilder};

    use super::*;

    fn found(graph: GraphBuilder, change: impl FnOnce(&mut GraphProto)) -> Vec<String> {
        let mut model = graph.finish().unwrap();
        change(model.graph_mut());
        unsupported(&model.to_bytes()).unwrap().iter().map(ToString::to_string).collect()
    }

    fn small() -> GraphBuilder {
        GraphBuilder::new("g").input("x", &[Dim::Fixed(2)]).output("y", &[Dim::Fixed(2)])
    }

    #[test]
    fn a_graph_that_runs_has_nothing_unsupported() {
        assert!(found(small().node("Relu", &["x"], &["y"], &[]), |_| ()).is_empty());
        let alpha = |alpha| small().node("Celu", &["x"], &["y"], &[float("alpha", alpha)]);
        assert!(found(alpha(1.0), |_| ()).is_empty());
        assert_eq!(found(alpha(0.5), |_| ()).len(), 1);
    }

    #[test]
    fn missing_operators_are_named_once_with_their_first_node() {
        let graph = small().node("ZipMap", &["x"], &["a"], &[]).node("ZipMap", &["a"], &["y"], &[]);
        let named = found(graph, |graph| {
            graph.node.iter_mut().for_each(|node| node.domain = Some("ai.onnx.ml".into()));
        });
        assert_eq!(named, [r#"operator ai.onnx.ml.ZipMap (node "a"): the engine does not have it"#]);
    }

    #[test]
    fn an_operator_of_an_unknown_domain_is_not_taken_for_one_of_that_name() {
        let named = found(small().node("Relu", &["x"], &["y"], &[]), |graph| {
            graph.node[0].domain = Some("com.example".into());
            graph.node[0].name = None;
        });
        assert_eq!(named, [r#"operator com.example.Relu (node "y"): the engine does not have it"#]);
    }

    #[test]
    fn branches_are_looked_into() {
        let branch = small().node("Loop", &["x"], &["y"], &[]).finish().unwrap().graph().clone();
        let attribute = AttributeProto {
            name: Some("then_branch".into()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(branch),
            ..AttributeProto::default()
        };
        let named = found(small().node("If", &["c"], &["y"], &[attribute]), |_| ());
        assert_eq!(named, [r#"operator Loop (node "y"): the engine does not have it"#]);
    }

    #[test]
    fn a_first_branch_that_gives_a_constant_is_named() {
        let undecided = |then: GraphBuilder| {
            let attribute = |name: &str, graph: GraphBuilder| AttributeProto {
                name: Some(name.into()),
                r#type: Some(AttributeType::Graph as i32),
                g: Some(graph.output("v", &[]).finish().unwrap().graph().clone()),
                ..AttributeProto::default()
            };
            let otherwise = GraphBuilder::new("e").node("Abs", &["x"], &["v"], &[]);
            let branches = [attribute("then_branch", then), attribute("else_branch", otherwise)];
            let graph = small().input("c", &[]).f32("k", &[2], &[1.0, 2.0]);
            found(graph.node("If", &["c"], &["y"], &branches), |_| ())
        };
        let then = || GraphBuilder::new("t");
        assert!(undecided(then().node("Add", &["x", "k"], &["v"], &[])).is_empty());
        assert!(undecided(then().node("Neg", &["k"], &["v"], &[]))[0].contains("If"));
        let measured = then().node("Shape", &["x"], &["s"], &[]).node("Cast", &["s"], &["v"], &[]);
        assert!(undecided(measured)[0].contains("If"));
        let own = then().node("Neg", &["x"], &["k"], &[]).node("Identity", &["k"], &["v"], &[]);
        assert!(undecided(own).is_empty(), "a name of the branch's own");
    }

    #[test]
    fn forms_that_tract_computes_wrongly_are_named() {
        for operator in ["LSTM", "GRU", "RNN"] {
            let with = |direction| small().node(operator, &["x"], &["y"], &[text("direction", direction)]);
            assert!(found(with("forward"), |_| ()).is_empty());
            assert!(found(with("bidirectional"), |_| ()).is_empty());
            assert!(found(with("reverse"), |_| ())[0].contains(operator));
        }
        let with = |mode| small().node("SpaceToDepth", &["x"], &["y"], &[text("mode", mode)]);
        assert!(found(with("DCR"), |_| ()).is_empty());
        assert_eq!(found(with("CRD"), |_| ()).len(), 1);
        let half = small().tensor(TensorProto { data_type: Some(FLOAT16), ..TensorProto::default() }).node(
            "Celu",
            &["x"],
            &["y"],
            &[],
        );
        assert_eq!(found(half, |_| ()).len(), 1);
    }

    #[test]
    fn a_softmax_is_wrong_between_quantised_tensors_only() {
        for operator in ["Softmax", "LogSoftmax"] {
            let before = small().node("DequantizeLinear", &["x", "s"], &["a"], &[]);
            let alone = before.clone().node(operator, &["a"], &["y"], &[]);
            assert!(found(alone, |_| ()).is_empty());
            let between =
                before.node(operator, &["a"], &["b"], &[]).node("QuantizeLinear", &["b", "s"], &["y"], &[]);
            assert!(found(between, |_| ())[0].contains(operator));
        }
    }
}
