//! Answers a request: asks the router for each item, then puts the answers together. Every form ends here.

use std::sync::Arc;
use std::time::Instant;

use super::answer::{Given, outputs};
use super::request::Asked;
use super::{Refusal, Service};
use crate::models::Ask;
use crate::poll;
use crate::queue::Priority;
use crate::router::Door;
use crate::streams;

/// How a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The name that the client asked for.
    pub(crate) model: &'a str,
    pub(crate) arrived: Instant,
    /// The trace that it belongs to, in the form of the header `traceparent`.
    pub(crate) trace: Option<&'a str>,
}

/// The answer to all items of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The request's own id, to be given back.
    pub(crate) id: Option<String>,
    /// The version that answered.
    pub(crate) version: String,
    /// Which stage of a route answered; `None` without one.
    pub(crate) stage: Option<String>,
    pub(crate) outputs: Vec<Given>,
}

/// Answers what was asked at a door.
pub(crate) async fn answer(
    service: &Service,
    door: &Door,
    call: Call<'_>,
    mut asked: Asked,
) -> Result<Answer, Refusal> {
    let Call { model, arrived, trace } = call;
    let items = std::mem::take(&mut asked.items);
    let own = asked.id.take();
    let drawn;
    let id = match &own {
        Some(id) => id,
        None => {
            drawn = format!("{:016x}", rand::random::<u64>());
            &drawn
        }
    };
    let stream = asked.stream.as_ref();
    let stream = stream.map(|stream| streams::Call { id: &stream.id, start: stream.start, end: stream.end });
    let priority = Priority::new(asked.priority);
    let batch = items.len();
    if batch > 1 && stream.is_some() {
        return Err(Refusal::wrong("a request of a sequence holds one item"));
    }
    let mut predictions = Vec::with_capacity(batch);
    let (mut answered, mut stage) = (None, None);
    for (index, item) in items.into_iter().enumerate() {
        let part;
        let item_id = match batch {
            1 => id,
            _ => {
                part = format!("{id}#{index}");
                &part
            }
        };
        let ask = Ask { id: item_id, arrived, priority, timeout: asked.timeout, stream, trace };
        let answer = service.router.infer(door, item, &ask).await?;
        service.slow.look(model, id, trace, arrived.elapsed(), &answer.timing);
        predictions.push(answer.prediction);
        (answered, stage) = (Some(answer.loaded), answer.stage);
    }
    // Several items of one request may be answered by several stages: the last one is named.
    let loaded = answered.unwrap_or_else(|| Arc::clone(&door.loaded));
    let manifest = &loaded.manifest;
    let outputs = outputs(manifest, &asked, predictions).map_err(Refusal::wrong)?;
    poll::answered(arrived);
    Ok(Answer { id: own, version: manifest.release.version.to_string(), stage, outputs })
}
