//! The states of a model's streams: one a stream, as many as are allowed, forgotten when they are not used. They
//! belong to one loaded release: with the next one every stream begins anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farlight_inference::State;

/// Longest id of a stream, bytes.
pub const MAX_ID: usize = 128;

/// How many streams one model has, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Streams at once.
    pub streams: usize,
    /// A stream that is not used for so long may be forgotten.
    pub idle: Duration,
}

/// One call of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// Which stream.
    pub id: &'a str,
    /// Whether it begins anew with this call.
    pub start: bool,
    /// Whether it ends with this call.
    pub end: bool,
}

/// Shared by the calls of one stream, which run one after the other.
pub type Shared = Arc<tokio::sync::Mutex<State>>;

struct Stream {
    state: Shared,
    used: Instant,
}

/// The streams of one model.
pub struct Streams {
    policy: Policy,
    open: Mutex<HashMap<String, Stream>>,
}

impl Streams {
    /// None yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, open: Mutex::default() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The state of a stream; one that is not known, or that starts, begins with `fresh`. `None` when there are too
    /// many streams in use, its id is too long, or there is nothing to begin with.
    pub fn open(
        &self,
        call: &Call<'_>,
        fresh: impl FnOnce() -> Option<State>,
        now: Instant,
    ) -> Option<Shared> {
        let mut open = self.lock();
        if let Some(stream) = open.get_mut(call.id) {
            stream.used = now;
            if call.start {
                stream.state = Arc::new(tokio::sync::Mutex::new(fresh()?));
            }
            return Some(Arc::clone(&stream.state));
        }
        if open.len() >= self.policy.streams {
            open.retain(|_, stream| now.saturating_duration_since(stream.used) < self.policy.idle);
        }
        if open.len() >= self.policy.streams || call.id.len() > MAX_ID {
            return None;
        }
        let state = Arc::new(tokio::sync::Mutex::new(fresh()?));
        open.insert(call.id.to_owned(), Stream { state: Arc::clone(&state), used: now });
        Some(state)
    }

    /// Forgets a stream that ended.
    pub fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Stream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
