//! The two clocks: Unix time for stamps. Durations use `std::time::Instant` where they are measured.

use std::time::{SystemTime, UNIX_EPOCH};

use farlight_wire::Millis;

/// Unix time now; 0 before 1970.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The time zone in which windows are meant, with its daylight saving.
#[derive(Debug, Clone)]
pub struct Zone(jiff::tz::TimeZone);

impl Zone {
    /// A zone by its IANA name, for example `Europe/Berlin`; the system's when empty.
    ///
    /// # Errors
    /// When the system's time zone database does not know the name.
    pub fn named(name: &str) -> Result<Self, jiff::Error> {
        if name.is_empty() {
            return Ok(Self(jiff::tz::TimeZone::system()));
        }
        jiff::tz::TimeZone::get(name).map(Self)
    }

    /// Minutes by which local time is ahead of UTC at `now`.
    pub fn offset_minutes(&self, now: Millis) -> i32 {
        let now = jiff::Timestamp::from_millisecond(i64::try_from(now.0).unwrap_or(i64::MAX));
        now.map_or(0, |now| self.0.to_offset(now).seconds() / 60)
    }
}
