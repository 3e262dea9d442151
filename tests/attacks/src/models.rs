//! The models of the fixtures: a tiny honest one and hostile ones, each with its manifest.

use anyhow::Context;
use farlight_inference::{Item, Pipeline, golden};
use farlight_onnx::builder::{GraphBuilder, int};
use farlight_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, attribute_proto::AttributeType,
};
use farlight_onnx::{Dim, Model};
use farlight_release::blob;
use farlight_release::manifest::Manifest;
use serde_json::{Value, json};

/// Elements of the input, shape [2, 3].
const ELEMENTS: usize = 6;
/// Side of the matrices of the model that takes too long: each product is 17 billion operations.
const SIDE: i64 = 2048;
/// How many such products it computes.
const PRODUCTS: usize = 400;
/// How often the greedy model doubles its six elements: to 1.5 TiB.
const DOUBLINGS: usize = 36;

/// How many graphs lie within one another in the nested model.
const LEVELS: usize = 30;
/// Blocks in the frame of the bomb: each is four bytes and unpacks to 128 KiB.
const BLOCKS: usize = 1024;
/// Bytes that readers skip at the end of the file which the bomb pretends to make: a delta has to be smaller.
const PADDING: usize = 8192;

/// A model file with its golden vectors.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// The golden vectors.
    pub golden: Vec<u8>,
}

fn begin() -> GraphBuilder {
    let dims = |last: &[usize]| -> Vec<Dim> {
        std::iter::once(Dim::Free("batch".into())).chain(last.iter().map(|n| Dim::Fixed(*n))).collect()
    };
    GraphBuilder::new("tiny").input("x", &dims(&[2, 3])).output("y", &dims(&[2]))
}

fn weights(seed: f32) -> Vec<f32> {
    (0..ELEMENTS * 2).map(|n| ((n as f32 * 0.7 + seed).sin() * 8.0).round() / 8.0).collect()
}

/// A linear classifier; another `seed` gives other weights.
///
/// # Errors
/// When the graph cannot be built.
pub fn honest(seed: f32) -> anyhow::Result<Parts> {
    let model = begin()
        .i64("flat", &[2], &[-1, ELEMENTS as i64])
        .f32("w", &[ELEMENTS, 2], &weights(seed))
        .node("Reshape", &["x", "flat"], &["flattened"], &[])
        .node("MatMul", &["flattened", "w"], &["y"], &[])
        .finish()?;
    let onnx = model.to_bytes();
    let input = |row: usize| (0..ELEMENTS).map(|n| ((row * 5 + n) as f32).sin()).collect::<Vec<f32>>();
    let inputs: Vec<Vec<Item>> = (0..4).map(|row| vec![input(row).into()]).collect();
    let manifest = manifest("m/0.0.0", &onnx, b"none", &json!({}))?;
    let golden = golden::encode(&golden::build(&Pipeline::load(&manifest, &onnx)?, &inputs)?)?;
    Ok(Parts { onnx, golden })
}

/// A model that doubles what it holds, again and again.
///
/// # Errors
/// When the graph cannot be built.
pub fn greedy() -> anyhow::Result<Parts> {
    let mut graph = begin()
        .i64("flat", &[2], &[-1, ELEMENTS as i64])
        .i64("axes", &[1], &[1])
        .f32("w", &[1, 2], &[1.0, -1.0])
        .node("Reshape", &["x", "flat"], &["d0"], &[]);
    for n in 0..DOUBLINGS {
        let (from, to) = (format!("d{n}"), format!("d{}", n + 1));
        graph = graph.node("Concat", &[&from, &from], &[&to], &[int("axis", 1)]);
    }
    let last = format!("d{DOUBLINGS}");
    let model = graph
        .node("ReduceSum", &[&last, "axes"], &["sum"], &[])
        .node("MatMul", &["sum", "w"], &["y"], &[])
        .finish()?;
    Ok(Parts { onnx: model.to_bytes(), golden: honest(0.0)?.golden })
}

/// A model that computes for longer than anybody waits.
///
/// # Errors
/// When the graph cannot be built.
pub fn endless() -> anyhow::Result<Parts> {
    let mut graph = begin()
        .i64("size", &[2], &[SIDE, SIDE])
        .i64("flat", &[2], &[-1, ELEMENTS as i64])
        .i64("axes", &[1], &[0])
        .f32("w", &[ELEMENTS, 1], &weights(0.0)[..ELEMENTS])
        .f32("ends", &[SIDE as usize, 2], &vec![0.0; SIDE as usize * 2])
        .node("Reshape", &["x", "flat"], &["flattened"], &[])
        .node("MatMul", &["flattened", "w"], &["small"], &[])
        .node("Expand", &["small", "size"], &["p0"], &[]);
    for n in 0..PRODUCTS {
        let (from, to) = (format!("p{n}"), format!("p{}", n + 1));
        graph = graph.node("MatMul", &[&from, &from], &[&to], &[]);
    }
    let last = format!("p{PRODUCTS}");
    let model = graph
        .node("MatMul", &[&last, "ends"], &["wide"], &[])
        .node("ReduceSum", &["wide", "axes"], &["y"], &[])
        .finish()?;
    Ok(Parts { onnx: model.to_bytes(), golden: honest(0.0)?.golden })
}

/// A model whose one node holds a graph whose one node holds a graph, and so on.
///
/// # Errors
/// When the golden vectors cannot be made.
pub fn nested() -> anyhow::Result<Parts> {
    let mut graph = GraphProto::default();
    for _ in 0..LEVELS {
        let body = AttributeProto {
            name: Some("body".to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(graph),
            ..AttributeProto::default()
        };
        let node =
            NodeProto { op_type: Some("Loop".to_owned()), attribute: vec![body], ..NodeProto::default() };
        graph = GraphProto { node: vec![node], ..GraphProto::default() };
    }
    let model = Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() })?;
    Ok(Parts { onnx: model.to_bytes(), golden: honest(0.0)?.golden })
}

/// A harmless model file, and a delta that is to make it of the honest one: its only part is a zstd frame of 4 KiB
/// that unpacks to 128 MiB.
///
/// # Errors
/// When the models cannot be made.
pub fn bomb() -> anyhow::Result<(Parts, Vec<u8>)> {
    let old = honest(0.0)?.onnx;
    let mut parts = honest(1.0)?;
    // Field 2047, which no reader of ONNX knows.
    parts.onnx.extend([0xfa, 0x7f]);
    parts.onnx.extend(number(PADDING));
    parts.onnx.extend([0; PADDING]);
    // RFC 8878: magic number, no content size, a window of 1 MiB, then blocks of one repeated byte.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];
    for block in 1..=BLOCKS {
        let header: u32 = ((128 * 1024) << 3) | (1 << 1) | u32::from(block == BLOCKS);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    // A text of the whole file, without a prefix.
    let mut delta = b"FLDELTA\x01".to_vec();
    delta.extend([number(old.len()), number(parts.onnx.len()), vec![2], number(parts.onnx.len())].concat());
    delta.extend([0, 0]);
    delta.extend(number(frame.len()));
    delta.extend(frame);
    Ok((parts, delta))
}

/// A number as deltas and protobuf write it: seven bits a byte, lowest first.
fn number(mut number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

/// A manifest for a model; `changes` replaces fields.
///
/// # Errors
/// When it breaks a rule of its own form.
pub fn manifest(release: &str, onnx: &[u8], golden: &[u8], changes: &Value) -> anyhow::Result<Manifest> {
    let mut document = json!({
        "format": 1, "release": release, "task": "classification",
        "input": { "name": "x", "datatype": "FP32", "shape": [2, 3], "min": -1000.0, "max": 1000.0,
            "on_violation": "flag" },
        "pre": [], "post": [{ "step": "softmax" }], "labels": ["no", "yes"],
        "variants": [{ "precision": "fp32", "format": "onnx", "blob": blob::describe(onnx) }],
        "golden": blob::describe(golden), "golden_tolerance": 0.001,
        "profile": { "features": [], "score_edges": [0.5], "score_counts": [1, 2], "class_counts": [2, 1] },
        "budgets": { "memory_kib": 262_144, "p95_us": 1_000_000 },
        "sampling": { "hard_permille": 0, "control_permille": 0, "bytes_per_day": 0 },
        "requires": {}, "lineage": {}
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        document[key] = value.clone();
    }
    serde_json::from_value(document).context("make a manifest")
}
