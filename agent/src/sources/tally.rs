//! Counters of one source, as `GET /farlight/status` shows them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Counters since the start of the agent. `received` and `late` count inputs or samples; `answered`, `failed` and
/// `dropped` count questions (an
/// input or window to one model), each once.
#[derive(Debug)]
pub struct Tally {
    kind: &'static str,
    models: Vec<String>,
    received: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    late: AtomicU64,
}

impl Tally {
    pub(super) fn new(kind: &'static str, models: Vec<String>) -> Self {
        let [received, answered, failed, dropped, late] = [const { AtomicU64::new(0) }; 5];
        Self { kind, models, received, answered, failed, dropped, late }
    }

    pub(super) fn received(&self, inputs: usize) {
        self.received.fetch_add(inputs as u64, Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn late(&self, samples: usize) {
        self.late.fetch_add(samples as u64, Ordering::Relaxed);
    }

    /// Counts questions that nobody will answer; says so ever more seldom.
    pub(super) fn dropped(&self, questions: usize, why: &str) {
        if questions == 0 {
            return;
        }
        let before = self.dropped.fetch_add(questions as u64, Ordering::Relaxed);
        let dropped = before + questions as u64;
        if before == 0 || before.ilog2() != dropped.ilog2() {
            tracing::warn!(source = self.kind, dropped, "{why}");
        }
    }

    /// The counters as JSON.
    pub fn document(&self) -> Value {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "kind": self.kind,
            "models": self.models,
            "received": load(&self.received),
            "answered": load(&self.answered),
            "failed": load(&self.failed),
            "dropped": load(&self.dropped),
            "late": load(&self.late),
        })
    }
}
