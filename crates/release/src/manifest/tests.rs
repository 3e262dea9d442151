//! Each rule of a manifest, broken one at a time; the error names the field.

use serde_json::{Value, json};

use super::Manifest;
use crate::blob::describe;

fn good() -> Value {
    let blob = serde_json::to_value(describe(b"model")).unwrap();
    json!({
        "format": 1,
        "release": "a/1.0.0",
        "task": "classification",
        "input": {"name": "x", "datatype": "FP32", "shape": [2, 3], "min": -1.5, "max": 1.5, "on_violation": "flag"},
        "pre": [{"step": "normalise", "axis": 0, "mean": [0.0, 1.0], "std": [1.0, 2.0]}, {"step": "scale", "factor": 0.5}],
        "post": [{"step": "softmax"}, {"step": "abstain", "threshold": 0.4}],
        "labels": ["no", "yes"],
        "variants": [{"precision": "fp32", "format": "onnx", "blob": blob, "deltas": []}],
        "golden": blob,
        "golden_tolerance": 0.001,
        "profile": {
            "features": [{"name": "m", "statistic": "mean", "channel": 1, "edges": [0.0, 1.0], "counts": [1, 2, 3, 0]}],
            "score_edges": [0.5], "score_counts": [1, 2], "class_counts": [2, 1]
        },
        "budgets": {"memory_kib": 1000, "p95_us": 1000},
        "sampling": {"hard_permille": 10, "control_permille": 1, "bytes_per_day": 1000},
        "requires": {"agent": ">=0.1"},
        "lineage": {}
    })
}

fn parse(document: &Value) -> Result<Manifest, super::ManifestError> {
    Manifest::parse_checked(&serde_json::to_vec(document).unwrap())
}

/// A delta of `length` bytes from the blob whose id is 64 times `digit`.
fn delta(digit: &str, length: usize) -> Value {
    json!({"from": digit.repeat(64), "blob": describe(&vec![1; length])})
}

#[test]
fn deltas_are_named_files_and_leave_no_trace_where_there_are_none() {
    let mut document = good();
    document["variants"][0]["deltas"] = json!([delta("0", 2), delta("1", 3)]);
    let manifest = parse(&document).unwrap();
    assert_eq!(Manifest::parse_checked(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
    let lengths: Vec<u64> = manifest.blobs().map(|blob| blob.length).collect();
    assert_eq!(lengths, [5, 2, 3, 5]);
    let text = serde_json::to_string(&parse(&good()).unwrap()).unwrap();
    assert!(!text.contains("deltas"), "{text}");
}

#[test]
fn a_good_manifest_survives_a_round_trip() {
    let manifest = parse(&good()).unwrap();
    assert_eq!(Manifest::parse_checked(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
}

#[test]
fn each_broken_rule_names_its_field() {
    let cases: &[(&str, Value, &str)] = &[
        ("/release", json!("config/1.0.0"), "release"),
        ("/input/name", json!(""), "input.name"),
        ("/input/shape", json!([]), "input.shape"),
        ("/input/shape", json!([2, 0]), "input.shape"),
        ("/input/shape", json!([4_294_967_296_u64, 4_294_967_296_u64, 4_294_967_296_u64]), "input.shape"),
        ("/input/max", json!(-2.0), "input.min"),
        ("/input/max", json!(1e300), "input.min"),
        ("/pre/0/axis", json!(2), "pre[0].axis"),
        ("/pre/0/mean", json!([1.0]), "pre[0].mean"),
        ("/pre/0/std", json!([1.0, 0.0]), "pre[0].std"),
        ("/pre/1/factor", json!(0.0), "pre[1].factor"),
        ("/post/1/threshold", json!(1.5), "post[1].threshold"),
        ("/post/1", json!({"step": "softmax"}), "post[1]"),
        ("/labels", json!(["yes"]), "labels"),
        ("/labels", json!(["yes", "yes"]), "labels[1]"),
        ("/labels", json!(["yes", "no\n"]), "labels[1]"),
        ("/variants", json!([]), "variants"),
        ("/variants/0/precision", json!("fp8"), "variants[0].precision"),
        ("/variants/0/format", json!("pickle"), "variants[0].format"),
        ("/variants/0/blob/length", json!(0), "variants[0].blob"),
        ("/variants/0/blob/id", json!("../x"), "variants[0].blob"),
        ("/variants/0/deltas", json!([delta("0", 2), delta("0", 2)]), "variants[0].deltas[1].from"),
        ("/variants/0/deltas", json!([delta("G", 2)]), "variants[0].deltas[0].from"),
        ("/variants/0/deltas", json!([delta("0", 5)]), "variants[0].deltas[0].blob"),
        ("/variants/0/deltas", json!([delta("0", 0)]), "variants[0].deltas[0].blob"),
        (
            "/variants/0/deltas",
            json!([{"from": describe(b"model").id, "blob": describe(b"de")}]),
            "variants[0].deltas[0].from",
        ),
        ("/variants/0/deltas", json!(vec![delta("0", 2); 17]), "variants[0].deltas"),
        ("/golden/chunks", json!([]), "golden"),
        ("/golden_tolerance", json!(-1.0), "golden_tolerance"),
        ("/profile/features/0/channel", json!(2), "profile.features[0].channel"),
        ("/profile/features/0/edges", json!([1.0, 0.0]), "profile.features[0].edges"),
        ("/profile/features/0/counts", json!([1]), "profile.features[0].counts"),
        ("/profile/score_edges", json!([0.5, 0.5]), "profile.score_edges"),
        ("/profile/score_counts", json!([1]), "profile.score_counts"),
        ("/profile/class_counts", json!([1]), "profile.class_counts"),
        ("/budgets/p95_us", json!(0), "budgets.p95_us"),
        ("/sampling/hard_permille", json!(1001), "sampling.hard_permille"),
    ];
    for (pointer, value, field) in cases {
        let mut document = good();
        *document.pointer_mut(pointer).unwrap() = value.clone();
        let error = parse(&document).unwrap_err();
        assert_eq!(error.code().as_str(), "manifest.invalid", "{pointer} {value}: {error}");
        assert!(error.to_string().contains(&format!("`{field}`")), "{pointer} {value}: {error}");
    }
}

#[test]
fn steps_are_checked_on_the_shape_that_those_before_them_make() {
    let mut document = good();
    let first = json!({"step": "one_hot", "classes": 4});
    document["pre"] = json!([first, {"step": "crop", "axes": [2], "size": [4]}]);
    parse(&document).unwrap();
    document["pre"] =
        json!([first, {"step": "scale", "factor": 1.0}, {"step": "crop", "axes": [2], "size": [5]}]);
    let error = parse(&document).unwrap_err().to_string();
    assert!(error.contains("`pre[2].size` must be from 1"), "{error}");
    document["pre"] = json!(vec![first; 7]);
    let error = parse(&document).unwrap_err().to_string();
    assert!(error.contains("`pre[6].classes` leads to shape"), "{error}");
}

#[test]
fn other_formats_and_unknown_fields_are_refused() {
    let mut document = good();
    document["format"] = json!(2);
    document["novel"] = json!(1);
    assert_eq!(parse(&document).unwrap_err().code().as_str(), "manifest.format");
    document["format"] = json!(1);
    assert_eq!(parse(&document).unwrap_err().code().as_str(), "manifest.malformed");
    assert_eq!(
        Manifest::parse_checked(&vec![b' '; 5 << 20]).unwrap_err().code().as_str(),
        "manifest.too_large"
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        proptest::prop_assert!(Manifest::parse_checked(&bytes).is_err());
    }
}
