//! The console: pages of plain HTML with inline SVG, rendered here, readable without JavaScript. It
//! shows what the API shows and can label cases and steer rollouts; everything else is the API's.

mod html;
mod pages;
mod session;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};

use crate::app::Shared;

/// The console's routes, to be nested at `/console`.
pub fn routes(app: &Shared) -> Router<Shared> {
    let pages = Router::new()
        .route("/console", get(pages::fleet))
        .route("/console/rollouts", get(pages::rollouts))
        .route("/console/rollouts/{id}", get(pages::rollout))
        .route("/console/rollouts/{id}/{verb}", post(pages::change_rollout))
        .route("/console/drift", get(pages::drift))
        .route("/console/cases", get(pages::cases))
        .route("/console/cases/{id}/label", post(pages::label))
        .route("/console/logout", post(session::logout))
        .layer(from_fn_with_state(app.clone(), session::require));
    pages.route("/console/login", get(session::form).post(session::login)).layer(map_response(protect))
}

/// No script runs, nothing is loaded from elsewhere, no other page frames or caches ours.
async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}
