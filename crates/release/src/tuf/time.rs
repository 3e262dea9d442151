//! What time it is on a device that may have no clock. Expiry is judged by the later of the clock and the
//! newest time that the repository signed: a clock at 1970 or set back never revives what has expired.

use farlight_wire::Millis;

/// The time to judge expiry by: the clock's, unless the repository proved that it is later.
///
/// `issued` is the `x-farlight-issued` of the trusted timestamp. It is stored with it, so that it outlives
/// a restart, and replaced with it: a newer timestamp is judged by the clock and its own date, so that a
/// date that a wrong clock of the cloud once wrote does not stay for ever. An older one is refused for its
/// version. The device's own clock is never remembered: one that was at 2100 for an hour stops new installs
/// for that hour and not until 2100.
///
/// The floor lags the true time by at most the interval at which the cloud signs timestamps again; within
/// that interval a device without a clock accepts what has just expired.
pub fn trusted_time(clock: Millis, issued: Option<Millis>) -> Millis {
    issued.map_or(clock, |issued| clock.max(issued))
}
