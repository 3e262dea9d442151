//! The HTTPS API. This file is its table of contents; handlers live beside what they expose.
//! Everything under `/api/v1` except enrolment, health and the OpenAPI document needs an operator's
//! bearer token.

mod auth;
mod document;
mod error;
mod extract;
mod server;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub(crate) use auth::operator_with;
pub use auth::{Operator, operator_of, prepare_operator};
pub use error::ApiError;
pub use extract::{Body, Form, Path, Query};
pub use server::{Server, ServerError};

use crate::app::Shared;
use crate::enrol;
use crate::learning;
use crate::registry;
use crate::service;
use crate::{cases, console, devices, drift, rollouts};

/// Largest JSON request body in bytes; routes that take files say their own limit.
pub const MAX_BODY: usize = 1024 * 1024;

/// All routes of the service.
pub fn router(app: Shared) -> Router {
    let operator = Router::new()
        .route("/devices", get(devices::api::list).post(enrol::api::invite))
        .route("/devices/{id}", get(devices::api::show).delete(devices::api::revoke))
        .route("/devices/{id}/commands", post(devices::commands::send))
        .route("/devices/{id}/rollback", post(rollouts::api::roll_back))
        .route("/stats", get(devices::api::stats))
        .route("/rollouts", get(rollouts::api::list).post(rollouts::api::create))
        .route("/rollouts/{id}", get(rollouts::api::show))
        .route("/rollouts/{id}/{verb}", post(rollouts::api::change))
        .route("/drift", get(drift::api::list))
        .route("/cases", get(cases::api::list))
        .route("/cases/{id}", get(cases::api::show))
        .route("/cases/{id}/label", post(cases::api::label))
        .route("/labels", post(cases::api::label_many))
        .route("/feedback", get(cases::feedback::list))
        .route("/audit", get(service::audit_log))
        .merge(registry::api::routes())
        .merge(learning::api::routes(&app))
        .layer(from_fn_with_state(app.clone(), auth::require_operator));
    let open = Router::new()
        .route("/enrol", post(enrol::api::enrol))
        .route("/health", get(service::health))
        .route("/openapi.json", get(document::openapi));
    Router::new()
        .nest("/api/v1", operator.merge(open))
        .merge(registry::api::files(&app))
        .merge(console::routes(&app))
        .route("/metrics", get(service::metrics))
        .fallback(error::not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}
