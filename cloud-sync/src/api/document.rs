//! The OpenAPI document, collected from the handlers' own annotations.

use axum::Json;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(title = "Farlight cloud", description = "Everything the command line and the console can do."),
    paths(
        crate::enrol::api::invite,
        crate::enrol::api::enrol,
        crate::devices::api::list,
        crate::devices::api::show,
        crate::devices::api::revoke,
        crate::devices::api::stats,
        crate::devices::commands::send,
        crate::rollouts::api::roll_back,
        crate::rollouts::api::list,
        crate::rollouts::api::create,
        crate::rollouts::api::show,
        crate::rollouts::api::change,
        crate::drift::api::list,
        crate::cases::api::list,
        crate::cases::api::show,
        crate::cases::api::label,
        crate::cases::api::label_many,
        crate::cases::feedback::list,
        crate::service::health,
        crate::service::audit_log,
        crate::registry::api::online_keys,
        crate::registry::api::next_online_keys,
        crate::registry::api::status,
        crate::registry::api::init,
        crate::registry::api::metadata,
        crate::registry::api::publish,
        crate::registry::api::releases,
        crate::registry::api::release,
        crate::registry::api::blob,
        crate::learning::api::import,
        crate::learning::api::list_datasets,
        crate::learning::api::start,
        crate::learning::api::list,
        crate::learning::api::show,
        crate::learning::api::cancel,
        crate::learning::api::candidate,
    ),
    components(schemas(super::error::ErrorBody))
)]
struct Document;

/// The OpenAPI document.
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
