//! The OpenAPI document, collected from the handlers' own annotations.

use axum::Json;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(title = "Farlight cloud", description = "Everything the command line and the console can do."),
    paths(
        crate::enrol::api::invite,
        crate::enrol::api::enrol,
        crate::service::health,
        crate::service::audit_log,
        crate::registry::api::online_keys,
        crate::registry::api::status,
        crate::registry::api::init,
        crate::registry::api::targets,
        crate::registry::api::publish,
        crate::registry::api::releases,
        crate::registry::api::release,
        crate::registry::api::blob,
    ),
    components(schemas(super::error::ErrorBody))
)]
struct Document;

/// The OpenAPI document.
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
