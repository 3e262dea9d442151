//! `POST …/infer`.

use std::io::Read;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use flate2::read::{GzDecoder, ZlibDecoder};

use super::{Service, refuse, refuse_inference, request, response};

/// Asks the active release.
pub(super) async fn model(
    State(service): State<Service>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    infer(&service, &model, None, &headers, &body).await
}

/// Asks one version.
pub(super) async fn version(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    infer(&service, &model, Some(&version), &headers, &body).await
}

async fn infer(
    service: &Service,
    model: &str,
    version: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    let arrived = Instant::now();
    let loaded = match service.models.find(model, version) {
        Ok(loaded) => loaded,
        Err(error) => return refuse_inference(&error),
    };
    let plain;
    let body = match headers.get("content-encoding").map(|v| v.as_bytes()) {
        None | Some(b"identity") => body,
        Some(coding) => match decompress(coding, body, service.max_body_bytes) {
            Ok(bytes) => {
                plain = bytes;
                &plain
            }
            Err(refusal) => return refuse(refusal.0, refusal.1),
        },
    };
    let header_len = match headers.get("inference-header-content-length") {
        None => None,
        Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse().ok()) {
            Some(length) => Some(length),
            None => {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "Inference-Header-Content-Length is no number of bytes",
                );
            }
        },
    };
    let mut asked = match request::parse(&loaded.manifest.input, body, header_len) {
        Ok(asked) => asked,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let id = asked.id.clone().unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()));
    let items = std::mem::take(&mut asked.items);
    let batch = items.len();
    let mut predictions = Vec::with_capacity(batch);
    for (index, raw) in items.into_iter().enumerate() {
        let item_id = if batch == 1 { id.clone() } else { format!("{id}#{index}") };
        match service.models.infer(std::sync::Arc::clone(&loaded), raw, &item_id, arrived).await {
            Ok(answer) => predictions.push(answer.prediction),
            Err(error) => {
                service.metrics.failed(model, &error);
                return refuse_inference(&error);
            }
        }
    }
    service.metrics.answered(model, predictions.len(), arrived.elapsed());
    match response::build(&loaded.manifest, &asked, &predictions) {
        Ok(response) => response,
        Err(message) => refuse(StatusCode::BAD_REQUEST, message),
    }
}

fn decompress(coding: &[u8], body: &[u8], limit: usize) -> Result<Vec<u8>, (StatusCode, String)> {
    let reader: Box<dyn Read> = match coding {
        b"gzip" => Box::new(GzDecoder::new(body)),
        b"deflate" => Box::new(ZlibDecoder::new(body)),
        other => {
            let message =
                format!("Content-Encoding {:?} is not gzip or deflate", String::from_utf8_lossy(other));
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    let mut plain = Vec::new();
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|e| (StatusCode::BAD_REQUEST, format!("decompress body: {e}")))?;
    if plain.len() > limit {
        let message = format!("the decompressed body is over the limit of {limit} bytes");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(plain)
}
