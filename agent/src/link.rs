//! The MQTT session: sends what the stores hold, hears acknowledgements, desired state and commands. One
//! task polls, one decides; each connection is a fresh client with a clean session, because nothing here
//! leans on the broker's memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use farlight_device::backoff::Backoff;
use farlight_wire::desired::Action;
use farlight_wire::topics::{self, DownTopic};
use farlight_wire::{
    Ack, Batch, Case, Command, Desired, EncodeError, Millis, Report, Seq, Stream, Window, decode, encode,
};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, LastWill, MqttOptions, QoS, TlsConfiguration, Transport,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::identity::Identity;
use crate::recorder::Recorder;
use crate::status::Status;
use crate::store::{Outbox, Row, StoreError};
use crate::update::Input;

/// Batches of one stream that may be unacknowledged at once.
const OUTSTANDING: usize = 4;
/// Records read for one batch.
const BATCH_RECORDS: usize = 64;
/// Bytes of records in one batch before compression: under the payload limit even if nothing compresses.
const BATCH_BYTES: usize = 96 * 1024;
/// No progress for so long: send again from the last acknowledgement.
const RESEND_AFTER: Duration = Duration::from_secs(5);
/// Resends without progress before the connection is given up.
const RESENDS: u32 = 3;
/// Longest wait for the broker to answer a connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// Requests in rumqttc's channel: every outstanding batch and a few small messages.
const CHANNEL: usize = 64;
/// Largest packet: the payload limit with room for the topic.
const MAX_PACKET: usize = farlight_wire::limits::MAX_PAYLOAD + 1024;

/// What the session needs.
pub struct Link {
    /// Who we are.
    pub identity: Identity,
    /// TLS settings with our certificate.
    pub tls: Arc<rustls::ClientConfig>,
    /// Windows and cases.
    pub telemetry: Outbox,
    /// Reports.
    pub reports: Outbox,
    /// Changes when windows or cases were committed.
    pub committed: watch::Receiver<u64>,
    /// Changes when a report was committed.
    pub reported: watch::Receiver<u64>,
    /// Deletes acknowledged windows and cases.
    pub recorder: Recorder,
    /// Takes desired state and acknowledged reports.
    pub updates: mpsc::Sender<Input>,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// Turns true when the agent stops.
    pub shutdown: watch::Receiver<bool>,
}

/// How a connection ended.
enum End {
    Shutdown,
    Lost(String),
}

impl Link {
    /// Runs until shutdown; reconnects with jittered backoff.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Millis(500), Millis(60_000));
        loop {
            let began = Instant::now();
            let end = self.connection().await;
            self.status.connected.store(false, Ordering::Relaxed);
            let reason = match end {
                End::Shutdown => return,
                End::Lost(reason) => reason,
            };
            if began.elapsed() > CONNECT_WITHIN {
                backoff.reset();
            }
            let wait = Duration::from_millis(backoff.next(rand::random()).0);
            tracing::warn!(reason, wait_ms = wait.as_millis() as u64, "broker connection lost");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    fn options(&self) -> MqttOptions {
        let device = &self.identity.device;
        let mut options =
            MqttOptions::new(device.as_str(), &self.identity.mqtt.host, self.identity.mqtt.port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&self.tls))))
            .set_keep_alive(Duration::from_secs(30))
            .set_clean_session(true)
            .set_max_packet_size(MAX_PACKET, MAX_PACKET)
            .set_request_channel_capacity(CHANNEL)
            .set_inflight(CHANNEL as u16)
            .set_last_will(LastWill::new(topics::presence(device), "0", QoS::AtLeastOnce, true));
        options
    }

    async fn connection(&mut self) -> End {
        let (client, event_loop) = AsyncClient::new(self.options(), CHANNEL);
        let (sender, mut events) = mpsc::channel(256);
        // `poll` is not cancel-safe, so it has a task of its own.
        let poller = Poller(tokio::spawn(poll(event_loop, sender)));
        let connected = async {
            loop {
                match events.recv().await {
                    Some(Ok(Event::Incoming(Incoming::ConnAck(_)))) => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Err("the client ended".to_owned()),
                }
            }
        };
        match tokio::time::timeout(CONNECT_WITHIN, connected).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return End::Lost(error),
            Err(_) => return End::Lost("no answer to connect".into()),
        }
        let mut session = match Session::begin(self, client) {
            Ok(session) => session,
            Err(error) => return End::Lost(error),
        };
        tracing::info!(broker = self.identity.mqtt.host, "connected");
        self.status.connected.store(true, Ordering::Relaxed);
        let end = self.converse(&mut session, &mut events).await;
        if matches!(end, End::Shutdown) {
            let _ = session.client.try_publish(
                topics::presence(&self.identity.device),
                QoS::AtLeastOnce,
                true,
                "0",
            );
            let _ = session.client.try_disconnect();
            // The poller ends by itself once both went out.
            let _ = tokio::time::timeout(Duration::from_secs(2), poller.finished()).await;
        }
        end
    }

    async fn converse(
        &mut self,
        session: &mut Session,
        events: &mut mpsc::Receiver<Result<Event, String>>,
    ) -> End {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        if self.updates.send(Input::Connected).await.is_err() {
            return End::Shutdown;
        }
        loop {
            let mut heard = None;
            tokio::select! {
                event = events.recv() => match event {
                    Some(Ok(Event::Incoming(Incoming::Publish(publish)))) => heard = Some(publish),
                    Some(Ok(Event::Incoming(Incoming::Disconnect))) => return End::Lost("the broker disconnected".into()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return End::Lost(error),
                    None => return End::Lost("the client ended".into()),
                },
                changed = self.committed.changed() => if changed.is_err() { return End::Shutdown },
                changed = self.reported.changed() => if changed.is_err() { return End::Shutdown },
                _ = tick.tick() => {
                    if session.lanes.iter_mut().any(Lane::is_stuck) {
                        return End::Lost("no acknowledgement from the cloud".into());
                    }
                }
                _ = self.shutdown.wait_for(|stop| *stop) => return End::Shutdown,
            }
            if let Some(publish) = heard
                && let Some(input) = self.hear(session, &publish.topic, &publish.payload)
                && self.updates.send(input).await.is_err()
            {
                return End::Shutdown;
            }
            for stream in Stream::ALL {
                if let Err(error) = self.pump(session, stream) {
                    return End::Lost(error.to_string());
                }
            }
        }
    }

    /// Takes a message; what it asks of the update driver, if anything.
    fn hear(&self, session: &mut Session, topic: &str, payload: &[u8]) -> Option<Input> {
        let Some(kind) = topics::parse_down(&self.identity.device, topic) else {
            tracing::warn!(topic, "message on a topic that is not ours");
            return None;
        };
        let input = match kind {
            DownTopic::Ack => decode::<Ack>(payload).map(|ack| {
                self.acknowledged(session, ack);
                None
            }),
            DownTopic::Want => {
                decode::<Desired>(payload).map(|desired| Some(Input::Desired(desired.assignment)))
            }
            DownTopic::Cmd => decode::<Command>(payload).map(|command| {
                if command.action == Action::Flush {
                    self.recorder.flush();
                }
                Some(Input::Command(command))
            }),
        };
        input.unwrap_or_else(|error| {
            tracing::warn!(topic, %error, "message ignored");
            None
        })
    }

    fn acknowledged(&self, session: &mut Session, ack: Ack) {
        let lane = session.lane(ack.stream);
        if ack.epoch != lane.epoch || !lane.acknowledged(ack.upto) {
            return;
        }
        match ack.stream {
            Stream::Report => {
                // Lost when the queue is full; the cloud acknowledges again.
                let _ = self.updates.try_send(Input::ReportsAcknowledged(ack.upto));
            }
            Stream::Telemetry | Stream::Case => self.recorder.acknowledged(ack.stream, ack.upto),
        }
    }

    fn outbox(&self, stream: Stream) -> &Outbox {
        match stream {
            Stream::Report => &self.reports,
            Stream::Telemetry | Stream::Case => &self.telemetry,
        }
    }

    /// Sends batches of a stream until enough are outstanding or nothing waits.
    fn pump(&self, session: &mut Session, stream: Stream) -> Result<(), StoreError> {
        let outbox = self.outbox(stream);
        let topic = topics::up(&self.identity.device, stream);
        let mut limit = BATCH_RECORDS;
        loop {
            let lane = session.lane(stream);
            if lane.outstanding.len() >= OUTSTANDING {
                break;
            }
            let rows = outbox.after(stream, lane.sent, limit, BATCH_BYTES)?;
            let Some(last) = rows.last().map(|row| row.seq) else { break };
            let (epoch, acked, prev) = (lane.epoch, lane.acked, lane.sent);
            let payload = match stream {
                Stream::Telemetry => payload::<Window>(epoch, acked, prev, rows),
                Stream::Case => payload::<Case>(epoch, acked, prev, rows),
                Stream::Report => payload::<Report>(epoch, acked, prev, rows),
            };
            match payload {
                Ok(payload) => {
                    if session.client.try_publish(topic.clone(), QoS::AtLeastOnce, false, payload).is_err() {
                        // rumqttc's channel is full: the next event tries again.
                        break;
                    }
                    session.lane(stream).sent(last);
                    limit = BATCH_RECORDS;
                }
                Err(_) if limit > 1 => limit /= 2,
                Err(error) => {
                    tracing::error!(%error, seq = last.0, "record cannot be sent; skipped");
                    session.lane(stream).sent = last;
                }
            }
        }
        self.status.set_waiting(stream, outbox.waiting(stream)?);
        Ok(())
    }
}

/// Encodes a batch; records whose checksum differs are left out and said so in the log.
fn payload<T: Serialize + DeserializeOwned>(
    epoch: u64,
    acked: Seq,
    prev: Seq,
    rows: Vec<Row>,
) -> Result<Vec<u8>, EncodeError> {
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        let record = row.bytes.as_deref().and_then(|bytes| postcard::from_bytes::<T>(bytes).ok());
        match record {
            Some(record) => records.push((row.seq, record)),
            None => tracing::error!(seq = row.seq.0, "stored record is damaged; it is lost"),
        }
    }
    encode(&Batch { epoch, acked, prev, records })
}

/// The task that polls; aborted when the connection is given up.
struct Poller(tokio::task::JoinHandle<()>);

impl Poller {
    async fn finished(mut self) {
        let _ = (&mut self.0).await;
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn poll(mut event_loop: EventLoop, sender: mpsc::Sender<Result<Event, String>>) {
    loop {
        let event = event_loop.poll().await.map_err(|error| error.to_string());
        let failed = event.is_err();
        if sender.send(event).await.is_err() || failed {
            return;
        }
    }
}

/// One connection.
struct Session {
    client: AsyncClient,
    lanes: [Lane; 3],
}

impl Session {
    fn begin(link: &Link, client: AsyncClient) -> Result<Self, String> {
        let device = &link.identity.device;
        client
            .try_subscribe(topics::down_filter(device), QoS::AtLeastOnce)
            .and_then(|()| client.try_publish(topics::presence(device), QoS::AtLeastOnce, true, "1"))
            .map_err(|error| error.to_string())?;
        let lane = |stream| -> Result<Lane, String> {
            let outbox = link.outbox(stream);
            let acked = outbox.acked(stream).map_err(|error| error.to_string())?;
            Ok(Lane {
                stream,
                epoch: outbox.epoch,
                acked,
                sent: acked,
                outstanding: VecDeque::new(),
                progress: Instant::now(),
                resends: 0,
            })
        };
        Ok(Self { client, lanes: [lane(Stream::Report)?, lane(Stream::Telemetry)?, lane(Stream::Case)?] })
    }

    fn lane(&mut self, stream: Stream) -> &mut Lane {
        let index = match stream {
            Stream::Report => 0,
            Stream::Telemetry => 1,
            Stream::Case => 2,
        };
        &mut self.lanes[index]
    }
}

/// Where one stream stands in one connection.
struct Lane {
    stream: Stream,
    epoch: u64,
    acked: Seq,
    sent: Seq,
    /// Last numbers of the batches that are out.
    outstanding: VecDeque<Seq>,
    progress: Instant,
    resends: u32,
}

impl Lane {
    fn sent(&mut self, last: Seq) {
        if self.outstanding.is_empty() {
            self.progress = Instant::now();
        }
        self.sent = last;
        self.outstanding.push_back(last);
    }

    /// Takes an acknowledgement; `false` when it brings nothing new.
    fn acknowledged(&mut self, upto: Seq) -> bool {
        if upto <= self.acked {
            return false;
        }
        self.acked = upto;
        self.sent = self.sent.max(upto);
        while self.outstanding.front().is_some_and(|last| *last <= upto) {
            self.outstanding.pop_front();
        }
        self.progress = Instant::now();
        self.resends = 0;
        true
    }

    /// Goes back to the last acknowledgement when there is no progress; `true` when that did not help.
    fn is_stuck(&mut self) -> bool {
        if self.outstanding.is_empty() || self.progress.elapsed() < RESEND_AFTER {
            return false;
        }
        self.resends += 1;
        tracing::debug!(stream = self.stream.topic(), from = self.acked.0, "sending again");
        self.sent = self.acked;
        self.outstanding.clear();
        self.progress = Instant::now();
        self.resends > RESENDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane {
            stream: Stream::Telemetry,
            epoch: 1,
            acked: Seq(10),
            sent: Seq(10),
            outstanding: VecDeque::new(),
            progress: Instant::now(),
            resends: 0,
        }
    }

    #[test]
    fn acknowledgements_free_places_and_old_ones_are_ignored() {
        let mut lane = lane();
        for last in [12, 15, 20] {
            lane.sent(Seq(last));
        }
        assert!(!lane.acknowledged(Seq(10)));
        assert!(lane.acknowledged(Seq(15)));
        assert_eq!((lane.outstanding.len(), lane.sent), (1, Seq(20)));
        // The cloud is ahead of this connection after a lost acknowledgement.
        assert!(lane.acknowledged(Seq(30)));
        assert_eq!((lane.outstanding.len(), lane.sent), (0, Seq(30)));
    }

    #[test]
    fn without_progress_it_goes_back_and_then_gives_up() {
        let mut lane = lane();
        for round in 0..=RESENDS {
            lane.sent(Seq(12));
            lane.progress = Instant::now().checked_sub(RESEND_AFTER).unwrap();
            assert_eq!(lane.is_stuck(), round == RESENDS);
            assert_eq!(lane.sent, Seq(10));
        }
    }
}
