//! ONNX Runtime beside tract: the same graphs give the same, and what cannot be had is said. Each test is a process of its
//! own (nextest), since a process can load one library only.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use farlight_inference::simplify::fold::Plan;
use farlight_inference::{Engines, Kind, OnnxRuntime, Provider, Tensor, Values};
use farlight_onnx::builder::int;
use farlight_onnx::proto::tensor_shape_proto::dimension;
use farlight_onnx::proto::{ValueInfoProto, type_proto};
use farlight_onnx::{Dim, GraphBuilder, Limits, Model};
use farlight_test_support::{Graph, onnxruntime_library, workspace_root};

/// Largest difference that counts as equal.
const MAX_ERROR: f32 = 1e-5;
/// A library that says of itself that it is of this version, and has nothing else.
const STUB: &str = r#"
static const char *version(void) { return "1.16.3"; }
static const void *api(unsigned number) { (void)number; return 0; }
static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
const void *OrtGetApiBase(void) { return &base; }
"#;

fn providers(names: &[&str]) -> Vec<Provider> {
    names.iter().map(|name| Provider { name: (*name).to_owned(), ..Provider::default() }).collect()
}

fn opened(library: PathBuf, names: &[&str]) -> Engines {
    let session_options = Default::default();
    Engines::open(Some(OnnxRuntime { library, providers: providers(names), session_options }))
}

fn both(onnx: &[u8], engines: &Engines) -> (Plan, Plan) {
    let tract = Plan::load(onnx).unwrap();
    let other = Plan::load_with(onnx, Kind::OnnxRuntime, engines).unwrap();
    assert_eq!((other.engine(), other.refused()), (("onnxruntime", Some("cpu")), [].as_slice()));
    (tract, other)
}

/// One graph, whatever engine runs it: `y` is twice `x`.
fn doubled(element: i32) -> Vec<u8> {
    let dims = [Dim::Fixed(2)];
    let graph = GraphBuilder::new("doubled").input_of(element, "x", &dims).output_of(element, "y", &dims);
    graph.node("Add", &["x", "x"], &["y"], &[]).finish().unwrap().to_bytes()
}

fn floats(shape: &[usize], seed: u32) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value =
        |index: usize| ((index as u32 * 2_654_435_761_u32.wrapping_add(seed)) >> 8) as f32 / 16_777_216.0;
    Tensor::new(shape.to_vec(), Values::Fp32((0..count).map(value).collect())).unwrap()
}

/// Two elements of each type, at its limits where it has any that both engines are to keep.
fn samples() -> Vec<Values> {
    vec![
        Values::Fp32(vec![0.5, f32::MAX]),
        Values::Uint8(vec![0, u8::MAX]),
        Values::Int8(vec![i8::MIN, i8::MAX]),
        Values::Uint16(vec![0, u16::MAX]),
        Values::Int16(vec![i16::MIN, i16::MAX]),
        Values::Int32(vec![i32::MIN, i32::MAX]),
        Values::Int64(vec![i64::MIN, i64::MAX]),
        Values::Bytes(vec!["ä".into(), Vec::new()]),
        Values::Bool(vec![true, false]),
        Values::Fp16([0.5, -65_504.0].map(|value: f32| half::f16::from_f32(value)).to_vec()),
        Values::Fp64(vec![-0.1, f64::MAX]),
        Values::Uint32(vec![0, u32::MAX]),
        Values::Uint64(vec![0, u64::MAX]),
    ]
}

#[test]
fn the_reference_models_give_the_same() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let engines = opened(library, &["cpu"]);
    for (name, shape) in [("digits", vec![1, 1, 8, 8]), ("watch-gestures", vec![1, 6, 100])] {
        let onnx = std::fs::read(workspace_root().join("models").join(name).join("model.onnx")).unwrap();
        let mut model = Model::parse(&onnx, &Limits::DEFAULT).unwrap();
        sizes(&mut model.graph_mut().input[0], &shape);
        let (tract, other) = both(&model.to_bytes(), &engines);
        for seed in 0..20 {
            let input = [floats(&shape, seed)];
            let (expected, got) = (tract.run(&input).unwrap(), other.run(&input).unwrap());
            assert_eq!(expected.len(), got.len());
            for (expected, got) in expected.iter().zip(&got) {
                assert_eq!(expected.shape, got.shape);
                let (a, b) = (expected.values.to_f32().unwrap(), got.values.to_f32().unwrap());
                let largest = a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest <= MAX_ERROR, "{name}: {largest}");
            }
        }
    }
}

/// Writes sizes into what a file says of a value.
fn sizes(value: &mut ValueInfoProto, shape: &[usize]) {
    let kind = value.r#type.as_mut().unwrap().value.as_mut().unwrap();
    let type_proto::Value::TensorType(tensor) = kind else { panic!("no tensor") };
    for (dim, size) in tensor.shape.as_mut().unwrap().dim.iter_mut().zip(shape) {
        dim.value = Some(dimension::Value::DimValue(*size as i64));
    }
}

#[test]
fn every_type_goes_in_and_comes_out() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let engines = opened(library, &["cpu"]);
    let mut model = Graph::types().unwrap().model;
    let graph = model.graph_mut();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        sizes(value, &[1, 2]);
    }
    let (tract, other) = both(&model.to_bytes(), &engines);
    let inputs: Vec<Tensor> = samples().into_iter().map(|v| Tensor::new(vec![1, 2], v).unwrap()).collect();
    let got = other.run(&inputs).unwrap();
    assert_eq!(got, tract.run(&inputs).unwrap());
    assert_eq!(got, inputs);
}

#[test]
fn operators_give_the_same_for_their_types() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let engines = opened(library, &["cpu"]);
    // Those that both engines add: ONNX Runtime has no addition of the smaller integers.
    for (element, values) in [
        (1, Values::Fp32(vec![0.5, -3.25])),
        (6, Values::Int32(vec![-7, 1 << 20])),
        (7, Values::Int64(vec![-7, 1 << 40])),
        (11, Values::Fp64(vec![0.1, 1e300])),
    ] {
        let (tract, other) = both(&doubled(element), &engines);
        let input = [Tensor::new(vec![2], values).unwrap()];
        assert_eq!(other.run(&input).unwrap(), tract.run(&input).unwrap());
    }
    let dims = [Dim::Fixed(2), Dim::Fixed(3)];
    let graph = GraphBuilder::new("mixed")
        .input("x", &dims)
        .output_of(9, "large", &dims)
        .output_of(7, "first", &[Dim::Fixed(2)])
        .output_of(6, "whole", &dims)
        .f32("half", &[1], &[0.5])
        .node("Greater", &["x", "half"], &["large"], &[])
        .node("ArgMax", &["x"], &["first"], &[int("axis", 1), int("keepdims", 0)])
        .node("Cast", &["x"], &["whole"], &[int("to", 6)]);
    let (tract, other) = both(&graph.finish().unwrap().to_bytes(), &engines);
    let input = [Tensor::new(vec![2, 3], Values::Fp32(vec![0.1, 7.9, -2.5, 0.5, 0.6, 1e6])).unwrap()];
    assert_eq!(other.run(&input).unwrap(), tract.run(&input).unwrap());
    // Wrong inputs are an error of that call alone.
    let wrong = [Tensor::new(vec![3, 2], Values::Fp32(vec![0.0; 6])).unwrap()];
    assert!(other.run(&wrong).unwrap_err().contains("run ONNX graph"));
    let wrong = [Tensor::new(vec![2, 3], Values::Int8(vec![0; 6])).unwrap()];
    assert!(other.run(&wrong).unwrap_err().contains("run ONNX graph"));
    assert!(other.run(&[]).is_err() && other.run(&[input[0].clone(), input[0].clone()]).is_err());
    assert!(other.run(&input).is_ok());
}

#[test]
fn many_threads_may_ask_at_once() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let engines = opened(library, &["cpu"]);
    let (tract, other) = both(&doubled(1), &engines);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (tract, other) = (&tract, &other);
            scope.spawn(move || {
                for call in 0..100 {
                    let input = [floats(&[2], thread * 100 + call)];
                    assert_eq!(other.run(&input).unwrap(), tract.run(&input).unwrap());
                }
            });
        }
    });
}

#[test]
fn providers_that_are_not_there_are_passed_over_and_named() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let mut list =
        providers(&["warp", "QNNExecutionProvider", "xnnpack", "cuda", "rknpu", "CPUExecutionProvider"]);
    list[1].options.insert("backend_path".to_owned(), "libQnnHtp.so".to_owned());
    list[4].options.insert("core".to_owned(), "0".to_owned());
    let session_options = Default::default();
    let engines = Engines::open(Some(OnnxRuntime { library, providers: list, session_options }));
    let plan = Plan::load_with(&doubled(1), Kind::OnnxRuntime, &engines).unwrap();
    assert_eq!(plan.engine(), ("onnxruntime", Some("cpu")));
    let names: Vec<&str> = plan.refused().iter().filter_map(|reason| reason.split(": ").next()).collect();
    let expected = ["warp", "QNNExecutionProvider", "xnnpack", "cuda", "rknpu"];
    assert_eq!(names, expected.map(|name| format!("provider {name}")), "{:?}", plan.refused());
    assert!(plan.refused()[0].contains("it knows acl"), "{}", plan.refused()[0]);
    assert!(plan.refused()[4].contains("takes no option"), "{}", plan.refused()[4]);
}

#[test]
fn tract_takes_the_place_of_what_is_not_to_run_on_the_processor() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let plan = Plan::load_with(&doubled(1), Kind::OnnxRuntime, &opened(library, &["xnnpack"])).unwrap();
    assert_eq!(plan.engine(), ("tract", None));
    let [reason] = plan.refused() else { panic!("{:?}", plan.refused()) };
    assert!(reason.starts_with("provider xnnpack: "), "{reason}");
}

#[test]
fn tract_takes_the_place_where_the_model_is_refused() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    // Of a domain that ONNX Runtime does not know; tract looks at the name alone.
    let mut model = Model::parse(&doubled(2), &Limits::DEFAULT).unwrap();
    model.graph_mut().node[0].domain = Some("example.org".to_owned());
    let plan = Plan::load_with(&model.to_bytes(), Kind::OnnxRuntime, &opened(library, &["cpu"])).unwrap();
    assert_eq!(plan.engine(), ("tract", None));
    assert!(plan.refused().iter().any(|reason| reason.contains("example.org")), "{:?}", plan.refused());
    let input = [Tensor::new(vec![2], Values::Uint8(vec![1, 2])).unwrap()];
    assert_eq!(plan.run(&input).unwrap()[0].values, Values::Uint8(vec![2, 4]));
}

/// What is said of a library that cannot be used; tract runs the model.
fn refusal(library: &Path) -> String {
    let plan =
        Plan::load_with(&doubled(1), Kind::OnnxRuntime, &opened(library.to_owned(), &["cpu"])).unwrap();
    assert_eq!(plan.engine(), ("tract", None));
    let input = [floats(&[2], 1)];
    assert!(plan.run(&input).is_ok());
    let [reason] = plan.refused() else { panic!("{:?}", plan.refused()) };
    reason.clone()
}

#[test]
fn a_library_that_is_not_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("libonnxruntime.so");
    assert!(refusal(&missing).contains("libonnxruntime.so"));
    std::fs::write(&missing, "no library").unwrap();
    // The one that a process tries first need not be the one that it has in the end.
    assert!(refusal(&missing).contains("libonnxruntime.so"));
}

#[test]
fn a_library_that_is_too_old_is_named_with_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("stub.c"), folder.path().join("libonnxruntime.so"));
    std::fs::write(&source, STUB).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("FARLIGHT_REQUIRE_TOOLS").is_none(), "there is no C compiler");
        return;
    }
    let reason = refusal(&library);
    assert!(reason.contains("1.16.3") && reason.contains("1.17"), "{reason}");
}
