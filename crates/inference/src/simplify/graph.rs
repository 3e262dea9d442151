//! Questions about graphs that every step of simplifying asks: what a node holds, what a graph defines and uses.

use std::collections::{HashMap, HashSet};

use farlight_onnx::proto::{AttributeProto, GraphProto, NodeProto};

/// Whether a node is an operator of ONNX itself, not of an extension.
pub(super) fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

/// What a node is called in reports: its name, or else its first output.
pub(super) fn label(node: &NodeProto) -> &str {
    let output = node.output.first().map_or("", String::as_str);
    if node.name().is_empty() { output } else { node.name() }
}

/// The attribute `name` of a node.
pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

/// The graphs within a node: branches and bodies.
pub(super) fn inner(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// The graphs within a node, to change.
pub(super) fn inner_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|attribute| attribute.g.iter_mut().chain(&mut attribute.graphs))
}

/// The names of values that a graph itself gives a meaning: inputs, initialisers and results of nodes.
pub(super) fn defined(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    (graph.input.iter().map(|input| input.name()))
        .chain(graph.initializer.iter().chain(sparse).map(|tensor| tensor.name()))
        .chain(graph.node.iter().flat_map(|node| &node.output).map(String::as_str))
        .filter(|name| !name.is_empty())
}

/// Calls `see` with every graph: `graph`, and those within its nodes. Nesting is bounded by `Limits::graphs`.
pub(super) fn each<'a>(graph: &'a GraphProto, see: &mut dyn FnMut(&'a GraphProto)) {
    see(graph);
    for inner in graph.node.iter().flat_map(inner) {
        each(inner, see);
    }
}

/// Drops the nodes and initialisers that no output of the graph needs, and the declared shapes of values. A node
/// needs what the graphs within it name. Returns how many nodes went.
pub(super) fn prune(graph: &mut GraphProto) -> usize {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        producers
            .extend(node.output.iter().filter(|name| !name.is_empty()).map(|name| (name.as_str(), index)));
    }
    let mut needed: HashSet<String> = HashSet::new();
    let mut kept = vec![false; graph.node.len()];
    let mut open: Vec<&str> = graph.output.iter().map(|output| output.name()).collect();
    while let Some(name) = open.pop() {
        if name.is_empty() || !needed.insert(name.to_owned()) {
            continue;
        }
        let Some(&index) = producers.get(name) else { continue };
        let (Some(node), Some(keep)) = (graph.node.get(index), kept.get_mut(index)) else { continue };
        if std::mem::replace(keep, true) {
            continue;
        }
        open.extend(node.input.iter().map(String::as_str));
        for inner in inner(node) {
            each(inner, &mut |graph| {
                open.extend(graph.output.iter().map(|output| output.name()));
                open.extend(graph.node.iter().flat_map(|node| &node.input).map(String::as_str));
            });
        }
    }
    let before = graph.node.len();
    let mut kept = kept.into_iter();
    graph.node.retain(|_| kept.next().unwrap_or(true));
    graph.initializer.retain(|tensor| needed.contains(tensor.name()));
    graph.value_info.clear();
    before - graph.node.len()
}
