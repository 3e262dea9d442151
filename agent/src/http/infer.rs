//! `POST …/infer`.

use std::io::Read;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::Map;

use super::extract::{Body, Path};
use super::{Service, refuse, refuse_inference, request, response};
use crate::models::Ask;
use crate::queue::Priority;
use crate::streams::Call;

/// Asks the active release.
pub(super) async fn model(
    State(service): State<Service>,
    Path(model): Path<String>,
    headers: HeaderMap,
    Body(body): Body,
) -> Response {
    infer(&service, &model, None, &headers, &body).await
}

/// Asks one version.
pub(super) async fn version(
    State(service): State<Service>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    Body(body): Body,
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
    let door = match service.router.door(model, version) {
        Ok(door) => door,
        Err(error) => return refuse_inference(&error),
    };
    let manifest = &door.loaded.manifest;
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
    let mut asked = match request::parse(manifest, body, header_len) {
        Ok(asked) => asked,
        Err(message) => return bad(message),
    };
    let id = asked.id.clone().unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()));
    let items = std::mem::take(&mut asked.items);
    let batch = items.len();
    if batch > 1 && asked.stream.is_some() {
        return bad("a request of a sequence holds one item".to_owned());
    }
    let stream = asked.stream.as_ref();
    let stream = stream.map(|stream| Call { id: &stream.id, start: stream.start, end: stream.end });
    let priority = Priority::new(asked.priority);
    let trace = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let answer = async |item, id: &str| {
        let ask = Ask { id, arrived, priority, timeout: asked.timeout, stream, trace };
        service.router.infer(&door, item, &ask).await
    };
    let mut predictions = Vec::with_capacity(batch);
    let (mut answered, mut stage) = (None, None);
    for (index, item) in items.into_iter().enumerate() {
        let answer = match batch {
            1 => answer(item, &id).await,
            _ => answer(item, &format!("{id}#{index}")).await,
        };
        match answer {
            Ok(answer) => {
                service.slow.look(model, &id, trace, arrived.elapsed(), &answer.timing);
                predictions.push(answer.prediction);
                (answered, stage) = (Some(answer.loaded), answer.stage);
            }
            Err(error) => return refuse_inference(&error),
        }
    }
    let gzip = headers.get("accept-encoding").and_then(|value| value.to_str().ok()).is_some_and(takes_gzip);
    let mut parameters = Map::new();
    if let Some(stage) = stage {
        parameters.insert("stage".to_owned(), stage.into());
    }
    // Several items of one request may be answered by several stages: the last one is named.
    let manifest = answered.as_ref().map_or(manifest, |loaded| &loaded.manifest);
    let frame = response::Frame { model, manifest, gzip, parameters };
    response::build(frame, &asked, predictions).unwrap_or_else(bad)
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
