//! The inference service over TCP and a Unix socket. This router is the table of contents of its API.

pub(crate) mod binary;
pub(crate) mod data;
mod extract;
mod feedback;
mod infer;
mod local;
mod metadata;
mod metrics;
mod repository;
mod request;
mod response;
mod slow;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use crate::exit::{ExitCode, Fatal};
use crate::models::{InferError, Models};
use crate::runtime::Runtime;
use crate::settings;
use crate::status::Status;
use crate::update::Input;

/// What handlers see.
#[derive(Clone)]
pub struct Service {
    /// The model table.
    pub models: Arc<Models>,
    /// What answers requests for a name.
    pub router: Arc<crate::router::Router>,
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

pub(crate) use response::elements;
pub use slow::Slow;

/// All routes.
pub fn router(service: Service) -> Router {
    let limit = DefaultBodyLimit::max(service.max_body_bytes);
    Router::new()
        .route("/v2", get(metadata::server))
        // As the published OpenAPI document of the protocol has it.
        .route("/v2/", get(metadata::server))
        .route("/v2/health/live", get(metadata::live))
        .route("/v2/health/ready", get(metadata::ready))
        .route("/v2/models/{model}", get(metadata::model))
        .route("/v2/models/{model}/versions/{version}", get(metadata::version))
        .route("/v2/models/{model}/ready", get(metadata::model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(metadata::version_ready))
        .route("/v2/models/{model}/config", get(metadata::model_config))
        .route("/v2/models/{model}/versions/{version}/config", get(metadata::version_config))
        .route("/v2/models/stats", get(metadata::all_stats))
        .route("/v2/models/{model}/stats", get(metadata::model_stats))
        .route("/v2/models/{model}/versions/{version}/stats", get(metadata::version_stats))
        .route("/v2/models/{model}/infer", post(infer::model))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::version))
        .route("/v2/models/{model}/feedback", post(feedback::give))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route("/v2/repository/models/{model}/unload", post(repository::unload))
        .route("/metrics", get(metrics::text))
        .route("/farlight/status", get(status))
        .route("/farlight/flags", get(local::flags))
        .route("/farlight/lock", put(local::lock).delete(local::unlock))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "another method is asked for")
        })
        .layer(limit)
        .with_state(service)
}

/// What only the administrator of the device may ask, on a socket of its own.
pub fn admin(service: Service) -> Router {
    Router::new()
        .route("/farlight/status", get(status))
        .route("/farlight/install", post(local::install))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such path"))
        .layer(DefaultBodyLimit::max(local::MAX_BODY))
        .with_state(service)
}

async fn status(State(service): State<Service>) -> Response {
    Json(service.status.document(&service.models)).into_response()
}

/// An error in the protocol's form.
fn refuse(status: StatusCode, message: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": message.to_string() }))).into_response()
}

fn refuse_inference(error: &InferError) -> Response {
    use farlight_inference::RunError;
    let status = match error {
        InferError::Unknown(_) => StatusCode::NOT_FOUND,
        InferError::Busy { .. } | InferError::Off(_) | InferError::Remote(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        InferError::Stateless(_)
        | InferError::Run(RunError::Length { .. } | RunError::Inputs(_) | RunError::Contract { .. }) => {
            StatusCode::BAD_REQUEST
        }
        InferError::Run(RunError::Engine(_)) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = refuse(status, error);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = match error {
            InferError::Busy { retry_after, .. } => retry_after.as_secs_f64().ceil() as u64,
            _ => 1,
        };
        response.headers_mut().insert("retry-after", seconds.max(1).into());
    }
    response
}

/// The bound listeners.
pub struct Listeners {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the settings ask for, before anything else starts.
    ///
    /// # Errors
    /// When an address is taken or not allowed.
    pub async fn bind(settings: &settings::Http) -> Result<Self, Fatal> {
        let tcp = if settings.listen.is_empty() {
            None
        } else {
            let listener = TcpListener::bind(&settings.listen)
                .await
                .with_context(|| format!("listen on {}", settings.listen))
                .map_err(|e| {
                    Fatal::new(
                        ExitCode::Resource,
                        e,
                        "choose another address with http.listen, or stop what uses it",
                    )
                })?;
            Some(listener)
        };
        let hint = "check the folder of http.socket and its permissions";
        let unix = match settings.socket.as_os_str().is_empty() {
            true => None,
            false => Some(bind_unix(&settings.socket, 0o660, hint)?),
        };
        Ok(Self { tcp, unix })
    }

    /// Binds the administrator's socket, which only the agent's own user and root may open.
    ///
    /// # Errors
    /// When its path cannot be used.
    pub fn bind_admin(path: &Path) -> Result<Self, Fatal> {
        let hint = "set device.admin_socket to a path of under 108 bytes in a folder the agent may write";
        Ok(Self { tcp: None, unix: Some(bind_unix(path, 0o600, hint)?) })
    }

    /// The TCP address in use.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown` turns true, then finishes requests in flight.
    pub async fn serve(self, router: Router, shutdown: tokio::sync::watch::Receiver<bool>) {
        let stopped = |mut shutdown: tokio::sync::watch::Receiver<bool>| async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        let tcp = async {
            if let Some(listener) = self.tcp {
                let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                    // Answers are small: waiting to fill a packet only adds latency.
                    let _ = stream.set_nodelay(true);
                });
                let serve = axum::serve(listener, router.clone());
                if let Err(error) = serve.with_graceful_shutdown(stopped(shutdown.clone())).await {
                    tracing::error!(%error, "the TCP listener ended");
                }
            }
        };
        let unix = async {
            if let Some(listener) = self.unix {
                let serve = axum::serve(listener, router.clone());
                if let Err(error) = serve.with_graceful_shutdown(stopped(shutdown.clone())).await {
                    tracing::error!(%error, "the Unix socket ended");
                }
            }
        };
        tokio::join!(tcp, unix);
    }
}

fn bind_unix(path: &Path, mode: u32, hint: &str) -> Result<UnixListener, Fatal> {
    let fail = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("listen on {}", path.display()));
        Fatal::new(ExitCode::Resource, error, hint)
    };
    // A socket left by an earlier life is replaced; any other file is not.
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            return Err(fail(std::io::ErrorKind::AlreadyExists.into()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(fail(std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(fail)?;
    Ok(listener)
}
