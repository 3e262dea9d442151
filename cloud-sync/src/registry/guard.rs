//! Blobs carry their digest as entity tag, so that a device resumes a download only of the very same bytes
//! (RFC 9110, If-Match): the tag of the file server says something about the file, not about its content.

use axum::extract::Request;
use axum::http::header::{ETAG, IF_MATCH};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Answers `If-Match` by the digest in a blob's path, and gives that digest as its tag.
pub(super) async fn by_digest(mut request: Request, next: Next) -> Response {
    let Some(tag) = tag(request.uri().path()) else { return next.run(request).await };
    if let Some(wanted) = request.headers_mut().remove(IF_MATCH)
        && wanted != tag
        && wanted != "*"
    {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    let mut response = next.run(request).await;
    if response.status().is_success() {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn tag(path: &str) -> Option<HeaderValue> {
    let id = path.rsplit_once("blobs/")?.1;
    farlight_release::digest::is_sha256(id)
        .then(|| HeaderValue::from_str(&format!("\"{id}\"")).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blobs_have_tags() {
        let id = "a".repeat(64);
        assert_eq!(tag(&format!("/blobs/{id}")).unwrap(), format!("\"{id}\""));
        assert_eq!(tag("/blobs/../x"), None);
        assert_eq!(tag("/metadata/timestamp.json"), None);
    }
}
