//! The log of slow requests: which one, and where its time went. At most one line a second, so that an overloaded
//! device is not kept busy by saying so; the others are counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::models::Timing;

/// Says which requests took longer than a limit.
#[derive(Debug)]
pub struct Slow {
    /// Zero for none.
    limit: Duration,
    began: Instant,
    /// Second of the last line, from `began`, plus one.
    said: AtomicU64,
    unsaid: AtomicU64,
}

impl Slow {
    /// Says what takes longer than `limit`; nothing when it is zero.
    pub fn new(limit: Duration) -> Self {
        Self { limit, began: Instant::now(), said: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }

    /// Looks at a request that was answered after `took`.
    pub(crate) fn look(&self, model: &str, id: &str, trace: Option<&str>, took: Duration, timing: &Timing) {
        if self.limit.is_zero() || took < self.limit {
            return;
        }
        let second = self.began.elapsed().as_secs() + 1;
        if self.said.swap(second, Ordering::Relaxed) == second {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        tracing::warn!(
            model,
            id,
            traceparent = trace,
            ms = ms(took),
            queue_ms = ms(timing.queue),
            pre_ms = ms(timing.pre),
            infer_ms = ms(timing.infer),
            post_ms = ms(timing.post),
            unsaid = self.unsaid.swap(0, Ordering::Relaxed),
            "slow request"
        );
    }
}
