//! Inputs besides HTTP. Each source is a task that asks the model table like any client.

mod mqtt;
mod replay;

use std::sync::Arc;

use farlight_inference::Prediction;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::models::{Ask, InferError, Models};
use crate::settings::Source;

/// Starts every configured source.
pub fn start(sources: &[Source], models: &Arc<Models>, shutdown: &watch::Receiver<bool>) {
    for source in sources.iter().cloned() {
        let (models, shutdown) = (Arc::clone(models), shutdown.clone());
        tokio::spawn(async move {
            match source {
                Source::Mqtt { model, host, port, input_topic, output_topic } => {
                    let source = mqtt::Mqtt { model, host, port, input_topic, output_topic };
                    source.run(&models, shutdown).await;
                }
                Source::Replay { model, path, rate_hz, stride, repeat } => {
                    let replay = replay::Replay { model, path, rate_hz, stride, repeat };
                    if let Err(error) = replay.run(&models, shutdown).await {
                        tracing::error!("replay: {error:#}");
                    }
                }
            }
        });
    }
}

/// Asks a model and describes the answer for people and programs.
async fn ask(models: &Models, model: &str, id: &str, raw: Vec<f32>) -> Result<Value, InferError> {
    let loaded = models.find(model, None)?;
    let answer = models.infer(loaded, raw.into(), &Ask::now(id)).await?;
    let release = &answer.loaded.slot.release;
    Ok(describe(id, &release.to_string(), &answer.loaded.manifest.labels, &answer.prediction))
}

/// The JSON form of a prediction outside the Open Inference Protocol.
pub fn describe(id: &str, release: &str, labels: &[String], prediction: &Prediction) -> Value {
    json!({
        "id": id,
        "release": release,
        "label": prediction.class.and_then(|class| labels.get(class)),
        "score": prediction.score,
        "scores": prediction.outputs,
        "abstained": prediction.abstained,
    })
}
