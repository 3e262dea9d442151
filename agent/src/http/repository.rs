//! The model repository extension: what is installed, and taking models in and out of memory. What may be
//! installed at all is decided by signed assignments alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farlight_wire::ModelName;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::extract::{Body, Object, Path};
use super::metadata::{version_of, versions};
use super::{Service, refuse};
use crate::models::Loaded;
use crate::update::{Input, Local};

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
pub(super) async fn index(State(service): State<Service>, Body(body): Body) -> Response {
    let wanted = match read(&body) {
        Ok(wanted) => wanted,
        Err(response) => return *response,
    };
    let one = |loaded: Arc<Loaded>| {
        let (name, version) = (&loaded.slot.release.model, version_of(&loaded));
        json!({ "name": name, "version": version, "state": "READY", "reason": "" })
    };
    let loads = service.models.list().into_iter().flat_map(|(_, entry)| versions(&entry));
    let mut all: Vec<Value> = loads.map(one).collect();
    if !wanted.ready {
        all.extend(service.models.parked().into_iter().map(|slot| {
            json!({ "name": slot.release.model, "version": slot.release.version.to_string(),
                "state": "UNAVAILABLE", "reason": "unloaded" })
        }));
    }
    Json(Value::Array(all)).into_response()
}

/// `POST /v2/repository/models/{model}/load`.
pub(super) async fn load(
    State(service): State<Service>,
    Path(model): Path<String>,
    Body(body): Body,
) -> Response {
    let wanted = match read(&body) {
        Ok(wanted) => wanted,
        Err(response) => return *response,
    };
    if let Some(name) = wanted.parameters.keys().next() {
        let text = format!("parameter {name}: a release is run as it was signed; leave it out");
        return refuse(StatusCode::BAD_REQUEST, text);
    }
    ask(&service, &model, |model, reply| Local::Load { model, reply }).await
}

/// `POST /v2/repository/models/{model}/unload`.
pub(super) async fn unload(
    State(service): State<Service>,
    Path(model): Path<String>,
    Body(body): Body,
) -> Response {
    // unload_dependents means nothing here: no model depends on another one.
    if let Err(response) = read(&body) {
        return *response;
    }
    ask(&service, &model, |model, reply| Local::Unload { model, reply }).await
}

async fn ask(
    service: &Service,
    model: &str,
    question: impl FnOnce(ModelName, oneshot::Sender<Result<(), String>>) -> Local,
) -> Response {
    if !service.model_control {
        let text = "models are loaded and unloaded by assignments; http.model_control allows it to clients";
        return refuse(StatusCode::FORBIDDEN, text);
    }
    let Ok(model) = ModelName::new(model) else {
        return refuse(StatusCode::NOT_FOUND, format!("model {model:?} is not installed"));
    };
    let gone = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping");
    let (reply, answer) = oneshot::channel();
    if service.updates.send(Input::Local(question(model, reply))).await.is_err() {
        return gone();
    }
    match answer.await {
        Ok(Ok(())) => Json(json!({})).into_response(),
        Ok(Err(message)) => refuse(StatusCode::BAD_REQUEST, message),
        Err(_) => gone(),
    }
}
