//! The Open Inference Protocol v2 in no form of its own: what requests ask, what answers hold, what is said of models, and
//! why something is refused. `http/` and `grpc/` read and write it; nothing here knows either.

pub(crate) mod answer;
pub(crate) mod binary;
pub(crate) mod infer;
pub(crate) mod metadata;
pub(crate) mod refusal;
pub(crate) mod repository;
pub(crate) mod request;
mod slow;

use std::sync::Arc;

use tokio::sync::mpsc;

pub(crate) use refusal::{Kind, Refusal};
pub use slow::Slow;

use crate::models::Models;
use crate::router::Router;
use crate::runtime::Runtime;
use crate::status::Status;
use crate::update::Input;

/// What answers requests, in every form.
pub struct Service {
    /// The model table.
    pub models: Arc<Models>,
    /// What answers requests for a name.
    pub router: Arc<Router>,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// Largest request body in bytes, also after decompression.
    pub max_body_bytes: usize,
    /// What a configuration release changes.
    pub runtime: Runtime,
    /// Says which requests were slow.
    pub slow: Arc<Slow>,
    /// Whether metrics are there under the names of Triton, too.
    pub triton_metrics: bool,
    /// Whether clients may load and unload models.
    pub model_control: bool,
    /// The update driver's inbox.
    pub updates: mpsc::Sender<Input>,
}
