//! The life of the service: open what is on disk, listen, say that it is ready, serve until asked to
//! end, end in order.

use std::io::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use utoipa::ToSchema;

use crate::api::{self, ApiError, Query, Server};
use crate::app::{Addresses, App, Shared};
use crate::broker::{Access, Broker, Front, SERVICE_USER};
use crate::cases::feedback;
use crate::devices;
use crate::enrol::{Authority, Secret};
use crate::exit::Exit;
use crate::files;
use crate::ingest::{Changes, Ingest, Link, LinkSettings};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::settings::Settings;
use crate::store::{self, AuditEntry, Store};
use crate::{drift, retention, rollouts};

/// Messages between the broker and the writer: at most 64 MiB of payload.
const INCOMING: usize = 512;

/// Libraries that say more than anybody wants to read.
const QUIET: [&str; 2] = ["mqtt5", "sqlx"];

/// A service that could not start or go on: how the process ends, and what to say.
pub type Failure = (Exit, String);

fn unavailable(error: impl std::fmt::Display) -> Failure {
    (Exit::Unavailable, error.to_string())
}

/// Logs to standard error; `RUST_LOG` chooses what.
pub fn start_tracing() {
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let asked = asked.and_then(|text| text.parse::<Targets>().ok());
    let usual = || Targets::new().with_default(Level::INFO).with_targets(QUIET.map(|of| (of, Level::WARN)));
    let shown = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _ = tracing_subscriber::registry().with(asked.unwrap_or_else(usual)).with(shown).try_init();
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// How the process is to end, and why.
pub fn run(settings: Settings) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(unavailable)?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).map_err(unavailable)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unavailable)?;
        let service = Service::start(settings, shutdown.clone()).await?;
        service.announce().map_err(unavailable)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        service.end().await;
        Ok(())
    })
}

/// A running service. Tests start it in process; [`run`] is all a binary needs.
pub struct Service {
    /// The shared state.
    pub app: Shared,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    broker: Broker,
}

impl Service {
    /// Opens everything and begins to serve; ends when `shutdown` is cancelled.
    ///
    /// # Errors
    /// How the process is to end, and why.
    pub async fn start(settings: Settings, shutdown: CancellationToken) -> Result<Self, Failure> {
        // One TLS provider in the whole process; an error only means that it is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        files::folder(&settings.data).map_err(unavailable)?;
        let authority = Authority::open(&settings.data.join("ca")).map_err(unavailable)?;
        let store = Store::open(&settings.database).await.map_err(unavailable)?;
        let registry = Registry::open(&settings.data, store.clone()).await.map_err(unavailable)?;
        let identity = authority.server(&settings.hosts).map_err(|e| (Exit::Usage, e.to_string()))?;
        let server = Server::bind(settings.listen, identity).await.map_err(unavailable)?;
        let mqtt = TcpListener::bind(settings.mqtt)
            .await
            .map_err(|e| unavailable(format!("listen on {}: {e}; choose another --mqtt", settings.mqtt)))?;
        let addresses = Addresses {
            api: server.address().map_err(unavailable)?,
            mqtt: mqtt.local_addr().map_err(unavailable)?,
            host: settings.hosts.first().cloned().unwrap_or_else(|| "127.0.0.1".to_owned()),
        };
        api::prepare_operator(&store, &settings.data, addresses.url(), authority.ca_pem().to_owned())
            .await
            .map_err(unavailable)?;
        let secret = Secret::generate();
        let access = Arc::new(Access::new(&secret));
        let broker = Broker::start(Arc::clone(&access)).await.map_err(unavailable)?;
        let front = Front::new(
            authority.server(&settings.hosts).map_err(unavailable)?,
            authority.ca_der().map_err(unavailable)?,
            broker.address(),
            Arc::clone(&access),
            store.clone(),
        )
        .map_err(unavailable)?;
        let metrics = Arc::new(Metrics::default());
        let (incoming, messages) = mpsc::channel(INCOMING);
        let link_settings = LinkSettings {
            host: broker.address().ip().to_string(),
            port: broker.address().port(),
            credentials: (SERVICE_USER.to_owned(), secret.reveal().to_owned()),
        };
        let (link, drive_link) = Link::new(link_settings, incoming, Arc::clone(&metrics), shutdown.clone());
        let (changes, _) = watch::channel(Changes::default());
        let ingest = Ingest {
            store: store.clone(),
            link: link.clone(),
            metrics: Arc::clone(&metrics),
            changes: changes.clone(),
        };
        let app =
            Arc::new(App { settings, addresses, store, authority, registry, access, link, metrics, changes });
        devices::all_offline(&app.store).await.map_err(unavailable)?;
        let mut tasks = vec![
            tokio::spawn(drive_link),
            tokio::spawn(ingest.run(messages)),
            tokio::spawn(app.registry.clone().keep_fresh(shutdown.clone())),
            tokio::spawn(rollouts::drive(Arc::clone(&app), shutdown.clone())),
            tokio::spawn(drift::watch(Arc::clone(&app), shutdown.clone())),
            tokio::spawn(feedback::label(Arc::clone(&app), shutdown.clone())),
            tokio::spawn(retention::enforce(Arc::clone(&app), shutdown.clone())),
        ];
        // Devices may come only when their messages can be stored.
        app.link.up().await.map_err(unavailable)?;
        tasks.push(tokio::spawn(front.serve(mqtt, shutdown.clone())));
        tasks.push(tokio::spawn(server.serve(api::router(Arc::clone(&app)), shutdown)));
        Ok(Self { app, tasks, broker })
    }

    /// Says on standard output, as one line of JSON, that the service is ready and where.
    fn announce(&self) -> std::io::Result<()> {
        let addresses = &self.app.addresses;
        let line = serde_json::json!({
            "event": "ready",
            "api": addresses.url(),
            "mqtt": format!("{}:{}", addresses.host, addresses.mqtt.port()),
            "console": format!("{}/console", addresses.url()),
        });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// Waits for the tasks after a shutdown, then closes the database.
    pub async fn end(self) {
        for task in self.tasks {
            let _ = task.await;
        }
        self.broker.end().await;
        self.app.store.close().await;
    }
}

/// Whether the service works.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: &'static str,
    /// Version of the service.
    pub version: &'static str,
}

/// Whether the service and its database work.
#[utoipa::path(get, path = "/api/v1/health", tag = "service", responses((status = 200, body = Health)))]
pub async fn health(State(app): State<Shared>) -> Result<Json<Health>, ApiError> {
    store::audit_entries(&app.store, 1).await?;
    Ok(Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") }))
}

/// How many entries.
#[derive(Debug, Deserialize)]
pub struct AuditQuery {
    #[serde(default = "hundred")]
    limit: u32,
}

fn hundred() -> u32 {
    100
}

/// The newest changes, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "service", params(("limit" = Option<u32>, Query)),
    responses((status = 200, body = [AuditEntry]), (status = 401)))]
pub async fn audit_log(
    State(app): State<Shared>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>, ApiError> {
    Ok(Json(store::audit_entries(&app.store, query.limit).await?))
}

/// Metrics in Prometheus' text format; needs an operator's token like the API.
pub async fn metrics(State(app): State<Shared>, headers: axum::http::HeaderMap) -> Result<String, ApiError> {
    api::operator_of(&app, &headers).await?;
    app.metrics.devices_online.set(i64::try_from(app.access.sessions.count()).unwrap_or(i64::MAX));
    app.metrics.text().map_err(ApiError::internal)
}
