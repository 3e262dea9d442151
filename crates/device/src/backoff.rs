//! Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015). The random
//! number is an argument.

use farlight_wire::Millis;

/// Doubles from `first` to `last`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Millis,
    last: Millis,
    attempt: u32,
}

impl Backoff {
    /// Waits up to `first` before the first retry, never more than `last`.
    pub fn new(first: Millis, last: Millis) -> Self {
        Self { first, last, attempt: 0 }
    }

    /// The next wait; `random` is uniform in 0 to 1. Never under a tenth of the current bound, so that
    /// a loop cannot spin.
    pub fn next(&mut self, random: f64) -> Millis {
        let bound = self.first.0.saturating_mul(1 << self.attempt.min(20)).min(self.last.0).max(1);
        self.attempt = self.attempt.saturating_add(1);
        Millis(((bound as f64) * random.clamp(0.0, 1.0)).max(bound as f64 / 10.0) as u64)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_never_spins() {
        let mut backoff = Backoff::new(Millis(100), Millis(1_000));
        let waits: Vec<u64> = (0..6).map(|_| backoff.next(1.0).0).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff.next(0.0).0, 100);
        backoff.reset();
        assert_eq!(backoff.next(1.0).0, 100);
    }
}
