//! Health, server and model metadata, configuration and statistics over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::Service;
use super::extract::Path;
use crate::models::Loaded;
use crate::protocol::{Refusal, metadata};

pub(super) async fn server() -> Json<metadata::Server> {
    Json(metadata::SERVER)
}

// kserve's client reads `ready`, the specification says `live`: both are there.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true, "ready": true }))
}

pub(super) async fn ready(State(service): State<Arc<Service>>) -> Response {
    let ready = metadata::ready(&service);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "live": true, "ready": ready }))).into_response()
}

pub(super) async fn model(State(service): State<Arc<Service>>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, |loaded| metadata::model(&service, loaded))
}

pub(super) async fn version(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), |loaded| metadata::model(&service, loaded))
}

pub(super) async fn model_ready(State(service): State<Arc<Service>>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, is_ready)
}

pub(super) async fn version_ready(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), is_ready)
}

pub(super) async fn model_config(State(service): State<Arc<Service>>, Path(model): Path<String>) -> Response {
    with(&service, &model, None, metadata::config)
}

pub(super) async fn version_config(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    with(&service, &model, Some(&version), metadata::config)
}

pub(super) async fn all_stats(State(service): State<Arc<Service>>) -> Response {
    stats(&service, None, None)
}

pub(super) async fn model_stats(State(service): State<Arc<Service>>, Path(model): Path<String>) -> Response {
    stats(&service, Some(&model), None)
}

pub(super) async fn version_stats(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    stats(&service, Some(&model), Some(&version))
}

/// Answers with what there is to say of a model, or that it is not known.
fn with<T: Serialize>(
    service: &Service,
    model: &str,
    version: Option<&str>,
    say: impl FnOnce(&Loaded) -> T,
) -> Response {
    match service.router.door(model, version) {
        Ok(door) => Json(say(&door.loaded)).into_response(),
        Err(error) => Refusal::from(error).into_response(),
    }
}

fn is_ready(loaded: &Loaded) -> Value {
    json!({ "name": loaded.slot.release.model, "ready": true })
}

fn stats(service: &Service, model: Option<&str>, version: Option<&str>) -> Response {
    match metadata::statistics(service, model, version) {
        Ok(all) => Json(json!({ "model_stats": all })).into_response(),
        Err(error) => Refusal::from(error).into_response(),
    }
}
