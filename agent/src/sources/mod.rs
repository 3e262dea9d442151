//! Inputs besides HTTP. Each source is a task that reads (`mqtt`, `folder`, `replay`, `stdin`, `camera`) and asks the
//! model table like any client; `feed` holds what waits in between, `form` understands what was read.

#[cfg(feature = "camera")]
mod camera;
mod feed;
mod folder;
mod form;
mod mqtt;
#[cfg(any(feature = "camera", test))]
mod pixels;
mod queue;
mod replay;
mod sink;
mod stdin;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use farlight_inference::{Item, Named, Prediction, Values};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::models::{Ask, InferError};
use crate::router::Router;
use crate::settings::source::Source;
use crate::streams::Call;
use crate::threads::Threads;

pub use tally::Tally;

/// How often an absent or busy model is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Largest message, line or frame in bytes: a colour picture of 640 × 480 in FP32 fits.
const MAX_INPUT: usize = 4 << 20;

/// The sources of a running agent.
pub struct Running {
    /// The counters of each.
    pub tallies: Vec<Arc<Tally>>,
    ended: watch::Receiver<bool>,
}

impl Running {
    /// Waits until a source that is to end the agent has ended.
    pub async fn ended(&mut self) {
        if self.ended.wait_for(|ended| *ended).await.is_err() {
            // No source is left that could.
            std::future::pending().await
        }
    }
}

/// What every source needs.
#[derive(Clone)]
struct Base {
    table: Arc<Router>,
    threads: Arc<Threads>,
    /// The stream that models with state see: one a source.
    stream: String,
    models: Vec<String>,
    tally: Arc<Tally>,
    shutdown: watch::Receiver<bool>,
}

impl Base {
    /// Runs a task until its end or the shutdown.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        })
    }

    /// Waits until every model is there.
    async fn models_present(&self) {
        while self.models.iter().any(|model| shape(&self.table, model).is_none()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Starts every configured source.
pub fn start(
    sources: &[Source],
    router: &Arc<Router>,
    threads: &Arc<Threads>,
    shutdown: &watch::Receiver<bool>,
) -> Running {
    let (end, ended) = watch::channel(false);
    let end = Arc::new(end);
    let mut tallies = Vec::new();
    for (number, source) in sources.iter().cloned().enumerate() {
        let tally = Arc::new(Tally::new(source.kind(), source.models()));
        tallies.push(Arc::clone(&tally));
        let (table, models) = (Arc::clone(router), source.models());
        let stream = format!("source {number}: {}", source.kind());
        let threads = Arc::clone(threads);
        let base = Base { table, threads, stream, models, tally, shutdown: shutdown.clone() };
        let end = Arc::clone(&end);
        base.clone().spawn(async move {
            let kind = source.kind();
            let done = match source {
                Source::Mqtt(settings) => mqtt::run(base, settings).await,
                Source::Folder(settings) => folder::run(base, settings).await,
                Source::Replay(settings) => replay::run(base, settings).await,
                Source::Stdin(settings) => stdin::run(base, settings, &end).await,
                #[cfg(feature = "camera")]
                Source::Camera(settings) => camera::run(base, settings).await,
                #[cfg(not(feature = "camera"))]
                Source::Camera(_) => Err(anyhow::anyhow!("this agent was built without cameras")),
            };
            if let Err(error) = done {
                tracing::error!(source = kind, "the source ended: {error:#}");
            }
        });
    }
    Running { tallies, ended }
}

/// Why a model gave no answer.
#[derive(Debug)]
enum Refusal {
    /// It may do later: it is absent, switched off or busy.
    Later(String),
    /// It does not take this input.
    Input(String),
}

/// Asks a model and describes the answer for people and programs.
async fn ask(base: &Base, model: &str, id: &str, raw: Vec<f32>) -> Result<Value, Refusal> {
    let refuse = |error: InferError| match error {
        InferError::Unknown(_) | InferError::Off(_) | InferError::Busy { .. } | InferError::Remote(_) => {
            Refusal::Later(error.to_string())
        }
        InferError::Run(_) | InferError::Stateless(_) => Refusal::Input(error.to_string()),
    };
    let door = base.table.door(model, None).map_err(refuse)?;
    let datatype = door.loaded.manifest.input.datatype;
    let main =
        Values::from_f32(datatype, &raw).ok_or_else(|| Refusal::Input("the model takes text".to_owned()))?;
    let item = Item { main, more: Vec::new() };
    // Where requests are answered, too, and not among the tasks that keep up the session with the cloud.
    let (table, source, own) = (Arc::clone(&base.table), base.stream.clone(), id.to_owned());
    let asked = base.threads.spawn(async move {
        let stream = door.loaded.has_state().then_some(Call { id: &source, start: false, end: false });
        table.infer(&door, item, &Ask { stream, ..Ask::now(&own) }).await
    });
    let answer = asked.await.map_err(|error| Refusal::Later(error.to_string()))?.map_err(refuse)?;
    let release = &answer.loaded.slot.release;
    Ok(describe(id, &release.to_string(), &answer.loaded.manifest.labels, &answer.prediction))
}

/// Asks until the model takes the question: for sources that can wait.
async fn ask_patiently(base: &Base, model: &str, id: &str, raw: &[f32]) -> Result<Value, String> {
    loop {
        match ask(base, model, id, raw.to_vec()).await {
            Ok(answer) => return Ok(answer),
            Err(Refusal::Input(error)) => return Err(error),
            Err(Refusal::Later(_)) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// The shape of a model's input without the batch; `None` while it is absent.
fn shape(router: &Router, model: &str) -> Option<Vec<usize>> {
    router.door(model, None).ok().map(|door| door.loaded.manifest.input.shape.clone())
}

/// The JSON form of a prediction outside the Open Inference Protocol.
pub fn describe(id: &str, release: &str, labels: &[String], prediction: &Prediction) -> Value {
    if !prediction.tensors.is_empty() {
        let output = |named: &Named| {
            let data = crate::http::Elements(&named.tensor.values);
            (named.name.clone(), json!({ "shape": named.tensor.shape, "data": data }))
        };
        let outputs: serde_json::Map<String, Value> = prediction.tensors.iter().map(output).collect();
        return json!({ "id": id, "release": release, "outputs": outputs });
    }
    json!({
        "id": id,
        "release": release,
        "label": prediction.class.and_then(|class| labels.get(class)),
        "score": prediction.score,
        "scores": prediction.outputs,
        "abstained": prediction.abstained,
    })
}
