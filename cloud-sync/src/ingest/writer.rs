//! The writer: takes what waits in the queue, several messages at a time, through one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farlight_wire::stream::{Accept, Watermark};
use farlight_wire::topics::{self, UpTopic};
use farlight_wire::{Ack, Batch, Case, DeviceId, Millis, Report, Seq, Stream, Window, decode, encode};
use serde::de::DeserializeOwned;
use sqlx::Row;
use tokio::sync::{mpsc, watch};

use super::link::{Incoming, Link};
use super::{cases, reports, windows};
use crate::clock;
use crate::metrics::{Metrics, StreamLabel};
use crate::store::{During, Store, StoreError, Write, int, uint};

/// Messages of one transaction: a group shares one sync to disk, and stays short for other writers.
const GROUP: usize = 64;

/// What the rest of the service may want to look at after a commit.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Devices that said hello and wait for their desired state.
    pub hellos: BTreeSet<DeviceId>,
    /// Whether updates were reported.
    pub updates: bool,
    /// Whether windows came.
    pub windows: bool,
    /// Whether a rollout was created or changed by an operator.
    pub rollouts: bool,
    /// Whether the key that signs assignments was replaced.
    pub keys: bool,
}

impl Changes {
    fn merge(&mut self, other: Self) {
        self.hellos.extend(other.hellos);
        self.updates |= other.updates;
        self.windows |= other.windows;
        self.rollouts |= other.rollouts;
        self.keys |= other.keys;
    }

    fn is_empty(&self) -> bool {
        self.hellos.is_empty() && !self.updates && !self.windows && !self.rollouts && !self.keys
    }
}

/// The ingest task.
pub struct Ingest {
    /// Where records go.
    pub store: Store,
    /// Where acknowledgements go.
    pub link: Link,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Gathers what happened until somebody takes it.
    pub changes: watch::Sender<Changes>,
}

type Key = (DeviceId, Stream, u64);

/// What one transaction did.
#[derive(Default)]
struct Group {
    marks: BTreeMap<Key, Watermark>,
    acks: BTreeSet<Key>,
    counts: BTreeMap<(DeviceId, Stream), Counts>,
    presence: BTreeMap<DeviceId, Option<bool>>,
    changes: Changes,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    stored: u64,
    duplicates: u64,
    gaps: u64,
    bytes: u64,
    refused: u64,
}

/// What became of one record.
pub(super) enum Outcome {
    /// It is a row now.
    Stored,
    /// It was a row already.
    Known,
    /// Its content breaks the rules; it is passed over so that it cannot stop the stream.
    Refused(&'static str),
}

impl Ingest {
    /// Runs until the queue's other end is gone.
    pub async fn run(self, mut incoming: mpsc::Receiver<Incoming>) {
        let mut messages = Vec::with_capacity(GROUP);
        while incoming.recv_many(&mut messages, GROUP).await > 0 {
            if let Err(error) = self.commit(&messages).await {
                // One by one, so that one message that cannot be stored harms no other.
                tracing::warn!(%error, messages = messages.len(), "group not stored; trying one by one");
                for message in &messages {
                    if let Err(error) = self.commit(std::slice::from_ref(message)).await {
                        tracing::error!(device = %message.device, %error, "message not stored; the device will send it again");
                    }
                }
            }
            messages.clear();
        }
    }

    async fn commit(&self, messages: &[Incoming]) -> Result<(), StoreError> {
        let now = clock::now();
        let mut write = self.store.write().await?;
        let mut group = Group::default();
        for message in messages {
            self.message(&mut write, &mut group, message, now).await?;
        }
        group.write_out(&mut write, now).await?;
        write.commit().await?;
        self.after(group);
        Ok(())
    }

    /// After the commit: acknowledge, count, tell the others.
    fn after(&self, group: Group) {
        self.metrics.commits.inc();
        for key in &group.acks {
            let (device, stream, epoch) = key;
            let upto = group.marks.get(key).copied().unwrap_or_default().0;
            let ack = Ack { stream: *stream, epoch: *epoch, upto };
            match encode(&ack) {
                // Without a connection the device gets no acknowledgement and sends again.
                Ok(bytes) => drop(self.link.try_publish(topics::ack(device), bytes)),
                Err(error) => tracing::error!(%device, %error, "acknowledgement not encoded"),
            }
        }
        for ((_, stream), counts) in &group.counts {
            let label = StreamLabel { stream: stream.topic() };
            let add = |family: &prometheus_client::metrics::family::Family<
                StreamLabel,
                prometheus_client::metrics::counter::Counter,
            >,
                       n| {
                family.get_or_create(&label).inc_by(n);
            };
            add(&self.metrics.records_stored, counts.stored);
            add(&self.metrics.records_duplicate, counts.duplicates);
            add(&self.metrics.batches_gap, counts.gaps);
            add(&self.metrics.bytes_received, counts.bytes);
            add(&self.metrics.records_refused, counts.refused);
        }
        if !group.changes.is_empty() {
            self.changes.send_modify(|changes| changes.merge(group.changes));
        }
    }

    async fn message(
        &self,
        write: &mut Write,
        group: &mut Group,
        message: &Incoming,
        now: Millis,
    ) -> Result<(), StoreError> {
        let device = &message.device;
        let stream = match &message.kind {
            UpTopic::Presence => {
                match message.payload.as_ref() {
                    b"1" => drop(group.presence.insert(device.clone(), Some(true))),
                    b"0" => drop(group.presence.insert(device.clone(), Some(false))),
                    _ => {
                        self.metrics.messages_refused.inc();
                    }
                }
                return Ok(());
            }
            UpTopic::Stream(stream) => *stream,
        };
        group.presence.entry(device.clone()).or_default();
        let counts = group.counts.entry((device.clone(), stream)).or_default();
        counts.bytes += message.payload.len() as u64;
        match stream {
            Stream::Telemetry => {
                let Some(batch) = self.decode::<Window>(message) else { return Ok(()) };
                let Some((new, epoch)) = group.accept(write, device, stream, &batch).await? else {
                    return Ok(());
                };
                for (seq, window) in &batch.records[new..] {
                    let outcome = windows::store(write, device, epoch, *seq, window, now).await?;
                    group.count(device, stream, outcome);
                    group.changes.windows = true;
                }
            }
            Stream::Case => {
                let Some(batch) = self.decode::<Case>(message) else { return Ok(()) };
                let Some((new, epoch)) = group.accept(write, device, stream, &batch).await? else {
                    return Ok(());
                };
                for (seq, case) in &batch.records[new..] {
                    let outcome = cases::store(write, device, epoch, *seq, case, now).await?;
                    group.count(device, stream, outcome);
                }
            }
            Stream::Report => {
                let Some(batch) = self.decode::<Report>(message) else { return Ok(()) };
                let Some((new, epoch)) = group.accept(write, device, stream, &batch).await? else {
                    return Ok(());
                };
                for (seq, report) in &batch.records[new..] {
                    let outcome =
                        reports::store(write, device, epoch, *seq, report, now, &mut group.changes).await?;
                    group.count(device, stream, outcome);
                }
            }
        }
        Ok(())
    }

    fn decode<T: DeserializeOwned>(&self, message: &Incoming) -> Option<Batch<T>> {
        let why = match decode::<Batch<T>>(&message.payload) {
            Ok(batch) if batch.is_well_formed() => return Some(batch),
            Ok(_) => "its numbers do not rise from prev, or its epoch is 0".to_owned(),
            Err(error) => error.to_string(),
        };
        self.metrics.messages_refused.inc();
        tracing::warn!(device = %message.device, why, "batch refused");
        None
    }
}

impl Group {
    /// Judges a batch: the index of its first new record, or `None` after a gap.
    async fn accept<T>(
        &mut self,
        write: &mut Write,
        device: &DeviceId,
        stream: Stream,
        batch: &Batch<T>,
    ) -> Result<Option<(usize, i64)>, StoreError> {
        let key = (device.clone(), stream, batch.epoch);
        let epoch = batch.epoch.cast_signed();
        let mark = match self.marks.get(&key) {
            Some(mark) => *mark,
            None => read_mark(write, device, stream, epoch).await?,
        };
        self.acks.insert(key.clone());
        let counts = self.counts.entry((device.clone(), stream)).or_default();
        match mark.accept(batch) {
            Accept::From(new, next) => {
                counts.duplicates += new as u64;
                self.marks.insert(key, next);
                Ok(Some((new, epoch)))
            }
            Accept::Gap => {
                counts.gaps += 1;
                self.marks.insert(key, mark);
                Ok(None)
            }
        }
    }

    fn count(&mut self, device: &DeviceId, stream: Stream, outcome: Outcome) {
        let counts = self.counts.entry((device.clone(), stream)).or_default();
        match outcome {
            Outcome::Stored => counts.stored += 1,
            Outcome::Known => counts.duplicates += 1,
            Outcome::Refused(why) => {
                counts.refused += 1;
                tracing::warn!(%device, stream = stream.topic(), why, "record refused");
            }
        }
    }

    async fn write_out(&self, write: &mut Write, now: Millis) -> Result<(), StoreError> {
        for ((device, stream, epoch), mark) in &self.marks {
            // Never moves back, also when two replicas write at the same time.
            sqlx::query(
                "INSERT INTO watermarks (device, stream, epoch, upto, updated) VALUES ($1, $2, $3, $4, $5) \
                 ON CONFLICT (device, stream, epoch) DO UPDATE SET updated = excluded.updated, \
                 upto = CASE WHEN excluded.upto > watermarks.upto THEN excluded.upto ELSE watermarks.upto END",
            )
            .bind(device.as_str())
            .bind(stream.topic())
            .bind(epoch.cast_signed())
            .bind(mark.0.0.cast_signed())
            .bind(int(now.0))
            .execute(write.connection())
            .await
            .during("move a watermark")?;
        }
        for ((device, stream), counts) in &self.counts {
            sqlx::query(
                "INSERT INTO stream_stats (device, stream, stored, duplicates, gaps, bytes) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (device, stream) DO UPDATE SET \
                 stored = stream_stats.stored + excluded.stored, \
                 duplicates = stream_stats.duplicates + excluded.duplicates, \
                 gaps = stream_stats.gaps + excluded.gaps, bytes = stream_stats.bytes + excluded.bytes",
            )
            .bind(device.as_str())
            .bind(stream.topic())
            .bind(int(counts.stored))
            .bind(int(counts.duplicates))
            .bind(int(counts.gaps))
            .bind(int(counts.bytes))
            .execute(write.connection())
            .await
            .during("count a stream")?;
        }
        for (device, presence) in &self.presence {
            let statement = match presence {
                Some(true) => "UPDATE devices SET seen = $1, online = 1 WHERE id = $2",
                // Gone: the last time it was seen stays.
                Some(false) => {
                    "UPDATE devices SET seen = CASE WHEN seen > 0 THEN seen ELSE $1 END, online = 0 WHERE id = $2"
                }
                None => "UPDATE devices SET seen = $1 WHERE id = $2",
            };
            sqlx::query(statement)
                .bind(int(now.0))
                .bind(device.as_str())
                .execute(write.connection())
                .await
                .during("note a device's presence")?;
        }
        Ok(())
    }
}

async fn read_mark(
    write: &mut Write,
    device: &DeviceId,
    stream: Stream,
    epoch: i64,
) -> Result<Watermark, StoreError> {
    let row = sqlx::query("SELECT upto FROM watermarks WHERE device = $1 AND stream = $2 AND epoch = $3")
        .bind(device.as_str())
        .bind(stream.topic())
        .bind(epoch)
        .fetch_optional(write.connection())
        .await
        .during("read a watermark")?;
    Ok(Watermark(Seq(row.map_or(0, |row| uint(row.get(0))))))
}

/// Text from a device as the database takes it: no NUL, at most `MAX_TEXT` bytes.
pub(super) fn text(raw: &str) -> String {
    let mut text: String = raw.chars().filter(|c| *c != '\0').collect();
    if text.len() > farlight_wire::limits::MAX_TEXT {
        let mut end = farlight_wire::limits::MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
