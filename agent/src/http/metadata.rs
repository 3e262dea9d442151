//! Health, server and model metadata, configuration and statistics.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farlight_release::manifest::{BatchAxis, TensorSpec};
use serde_json::{Value, json};

use super::extract::Path;
use super::request::MAX_BATCH;
use super::{Service, refuse_inference, response};
use crate::metrics::Stage;
use crate::models::{Entry, Loaded};

pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": "farlight",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": [
            "binary_tensor_data", "classification", "model_configuration", "model_repository",
            "model_repository(unload_dependents)", "parameters", "schedule_policy", "sequence", "statistics",
        ],
    }))
}

// kserve's client reads `ready`, the specification says `live`: both are there.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true, "ready": true }))
}

pub(super) async fn ready(State(service): State<Service>) -> Response {
    let ready = !service.models.list().is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "live": true, "ready": ready }))).into_response()
}

pub(super) async fn model(State(service): State<Service>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, describe)
}

pub(super) async fn version(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), describe)
}

pub(super) async fn model_ready(State(service): State<Service>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, is_ready)
}

pub(super) async fn version_ready(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), is_ready)
}

pub(super) async fn model_config(State(service): State<Service>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, configuration)
}

pub(super) async fn version_config(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), configuration)
}

pub(super) async fn all_stats(State(service): State<Service>) -> Json<Value> {
    let loads = service.models.list().into_iter().flat_map(|(_, entry)| versions(&entry));
    Json(json!({ "model_stats": loads.map(|loaded| stats(&loaded)).collect::<Vec<_>>() }))
}

pub(super) async fn model_stats(State(service): State<Service>, Path(model): Path<String>) -> Response {
    let Some((_, entry)) = service.models.list().into_iter().find(|(name, _)| *name == model) else {
        return refuse_inference(&crate::models::InferError::Unknown(model));
    };
    let stats: Vec<Value> = versions(&entry).iter().map(|loaded| stats(loaded)).collect();
    Json(json!({ "model_stats": stats })).into_response()
}

pub(super) async fn version_stats(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), |_, loaded| json!({ "model_stats": [stats(loaded)] }))
}

/// Answers with what there is to say of a model, or that it is not known.
fn with(
    service: &Service,
    model: &str,
    version: Option<&str>,
    say: impl FnOnce(&Service, &Arc<Loaded>) -> Value,
) -> Response {
    match service.router.door(model, version) {
        Ok(door) => Json(say(service, &door.loaded)).into_response(),
        Err(error) => refuse_inference(&error),
    }
}

fn is_ready(_: &Service, loaded: &Arc<Loaded>) -> Value {
    json!({ "name": loaded.slot.release.model, "ready": true })
}

/// What is loaded of a model, the active release first.
pub(super) fn versions(entry: &Entry) -> Vec<Arc<Loaded>> {
    std::iter::once(&entry.active).chain(&entry.previous).cloned().collect()
}

fn batched(loaded: &Loaded, shape: &[usize]) -> Vec<i64> {
    let batch = (loaded.manifest.batch_axis == BatchAxis::Leading).then_some(-1);
    batch.into_iter().chain(shape.iter().map(|size| *size as i64)).collect()
}

fn inputs(loaded: &Loaded) -> impl Iterator<Item = &TensorSpec> {
    std::iter::once(&loaded.manifest.input).chain(&loaded.manifest.more_inputs)
}

fn describe(service: &Service, loaded: &Arc<Loaded>) -> Value {
    let manifest = &loaded.manifest;
    let name = manifest.release.model.as_str();
    let known = service.models.list().into_iter().find(|(model, _)| model == name);
    let versions: Vec<String> =
        known.iter().flat_map(|(_, entry)| versions(entry)).map(|l| version_of(&l)).collect();
    let input = |spec: &TensorSpec| json!({ "name": spec.name, "datatype": spec.datatype.name(), "shape": batched(loaded, &spec.shape) });
    let output = |(name, datatype, shape): (String, farlight_release::manifest::Datatype, Vec<i64>)| json!({ "name": name, "datatype": datatype.name(), "shape": shape });
    json!({
        "name": name,
        "versions": versions,
        "platform": format!("onnx_{}", loaded.engine()),
        "inputs": inputs(loaded).map(input).collect::<Vec<_>>(),
        "outputs": response::describe(manifest, loaded.outputs()).into_iter().map(output).collect::<Vec<_>>(),
    })
}

pub(super) fn version_of(loaded: &Loaded) -> String {
    loaded.slot.release.version.to_string()
}

/// The model configuration extension: what a client needs to know to send requests well.
fn configuration(_: &Service, loaded: &Arc<Loaded>) -> Value {
    let manifest = &loaded.manifest;
    let policy = loaded.policy();
    let kind = |datatype: farlight_release::manifest::Datatype| match datatype.name() {
        "BYTES" => "TYPE_STRING".to_owned(),
        name => format!("TYPE_{name}"),
    };
    let input = |spec: &TensorSpec| json!({ "name": spec.name, "data_type": kind(spec.datatype), "dims": spec.shape });
    let leading = manifest.batch_axis == BatchAxis::Leading;
    let output = |(name, datatype, shape): (String, farlight_release::manifest::Datatype, Vec<i64>)| {
        let dims: Vec<i64> = shape.into_iter().skip(usize::from(leading)).collect();
        json!({ "name": name, "data_type": kind(datatype), "dims": dims })
    };
    let mut document = json!({
        "name": manifest.release.model,
        "platform": format!("onnx_{}", loaded.engine()),
        "backend": loaded.engine(),
        "max_batch_size": if leading { MAX_BATCH } else { 0 },
        "input": inputs(loaded).map(input).collect::<Vec<_>>(),
        "output": response::describe(manifest, loaded.outputs()).into_iter().map(output).collect::<Vec<_>>(),
        "instance_group": [{ "name": "cpu", "kind": "KIND_CPU", "count": policy.workers }],
        "default_model_filename": "model.onnx",
        "parameters": {
            "queue": { "string_value": policy.queue.to_string() },
            "engine_provider": { "string_value": loaded.provider().unwrap_or_default() },
            "engine_refused": { "string_value": loaded.refused().join("; ") },
            "deadline_us": { "string_value": policy.deadline.as_micros().to_string() },
        },
    });
    if policy.batch > 1 {
        document["dynamic_batching"] = json!({
            "preferred_batch_size": [policy.batch],
            "max_queue_delay_microseconds": policy.window.as_micros() as u64,
        });
    }
    if loaded.has_state() {
        document["sequence_batching"] = json!({ "max_sequence_idle_microseconds": 0 });
    }
    document
}

/// The statistics extension.
fn stats(loaded: &Loaded) -> Value {
    let metrics = &loaded.metrics;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let count = |count: u64, time: Duration| json!({ "count": count, "ns": nanos(time) });
    let stage = |stage| {
        let histogram = metrics.stage(stage);
        count(histogram.count(), histogram.total())
    };
    let failed: u64 = metrics.failures().map(|(_, count)| count).sum();
    json!({
        "name": loaded.slot.release.model,
        "version": version_of(loaded),
        "last_inference": metrics.last(),
        "inference_count": metrics.answers(),
        "execution_count": metrics.executions(),
        "inference_stats": {
            "success": stage(Stage::Request),
            "fail": count(failed, metrics.failed_time()),
            "queue": stage(Stage::Queue),
            "compute_input": stage(Stage::Pre),
            "compute_infer": stage(Stage::Infer),
            "compute_output": stage(Stage::Post),
            "cache_hit": count(0, Duration::ZERO),
            "cache_miss": count(0, Duration::ZERO),
        },
        "batch_stats": [],
    })
}
