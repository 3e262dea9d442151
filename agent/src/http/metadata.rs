//! Health, server and model metadata, repository index.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::request::datatype_name;
use super::response::{LABEL, SCORES};
use super::{Service, refuse_inference};
use crate::models::{Entry, Loaded};

pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": "farlight",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data", "classification", "model_repository"],
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
    match service.models.find(&model, None) {
        Ok(loaded) => describe(&service, &loaded),
        Err(error) => refuse_inference(&error),
    }
}

pub(super) async fn version(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    match service.models.find(&model, Some(&version)) {
        Ok(loaded) => describe(&service, &loaded),
        Err(error) => refuse_inference(&error),
    }
}

pub(super) async fn model_ready(State(service): State<Service>, Path(model): Path<String>) -> Response {
    is_ready(&service, &model, None)
}

pub(super) async fn version_ready(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    is_ready(&service, &model, Some(&version))
}

fn is_ready(service: &Service, model: &str, version: Option<&str>) -> Response {
    match service.models.find(model, version) {
        Ok(_) => Json(json!({ "name": model, "ready": true })).into_response(),
        Err(error) => refuse_inference(&error),
    }
}

/// `POST /v2/repository/index`: clients send an empty body, so none is read.
pub(super) async fn index(State(service): State<Service>) -> Json<Value> {
    let list: Vec<Value> = service
        .models
        .list()
        .iter()
        .flat_map(|(name, entry)| {
            versions(entry).into_iter().map(
                move |version| json!({ "name": name, "version": version, "state": "READY", "reason": "" }),
            )
        })
        .collect();
    Json(Value::Array(list))
}

fn versions(entry: &Entry) -> Vec<String> {
    std::iter::once(&entry.active)
        .chain(&entry.previous)
        .map(|loaded| loaded.slot.release.version.to_string())
        .collect()
}

fn describe(service: &Service, loaded: &Arc<Loaded>) -> Response {
    let manifest = &loaded.manifest;
    let name = manifest.release.model.as_str();
    let known = service.models.list().into_iter().find(|(model, _)| model == name);
    let batched = |shape: &[usize]| {
        std::iter::once(-1).chain(shape.iter().map(|dim| *dim as i64)).collect::<Vec<i64>>()
    };
    let mut outputs = vec![json!({
        "name": SCORES,
        "datatype": "FP32",
        "shape": if manifest.labels.is_empty() { vec![-1, -1] } else { batched(&[manifest.labels.len()]) },
    })];
    if !manifest.labels.is_empty() {
        outputs.push(json!({ "name": LABEL, "datatype": "BYTES", "shape": [-1] }));
    }
    Json(json!({
        "name": name,
        "versions": known.map(|(_, entry)| versions(&entry)).unwrap_or_default(),
        "platform": "onnx_tract",
        "inputs": [{
            "name": manifest.input.name,
            "datatype": datatype_name(manifest.input.datatype),
            "shape": batched(&manifest.input.shape),
        }],
        "outputs": outputs,
    }))
    .into_response()
}
