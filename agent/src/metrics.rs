//! What one loaded release did, for people and machines: counters and histograms that the inference path adds to
//! without a lock. They begin at zero whenever the release is loaded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper edges of the buckets: 10 µs to 14 s, two in each doubling.
const BUCKETS: usize = 42;

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    /// Durations above the last edge.
    above: AtomicU64,
    nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            above: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }
}

/// Upper edge of a bucket, seconds.
fn edge(bucket: usize) -> f64 {
    10e-6 * 2_f64.powf(bucket as f64 / 2.0)
}

impl Histogram {
    /// Adds one duration.
    pub fn add(&self, time: Duration) {
        let bucket = (2.0 * (time.as_secs_f64() / 10e-6).log2()).ceil().max(0.0);
        // Too large for a bucket also when it is infinite or too large for the type.
        self.counts.get(bucket as usize).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Durations added.
    pub fn count(&self) -> u64 {
        self.buckets().iter().map(|(_, count)| count).sum()
    }

    /// Their sum.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Upper edge of each bucket in seconds, and how many it holds; the last has no edge (`f64::MAX`).
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let counts = self.counts.iter().enumerate();
        let mut all: Vec<_> = counts.map(|(n, count)| (edge(n), count.load(Ordering::Relaxed))).collect();
        all.push((f64::MAX, self.above.load(Ordering::Relaxed)));
        all
    }
}

/// A part of answering a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a place.
    Queue,
    /// Contract and preprocessing.
    Pre,
    /// The engine.
    Infer,
    /// Postprocessing.
    Post,
    /// All of it, from arrival to the answer.
    Request,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Queue, Self::Pre, Self::Infer, Self::Post, Self::Request];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Pre => "pre",
            Self::Infer => "infer",
            Self::Post => "post",
            Self::Request => "request",
        }
    }
}

/// Why a request was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No place, or not in time.
    Busy,
    /// Switched off by the configuration.
    Off,
    /// The input broke its contract.
    Contract,
    /// The input has another shape or type.
    Input,
    /// The engine failed.
    Engine,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Busy, Self::Off, Self::Contract, Self::Input, Self::Engine];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Off => "off",
            Self::Contract => "contract",
            Self::Input => "input",
            Self::Engine => "engine",
        }
    }
}

/// Counters and histograms of one loaded release.
#[derive(Debug, Default)]
pub struct Metrics {
    stages: [Histogram; Stage::ALL.len()],
    failures: [AtomicU64; Reason::ALL.len()],
    /// Time of requests that were not answered, ns.
    failed_nanos: AtomicU64,
    answered: AtomicU64,
    /// Times that the engine ran.
    executions: AtomicU64,
    /// When the last request was answered, Unix time in ms.
    last: AtomicU64,
}

impl Metrics {
    /// The histogram of one stage.
    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }

    /// Counts an item that was answered at `now`, Unix time in ms.
    pub fn answered(&self, now: u64) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Counts a run of the engine.
    pub fn executed(&self) {
        self.executions.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that was not answered after `time`.
    pub fn failed(&self, reason: Reason, time: Duration) {
        self.failures[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.failed_nanos.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Items answered.
    pub fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Times that the engine ran.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// When the last request was answered, Unix time in ms; 0 when none was.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Requests not answered, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.failures.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Time that went into requests that were not answered.
    pub fn failed_time(&self) -> Duration {
        Duration::from_nanos(self.failed_nanos.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_bucket_below_its_edge() {
        for micros in [0, 1, 10, 11, 14, 15, 1_000, 1_000_000, 14_000_000, 20_000_000, u64::MAX / 1_000_000] {
            let histogram = Histogram::default();
            let time = Duration::from_micros(micros);
            histogram.add(time);
            let buckets = histogram.buckets();
            let found = buckets.iter().position(|(_, count)| *count == 1).unwrap();
            assert!(time.as_secs_f64() <= buckets[found].0 * (1.0 + 1e-9), "{micros}");
            assert!(found == 0 || time.as_secs_f64() > buckets[found - 1].0 * (1.0 - 1e-9), "{micros}");
            assert_eq!(histogram.count(), 1);
        }
    }
}
