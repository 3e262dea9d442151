//! What is asked at the device besides inference: flags, the update lock of the application, and (on the
//! administrator's socket alone) the installation from a bundle.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farlight_device::health::Policy;
use farlight_wire::{Millis, ReleaseId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::oneshot;

use super::extract::{Body, Object};
use super::{Service, refuse};
use crate::update::{Input, Local};

/// Largest request of these in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// How long a lock is held unless said otherwise.
const DEFAULT_LOCK_SECONDS: u64 = 600;
const NO_HOLDER: &str = "holder: say who holds the lock";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockRequest {
    holder: String,
    seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallRequest {
    bundle: PathBuf,
    release: Option<ReleaseId>,
    #[serde(default)]
    probation_seconds: u64,
    #[serde(default)]
    min_requests: u64,
}

/// Clients of a gateway often send no content type: the body alone counts.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<Response>> {
    let read = serde_json::from_slice(body).map(|Object(request)| request);
    read.map_err(|error| Box::new(refuse(StatusCode::BAD_REQUEST, error)))
}

/// Hands a question to the driver and waits for its answer.
async fn ask<T>(
    service: &Service,
    question: impl FnOnce(oneshot::Sender<T>) -> Local,
) -> Result<T, Box<Response>> {
    let gone = || Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"));
    let (reply, answer) = oneshot::channel();
    service.updates.send(Input::Local(question(reply))).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

/// The flags of the configuration in force.
pub(super) async fn flags(State(service): State<Arc<Service>>) -> Response {
    Json(&service.runtime.get().flags).into_response()
}

/// Takes the update lock, or takes it for longer: nothing is activated while it is held.
pub(super) async fn lock(State(service): State<Arc<Service>>, Body(body): Body) -> Response {
    let request: LockRequest = match read(&body) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    if request.holder.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, NO_HOLDER);
    }
    let duration = Millis::from_secs(request.seconds.unwrap_or(DEFAULT_LOCK_SECONDS));
    let holder = request.holder;
    match ask(&service, |reply| Local::Lock { holder, duration, reply }).await {
        Ok(Ok(until)) => Json(json!({ "until": until })).into_response(),
        Ok(Err(held)) => refuse(StatusCode::CONFLICT, held),
        Err(response) => *response,
    }
}

/// Gives the update lock back. One that nobody holds is given back, too.
pub(super) async fn unlock(State(service): State<Arc<Service>>, Body(body): Body) -> Response {
    let request: LockRequest = match read(&body) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    if request.holder.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, NO_HOLDER);
    }
    match ask(&service, |reply| Local::Unlock { holder: request.holder, reply }).await {
        Ok(Ok(())) => Json(json!({})).into_response(),
        Ok(Err(held)) => refuse(StatusCode::CONFLICT, held),
        Err(response) => *response,
    }
}

/// Installs the releases of a bundle, with all checks that an assignment's have.
pub(super) async fn install(State(service): State<Arc<Service>>, Body(body): Body) -> Response {
    let request: InstallRequest = match read(&body) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let duration = Millis::from_secs(request.probation_seconds);
    let policy = Policy { duration, min_requests: request.min_requests };
    let (bundle, only) = (request.bundle, request.release);
    match ask(&service, |reply| Local::Install { bundle, only, policy, reply }).await {
        Ok(Ok(releases)) => Json(json!({ "releases": releases })).into_response(),
        Ok(Err(failure)) => {
            let body = json!({ "error": failure.message, "code": failure.code.as_str(),
                "hint": failure.code.hint() });
            (StatusCode::CONFLICT, Json(body)).into_response()
        }
        Err(response) => *response,
    }
}
