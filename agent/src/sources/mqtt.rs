//! Tensors from a broker on the gateway: `{"id": "…", "data": [numbers]}` in, a prediction as JSON out.

use std::time::Duration;

use farlight_device::backoff::Backoff;
use farlight_wire::Millis;
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::ask;
use crate::models::Models;

/// Inputs that may wait; more are dropped and said so.
const QUEUE: usize = 64;
/// Largest packet in bytes.
const MAX_PACKET: usize = 1024 * 1024;

/// One input topic.
pub(super) struct Mqtt {
    pub(super) model: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) input_topic: String,
    pub(super) output_topic: String,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    id: String,
    data: Vec<f32>,
}

impl Mqtt {
    /// Runs until shutdown; reconnects with jittered backoff.
    pub(super) async fn run(self, models: &Models, mut shutdown: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(Millis(500), Millis(30_000));
        loop {
            let reason = tokio::select! {
                reason = self.connection(models, &mut backoff) => reason,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            let wait = Duration::from_millis(backoff.next(rand::random()).0);
            tracing::warn!(topic = self.input_topic, reason, "local broker lost");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn connection(&self, models: &Models, backoff: &mut Backoff) -> String {
        let id = format!("farlight-{:08x}", rand::random::<u32>());
        let mut options = MqttOptions::new(id, &self.host, self.port);
        options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(MAX_PACKET, MAX_PACKET);
        let (client, mut event_loop) = AsyncClient::new(options, QUEUE);
        let (sender, mut inputs) = mpsc::channel::<Vec<u8>>(QUEUE);
        let topic = self.input_topic.clone();
        let subscriber = client.clone();
        // Polls alone: answering must not hold up the session.
        let poller = tokio::spawn(async move {
            loop {
                match event_loop.poll().await {
                    Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                        if let Err(error) = subscriber.try_subscribe(&topic, QoS::AtLeastOnce) {
                            return error.to_string();
                        }
                    }
                    Ok(Event::Incoming(Incoming::Publish(publish))) => {
                        if sender.try_send(publish.payload.to_vec()).is_err() {
                            tracing::warn!(topic, "an input was dropped: the model is slower than its topic");
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return error.to_string(),
                }
            }
        });
        while let Some(payload) = inputs.recv().await {
            backoff.reset();
            let answer = self.answer(models, &payload).await;
            if client.try_publish(&self.output_topic, QoS::AtLeastOnce, false, answer).is_err() {
                tracing::warn!(topic = self.output_topic, "an answer was dropped: the broker is too slow");
            }
        }
        poller.await.unwrap_or_else(|error| error.to_string())
    }

    async fn answer(&self, models: &Models, payload: &[u8]) -> String {
        let input: Input = match serde_json::from_slice(payload) {
            Ok(input) => input,
            Err(error) => return json!({ "error": format!("input is not valid: {error}") }).to_string(),
        };
        match ask(models, &self.model, &input.id, input.data).await {
            Ok(answer) => answer.to_string(),
            Err(error) => json!({ "id": input.id, "error": error.to_string() }).to_string(),
        }
    }
}
