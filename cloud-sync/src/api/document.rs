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
        crate::service::audit_log
    ),
    components(schemas(super::error::ErrorBody))
)]
struct Document;

/// The OpenAPI document.
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
