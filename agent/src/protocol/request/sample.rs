//! A manifest for the tests of both forms.

use farlight_release::manifest::Manifest;
use serde_json::{Value, json};

/// A manifest with one input `x` of `[2, 2]`, changed.
pub(crate) fn manifest(change: impl FnOnce(&mut Value)) -> Manifest {
    let blob = farlight_release::blob::describe(b"model");
    let mut document = json!({
        "format": 1, "release": "a/1.0.0", "task": "tensors",
        "input": {"name": "x", "datatype": "FP32", "shape": [2, 2], "min": -1.0, "max": 1.0, "on_violation": "flag"},
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
