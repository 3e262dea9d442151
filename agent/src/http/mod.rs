//! The inference service over TCP and a Unix socket. This router is the table of contents of its API.

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

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use serde_json::json;

use crate::protocol::{Kind, Refusal, Service};

pub use listeners::{Handler, Listeners};
pub(crate) use response::Elements;

/// All of the API, as [`Listeners`] serve it. Inference by the plain name of a model, which most requests are, goes
/// without the router: that is a good part of what the agent does with a request beside the model.
pub fn api(service: Arc<Service>) -> impl Handler {
    let router = TowerToHyperService::new(router(Arc::clone(&service)));
    let both = Arc::new((service, router));
    service_fn(move |request: Request<Incoming>| {
        let both = Arc::clone(&both);
        async move {
            let ((service, router), (parts, body)) = (&*both, request.into_parts());
            match infer::plain(&parts) {
                Some(model) => Ok(infer::direct(service, model, &parts.headers, body).await),
                None => router.call(Request::from_parts(parts, body)).await,
            }
        }
    })
}

/// All routes.
fn router(service: Arc<Service>) -> Router {
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
pub fn admin(service: Arc<Service>) -> impl Handler {
    let router = Router::new()
        .route("/farlight/status", get(status))
        .route("/farlight/install", post(local::install))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such path"))
        .layer(DefaultBodyLimit::max(local::MAX_BODY))
        .with_state(service);
    TowerToHyperService::new(router)
}

async fn status(State(service): State<Arc<Service>>) -> Response {
    Json(service.status.document(&service.models)).into_response()
}

/// An error in the protocol's form.
fn refuse(status: StatusCode, message: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": message.to_string() }))).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, retry_after) = match self.kind {
            Kind::Wrong => (StatusCode::BAD_REQUEST, None),
            Kind::Unknown => (StatusCode::NOT_FOUND, None),
            Kind::Forbidden => (StatusCode::FORBIDDEN, None),
            Kind::Unavailable { retry_after } | Kind::Late { retry_after } => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after))
            }
            Kind::Engine => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let mut response = refuse(status, self.message);
        if let Some(after) = retry_after {
            let seconds = after.as_secs_f64().ceil() as u64;
            response.headers_mut().insert("retry-after", seconds.max(1).into());
        }
        response
    }
}
