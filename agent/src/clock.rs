//! The two clocks: Unix time for stamps. Durations use `std::time::Instant` where they are measured.

use std::time::{SystemTime, UNIX_EPOCH};

use farlight_wire::Millis;

/// Unix time now; 0 before 1970.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
