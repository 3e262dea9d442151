//! The embedded MQTT broker: `mqtt5` on a loopback port that only our TLS front can use, and the
//! front itself. Nothing here knows what the messages mean.

mod access;
mod front;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use farlight_wire::limits::MAX_PAYLOAD;
use mqtt5::broker::config::{AuthConfig, BrokerConfig, RateLimitConfig, StorageBackend, StorageConfig};
use mqtt5::broker::{BrokerShutdownHandle, MqttBroker};
use tokio::task::JoinHandle;

pub use access::{Access, SERVICE_USER, Sessions};
pub use front::{Front, FrontError};

/// Most devices connected at a time; each costs about 30 KiB.
const MAX_CLIENTS: usize = 100_000;
/// Room for topic and header around the largest payload.
const PACKET_OVERHEAD: usize = 1024;
/// Messages waiting for one client; more are dropped, and devices send again.
const CLIENT_QUEUE: usize = 4096;
/// Bytes waiting for one client.
const CLIENT_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// How long a session outlives its connection: the protocol does not lean on sessions.
const SESSION_EXPIRY: Duration = Duration::from_secs(3600);
/// Retained messages: a presence byte and a desired state for each device.
const MAX_RETAINED: usize = 2 * MAX_CLIENTS;
/// Time for connections to close when the service ends.
const DRAIN: Duration = Duration::from_secs(5);

/// What can go wrong with the embedded broker.
#[derive(Debug, thiserror::Error)]
#[error("start the embedded MQTT broker: {0}")]
pub struct BrokerError(String);

/// The running broker.
pub struct Broker {
    address: SocketAddr,
    shutdown: BrokerShutdownHandle,
    task: JoinHandle<()>,
}

impl Broker {
    /// Starts the broker on a free loopback port.
    ///
    /// # Errors
    /// [`BrokerError`] when it cannot listen.
    pub async fn start(access: Arc<Access>) -> Result<Self, BrokerError> {
        let fail = |error: mqtt5::MqttError| BrokerError(error.to_string());
        let config = BrokerConfig {
            bind_addresses: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            max_clients: MAX_CLIENTS,
            session_expiry_interval: SESSION_EXPIRY,
            max_packet_size: MAX_PAYLOAD + PACKET_OVERHEAD,
            max_retained_messages: MAX_RETAINED,
            max_retained_message_size: MAX_PAYLOAD,
            max_subscriptions_per_client: 16,
            client_channel_capacity: CLIENT_QUEUE,
            // Our own rules replace the broker's, which would otherwise want a password file; and every
            // connection comes from our front, so a limit by address would hit all devices.
            auth_config: AuthConfig {
                allow_anonymous: true,
                rate_limit: RateLimitConfig { enabled: false, ..RateLimitConfig::default() },
                ..AuthConfig::default()
            },
            storage_config: StorageConfig {
                backend: StorageBackend::Memory,
                enable_persistence: false,
                max_queued_messages_per_client: CLIENT_QUEUE,
                max_queued_bytes_per_client: CLIENT_QUEUE_BYTES,
                ..StorageConfig::default()
            },
            sys_topics_enabled: false,
            ..BrokerConfig::default()
        };
        let mut broker = MqttBroker::with_config(config).await.map_err(fail)?.with_auth_provider(access);
        let address =
            broker.local_addr().ok_or_else(|| BrokerError("it does not say its address".to_owned()))?;
        let shutdown = broker.shutdown_handle();
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move {
            if let Err(error) = broker.run().await {
                tracing::error!(%error, "the embedded MQTT broker ended");
            }
        });
        ready.wait_for(|ready| *ready).await.map_err(|_| BrokerError("it ended at once".to_owned()))?;
        Ok(Self { address, shutdown, task })
    }

    /// Its loopback address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub async fn end(mut self) {
        self.shutdown.shutdown();
        if tokio::time::timeout(DRAIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
