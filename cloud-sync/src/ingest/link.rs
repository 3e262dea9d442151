//! The service's MQTT connection. One task only polls; each connection gets a fresh client and a
//! clean session; messages go on through a bounded queue, and what does not fit is dropped and
//! counted, because the device sends it again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farlight_wire::limits::MAX_PAYLOAD;
use farlight_wire::topics::{self, UpTopic};
use farlight_wire::{DeviceId, Stream};
use rand::Rng;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS, SubscribeFilter};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Requests waiting to be sent.
const OUTGOING: usize = 8192;
/// Room for topic and header around the largest payload.
const PACKET_OVERHEAD: usize = 1024;
/// First and longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(20));
/// Keep-alive: how fast a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a publish waits for the connection.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);

/// How to connect.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// Host of the broker.
    pub host: String,
    /// Port of the broker.
    pub port: u16,
    /// User name and password.
    pub credentials: (String, String),
}

/// A message from a device.
#[derive(Debug)]
pub struct Incoming {
    /// The device, from the topic; the broker's access rules make it true.
    pub device: DeviceId,
    /// What the payload is.
    pub kind: UpTopic,
    /// The payload.
    pub payload: Bytes,
}

/// The broker cannot be reached now.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the MQTT broker cannot be reached")]
pub struct LinkDown;

/// For publishing; cheap to clone.
#[derive(Clone)]
pub struct Link {
    client: watch::Receiver<Option<AsyncClient>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl Link {
    /// A link and the task that drives it until `shutdown`; messages arrive on `incoming`.
    pub fn new(
        settings: LinkSettings,
        incoming: mpsc::Sender<Incoming>,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (publish, client) = watch::channel(None);
        let driver = Driver { settings, incoming, metrics, publish };
        let task = async move {
            tokio::select! {
                () = driver.run() => {}
                () = shutdown.cancelled() => {}
            }
        };
        (Self { client }, task)
    }

    /// Publishes without waiting; for what the other side asks for again.
    ///
    /// # Errors
    /// [`LinkDown`] when there is no connection or its queue is full.
    pub fn try_publish(&self, topic: String, payload: Vec<u8>) -> Result<(), LinkDown> {
        let client = self.client.borrow();
        let client = client.as_ref().ok_or(LinkDown)?;
        client.try_publish(topic, QoS::AtLeastOnce, false, payload).map_err(|_| LinkDown)
    }

    /// Publishes a retained message, waiting a while for the connection.
    ///
    /// # Errors
    /// [`LinkDown`] when there is no connection in that time.
    pub async fn publish_retained(&self, topic: String, payload: Vec<u8>) -> Result<(), LinkDown> {
        let mut changes = self.client.clone();
        let publish = async {
            let client = changes.wait_for(Option::is_some).await.map_err(|_| LinkDown)?.clone();
            client
                .ok_or(LinkDown)?
                .publish(topic, QoS::AtLeastOnce, true, payload)
                .await
                .map_err(|_| LinkDown)
        };
        tokio::time::timeout(PUBLISH_WAIT, publish).await.map_err(|_| LinkDown)?
    }

    /// Waits until the connection is up and subscribed.
    ///
    /// # Errors
    /// [`LinkDown`] when the task has ended.
    pub async fn up(&self) -> Result<(), LinkDown> {
        self.client.clone().wait_for(Option::is_some).await.map(|_| ()).map_err(|_| LinkDown)
    }
}

struct Driver {
    settings: LinkSettings,
    incoming: mpsc::Sender<Incoming>,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Option<AsyncClient>>,
}

impl Driver {
    async fn run(self) {
        let mut wait = BACKOFF.0;
        loop {
            let (client, mut events) = self.connect();
            let was_up = self.poll(&client, &mut events).await;
            self.publish.send_replace(None);
            if was_up {
                wait = BACKOFF.0;
            }
            // Full jitter, so that replicas do not come back in step.
            let pause = rand::rng().random_range(BACKOFF.0..=wait.max(BACKOFF.0));
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    fn connect(&self) -> (AsyncClient, EventLoop) {
        let id = format!("farlight-cloud-{:016x}", rand::random::<u64>());
        let mut options = MqttOptions::new(id, self.settings.host.clone(), self.settings.port);
        let (user, password) = &self.settings.credentials;
        options.set_credentials(user, password);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_clean_session(true);
        options.set_inflight(1000);
        options.set_max_packet_size(MAX_PAYLOAD + PACKET_OVERHEAD, MAX_PAYLOAD + PACKET_OVERHEAD);
        AsyncClient::new(options, OUTGOING)
    }

    /// Polls until the connection breaks; says whether it was ever up.
    async fn poll(&self, client: &AsyncClient, events: &mut EventLoop) -> bool {
        let mut up = false;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    let mut filters: Vec<String> = Stream::ALL.into_iter().map(topics::up_filter).collect();
                    filters.push(topics::presence_filter().to_owned());
                    let filters =
                        filters.into_iter().map(|path| SubscribeFilter::new(path, QoS::AtLeastOnce));
                    if client.try_subscribe_many(filters).is_err() {
                        return up;
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => {
                    up = true;
                    self.publish.send_replace(Some(client.clone()));
                    tracing::info!(broker = %self.settings.host, "connected to the MQTT broker");
                }
                Ok(Event::Incoming(Packet::Publish(message))) => self.pass_on(message),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the connection to the MQTT broker ended");
                    return up;
                }
            }
        }
    }

    fn pass_on(&self, message: Publish) {
        let Some((device, kind)) = topics::parse_up(&message.topic) else {
            self.metrics.messages_refused.inc();
            return;
        };
        if self.incoming.try_send(Incoming { device, kind, payload: message.payload }).is_err() {
            self.metrics.messages_dropped.inc();
        }
    }
}
