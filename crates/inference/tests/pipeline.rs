//! Models with several inputs, states, integers and no batch axis; items that are run together answer as they do alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use farlight_inference::{
    EngineError, Engines, Item, LoadError, Options, Pipeline, RunError, Values, golden,
};
use farlight_onnx::builder::{GraphBuilder, int};
use farlight_onnx::proto::type_proto;
use farlight_onnx::{Dim, Model};
use farlight_release::manifest::Manifest;
use proptest::prelude::*;
use serde_json::{Value, json};

const INT64: i32 = 7;

fn batching(batches: bool) -> Options {
    Options { batches, ..Options::default() }
}

/// A manifest of tensors with an input `x` of `[2]`, changed.
fn manifest(change: impl FnOnce(&mut Value)) -> Manifest {
    let blob = farlight_release::blob::describe(b"model");
    let mut document = json!({
        "format": 1, "release": "a/1.0.0", "task": "tensors",
        "input": {"name": "x", "datatype": "FP32", "shape": [2], "min": -9.0, "max": 9.0, "on_violation": "flag"},
        "pre": [], "post": [], "labels": [],
        "variants": [{"precision": "fp32", "format": "onnx", "blob": blob}],
        "golden": blob, "golden_tolerance": 0.001,
        "profile": {"features": [], "score_edges": [], "score_counts": [0], "class_counts": []},
        "budgets": {"memory_kib": 1000, "p95_us": 1000},
        "sampling": {"hard_permille": 0, "control_permille": 0, "bytes_per_day": 0},
        "requires": {}, "lineage": {}
    });
    change(&mut document);
    Manifest::parse_checked(&serde_json::to_vec(&document).unwrap()).unwrap()
}

fn batched(last: &[usize]) -> Vec<Dim> {
    std::iter::once(Dim::Free("n".into())).chain(last.iter().map(|size| Dim::Fixed(*size))).collect()
}

/// Gives an input or output another element type.
fn retype(mut model: Model, name: &str, element: i32) -> Vec<u8> {
    let graph = model.graph_mut();
    for info in graph.input.iter_mut().chain(&mut graph.output).filter(|info| info.name() == name) {
        if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().unwrap().value.as_mut() {
            tensor.elem_type = Some(element);
        }
    }
    model.to_bytes()
}

/// `sum = s + x`, which is the next state too: a running total.
fn total() -> (Manifest, Vec<u8>) {
    let fixed = [Dim::Fixed(1), Dim::Fixed(2)];
    let model = GraphBuilder::new("total")
        .input("x", &batched(&[2]))
        .input("s", &fixed)
        .output("next", &fixed)
        .output("sum", &batched(&[2]))
        .node("Add", &["x", "s"], &["next"], &[])
        .node("Identity", &["next"], &["sum"], &[])
        .finish()
        .unwrap();
    let states = json!([{"input": "s", "output": "next", "datatype": "FP32", "shape": [1, 2]}]);
    (manifest(|document| document["states"] = states), model.to_bytes())
}

fn only(prediction: &farlight_inference::Prediction) -> &Values {
    let [named] = prediction.tensors.as_slice() else { panic!("{prediction:?}") };
    &named.tensor.values
}

#[test]
fn a_state_goes_from_call_to_call_and_stays_where_a_call_fails() {
    let (manifest, onnx) = total();
    let pipeline = Pipeline::load(&manifest, &onnx).unwrap();
    assert_eq!(pipeline.outputs().iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["sum"]);
    let mut worker = pipeline.worker().unwrap();
    let (mut one, mut two) = (pipeline.state(), pipeline.state());
    let mut call = |state: &mut Option<_>, x: [f32; 2]| {
        let answer = worker.answer(&x.to_vec().into(), state.as_mut(), || {}).unwrap();
        only(&answer).clone()
    };
    assert_eq!(call(&mut one, [1.0, 2.0]), Values::Fp32(vec![1.0, 2.0]));
    assert_eq!(call(&mut two, [5.0, 5.0]), Values::Fp32(vec![5.0, 5.0]));
    assert_eq!(call(&mut one, [1.0, 1.0]), Values::Fp32(vec![2.0, 3.0]));
    let before = one.clone();
    assert!(worker.answer(&vec![1.0].into(), one.as_mut(), || {}).is_err());
    assert_eq!(one, before);
    assert!(matches!(worker.answer(&vec![1.0, 1.0].into(), None, || {}), Err(RunError::Inputs(_))));
}

#[test]
fn golden_vectors_hold_streams() {
    let (manifest, onnx) = total();
    let pipeline = Pipeline::load(&manifest, &onnx).unwrap();
    let stream: Vec<Item> = (0..3).map(|n| vec![n as f32, 1.0].into()).collect();
    let mut vectors = golden::build(&pipeline, &[stream]).unwrap();
    let vectors_again = golden::decode(&golden::encode(&vectors).unwrap()).unwrap();
    let mut calls = 0;
    golden::check(&pipeline, &vectors_again, 0.0, || calls += 1).unwrap();
    assert_eq!(calls, 3);
    vectors[0].calls.remove(0);
    vectors[0].calls.remove(0);
    assert!(golden::check(&pipeline, &vectors, 0.0, || {}).is_err(), "the last call needs those before it");
}

#[test]
fn several_inputs_of_several_types_reach_the_graph_by_name() {
    let model = GraphBuilder::new("pick")
        .input("index", &batched(&[1]))
        .input("x", &batched(&[2]))
        .output("picked", &batched(&[1]))
        .output("index_again", &batched(&[1]))
        .node("GatherElements", &["x", "index"], &["picked"], &[int("axis", 1)])
        .node("Identity", &["index"], &["index_again"], &[])
        .finish()
        .unwrap();
    let onnx = retype(model, "index", INT64);
    let onnx = retype(Model::parse(&onnx, &farlight_onnx::Limits::DEFAULT).unwrap(), "index_again", INT64);
    let more = json!([{"name": "index", "datatype": "INT64", "shape": [1], "min": 0.0, "max": 1.0, "on_violation": "refuse"}]);
    let with_more = manifest(|document| document["more_inputs"] = more.clone());
    let pipeline = Pipeline::load(&with_more, &onnx).unwrap();
    let mut worker = pipeline.worker().unwrap();
    let item =
        |index: i64| Item { main: Values::Fp32(vec![7.0, 8.0]), more: vec![Values::Int64(vec![index])] };
    let answer = worker.answer(&item(1), None, || {}).unwrap();
    assert_eq!(answer.tensors[0].tensor.values, Values::Fp32(vec![8.0]));
    assert_eq!(answer.tensors[1].tensor.values, Values::Int64(vec![1]));
    assert!(matches!(worker.answer(&item(2), None, || {}), Err(RunError::Contract { violations: 1, .. })));
    let wrong = Item { main: Values::Fp32(vec![7.0, 8.0]), more: vec![Values::Int32(vec![1])] };
    assert!(worker.answer(&wrong, None, || {}).unwrap_err().to_string().contains("INT32"));
    let none = Item::from(vec![7.0, 8.0]);
    assert!(matches!(worker.answer(&none, None, || {}), Err(RunError::Inputs(_))));
    // What the manifest and the graph do not agree on is found when it is loaded.
    let missing = Pipeline::load(&manifest(|_| {}), &onnx).err().unwrap();
    assert!(matches!(missing, LoadError::Engine(EngineError::Inputs { .. })), "{missing}");
    let float = manifest(|document| {
        document["more_inputs"] = more;
        document["more_inputs"][0]["datatype"] = json!("FP32");
    });
    assert!(Pipeline::load(&float, &onnx).err().unwrap().to_string().contains("INT64"));
}

#[test]
fn integers_reach_a_graph_of_integers_as_they_are() {
    let model = GraphBuilder::new("same")
        .input("x", &batched(&[2]))
        .output("y", &batched(&[2]))
        .node("Identity", &["x"], &["y"], &[])
        .finish()
        .unwrap();
    let onnx = retype(model, "x", INT64);
    let onnx = retype(Model::parse(&onnx, &farlight_onnx::Limits::DEFAULT).unwrap(), "y", INT64);
    let manifest = manifest(|document| {
        document["input"]["datatype"] = json!("INT64");
        document["input"]["max"] = json!(1e19);
    });
    let pipeline = Pipeline::load(&manifest, &onnx).unwrap();
    let large = Values::Int64(vec![9_007_199_254_740_993, 1]);
    let item = Item { main: large.clone(), more: Vec::new() };
    let answer = pipeline.worker().unwrap().answer(&item, None, || {}).unwrap();
    assert_eq!(only(&answer), &large);
}

#[test]
fn a_graph_without_a_batch_axis_takes_its_own_shapes() {
    let model = GraphBuilder::new("half")
        .input("x", &[Dim::Fixed(2)])
        .output("y", &[Dim::Fixed(2)])
        .f32("two", &[1], &[2.0])
        .node("Div", &["x", "two"], &["y"], &[])
        .finish()
        .unwrap();
    let manifest = manifest(|document| document["batch_axis"] = json!("none"));
    let pipeline =
        Pipeline::load_with(&manifest, &model.to_bytes(), batching(true), &Engines::default()).unwrap();
    assert!(!pipeline.batches());
    let answer = pipeline.worker().unwrap().run(&[1.0, 4.0]).unwrap();
    assert_eq!((only(&answer), &answer.tensors[0].tensor.shape), (&Values::Fp32(vec![0.5, 2.0]), &vec![2]));
}

/// A linear layer with a softmax step and an abstain threshold.
fn classifier(batches: bool) -> Pipeline {
    let model = GraphBuilder::new("linear")
        .input("x", &batched(&[2]))
        .output("y", &batched(&[2]))
        .f32("w", &[2, 2], &[1.0, -0.5, 0.25, 2.0])
        .node("MatMul", &["x", "w"], &["y"], &[])
        .finish()
        .unwrap();
    let manifest = manifest(|document| {
        document["task"] = json!("classification");
        document["labels"] = json!(["a", "b"]);
        document["pre"] = json!([{"step": "scale", "factor": 0.5}]);
        document["post"] = json!([{"step": "softmax"}, {"step": "abstain", "threshold": 0.6}]);
        document["input"]["on_violation"] = json!("refuse");
        document["profile"]["class_counts"] = json!([0, 0]);
    });
    Pipeline::load_with(&manifest, &model.to_bytes(), batching(batches), &Engines::default()).unwrap()
}

#[test]
fn labels_are_as_many_as_scores() {
    let pipeline = classifier(false);
    let mut wrong = Manifest::clone(pipeline.manifest());
    wrong.labels.push("c".to_owned());
    let model = GraphBuilder::new("same")
        .input("x", &batched(&[2]))
        .output("y", &batched(&[2]))
        .node("Identity", &["x"], &["y"], &[])
        .finish()
        .unwrap();
    assert!(Pipeline::load(&wrong, &model.to_bytes()).err().unwrap().to_string().contains("labels"));
}

proptest! {
    #[test]
    fn items_run_together_answer_as_alone(items in prop::collection::vec(prop::collection::vec(-10.0_f32..10.0, 1..4), 1..9)) {
        let (together, alone) = (classifier(true), classifier(false));
        prop_assert!(together.batches());
        let items: Vec<Item> = items.into_iter().map(Item::from).collect();
        let answers = together.worker().unwrap().answer_all(&items.iter().collect::<Vec<_>>(), || {});
        prop_assert_eq!(answers.len(), items.len());
        let mut worker = alone.worker().unwrap();
        for (item, answer) in items.iter().zip(answers) {
            match (worker.answer(item, None, || {}), answer) {
                (Ok(one), Ok(other)) => {
                    prop_assert_eq!((one.class, one.abstained), (other.class, other.abstained));
                    for (a, b) in one.outputs.iter().zip(&other.outputs) {
                        prop_assert!((a - b).abs() < 1e-6);
                    }
                }
                (Err(one), Err(other)) => prop_assert_eq!(one.to_string(), other.to_string()),
                (one, other) => prop_assert!(false, "{one:?} alone, {other:?} together"),
            }
        }
    }
}
