//! `POST …/infer`.

use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use axum::body;
use axum::extract::{DefaultBodyLimit, FromRequest as _, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use hyper::body::Incoming;

use super::extract::{Body, Path};
use super::{Service, refuse, request, response};
use crate::protocol::Refusal;
use crate::protocol::infer::{Call, answer};

/// Asks the active release.
pub(super) async fn model(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    Body(body): Body,
) -> Response {
    infer(&service, &model, None, &headers, &body).await
}

/// Asks one version.
pub(super) async fn version(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    Body(body): Body,
) -> Response {
    infer(&service, &model, Some(&version), &headers, &body).await
}

/// The model that a request for inference names in its path, when nothing of the name is written in another way.
pub(super) fn plain(parts: &Parts) -> Option<&str> {
    let name = parts.uri.path().strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
    (parts.method == Method::POST && !name.is_empty() && !name.contains(['/', '%'])).then_some(name)
}

/// The same as [`model`], without a router.
pub(super) async fn direct(service: &Service, model: &str, headers: &HeaderMap, body: Incoming) -> Response {
    let mut body = Request::new(body::Body::new(body));
    DefaultBodyLimit::max(service.max_body_bytes).apply(&mut body);
    match Body::from_request(body, &()).await {
        Ok(Body(body)) => infer(service, model, None, headers, &body).await,
        Err(refusal) => refusal,
    }
}

async fn infer(
    service: &Service,
    model: &str,
    version: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    let arrived = Instant::now();
    let door = match service.router.door(model, version) {
        Ok(door) => door,
        Err(error) => return Refusal::from(error).into_response(),
    };
    let bad = |message: String| refuse(StatusCode::BAD_REQUEST, message);
    let plain;
    let body = match headers.get("content-encoding").map(|v| v.as_bytes()) {
        None | Some(b"identity" | b"") => body,
        Some(coding) => match decompress(coding, body, service.max_body_bytes) {
            Ok(bytes) => {
                plain = bytes;
                &plain
            }
            Err((status, message)) => return refuse(status, message),
        },
    };
    let header_len = match header_length(headers) {
        Ok(length) => length,
        Err(message) => return bad(message),
    };
    let asked = match request::parse(&door.loaded.manifest, body, header_len) {
        Ok(asked) => asked,
        Err(message) => return bad(message),
    };
    let trace = headers.get("traceparent").and_then(|value| value.to_str().ok());
    match answer(service, &door, Call { model, arrived, trace }, asked).await {
        Ok(answer) => {
            let accepted = headers.get("accept-encoding").and_then(|value| value.to_str().ok());
            response::build(model, &answer, accepted.is_some_and(takes_gzip)).unwrap_or_else(bad)
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, String> {
    let Some(value) = headers.get("inference-header-content-length") else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| "Inference-Header-Content-Length is no number of bytes".to_owned())
}

/// Whether an `Accept-Encoding` names gzip (RFC 9110, 12.5.3) and does not weigh it 0.
fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        named && !parts.any(|weight| weight.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32)))
    })
}

/// Decompresses a body within the limit of plain ones.
fn decompress(coding: &[u8], body: &[u8], max: usize) -> Result<Vec<u8>, (StatusCode, String)> {
    let mut plain = Vec::new();
    let limit = max as u64 + 1;
    // Names of codings are of any case (RFC 9110, 8.4.1).
    let read = match coding.to_ascii_lowercase().as_slice() {
        b"gzip" | b"x-gzip" => MultiGzDecoder::new(body).take(limit).read_to_end(&mut plain),
        b"deflate" => ZlibDecoder::new(body).take(limit).read_to_end(&mut plain),
        other => {
            let text = format!("content encoding {:?} is not known", String::from_utf8_lossy(other));
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
    };
    read.map_err(|e| (StatusCode::BAD_REQUEST, format!("decompress the body: {e}")))?;
    if plain.len() > max {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {max} bytes")));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_where_it_is_taken() {
        for (accepted, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("identity, br", false),
            ("", false),
        ] {
            assert_eq!(takes_gzip(accepted), takes, "{accepted}");
        }
    }
}
