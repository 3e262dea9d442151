//! `POST /v2/models/{model}/feedback`: what an application found out about an answer, at once or weeks later. It is on
//! disk when the request is answered, and the cloud gets it like every report.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farlight_wire::ModelName;
use farlight_wire::report::{Feedback, Truth};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::extract::{self, Object, Path};
use super::{Service, refuse};
use crate::update::{Input, Local};

/// Most entries of one request.
const MAX_ENTRIES: usize = 256;
/// Longest id or label, bytes: what a case keeps of an id.
const MAX_TEXT: usize = 128;

#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    Many { feedback: Vec<Object<Entry>> },
    One(Entry),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Id of the request; of one item of a batch with `#` and its number from 0.
    id: String,
    label: Option<String>,
    value: Option<f64>,
    correct: Option<bool>,
}

impl Entry {
    fn truth(&self) -> Result<Truth, String> {
        match (&self.label, self.value, self.correct) {
            (Some(label), None, None) => Ok(Truth::Is(label.clone())),
            (None, Some(value), None) if value.is_finite() => Ok(Truth::Is(value.to_string())),
            (None, None, Some(true)) => Ok(Truth::Right),
            (None, None, Some(false)) => Ok(Truth::Wrong),
            _ => Err("say one of label, value (a finite number) and correct".to_owned()),
        }
    }
}

fn read(service: &Service, model: &str, body: &[u8]) -> Result<Vec<Feedback>, String> {
    let name = ModelName::new(model).map_err(|error| error.to_string())?;
    let Object(body) = serde_json::from_slice(body).map_err(|_| {
        "the body is neither {\"id\": …, \"label\": …} nor {\"feedback\": [those]}".to_owned()
    })?;
    let entries = match body {
        Body::Many { feedback } => feedback.into_iter().map(|Object(entry)| entry).collect(),
        Body::One(entry) => vec![entry],
    };
    if !(1..=MAX_ENTRIES).contains(&entries.len()) {
        return Err(format!("feedback: use 1 to {MAX_ENTRIES} entries"));
    }
    // A model that is not loaded may be spoken of: feedback comes late.
    let labels =
        service.models.find(model, None).map(|loaded| loaded.manifest.labels.clone()).unwrap_or_default();
    let mut all = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let wrong = |text: String| format!("feedback[{index}]: {text}");
        let truth = entry.truth().map_err(wrong)?;
        let long = |text: &str| text.is_empty() || text.len() > MAX_TEXT;
        if long(&entry.id) || entry.label.as_deref().is_some_and(long) {
            return Err(wrong(format!("id and label have 1 to {MAX_TEXT} bytes")));
        }
        if let Some(label) = entry.label.filter(|label| !labels.is_empty() && !labels.contains(label)) {
            return Err(wrong(format!("{label:?} is no label of the model; it has {}", labels.join(", "))));
        }
        all.push(Feedback { model: name.clone(), request_id: entry.id, truth });
    }
    Ok(all)
}

/// Keeps feedback for the cloud.
pub(super) async fn give(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
    extract::Body(body): extract::Body,
) -> Response {
    let feedback = match read(&service, &model, &body) {
        Ok(feedback) => feedback,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let stored = feedback.len();
    let (reply, answer) = oneshot::channel();
    let asked = service.updates.send(Input::Local(Local::Feedback { feedback, reply })).await;
    match (asked, answer.await) {
        (Ok(()), Ok(Ok(()))) => (StatusCode::ACCEPTED, Json(json!({ "stored": stored }))).into_response(),
        (Ok(()), Ok(Err(message))) => refuse(StatusCode::SERVICE_UNAVAILABLE, message),
        _ => refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"),
    }
}
