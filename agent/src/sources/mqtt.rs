//! Messages of a broker on the gateway: inputs or samples in, a prediction as JSON out. Also the session that other
//! sources send their answers through.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use farlight_device::backoff::Backoff;
use farlight_wire::Millis;
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, Publish, QoS, TlsConfiguration, Transport,
};

use super::feed::{Feed, Full, QUEUE, Samples};
use super::sink::Sink;
use super::{Base, MAX_INPUT, form};
use crate::identity;
use crate::settings::source::{Broker, Format, Mqtt, Output};

/// Answers that may wait for the broker.
const CHANNEL: usize = 64;
/// Largest packet in bytes: an input and its topic.
const MAX_PACKET: usize = MAX_INPUT + (1 << 16);
/// Largest file with a password or CA certificates in bytes.
const MAX_FILE: u64 = 1 << 20;
/// First and longest wait before a broker is tried again.
const RETRY: (Millis, Millis) = (Millis(500), Millis(30_000));

/// Answers the messages of a topic until shutdown.
pub(super) async fn run(base: Base, settings: Mqtt) -> anyhow::Result<()> {
    let mut session = Session::begin(Broker::from(&settings), Some(&settings.input_topic)).await;
    let sink = Sink::Topic { client: session.client.clone(), template: settings.output_topic.clone() };
    let (mut feed, _tasks) = Feed::start(&base, &sink, Full::DropOldest, QUEUE, settings.window);
    loop {
        let publish = session.next().await;
        hear(&mut feed, &settings, &publish).await;
    }
}

async fn hear(feed: &mut Feed, settings: &Mqtt, publish: &Publish) {
    let (topic, payload) = (publish.topic.as_str(), &publish.payload);
    let raw = || form::elements(payload, settings.datatype);
    if settings.window.is_none() {
        let whole = match settings.format {
            Format::Json => form::whole(payload),
            Format::Raw => raw().map(|data| form::Whole { id: String::new(), data }),
        };
        return match whole {
            Ok(whole) => feed.input(&whole.id, topic, Ok(whole.data)).await,
            Err(error) => feed.input("", topic, Err(error)).await,
        };
    }
    let samples = match settings.format {
        Format::Json => form::samples(payload).map(Samples::Each),
        Format::Raw => raw().map(Samples::Flat),
    };
    match samples {
        Ok(samples) => feed.samples(topic, &samples).await,
        Err(error) => feed.input("", topic, Err(error)).await,
    }
}

/// The topic that a source's answers go to, with a session kept for it; nowhere without.
pub(super) async fn output(base: &Base, output: Option<Output>) -> Sink {
    let Some(output) = output else { return Sink::Nowhere };
    let (begun, client) = tokio::sync::oneshot::channel();
    let template = output.topic.clone();
    base.spawn(async move {
        let mut session = Session::begin(Broker::from(&output), None).await;
        // Only at the shutdown nobody waits for it.
        let _ = begun.send(session.client.clone());
        loop {
            session.next().await;
        }
    });
    client.await.map_or(Sink::Nowhere, |client| Sink::Topic { client, template })
}

/// A session that is kept for ever, with jittered backoff.
struct Session<'a> {
    broker: Broker<'a>,
    client: AsyncClient,
    events: EventLoop,
    /// What it hears.
    filter: Option<&'a str>,
    backoff: Backoff,
}

impl<'a> Session<'a> {
    /// Reads what a session needs; tries again until it is there.
    async fn begin(broker: Broker<'a>, filter: Option<&'a str>) -> Self {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match options(&broker) {
                Ok(options) => {
                    let (client, events) = AsyncClient::new(options, CHANNEL);
                    return Self { broker, client, events, filter, backoff };
                }
                Err(error) => tracing::warn!(host = broker.host, "local broker: {error:#}"),
            }
            pause(&mut backoff).await;
        }
    }

    /// The next message.
    async fn next(&mut self) -> Publish {
        loop {
            match self.events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    self.backoff.reset();
                    if let Some(filter) = self.filter {
                        // The channel may be full of answers, which only leave while this loop turns.
                        let (client, filter) = (self.client.clone(), filter.to_owned());
                        tokio::spawn(async move { client.subscribe(filter, QoS::AtLeastOnce).await });
                    }
                }
                Ok(Event::Incoming(Incoming::Publish(publish))) => return publish,
                Ok(_) => {}
                Err(error) => {
                    let Broker { host, port, .. } = self.broker;
                    tracing::warn!(host, port, %error, "local broker lost");
                    pause(&mut self.backoff).await;
                    // Passwords and certificates may have been replaced.
                    if let Ok(options) = options(&self.broker) {
                        self.events.mqtt_options = options;
                    }
                }
            }
        }
    }
}

async fn pause(backoff: &mut Backoff) {
    tokio::time::sleep(Duration::from_millis(backoff.next(rand::random()).0)).await;
}

fn options(broker: &Broker<'_>) -> anyhow::Result<MqttOptions> {
    let read = |path: &std::path::Path| -> anyhow::Result<String> {
        let bytes = crate::durable::read_limited(path, MAX_FILE)
            .and_then(|bytes| bytes.ok_or(std::io::ErrorKind::NotFound.into()))
            .with_context(|| format!("read {}", path.display()))?;
        String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))
    };
    let id = format!("farlight-{:08x}", rand::random::<u32>());
    let mut options = MqttOptions::new(id, broker.host, broker.port);
    options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(MAX_PACKET, MAX_PACKET);
    if let Some(user) = broker.user {
        let password = broker.password_file.map(read).transpose()?.unwrap_or_default();
        options.set_credentials(user, password.trim_end_matches(['\r', '\n']));
    }
    if let Some(path) = broker.ca_file {
        let roots = identity::roots(&read(path)?).with_context(|| format!("use {}", path.display()))?;
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
    }
    Ok(options)
}
