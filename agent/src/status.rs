//! What the agent says of itself at `GET /farlight/status` and in `farlight-agent status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use farlight_wire::Stream;
use serde_json::{Value, json};

use crate::clock;
use crate::models::Models;
use crate::sources::Tally;

/// Shared by the tasks, each of which writes its own part.
#[derive(Debug)]
pub struct Status {
    device: String,
    fleet: String,
    started: u64,
    /// Whether the broker connection is up.
    pub connected: AtomicBool,
    waiting: [AtomicU64; 3],
    updates: Mutex<BTreeMap<String, Value>>,
    /// What activations wait for, and the configuration in force.
    notes: Mutex<Notes>,
    sources: OnceLock<Vec<Arc<Tally>>>,
}

#[derive(Debug, Default)]
struct Notes {
    hold: Option<String>,
    config: Option<String>,
}

impl Status {
    /// A status at start.
    pub fn new(device: &str, fleet: &str) -> Self {
        Self {
            device: device.to_owned(),
            fleet: fleet.to_owned(),
            started: clock::now().0,
            connected: AtomicBool::new(false),
            waiting: [const { AtomicU64::new(0) }; 3],
            updates: Mutex::default(),
            notes: Mutex::default(),
            sources: OnceLock::new(),
        }
    }

    fn slot(&self, stream: Stream) -> &AtomicU64 {
        match stream {
            Stream::Telemetry => &self.waiting[0],
            Stream::Case => &self.waiting[1],
            Stream::Report => &self.waiting[2],
        }
    }

    /// Sets how many records of a stream wait for the cloud.
    pub fn set_waiting(&self, stream: Stream, records: u64) {
        self.slot(stream).store(records, Ordering::Relaxed);
    }

    /// Sets where a model's update stands; `None` when idle.
    pub fn set_update(&self, model: &str, update: Option<Value>) {
        let mut updates = self.updates.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match update {
            Some(update) => updates.insert(model.to_owned(), update),
            None => updates.remove(model),
        };
    }

    /// Sets what activations wait for.
    pub fn set_hold(&self, hold: Option<String>) {
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).hold = hold;
    }

    /// Sets the configuration release in force.
    pub fn set_config(&self, release: Option<String>) {
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).config = release;
    }

    /// Sets the counters of the sources; once.
    pub fn set_sources(&self, tallies: Vec<Arc<Tally>>) {
        let _ = self.sources.set(tallies);
    }

    /// The document.
    pub fn document(&self, models: &Models) -> Value {
        let updates = self.updates.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let models: Vec<Value> = models
            .list()
            .into_iter()
            .map(|(name, entry)| {
                json!({
                    "model": name,
                    "version": entry.active.slot.release.version.to_string(),
                    "manifest_sha256": entry.active.slot.digest,
                    "precision": entry.active.precision,
                    "engine": entry.active.engine(),
                    "provider": entry.active.provider(),
                    "refused": entry.active.refused(),
                    "previous": entry.previous.map(|p| p.slot.release.version.to_string()),
                    "update": updates.get(&name),
                })
            })
            .collect();
        let waiting: BTreeMap<&str, u64> = Stream::ALL
            .into_iter()
            .map(|stream| (stream.topic(), self.slot(stream).load(Ordering::Relaxed)))
            .collect();
        let sources = self.sources.get().into_iter().flatten();
        let sources: Vec<Value> = sources.map(|tally| tally.document()).collect();
        let notes = self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        json!({
            "config": notes.config,
            "updates_wait_for": notes.hold,
            "device": self.device,
            "fleet": self.fleet,
            "agent_version": env!("CARGO_PKG_VERSION"),
            "uptime_ms": clock::now().0.saturating_sub(self.started),
            "connected": self.connected.load(Ordering::Relaxed),
            "waiting": waiting,
            "models": models,
            "updates": updates,
            "sources": sources,
        })
    }
}
