//! The circuit breaker of one stage of a route: it opens when too many calls fail or are slow, lets nothing through
//! for a while, then one call as a probe (M. Nygard, "Release It!", 2nd edition, chapter 5). No clock: every
//! function is told the time.

use std::collections::VecDeque;

use farlight_wire::Millis;

/// When a breaker opens and how long it stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Calls that are judged: the last so many.
    pub calls: usize,
    /// It opens when more than this share of them failed or were slow, thousandths.
    pub bad_permille: u16,
    /// A call that takes longer is slow; 0 for never.
    pub slow: Millis,
    /// How long it stays open before a probe.
    pub open: Millis,
}

/// Fewest calls that are judged: one failure after a start says nothing.
pub const MIN_CALLS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Millis,
    },
    /// One call was let through; nothing else until it ends, or for so long.
    Probing {
        until: Millis,
    },
}

/// A breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    policy: Policy,
    state: State,
    /// Whether each of the last calls was bad, the oldest first.
    last: VecDeque<bool>,
    opened: u64,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::Closed, last: VecDeque::new(), opened: 0 }
    }

    /// Whether a call may be made now. A call that may is told of by [`Breaker::ended`], unless it says nothing of
    /// what was called; a probe that nothing is told of keeps the breaker open.
    pub fn allows(&mut self, now: Millis) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } | State::Probing { until } if now < until => false,
            State::Open { .. } | State::Probing { .. } => {
                self.state = State::Probing { until: now.plus(self.policy.open) };
                true
            }
        }
    }

    /// Whether it would let nothing through now.
    pub fn is_open(&self, now: Millis) -> bool {
        matches!(self.state, State::Open { until } | State::Probing { until } if now < until)
    }

    /// How often it opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Notes how a call ended.
    pub fn ended(&mut self, ok: bool, took: Millis, now: Millis) {
        let slow = self.policy.slow.0 > 0 && took > self.policy.slow;
        let bad = !ok || slow;
        match self.state {
            State::Probing { .. } if bad => self.open(now),
            State::Probing { .. } => {
                self.state = State::Closed;
                self.last.clear();
            }
            // An answer to a call from before it opened.
            State::Open { .. } => {}
            State::Closed => {
                self.last.push_back(bad);
                while self.last.len() > self.policy.calls.max(MIN_CALLS) {
                    self.last.pop_front();
                }
                let bad = self.last.iter().filter(|bad| **bad).count();
                let over = bad * 1000 > usize::from(self.policy.bad_permille) * self.last.len();
                if self.last.len() >= MIN_CALLS && over {
                    self.open(now);
                }
            }
        }
    }

    fn open(&mut self, now: Millis) {
        self.state = State::Open { until: now.plus(self.policy.open) };
        self.last.clear();
        self.opened += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { calls: 10, bad_permille: 500, slow: Millis(100), open: Millis(1000) };

    #[test]
    fn it_opens_on_failures_or_slowness_and_closes_after_a_good_probe() {
        for (ok, took) in [(false, 1), (true, 101)] {
            let mut breaker = Breaker::new(POLICY);
            for n in 0..MIN_CALLS as u64 {
                assert!(breaker.allows(Millis(n)));
                breaker.ended(ok, Millis(took), Millis(n));
            }
            assert!(breaker.is_open(Millis(5)) && !breaker.allows(Millis(1003)));
            // The probe fails, so that it opens again; the next one is good.
            assert!(breaker.allows(Millis(1004)) && !breaker.allows(Millis(1005)));
            breaker.ended(false, Millis(1), Millis(1010));
            assert!(!breaker.allows(Millis(2009)) && breaker.allows(Millis(2010)));
            breaker.ended(true, Millis(1), Millis(2011));
            assert!(breaker.allows(Millis(2012)) && breaker.allows(Millis(2012)));
            assert_eq!(breaker.opened(), 2);
        }
    }

    #[test]
    fn a_probe_that_never_ends_does_not_keep_it_open_for_ever() {
        let mut breaker = Breaker::new(POLICY);
        (0..5).for_each(|n| breaker.ended(false, Millis(1), Millis(n)));
        assert!(
            breaker.allows(Millis(2000)) && !breaker.allows(Millis(2001)) && breaker.allows(Millis(3000))
        );
    }

    proptest! {
        #[test]
        fn good_calls_never_open_it_and_it_never_stays_open(calls in prop::collection::vec((any::<bool>(), 0_u64..200, 0_u64..500), 0..200)) {
            let mut breaker = Breaker::new(POLICY);
            let mut good = Breaker::new(POLICY);
            let mut now = Millis(0);
            for (ok, took, pause) in calls {
                now = now.plus(Millis(pause));
                if breaker.allows(now) {
                    breaker.ended(ok, Millis(took), now);
                }
                prop_assert!(good.allows(now));
                good.ended(true, Millis(took.min(100)), now);
                prop_assert!(breaker.clone().allows(now.plus(POLICY.open)));
            }
        }
    }
}
