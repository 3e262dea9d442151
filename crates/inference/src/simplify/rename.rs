//! Gives the values and nodes of a graph that is inlined names that nothing else in the model has.

use std::collections::{BTreeSet, HashMap, HashSet};

use farlight_onnx::Model;
use farlight_onnx::proto::GraphProto;

use super::graph::{defined, each, inner_mut};

/// Bytes that are kept of a name before the number that makes it new: far below `Limits::name`, however often a
/// value is renamed.
const MAX_STEM: usize = 200;

/// All names of a model, and new ones.
pub(super) struct Names {
    taken: HashSet<String>,
    next: usize,
}

impl Names {
    /// The names of values in all graphs of `model`, also of those that are used and defined nowhere.
    pub(super) fn of(model: &Model) -> Self {
        let mut taken = HashSet::new();
        each(model.graph(), &mut |graph| {
            taken.extend(defined(graph).map(str::to_owned));
            taken.extend(graph.node.iter().flat_map(|node| &node.input).cloned());
            taken.extend(graph.output.iter().map(|output| output.name().to_owned()));
        });
        Self { taken, next: 0 }
    }

    /// A name like `name` that nothing has.
    pub(super) fn fresh(&mut self, name: &str) -> String {
        let stem = name.get(..name.floor_char_boundary(MAX_STEM)).unwrap_or_default();
        loop {
            self.next += 1;
            let name = format!("{stem}.{}", self.next);
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Renames all that `graph` defines, in it and in the graphs within it, and returns old and new names. What it
    /// takes from the graphs around it keeps its name.
    pub(super) fn renew(&mut self, graph: &mut GraphProto) -> HashMap<String, String> {
        // In order, so that one file always gives one result.
        let old: BTreeSet<String> = defined(graph).map(str::to_owned).collect();
        let names: HashMap<String, String> =
            old.into_iter().map(|name| (name.clone(), self.fresh(&name))).collect();
        for node in &mut graph.node {
            if !node.name().is_empty() {
                node.name = Some(self.fresh(node.name()));
            }
        }
        apply(graph, &names, &mut Vec::new());
        names
    }
}

/// Puts new names into `graph`, the graphs within it included. Names in `hidden` mean other values here: one entry
/// for each graph around this one, with what that graph defines itself.
fn apply(graph: &mut GraphProto, names: &HashMap<String, String>, hidden: &mut Vec<HashSet<String>>) {
    let replace = |name: Option<&mut String>| {
        if let Some(name) = name
            && let Some(new) = names.get(name)
            && !hidden.iter().any(|own| own.contains(name))
        {
            name.clone_from(new);
        }
    };
    graph.initializer.iter_mut().for_each(|tensor| replace(tensor.name.as_mut()));
    for sparse in &mut graph.sparse_initializer {
        replace(sparse.values.as_mut().and_then(|values| values.name.as_mut()));
    }
    graph.input.iter_mut().chain(&mut graph.output).for_each(|value| replace(value.name.as_mut()));
    graph.value_info.clear();
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(|name| replace(Some(name)));
    }
    for inner in graph.node.iter_mut().flat_map(inner_mut) {
        hidden.push(defined(inner).map(str::to_owned).collect());
        apply(inner, names, hidden);
        hidden.pop();
    }
}
