//! The wall clock, read in one place. The core never sees it: it gets `now` as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use farlight_wire::Millis;

/// Now, Unix time; zero on a clock before 1970.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
