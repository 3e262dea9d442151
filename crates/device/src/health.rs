//! Probation: is the new release at least not worse than the one before, on this device's own traffic?
//!
//! Every failing verdict takes the lower (Wilson) bound of the bad share at z = 3, a one-sided error of
//! 0.13 % for one look. Looks repeat with every window, so the chance of a false alarm over a probation
//! is higher, bounded by looks × 0.13 %; what it costs is one unneeded rollback.

use farlight_wire::{Counts, Millis, Sketch};
use serde::{Deserialize, Serialize};

use crate::codes::Code;

/// z of the bounds.
const Z: f64 = 3.0;
/// A share of failing or non-finite answers that is tolerated whatever the previous release did.
const TOLERATED_BAD: f64 = 0.01;
/// A class that gets at least this share of answers, where the previous release spread them, means that
/// the outputs no longer depend on the input.
const DEGENERATE_SHARE: f64 = 0.9;
/// Abstaining this much more than before is a failure.
const ABSTAIN_MARGIN: f64 = 0.2;
/// The 95th percentile may grow by this factor.
const LATENCY_FACTOR: f64 = 3.0;
/// And must be above this many µs to count: small absolute times are noise on a busy gateway.
const LATENCY_FLOOR_US: f64 = 20_000.0;
/// Requests before latency is judged.
const LATENCY_MIN: u64 = 100;
/// After so many times its planned duration a probation without enough traffic ends.
const EXTENSIONS: u64 = 20;

/// What a release did on this device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Requests answered.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Answers with NaN or infinite outputs.
    pub non_finite: u64,
    /// Answers withheld.
    pub abstained: u64,
    /// Answers per class.
    pub classes: Counts,
    /// Whole time in the agent, µs.
    pub latency_us: Sketch,
}

impl Health {
    /// Adds the counters of a window.
    pub fn merge(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.non_finite += other.non_finite;
        self.abstained += other.abstained;
        self.classes.merge(&other.classes);
        self.latency_us.merge(&other.latency_us);
    }

    fn requests(&self) -> u64 {
        self.ok + self.failed
    }

    fn top_class(&self) -> (u64, u64) {
        (u64::from(self.classes.0.iter().copied().max().unwrap_or(0)), self.classes.total())
    }
}

/// What a rollout asks of a probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Shortest duration.
    pub duration: Millis,
    /// Requests that must have been answered.
    pub min_requests: u64,
}

/// A verdict on a probation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on watching.
    Wait,
    /// Long enough, enough traffic, nothing wrong.
    Pass,
    /// Take it back.
    Fail(Code, String),
}

/// Judges a candidate after `elapsed` on probation against what the previous release did here (empty when
/// there was none). A share that looks bad without being proven bad yet holds the verdict open.
pub fn judge(candidate: &Health, previous: &Health, policy: Policy, elapsed: Millis) -> Verdict {
    let n = candidate.requests();
    let mut suspicious = None;
    for concern in concerns(candidate, previous) {
        if lower_bound(concern.bad, concern.of) > concern.allowed {
            return Verdict::Fail(concern.code, concern.text());
        }
        if share(concern.bad, concern.of) > concern.allowed {
            suspicious = Some(concern.text());
        }
    }
    if let (Some(now), Some(before)) =
        (candidate.latency_us.quantile(0.95), previous.latency_us.quantile(0.95))
    {
        let enough = n >= LATENCY_MIN && previous.requests() >= LATENCY_MIN;
        if enough && now > LATENCY_FLOOR_US && now > LATENCY_FACTOR * before {
            let text = format!("95th percentile of {now:.0} µs, {before:.0} µs before");
            return Verdict::Fail(Code::ProbationLatency, text);
        }
    }
    if elapsed < policy.duration {
        return Verdict::Wait;
    }
    if n >= policy.min_requests && suspicious.is_none() {
        return Verdict::Pass;
    }
    if elapsed.0 >= policy.duration.0.max(1_000).saturating_mul(EXTENSIONS) {
        let text = suspicious.unwrap_or_else(|| {
            format!("{n} requests in {} s; {} are asked for", elapsed.0 / 1000, policy.min_requests)
        });
        return Verdict::Fail(Code::ProbationInconclusive, text);
    }
    Verdict::Wait
}

/// A share that must not be above what is allowed.
struct Concern {
    code: Code,
    what: &'static str,
    bad: u64,
    of: u64,
    allowed: f64,
}

impl Concern {
    fn text(&self) -> String {
        format!(
            "{} of {} {}; at most {:.1} % are allowed",
            self.bad,
            self.of,
            self.what,
            self.allowed * 100.0
        )
    }
}

fn concerns(candidate: &Health, previous: &Health) -> Vec<Concern> {
    let (n, before) = (candidate.requests(), previous.requests());
    let tolerated = |bad_before: u64| (2.0 * share(bad_before, before)).max(TOLERATED_BAD);
    let mut concerns = vec![
        Concern {
            code: Code::ProbationErrors,
            what: "requests failed",
            bad: candidate.failed,
            of: n,
            allowed: tolerated(previous.failed),
        },
        Concern {
            code: Code::ProbationNonFinite,
            what: "answers were not finite",
            bad: candidate.non_finite,
            of: n,
            allowed: tolerated(previous.non_finite),
        },
        Concern {
            code: Code::ProbationAbstains,
            what: "answers were withheld",
            bad: candidate.abstained,
            of: n,
            allowed: share(previous.abstained, before) + ABSTAIN_MARGIN,
        },
    ];
    // Only what the previous release did on this device tells a degenerate release from a constant world.
    let (top_before, answers_before) = previous.top_class();
    if candidate.classes.0.len() > 1 && upper_bound(top_before, answers_before) < DEGENERATE_SHARE {
        let (bad, of) = candidate.top_class();
        let what = "answers are the same class, and the previous release spread them";
        concerns.push(Concern { code: Code::ProbationDegenerate, what, bad, of, allowed: DEGENERATE_SHARE });
    }
    concerns
}

fn share(bad: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { bad as f64 / of as f64 }
}

/// Wilson score bounds (Wilson 1927) of a binomial share.
fn wilson(bad: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (bad, n) = (bad.min(n) as f64, n as f64);
    let p = bad / n;
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

fn lower_bound(bad: u64, n: u64) -> f64 {
    wilson(bad, n).0
}

fn upper_bound(bad: u64, n: u64) -> f64 {
    wilson(bad, n).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { duration: Millis(10_000), min_requests: 50 };

    fn healthy(n: u32) -> Health {
        Health { ok: u64::from(n), classes: Counts(vec![n / 4, n / 4, n / 4, n / 4]), ..Health::default() }
    }

    fn code(verdict: Verdict) -> Option<Code> {
        match verdict {
            Verdict::Fail(code, _) => Some(code),
            Verdict::Wait | Verdict::Pass => None,
        }
    }

    #[test]
    fn time_and_traffic_are_both_needed() {
        assert_eq!(judge(&healthy(400), &healthy(400), POLICY, Millis(9_999)), Verdict::Wait);
        assert_eq!(judge(&healthy(400), &healthy(400), POLICY, Millis(10_000)), Verdict::Pass);
        assert_eq!(judge(&healthy(8), &healthy(400), POLICY, Millis(10_000)), Verdict::Wait);
        let late = judge(&healthy(8), &healthy(400), POLICY, Millis(200_000));
        assert_eq!(code(late), Some(Code::ProbationInconclusive));
    }

    #[test]
    fn bad_releases_fail_before_the_time_is_up() {
        let before = healthy(1_000);
        let now = Millis(1);
        let failing = Health { failed: 20, ..healthy(80) };
        assert_eq!(code(judge(&failing, &before, POLICY, now)), Some(Code::ProbationErrors));
        let nan = Health { non_finite: 20, ..healthy(80) };
        assert_eq!(code(judge(&nan, &before, POLICY, now)), Some(Code::ProbationNonFinite));
        let constant = Health { ok: 120, classes: Counts(vec![0, 120, 0, 0]), ..Health::default() };
        assert_eq!(code(judge(&constant, &before, POLICY, now)), Some(Code::ProbationDegenerate));
        let shy = Health { abstained: 60, ..healthy(120) };
        assert_eq!(code(judge(&shy, &before, POLICY, now)), Some(Code::ProbationAbstains));
        let mut slow = healthy(200);
        let mut fast = healthy(200);
        for _ in 0..200 {
            slow.latency_us.add(90_000.0);
            fast.latency_us.add(20_000.0);
        }
        assert_eq!(code(judge(&slow, &fast, POLICY, now)), Some(Code::ProbationLatency));
    }

    #[test]
    fn a_constant_world_is_not_a_degenerate_release() {
        let constant = Health { ok: 500, classes: Counts(vec![0, 500, 0, 0]), ..Health::default() };
        assert_eq!(judge(&constant, &constant, POLICY, Millis(10_000)), Verdict::Pass);
    }

    #[test]
    fn a_first_release_is_not_degenerate_for_want_of_a_comparison() {
        let constant = Health { ok: 500, classes: Counts(vec![0, 500, 0, 0]), ..Health::default() };
        assert_eq!(judge(&constant, &Health::default(), POLICY, Millis(10_000)), Verdict::Pass);
    }

    #[test]
    fn what_looks_bad_is_not_passed_before_it_is_cleared() {
        // 60 answers of one class are too few to prove it, and too odd to let it pass.
        let odd = Health { ok: 60, classes: Counts(vec![60, 0, 0, 0]), ..Health::default() };
        assert_eq!(judge(&odd, &healthy(1_000), POLICY, Millis(10_000)), Verdict::Wait);
        let one = Health { failed: 1, ..healthy(60) };
        assert_eq!(judge(&one, &healthy(1_000), POLICY, Millis(10_000)), Verdict::Wait);
        let late = judge(&odd, &healthy(1_000), POLICY, Millis(200_000));
        assert_eq!(code(late), Some(Code::ProbationInconclusive));
    }

    #[test]
    fn a_few_bad_answers_do_not_fail_it() {
        let one = Health { failed: 1, ..healthy(400) };
        assert_eq!(judge(&one, &healthy(1_000), POLICY, Millis(10_000)), Verdict::Pass);
    }
}
