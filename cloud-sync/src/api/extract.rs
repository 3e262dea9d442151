//! Extractors like axum's, whose refusals have our error shape.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(refuse_body(&rejection)),
        }
    }
}

fn refuse_body(rejection: &JsonRejection) -> ApiError {
    let code = match rejection.status().as_u16() {
        413 => "http.body_too_large",
        415 => "http.not_json",
        _ => "http.bad_json",
    };
    ApiError::new(rejection.status(), code, rejection.body_text()).hint("see /api/v1/openapi.json")
}

/// A path parameter.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|path| Self(path.0))
            .map_err(|rejection: PathRejection| ApiError::bad_request("http.bad_path", rejection.body_text()))
    }
}

/// Query parameters.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state).await.map(|query| Self(query.0)).map_err(
            |rejection: QueryRejection| ApiError::bad_request("http.bad_query", rejection.body_text()),
        )
    }
}

/// A form's fields, sent as `application/x-www-form-urlencoded`. Read here because it is the one place
/// that needs them: a body of at most [`MAX_FORM`] bytes.
#[derive(Debug)]
pub struct Form<T>(pub T);

/// Largest form in bytes.
const MAX_FORM: usize = 16 * 1024;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Form<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let refuse = |message: String| ApiError::bad_request("http.bad_form", message);
        let body = axum::body::to_bytes(request.into_body(), MAX_FORM)
            .await
            .map_err(|e| refuse(format!("the form cannot be read: {e}")))?;
        // A form is a query string in another place.
        let text = std::str::from_utf8(&body).map_err(|e| refuse(e.to_string()))?;
        let uri =
            format!("/?{text}").parse().map_err(|_| refuse("the form is not URL-encoded".to_owned()))?;
        axum::extract::Query::<T>::try_from_uri(&uri)
            .map(|query| Self(query.0))
            .map_err(|e| refuse(e.body_text()))
    }
}
