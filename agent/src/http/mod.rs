//! The inference service over TCP and a Unix socket. This router is the table of contents of its API.

pub(crate) mod binary;
pub(crate) mod data;
mod extract;
mod feedback;
mod infer;
mod listeners;
mod local;
mod metadata;
mod metrics;
mod repository;
mod request;
mod response;
mod slow;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::json;
use tokio::sync::mpsc;

use crate::models::{InferError, Models};
use crate::runtime::Runtime;
use crate::status::Status;
use crate::update::Input;

/// What handlers see.
#[derive(Clone)]
pub struct Service {
    /// The model table.
    pub models: Arc<Models>,
    /// What answers requests for a name.
    pub router: Arc<crate::router::Router>,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// Largest request body in bytes, also after decompression.
    pub max_body_bytes: usize,
    /// What a configuration release changes.
    pub runtime: Runtime,
    /// Says which requests were slow.
    pub slow: Arc<Slow>,
    /// Whether metrics are there under the names of Triton, too.
    pub triton_metrics: bool,
    /// Whether clients may load and unload models.
    pub model_control: bool,
    /// The update driver's inbox.
    pub updates: mpsc::Sender<Input>,
}

pub use listeners::Listeners;
pub(crate) use response::elements;
pub use slow::Slow;

/// All routes.
pub fn router(service: Service) -> Router {
    let limit = DefaultBodyLimit::max(service.max_body_bytes);
    Router::new()
        .route("/v2", get(metadata::server))
        // As the published OpenAPI document of the protocol has it.
        .route("/v2/", get(metadata::server))
        .route("/v2/health/live", get(metadata::live))
        .route("/v2/health/ready", get(metadata::ready))
        .route("/v2/models/{model}", get(metadata::model))
        .route("/v2/models/{model}/versions/{version}", get(metadata::version))
        .route("/v2/models/{model}/ready", get(metadata::model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(metadata::version_ready))
        .route("/v2/models/{model}/config", get(metadata::model_config))
        .route("/v2/models/{model}/versions/{version}/config", get(metadata::version_config))
        .route("/v2/models/stats", get(metadata::all_stats))
        .route("/v2/models/{model}/stats", get(metadata::model_stats))
        .route("/v2/models/{model}/versions/{version}/stats", get(metadata::version_stats))
        .route("/v2/models/{model}/infer", post(infer::model))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::version))
        .route("/v2/models/{model}/feedback", post(feedback::give))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route("/v2/repository/models/{model}/unload", post(repository::unload))
        .route("/metrics", get(metrics::text))
        .route("/farlight/status", get(status))
        .route("/farlight/flags", get(local::flags))
        .route("/farlight/lock", put(local::lock).delete(local::unlock))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "another method is asked for")
        })
        .layer(limit)
        .with_state(service)
}

/// What only the administrator of the device may ask, on a socket of its own.
pub fn admin(service: Service) -> Router {
    Router::new()
        .route("/farlight/status", get(status))
        .route("/farlight/install", post(local::install))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such path"))
        .layer(DefaultBodyLimit::max(local::MAX_BODY))
        .with_state(service)
}

async fn status(State(service): State<Service>) -> Response {
    Json(service.status.document(&service.models)).into_response()
}

/// An error in the protocol's form.
fn refuse(status: StatusCode, message: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": message.to_string() }))).into_response()
}

fn refuse_inference(error: &InferError) -> Response {
    use farlight_inference::RunError;
    let status = match error {
        InferError::Unknown(_) => StatusCode::NOT_FOUND,
        InferError::Busy { .. } | InferError::Off(_) | InferError::Remote(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        InferError::Stateless(_)
        | InferError::Run(RunError::Length { .. } | RunError::Inputs(_) | RunError::Contract { .. }) => {
            StatusCode::BAD_REQUEST
        }
        InferError::Run(RunError::Engine(_)) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = refuse(status, error);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = match error {
            InferError::Busy { retry_after, .. } => retry_after.as_secs_f64().ceil() as u64,
            _ => 1,
        };
        response.headers_mut().insert("retry-after", seconds.max(1).into());
    }
    response
}
