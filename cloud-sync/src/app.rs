//! What every request handler and task of the service shares. Parts are cheap to clone or behind
//! `Arc`; nothing here is mutable except through the part's own rules.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::broker::Access;
use crate::enrol::Authority;
use crate::ingest::{Changes, Link};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::settings::Settings;
use crate::store::Store;

/// The shared state, handed to handlers as `State<Shared>`.
pub type Shared = Arc<App>;

/// What the parts of the service share.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub settings: Settings,
    /// The addresses in use, with the ports the system gave.
    pub addresses: Addresses,
    /// The database.
    pub store: Store,
    /// The certificate authority.
    pub authority: Authority,
    /// The registry of releases.
    pub registry: Registry,
    /// Who is connected to the embedded broker.
    pub access: Arc<Access>,
    /// The connection to the broker.
    pub link: Link,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What happened since the rollout driver last looked; waking it is changing this.
    pub changes: watch::Sender<Changes>,
}

/// Where the service listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The HTTPS listener.
    pub api: SocketAddr,
    /// The MQTT listener.
    pub mqtt: SocketAddr,
    /// Host that goes into URLs.
    pub host: String,
}

impl Addresses {
    /// Base URL of the service, without a slash at the end.
    pub fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("https://{host}:{}", self.api.port())
    }
}
