//! Every trainable operator against finite differences in f64, and what the plan refuses.

use burn_autodiff::Autodiff;
use burn_backend::ops::FloatTensorOps;
use burn_backend::{AutodiffBackend, FloatDType, try_read_sync};
use burn_flex::{Flex, FlexDevice};
use farlight_onnx::builder::{float, int, ints, text};
use farlight_onnx::proto::AttributeProto;
use farlight_onnx::{Dim, GraphBuilder, Model};

use super::{BatchNorm, Plan, PlanError, Runner};
use crate::random::Random;

type B = Autodiff<Flex>;

/// Largest difference from the finite difference, relative to the larger of 1 and the gradient.
const TOLERANCE: f64 = 2e-4;

/// The start of a graph whose input has shape `dims`, scaled by a trainable tensor into `h`.
fn start(dims: &[usize]) -> GraphBuilder {
    let shape: Vec<Dim> = dims.iter().map(|&dim| Dim::Fixed(dim)).collect();
    let graph = GraphBuilder::new("t").input("x", &shape);
    let graph = weight(graph, "scale", &dims[1..], 1);
    graph.node("Mul", &["x", "scale"], &["h"], &[])
}

fn weight(graph: GraphBuilder, name: &str, dims: &[usize], seed: u64) -> GraphBuilder {
    graph.f32(name, dims, &numbers(dims.iter().product(), seed))
}

/// Even numbers from -1 to 1, none near 0, where several functions have a kink.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut one = || {
        let value = random.unit() * 0.9 + 0.1;
        if random.below(2) == 0 { value } else { -value }
    };
    (0..count).map(|_| one()).collect()
}

fn end(graph: GraphBuilder) -> Model {
    graph.output("y", &[]).finish().unwrap()
}

/// Sum of the outputs, each with a fixed factor, and its gradients when asked for.
fn loss(plan: &Plan, dims: &[usize], values: &[Vec<f32>], mode: BatchNorm) -> (f64, Vec<Vec<f64>>) {
    let runner = Runner::<B>::new(plan, FlexDevice, FloatDType::F64);
    let x = runner.lift(&numbers(dims.iter().product(), 77), dims);
    let lifted: Vec<_> = plan
        .parameters()
        .iter()
        .zip(values)
        .map(|(p, values)| B::float_set_require_grad(runner.lift(values, &p.dims), true))
        .collect();
    let state: Vec<_> = plan.state().iter().map(|s| runner.lift(&s.values, &s.dims)).collect();
    let y = runner.run(x, &lifted, &state, mode).unwrap().logits;
    let shape = super::float::dims::<B>(&y);
    let factors = runner.lift(&numbers(shape.iter().product(), 99), &shape);
    let loss = B::float_sum(B::float_mul(y, factors));
    let read =
        |tensor| try_read_sync(<Flex>::float_into_data(tensor)).unwrap().unwrap().into_vec::<f64>().unwrap();
    let value = read(B::inner(loss.clone()))[0];
    let mut gradients = B::backward(loss);
    let gradients = lifted
        .iter()
        .map(|p| B::grad_remove(p, &mut gradients).map(read).expect("every parameter has a gradient"))
        .collect();
    (value, gradients)
}

fn check_mode(name: &str, dims: &[usize], graph: GraphBuilder, mode: BatchNorm) {
    let plan = Plan::new(&end(graph), &[]).unwrap();
    let values: Vec<Vec<f32>> = plan.parameters().iter().map(|p| p.values.clone()).collect();
    let (_, gradients) = loss(&plan, dims, &values, mode);
    for (at, parameter) in plan.parameters().iter().enumerate() {
        // Every element of a small weight, every seventh of a larger one.
        for element in (0..parameter.values.len()).step_by(if parameter.values.len() > 40 { 7 } else { 1 }) {
            let side = |by: f32| {
                let mut moved = values.clone();
                moved[at][element] += by;
                (loss(&plan, dims, &moved, mode).0, f64::from(moved[at][element]))
            };
            let ((above, right), (below, left)) = (side(1e-3), side(-1e-3));
            let finite = (above - below) / (right - left);
            let exact = gradients[at][element];
            assert!(
                (finite - exact).abs() <= TOLERANCE * exact.abs().max(1.0),
                "{name}: {}[{element}]: gradient {exact}, finite difference {finite}",
                parameter.name
            );
        }
    }
}

fn check(name: &str, dims: &[usize], graph: GraphBuilder) {
    check_mode(name, dims, graph, BatchNorm::Frozen);
}

/// Checks `h -> op -> y` with attributes.
fn plain(op: &str, dims: &[usize], attributes: &[AttributeProto]) {
    check(op, dims, start(dims).node(op, &["h"], &["y"], attributes));
}

#[test]
fn elementwise_functions() {
    for op in
        ["Relu", "Sigmoid", "Tanh", "Gelu", "Erf", "Exp", "Identity", "Neg", "Abs", "Reciprocal", "HardSwish"]
    {
        plain(op, &[2, 5], &[]);
    }
    plain("Gelu", &[2, 5], &[text("approximate", "tanh")]);
    plain("LeakyRelu", &[2, 5], &[float("alpha", 0.2)]);
    plain("HardSigmoid", &[2, 5], &[float("alpha", 0.3)]);
    plain("Dropout", &[2, 5], &[]);
    for op in ["Sqrt", "Log"] {
        check(op, &[2, 5], start(&[2, 5]).node("Exp", &["h"], &["e"], &[]).node(op, &["e"], &["y"], &[]));
    }
    let clip = start(&[2, 9]).f32("low", &[], &[-0.31]).f32("high", &[], &[0.28]);
    check("Clip", &[2, 9], clip.node("Clip", &["h", "low", "high"], &["y"], &[]));
}

#[test]
fn arithmetic_broadcasts_as_in_numpy() {
    for op in ["Add", "Sub", "Mul", "Div"] {
        for dims in [&[2, 3, 4][..], &[4], &[3, 1], &[1, 3, 4]] {
            check(op, &[2, 3, 4], weight(start(&[2, 3, 4]), "w", dims, 5).node(op, &["h", "w"], &["y"], &[]));
            check(op, &[2, 3, 4], weight(start(&[2, 3, 4]), "w", dims, 5).node(op, &["w", "h"], &["y"], &[]));
        }
    }
    let square = start(&[2, 5]).f32("two", &[], &[2.0]).node("Pow", &["h", "two"], &["y"], &[]);
    check("Pow", &[2, 5], square);
    let root = start(&[2, 5]).node("Exp", &["h"], &["e"], &[]).f32("p", &[1], &[0.3]);
    check("Pow", &[2, 5], root.node("Pow", &["e", "p"], &["y"], &[]));
}

#[test]
fn matrix_products() {
    for (a, b) in
        [(&[2, 3, 4][..], &[4, 5][..]), (&[2, 3, 4], &[2, 4, 5]), (&[2, 3, 4], &[1, 4, 5]), (&[3, 4], &[4])]
    {
        check("MatMul", a, weight(start(a), "w", b, 3).node("MatMul", &["h", "w"], &["y"], &[]));
    }
    check(
        "MatMul",
        &[4, 2],
        weight(start(&[4, 2]), "w", &[3, 4], 3).node("MatMul", &["w", "h"], &["y"], &[]),
    );
    for (trans, dims) in [(0, [4, 3]), (1, [3, 4])] {
        let graph = weight(weight(start(&[2, 4]), "w", &dims, 4), "b", &[3], 5);
        let attributes = [int("transB", trans), float("alpha", 0.5), float("beta", 2.0)];
        check("Gemm", &[2, 4], graph.node("Gemm", &["h", "w", "b"], &["y"], &attributes));
    }
    let graph = weight(start(&[4, 2]), "w", &[4, 3], 4);
    check("Gemm transA", &[4, 2], graph.node("Gemm", &["h", "w"], &["y"], &[int("transA", 1)]));
}

fn conv(dims: &[usize], kernel: &[usize], attributes: &[AttributeProto]) {
    let graph = weight(weight(start(dims), "w", kernel, 6), "b", &kernel[..1], 7);
    check(
        &format!(
            "Conv {dims:?} {kernel:?} {:?}",
            attributes.iter().map(|a| (a.name(), &a.ints)).collect::<Vec<_>>()
        ),
        dims,
        graph.node("Conv", &["h", "w", "b"], &["y"], attributes),
    );
}

#[test]
fn convolutions_over_one_axis() {
    conv(&[2, 3, 9], &[4, 3, 3], &[]);
    conv(&[2, 3, 9], &[4, 3, 3], &[ints("pads", &[1, 1]), ints("strides", &[2])]);
    conv(&[2, 3, 9], &[4, 3, 3], &[ints("pads", &[2, 0])]);
    conv(&[2, 3, 9], &[4, 3, 3], &[ints("dilations", &[2]), text("auto_pad", "SAME_UPPER")]);
    conv(&[2, 4, 8], &[4, 2, 3], &[int("group", 2)]);
    conv(&[2, 3, 8], &[6, 1, 3], &[int("group", 3), ints("strides", &[2]), ints("pads", &[1, 1])]);
    conv(&[2, 4, 8], &[4, 2, 3], &[int("group", 2), ints("strides", &[3])]);
    conv(&[2, 3, 8], &[6, 3, 3], &[ints("strides", &[3]), ints("pads", &[1, 1])]);
}

#[test]
fn convolutions_over_two_axes() {
    conv(&[2, 2, 5, 6], &[3, 2, 3, 3], &[]);
    conv(&[2, 2, 5, 7], &[3, 2, 3, 2], &[ints("strides", &[2, 1]), ints("pads", &[1, 0, 1, 0])]);
    conv(&[1, 2, 5, 6], &[3, 2, 3, 3], &[ints("strides", &[2, 2]), ints("pads", &[0, 0, 1, 1])]);
    conv(&[1, 2, 6, 6], &[2, 2, 3, 3], &[ints("strides", &[2, 2]), text("auto_pad", "SAME_LOWER")]);
    conv(&[1, 4, 5, 5], &[4, 1, 3, 3], &[int("group", 4), ints("pads", &[1, 1, 1, 1])]);
    conv(&[1, 4, 5, 5], &[2, 2, 2, 2], &[int("group", 2), ints("dilations", &[2, 2])]);
    conv(
        &[2, 4, 6, 7],
        &[4, 1, 3, 3],
        &[int("group", 4), ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])],
    );
}

#[test]
fn pooling() {
    let window = |kernel: &[i64], stride: &[i64]| [ints("kernel_shape", kernel), ints("strides", stride)];
    plain("MaxPool", &[2, 2, 9], &window(&[2], &[2]));
    plain("MaxPool", &[2, 2, 6, 5], &window(&[2, 2], &[2, 2]));
    plain("MaxPool", &[1, 2, 6, 6], &[ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])]);
    plain("MaxPool", &[1, 2, 7], &[ints("kernel_shape", &[3]), ints("pads", &[1, 0])]);
    plain("AveragePool", &[2, 2, 9], &window(&[3], &[2]));
    plain("AveragePool", &[2, 2, 6, 5], &window(&[2, 3], &[2, 1]));
    for count in [0, 1] {
        let attributes =
            [ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1]), int("count_include_pad", count)];
        plain("AveragePool", &[1, 2, 6, 6], &attributes);
    }
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        plain(op, &[2, 3, 7], &[]);
        plain(op, &[2, 3, 4, 5], &[]);
    }
}

#[test]
fn reductions_and_softmax() {
    for op in ["ReduceMean", "ReduceMax"] {
        plain(op, &[2, 3, 4], &[ints("axes", &[1, -1]), int("keepdims", 0)]);
        plain(op, &[2, 3, 4], &[ints("axes", &[2])]);
    }
    plain("ReduceMean", &[2, 3, 4], &[]);
    let graph = start(&[2, 3, 4]).i64("axes", &[1], &[1]);
    check("ReduceSum", &[2, 3, 4], graph.node("ReduceSum", &["h", "axes"], &["y"], &[]));
    for op in ["Softmax", "LogSoftmax"] {
        for axis in [1, 2] {
            let graph = start(&[2, 3, 4]).node(op, &["h"], &["s"], &[int("axis", axis)]);
            check(op, &[2, 3, 4], graph.node("Tanh", &["s"], &["y"], &[]));
        }
    }
}

#[test]
fn normalisation_frozen_and_training() {
    for dims in [&[4, 3][..], &[3, 3, 5], &[2, 3, 4, 2]] {
        let graph = || {
            let graph = weight(weight(start(dims), "gamma", &[3], 8), "beta", &[3], 9);
            let graph = graph.f32("mean", &[3], &[0.1, -0.2, 0.3]).f32("variance", &[3], &[0.5, 1.0, 2.0]);
            let inputs = ["h", "gamma", "beta", "mean", "variance"];
            graph.node("BatchNormalization", &inputs, &["n"], &[]).node("Tanh", &["n"], &["y"], &[])
        };
        check_mode("BatchNormalization frozen", dims, graph(), BatchNorm::Frozen);
        check_mode("BatchNormalization training", dims, graph(), BatchNorm::Training);
    }
    let graph = weight(weight(start(&[2, 3, 6]), "g", &[6], 8), "b", &[6], 9);
    check("LayerNormalization", &[2, 3, 6], graph.node("LayerNormalization", &["h", "g", "b"], &["y"], &[]));
}

#[test]
fn shapes_are_rearranged() {
    let dims = &[2, 3, 4];
    plain("Flatten", dims, &[int("axis", 2)]);
    plain("Transpose", dims, &[ints("perm", &[2, 0, 1])]);
    plain("Transpose", dims, &[]);
    plain("Squeeze", &[2, 1, 4], &[]);
    let graph = |name: &str, values: &[i64]| start(dims).i64(name, &[values.len()], values);
    check("Reshape", dims, graph("to", &[0, -1, 2]).node("Reshape", &["h", "to"], &["y"], &[]));
    check("Unsqueeze", dims, graph("axes", &[0, -1]).node("Unsqueeze", &["h", "axes"], &["y"], &[]));
    check("Gather", dims, graph("at", &[2, 0, -1]).node("Gather", &["h", "at"], &["y"], &[int("axis", 1)]));
    check(
        "Concat",
        dims,
        weight(start(dims), "w", &[2, 2, 4], 3)
            .node("Mul", &["w", "w2"], &["ww"], &[])
            .f32("w2", &[4], &numbers(4, 4))
            .node("Concat", &["h", "ww"], &["y"], &[int("axis", 1)]),
    );
    let slice = graph("starts", &[1, -3]).i64("ends", &[2], &[3, i64::MAX]).i64("axes", &[2], &[1, 2]);
    check("Slice", dims, slice.node("Slice", &["h", "starts", "ends", "axes"], &["y"], &[]));
}

#[test]
fn a_shape_computed_in_the_graph_is_followed() {
    let dims = &[2, 3, 4];
    let graph = start(dims)
        .i64("zero", &[], &[0])
        .i64("axis", &[1], &[0])
        .i64("rest", &[1], &[-1])
        .node("Shape", &["h"], &["shape"], &[])
        .node("Gather", &["shape", "zero"], &["n"], &[])
        .node("Unsqueeze", &["n", "axis"], &["n1"], &[])
        .node("Concat", &["n1", "rest"], &["to"], &[int("axis", 0)])
        .node("Reshape", &["h", "to"], &["flat"], &[]);
    let graph = weight(graph, "w", &[12, 5], 2).node("MatMul", &["flat", "w"], &["y"], &[]);
    check("Shape", dims, graph);
}

#[test]
fn every_untrainable_node_is_named_before_anything_runs() {
    let graph = start(&[2, 3])
        .node("Relu", &["h"], &["a"], &[])
        .node("NonMaxSuppression", &["a"], &["b"], &[])
        .node("Softmax", &["b"], &["c"], &[])
        .node("LSTM", &["c", "c", "c"], &["y"], &[]);
    let Err(PlanError::Untrainable { issues }) = Plan::new(&end(graph), &[]) else {
        panic!("it was planned")
    };
    let named: Vec<&str> = issues.iter().map(|issue| issue.operator.as_str()).collect();
    assert_eq!(named, ["NonMaxSuppression", "LSTM"]);
    let loops = start(&[2, 3]).node("Add", &["h", "b"], &["a"], &[]).node("Add", &["a", "a"], &["b"], &[]);
    let loops = loops.node("Relu", &["b"], &["y"], &[]);
    assert!(matches!(Plan::new(&end(loops), &[]), Err(PlanError::Graph(_))));
    let frozen = start(&[2, 3]).node("Relu", &["h"], &["y"], &[]);
    assert_eq!(Plan::new(&end(frozen), &["sca*".into()]).unwrap_err(), PlanError::NothingToTrain);
}

#[test]
fn shapes_that_do_not_fit_are_errors_not_panics() {
    let graphs = [
        weight(start(&[2, 3]), "w", &[4, 5], 3).node("MatMul", &["h", "w"], &["y"], &[]),
        weight(start(&[2, 3]), "w", &[4], 3).node("Add", &["h", "w"], &["y"], &[]),
        weight(start(&[2, 3, 5]), "w", &[4, 2, 3], 3).node("Conv", &["h", "w"], &["y"], &[]),
        weight(start(&[2, 3, 5]), "w", &[4, 3, 9], 3).node("Conv", &["h", "w"], &["y"], &[]),
        start(&[2, 3]).i64("to", &[1], &[7]).node("Reshape", &["h", "to"], &["y"], &[]),
        start(&[2, 3]).node("Softmax", &["h"], &["s"], &[int("axis", 5)]).node("Relu", &["s"], &["y"], &[]),
        start(&[2, 3]).node("Transpose", &["h"], &["y"], &[ints("perm", &[0, 0])]),
        start(&[2, 3]).node("GlobalAveragePool", &["h"], &["y"], &[]),
        start(&[2, 3, 4]).node("MaxPool", &["h"], &["y"], &[ints("kernel_shape", &[9])]),
        start(&[2, 3]).node("Gather", &["h", "h"], &["y"], &[]),
    ];
    for graph in graphs {
        let model = end(graph);
        let plan = Plan::new(&model, &[]).unwrap();
        let runner = Runner::<Flex>::new(&plan, FlexDevice, FloatDType::F32);
        let dims: Vec<usize> = model.inputs()[0]
            .dims
            .iter()
            .flatten()
            .map(|dim| if let Dim::Fixed(size) = dim { *size } else { 1 })
            .collect();
        let x = runner.lift(&numbers(dims.iter().product(), 1), &dims);
        let lifted: Vec<_> = plan.parameters().iter().map(|p| runner.lift(&p.values, &p.dims)).collect();
        let error = runner.run(x, &lifted, &[], BatchNorm::Frozen).err().expect("it must not run");
        assert!(error.to_string().contains("cannot run"), "{error}");
    }
}
