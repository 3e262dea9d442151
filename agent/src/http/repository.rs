//! The model repository extension over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::extract::{Body, Object, Path};
use super::{Service, refuse};
use crate::protocol::{Refusal, repository};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wanted {
    ready: bool,
    parameters: Map<String, Value>,
}

/// Reads a body that may be empty, though the specification calls it required.
fn read(body: &[u8]) -> Result<Wanted, Box<Response>> {
    if body.is_empty() {
        return Ok(Wanted::default());
    }
    let bad = |error| Box::new(refuse(StatusCode::BAD_REQUEST, format!("request is not valid: {error}")));
    serde_json::from_slice(body).map(|Object(wanted)| wanted).map_err(bad)
}

/// `POST /v2/repository/index`.
pub(super) async fn index(State(service): State<Arc<Service>>, Body(body): Body) -> Response {
    match read(&body) {
        Ok(wanted) => Json(repository::index(&service, wanted.ready)).into_response(),
        Err(response) => *response,
    }
}

/// `POST /v2/repository/models/{model}/load`.
pub(super) async fn load(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
    Body(body): Body,
) -> Response {
    match read(&body) {
        Ok(wanted) => {
            let parameter = wanted.parameters.keys().next().map(String::as_str);
            done(repository::load(&service, &model, parameter).await)
        }
        Err(response) => *response,
    }
}

/// `POST /v2/repository/models/{model}/unload`.
pub(super) async fn unload(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
    Body(body): Body,
) -> Response {
    match read(&body) {
        Ok(_) => done(repository::unload(&service, &model).await),
        Err(response) => *response,
    }
}

fn done(outcome: Result<(), Refusal>) -> Response {
    match outcome {
        Ok(()) => Json(json!({})).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
