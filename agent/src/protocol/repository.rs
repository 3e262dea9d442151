//! The model repository extension: what is installed, and taking models in and out of memory. What may be
//! installed at all is decided by signed assignments alone.

use std::sync::Arc;

use farlight_wire::ModelName;
use serde::Serialize;
use tokio::sync::oneshot;

use super::metadata::{version_of, versions};
use super::{Kind, Refusal, Service};
use crate::models::Loaded;
use crate::update::{Input, Local};

/// A model that is installed.
#[derive(Debug, Serialize)]
pub(crate) struct Installed {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) state: &'static str,
    pub(crate) reason: &'static str,
}

/// What is installed; only what is loaded where `ready`.
pub(crate) fn index(service: &Service, ready: bool) -> Vec<Installed> {
    let one = |loaded: Arc<Loaded>| Installed {
        name: loaded.slot.release.model.to_string(),
        version: version_of(&loaded),
        state: "READY",
        reason: "",
    };
    let loads = service.models.list().into_iter().flat_map(|(_, entry)| versions(&entry));
    let mut all: Vec<Installed> = loads.map(one).collect();
    if !ready {
        all.extend(service.models.parked().into_iter().map(|slot| Installed {
            name: slot.release.model.to_string(),
            version: slot.release.version.to_string(),
            state: "UNAVAILABLE",
            reason: "unloaded",
        }));
    }
    all
}

/// Brings a model back into memory; `parameter` is the name of one that the client sent.
pub(crate) async fn load(service: &Service, model: &str, parameter: Option<&str>) -> Result<(), Refusal> {
    if let Some(name) = parameter {
        let text = format!("parameter {name}: a release is run as it was signed; leave it out");
        return Err(Refusal::wrong(text));
    }
    ask(service, model, |model, reply| Local::Load { model, reply }).await
}

/// Takes a model out of memory.
pub(crate) async fn unload(service: &Service, model: &str) -> Result<(), Refusal> {
    // unload_dependents means nothing here: no model depends on another one.
    ask(service, model, |model, reply| Local::Unload { model, reply }).await
}

async fn ask(
    service: &Service,
    model: &str,
    question: impl FnOnce(ModelName, oneshot::Sender<Result<(), String>>) -> Local,
) -> Result<(), Refusal> {
    if !service.model_control {
        let text = "models are loaded and unloaded by assignments; http.model_control allows it to clients";
        return Err(Refusal::new(Kind::Forbidden, text));
    }
    let model = ModelName::new(model)
        .map_err(|_| Refusal::new(Kind::Unknown, format!("model {model:?} is not installed")))?;
    let gone = || Refusal::unavailable("the agent is stopping");
    let (reply, answer) = oneshot::channel();
    service.updates.send(Input::Local(question(model, reply))).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(Refusal::wrong)
}
