//! Graphs that exporters write, graphs that attackers write, and random ones: simplified, they mean the same.

use std::collections::BTreeMap;

use farlight_onnx::builder::int;
use farlight_onnx::proto::attribute_proto::AttributeType;
use farlight_onnx::proto::{AttributeProto, GraphProto, TensorProto};
use farlight_onnx::{Dim, GraphBuilder, Limits, Model};
use proptest::prelude::*;

use super::constant::to_proto;
use super::fold::Plan;
use super::*;
use crate::tensor::Values;

const BOOL: i32 = 9;
const INT64: i32 = 7;

fn branch(name: &str, graph: GraphBuilder) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(graph.finish().unwrap().graph().clone()),
        ..AttributeProto::default()
    }
}

fn branches(then: GraphBuilder, otherwise: GraphBuilder) -> [AttributeProto; 2] {
    [branch("then_branch", then), branch("else_branch", otherwise)]
}

fn truth(name: &str, value: bool) -> TensorProto {
    to_proto(name, &Tensor::new(vec![], Values::Bool(vec![value])).unwrap())
}

/// Declares the inputs of `graph` called `name` with another element type.
fn retype(graph: &mut GraphProto, name: &str, element: i32) {
    use farlight_onnx::proto::type_proto::Value;
    let input = graph.input.iter_mut().find(|input| input.name() == name).unwrap();
    let Some(Value::TensorType(tensor)) = &mut input.r#type.as_mut().unwrap().value else {
        panic!("no tensor")
    };
    tensor.elem_type = Some(element);
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), Values::Fp32(values.to_vec())).unwrap()
}

fn run(onnx: &[u8], inputs: &[Tensor]) -> Vec<Tensor> {
    Plan::load(onnx).unwrap().run(inputs).unwrap()
}

fn operators(onnx: &[u8]) -> Vec<String> {
    let model = Model::parse(onnx, &Limits::DEFAULT).unwrap();
    model.graph().node.iter().map(|node| node.op_type().to_owned()).collect()
}

fn constant(name: &str, tensor: Tensor) -> Simplify {
    Simplify { constants: BTreeMap::from([(name.to_owned(), tensor)]), ..Simplify::default() }
}

/// A model of a sample rate: `sr == 16000` decides between branches of different rank, and within the branch the
/// length of `x` decides again. Branches use the same names, and values of the graphs around them.
fn nested() -> Model {
    let long = GraphBuilder::new("long").node("Mul", &["twice", "x"], &["h"], &[]).output("h", &[]);
    let short = GraphBuilder::new("short").node("Neg", &["twice"], &["h"], &[]).output("h", &[]);
    let wide = GraphBuilder::new("wide")
        .f32("two", &[1], &[2.0])
        .node("Mul", &["x", "two"], &["twice"], &[])
        .node("Shape", &["twice"], &["shape"], &[])
        .i64("last", &[], &[1])
        .node("Gather", &["shape", "last"], &["length"], &[])
        .i64("four", &[], &[4])
        .node("Equal", &["length", "four"], &["is_long"], &[])
        .node("If", &["is_long"], &["h"], &branches(long, short))
        .output("h", &[]);
    let narrow = GraphBuilder::new("narrow")
        .i64("flat", &[1], &[-1])
        .node("Reshape", &["x", "flat"], &["h"], &[])
        .output("h", &[]);
    let mut model = GraphBuilder::new("g")
        .input("x", &[Dim::Free("batch".into()), Dim::Free("length".into())])
        .input("sr", &[])
        .output("y", &[])
        .i64("rate", &[], &[16_000])
        .node("Equal", &["sr", "rate"], &["is_wide"], &[])
        .node("If", &["is_wide"], &["out"], &branches(wide, narrow))
        .node("Relu", &["out"], &["y"], &[])
        .finish()
        .unwrap();
    retype(model.graph_mut(), "sr", INT64);
    model
}

fn rate(rate: i64) -> Tensor {
    Tensor::new(vec![], Values::Int64(vec![rate])).unwrap()
}

#[test]
fn branches_within_branches_are_inlined_once_their_conditions_are_known() {
    let model = nested().to_bytes();
    let shapes = BTreeMap::from([("x".to_owned(), vec![1, 4])]);
    let undecided = simplify(&model, &Simplify { shapes, ..Simplify::default() }).unwrap();
    let error = Plan::load(&undecided.onnx).err().unwrap();
    assert!(error.contains("If"), "the engine cannot run it as it is, and names the operator: {error}");
    let mut options = constant("sr", rate(16_000));
    options.shapes.insert("x".into(), vec![1, 4]);
    let simplified = simplify(&model, &options).unwrap();
    assert_eq!(simplified.report.inlined.len(), 2);
    assert!(!operators(&simplified.onnx).iter().any(|op| op == "If" || op == "Shape"));
    let y = run(&simplified.onnx, &[floats(&[1, 4], &[1.0, -2.0, 3.0, 4.0])]);
    assert_eq!(y, [floats(&[1, 4], &[2.0, 8.0, 18.0, 32.0])]);

    options.shapes.insert("x".into(), vec![1, 2]);
    let y = run(&simplify(&model, &options).unwrap().onnx, &[floats(&[1, 2], &[1.0, -2.0])]);
    assert_eq!(y, [floats(&[1, 2], &[0.0, 4.0])], "the other inner branch");

    options.constants.insert("sr".into(), rate(8_000));
    let y = run(&simplify(&model, &options).unwrap().onnx, &[floats(&[1, 2], &[1.0, -2.0])]);
    assert_eq!(y, [floats(&[2], &[1.0, 0.0])], "the other outer branch");
}

#[test]
fn the_same_file_gives_the_same_bytes_and_nothing_is_left_to_do() {
    let model = nested().to_bytes();
    let mut options = constant("sr", rate(16_000));
    options.shapes.insert("x".into(), vec![1, 4]);
    let once = simplify(&model, &options).unwrap();
    assert_eq!(simplify(&model, &options).unwrap(), once);
    let again = simplify(&once.onnx, &Simplify::default()).unwrap();
    assert_eq!(again.report, Report::default());
    assert_eq!(again.onnx, once.onnx);
}

#[test]
fn an_undecided_branch_stays_and_a_decided_one_within_it_goes() {
    let inner = branches(
        GraphBuilder::new("t").node("Neg", &["x"], &["v"], &[]).output("v", &[]),
        GraphBuilder::new("e").node("Abs", &["x"], &["v"], &[]).output("v", &[]),
    );
    let then = GraphBuilder::new("then")
        .tensor(truth("yes", true))
        .node("If", &["yes"], &["w"], &inner)
        .output("w", &[]);
    let otherwise = GraphBuilder::new("else").node("Identity", &["x"], &["w"], &[]).output("w", &[]);
    let mut model = GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(2)])
        .input("c", &[])
        .output("y", &[])
        .node("If", &["c"], &["y"], &branches(then, otherwise))
        .finish()
        .unwrap();
    retype(model.graph_mut(), "c", BOOL);
    let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
    assert_eq!(simplified.report.inlined.len(), 1);
    assert_eq!(operators(&simplified.onnx), ["If"]);
    for (condition, expected) in [(true, [-1.0, 2.0]), (false, [1.0, -2.0])] {
        let condition = Tensor::new(vec![], Values::Bool(vec![condition])).unwrap();
        let y = run(&simplified.onnx, &[floats(&[2], &[1.0, -2.0]), condition]);
        assert_eq!(y, [floats(&[2], &expected)]);
    }
}

#[test]
fn a_name_that_an_inner_graph_defines_itself_is_another_value() {
    // The branch that is inlined defines `v`; the undecided branch within it defines a `v` of its own.
    let own = GraphBuilder::new("own").node("Neg", &["x"], &["v"], &[]).output("v", &[]);
    let outer = GraphBuilder::new("outer").node("Abs", &["v"], &["u"], &[]).output("u", &[]);
    let then = GraphBuilder::new("then")
        .node("Add", &["x", "x"], &["v"], &[])
        .node("If", &["c"], &["w"], &branches(own, outer))
        .output("w", &[]);
    let otherwise = GraphBuilder::new("else").node("Identity", &["x"], &["w"], &[]).output("w", &[]);
    let mut model = GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(1)])
        .input("c", &[])
        .output("y", &[])
        .tensor(truth("yes", true))
        .node("If", &["yes"], &["y"], &branches(then, otherwise))
        .finish()
        .unwrap();
    retype(model.graph_mut(), "c", BOOL);
    let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
    for (condition, expected) in [(true, 3.0), (false, 6.0)] {
        let condition = Tensor::new(vec![], Values::Bool(vec![condition])).unwrap();
        assert_eq!(run(&simplified.onnx, &[floats(&[1], &[-3.0]), condition]), [floats(&[1], &[expected])]);
    }
}

#[test]
fn shapes_are_measured_in_part_and_what_follows_is_computed() {
    let model = GraphBuilder::new("g")
        .input("x", &[Dim::Free("n".into()), Dim::Free("c".into()), Dim::Fixed(4)])
        .output("y", &[])
        .node("Shape", &["x"], &["tail"], &[int("start", -2)])
        .node("Shape", &["x"], &["head"], &[int("end", 1)])
        .node("Concat", &["tail", "head"], &["shape"], &[int("axis", 0)])
        .node("Reshape", &["x", "shape"], &["y"], &[])
        .node("Relu", &["x"], &["unused"], &[])
        .finish()
        .unwrap();
    let options = Simplify { shapes: BTreeMap::from([("x".into(), vec![2, 3, 4])]), ..Simplify::default() };
    let simplified = simplify(&model.to_bytes(), &options).unwrap();
    assert_eq!(operators(&simplified.onnx), ["Reshape"]);
    assert_eq!(simplified.report.folded, BTreeMap::from([("Shape".into(), 2), ("Concat".into(), 1)]));
    assert_eq!(simplified.report.dropped, 1);
    assert_eq!(run(&simplified.onnx, &[floats(&[2, 3, 4], &[0.5; 24])])[0].shape, [3, 4, 2]);
}

#[test]
fn nothing_large_is_computed() {
    let huge = 1_i64 << 40;
    for (operator, inputs) in [
        ("ConstantOfShape", &["huge"][..]),
        ("Expand", &["one", "huge"]),
        ("Tile", &["one", "huge"]),
        ("Range", &["zero", "scalar", "step"]),
    ] {
        let model = GraphBuilder::new("g")
            .input("x", &[Dim::Fixed(1)])
            .output("y", &[])
            .i64("huge", &[1], &[huge])
            .i64("scalar", &[], &[huge])
            .i64("zero", &[], &[0])
            .i64("step", &[], &[1])
            .f32("one", &[1], &[1.0])
            .node(operator, inputs, &["large"], &[])
            .node("Identity", &["large"], &["y"], &[])
            .finish()
            .unwrap();
        let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
        assert_eq!(operators(&simplified.onnx), [operator, "Identity"]);
    }
}

#[test]
fn infinite_constants_are_left_to_the_engine() {
    let model = GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(1)])
        .output("y", &[])
        .f32("mask", &[2], &[f32::NEG_INFINITY; 2])
        .node("ReduceMax", &["mask"], &["most"], &[int("keepdims", 0)])
        .node("Add", &["x", "most"], &["y"], &[])
        .finish()
        .unwrap();
    let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
    assert_eq!(simplified.report, Report::default());
}

#[test]
fn options_that_do_not_fit_are_refused_with_the_reason() {
    let model = nested().to_bytes();
    let refuse = |options: &Simplify| simplify(&model, options).unwrap_err();
    let error = refuse(&constant("rate", rate(1)));
    assert_eq!(error.to_string(), r#"the graph has no input "rate"; it has ["x", "sr"]"#);
    let error = refuse(&constant("sr", floats(&[], &[1.0])));
    assert_eq!(error.to_string(), r#"input "sr" has ONNX element type 7, but the constant has 1"#);
    let shape = |shape: &[usize]| Simplify {
        shapes: BTreeMap::from([("x".to_owned(), shape.to_vec())]),
        ..Simplify::default()
    };
    let error = refuse(&shape(&[4]));
    assert_eq!(error.to_string(), r#"input "x" is declared as [?, ?], which [4] does not fit"#);
    let both = Simplify { constants: constant("x", floats(&[1, 1], &[0.0])).constants, ..shape(&[1, 1]) };
    assert_eq!(refuse(&both), SimplifyError::ConstantWithShape("x".into()));
}

#[test]
fn a_default_becomes_a_constant_and_declared_inner_shapes_go() {
    let mut model = GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(2)])
        .input("k", &[Dim::Fixed(2)])
        .f32("k", &[2], &[2.0, 3.0])
        .output("y", &[])
        .node("Mul", &["x", "k"], &["z"], &[])
        .node("Neg", &["z"], &["y"], &[])
        .finish()
        .unwrap();
    let stale = model.graph().input[0].clone();
    model.graph_mut().value_info.push(stale);
    let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
    let graph = Model::parse(&simplified.onnx, &Limits::DEFAULT).unwrap().graph().clone();
    assert_eq!((graph.input.len(), graph.value_info.len()), (1, 0));
    assert_eq!(run(&simplified.onnx, &[floats(&[2], &[1.0, 1.0])]), [floats(&[2], &[-2.0, -3.0])]);
}

/// A step of a random graph over small integers: an operator, and which earlier values it takes.
fn step() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..RANDOM.len(), any::<prop::sample::Index>(), any::<prop::sample::Index>())
        .prop_map(|(operator, a, b)| (operator, a.index(1 << 16), b.index(1 << 16)))
}

const RANDOM: &[&str] = &["Add", "Sub", "Max", "Min", "Neg", "Abs", "Concat", "Slice", "Squeeze", "If"];

/// A graph of 1-D f32 values: one input, two constants, and `steps`; and what it gives for `x`. Conditions are
/// constants, so each `If` goes. The numbers are small integers, so that f32 is exact.
fn random_graph(steps: &[(usize, usize, usize)], x: f32) -> (Model, f32) {
    let mut graph = GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(1)])
        .output("y", &[])
        .f32("c0", &[1], &[2.0])
        .f32("c1", &[1], &[-3.0])
        .tensor(truth("true", true))
        .tensor(truth("false", false))
        .i64("zero", &[1], &[0])
        .i64("one", &[1], &[1]);
    let mut values = vec![("x".to_owned(), x), ("c0".to_owned(), 2.0), ("c1".to_owned(), -3.0)];
    for (at, (operator, a, b)) in steps.iter().enumerate() {
        let ((a, x), (b, y)) = (values[a % values.len()].clone(), values[b % values.len()].clone());
        let name = format!("v{at}");
        let condition = at % 2 == 0;
        let operator = RANDOM[*operator];
        graph = match operator {
            "Neg" | "Abs" => graph.node(operator, &[&a], &[&name], &[]),
            "Concat" => graph.node("Concat", &[&a, &b], &[&format!("{name}w")], &[int("axis", 0)]).node(
                "Slice",
                &[&format!("{name}w"), "zero", "one"],
                &[&name],
                &[],
            ),
            "Slice" => graph.node("Slice", &[&a, "zero", "one"], &[&name], &[]),
            "Squeeze" => graph.node("Squeeze", &[&a, "zero"], &[&format!("{name}s")], &[]).node(
                "Unsqueeze",
                &[&format!("{name}s"), "zero"],
                &[&name],
                &[],
            ),
            "If" => {
                let then = GraphBuilder::new("t").node("Neg", &[&a], &["r"], &[]).output("r", &[]);
                let otherwise = GraphBuilder::new("e").node("Add", &[&a, &b], &["r"], &[]).output("r", &[]);
                graph.node(
                    "If",
                    &[if condition { "true" } else { "false" }],
                    &[&name],
                    &branches(then, otherwise),
                )
            }
            _ => graph.node(operator, &[&a, &b], &[&name], &[]),
        };
        let value = match operator {
            "Neg" => -x,
            "If" if condition => -x,
            "Abs" => x.abs(),
            "Add" | "If" => x + y,
            "Sub" => x - y,
            "Max" => x.max(y),
            "Min" => x.min(y),
            _ => x,
        };
        values.push((name, value));
    }
    let (last, value) = values.last().unwrap().clone();
    (graph.node("Identity", &[&last], &["y"], &[]).finish().unwrap(), value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_mean_the_same(steps in prop::collection::vec(step(), 1..12), x in -4_i8..4) {
        let (model, y) = random_graph(&steps, f32::from(x));
        let simplified = simplify(&model.to_bytes(), &Simplify::default()).unwrap();
        prop_assert!(!operators(&simplified.onnx).iter().any(|operator| operator == "If"));
        let found = run(&simplified.onnx, &[floats(&[1], &[f32::from(x)])]);
        prop_assert_eq!(found, [floats(&[1], &[y])]);
    }

    #[test]
    fn damaged_models_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut model = nested().to_bytes();
        let at = at.index(model.len());
        if cut { model.truncate(at) } else { model[at] = byte }
        let mut options = constant("sr", rate(16_000));
        options.shapes.insert("x".into(), vec![1, 4]);
        let _ = simplify(&model, &options);
        let _ = simplify(&model, &Simplify::default());
        let _ = unsupported(&model);
    }
}
