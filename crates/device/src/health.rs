//! Probation: is this release worse than the one before, on this device's own traffic?
//!
//! Each concern is a share of bad answers that must not exceed what is allowed. It is tested sequentially,
//! with a look at every window: the release fails when the mixture likelihood ratio of "more than allowed"
//! against "as allowed" reaches 1/[`ALPHA`]. The ratio is a non-negative supermartingale under every share
//! that is allowed, so by Ville's inequality (Ville 1939; Ramdas et al., "Game-theoretic statistics and safe
//! anytime-valid inference", 2023) the chance that a release which keeps to what is allowed ever fails one
//! concern is at most [`ALPHA`], however often it is looked at and however long probation lasts.

use farlight_wire::codes::Code;
use farlight_wire::{Counts, Millis, Sketch};
use serde::{Deserialize, Serialize};
use statrs::function::beta::{beta_reg, ln_beta};

/// Chance that a release which keeps to one concern's allowance fails it: over all looks of a probation.
/// There are five concerns, so a good release is taken back at most once in 200.
pub const ALPHA: f64 = 0.001;
/// z of the Wilson bound on what the previous release did.
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
/// Share of answers above a 95th percentile.
const ABOVE_P95: f64 = 0.05;
/// Requests of the previous release before latency is compared with it.
const LATENCY_MIN: u64 = 100;
/// After so many times its planned duration a probation without enough traffic ends.
pub const EXTENSIONS: u64 = 20;

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

/// How long a release is tried, at least.
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
    let inconclusive = Code::ProbationInconclusive;
    weigh(&concerns(candidate, previous), candidate.requests(), policy, inconclusive, elapsed)
}

/// What the concerns add up to after `n` requests and `elapsed`: any that is proven fails; one that looks
/// bad, and too little traffic, extend the trial up to [`EXTENSIONS`] times and never pass.
pub(crate) fn weigh(
    concerns: &[Concern],
    n: u64,
    policy: Policy,
    inconclusive: Code,
    elapsed: Millis,
) -> Verdict {
    let mut suspicious = None;
    for concern in concerns {
        match concern.finding() {
            Finding::Proven => return Verdict::Fail(concern.code, concern.text()),
            Finding::Suspicious => suspicious = Some(concern.text()),
            Finding::Fine => {}
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
        return Verdict::Fail(inconclusive, text);
    }
    Verdict::Wait
}

/// What the counts say of one concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// More than allowed, at the stated error rate.
    Proven,
    /// More than allowed so far, and too few to be sure.
    Suspicious,
    /// Within what is allowed.
    Fine,
}

/// A share that must not be above what is allowed.
pub(crate) struct Concern {
    pub(crate) code: Code,
    pub(crate) what: &'static str,
    pub(crate) bad: u64,
    pub(crate) of: u64,
    pub(crate) allowed: f64,
}

impl Concern {
    pub(crate) fn finding(&self) -> Finding {
        if evidence(self.bad, self.of, self.allowed) >= -f64::ln(ALPHA) {
            Finding::Proven
        } else if share(self.bad, self.of) > self.allowed {
            Finding::Suspicious
        } else {
            Finding::Fine
        }
    }

    pub(crate) fn text(&self) -> String {
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
    // A 95th percentile above a limit means that more than one in twenty answers is slower than the limit.
    if let (Some(p95), true) = (previous.latency_us.quantile(0.95), before >= LATENCY_MIN) {
        let slow = candidate.latency_us.count_above((LATENCY_FACTOR * p95).max(LATENCY_FLOOR_US));
        let what = "answers took over three times the previous 95th percentile";
        let of = candidate.latency_us.count();
        concerns.push(Concern { code: Code::ProbationLatency, what, bad: slow, of, allowed: ABOVE_P95 });
    }
    concerns
}

/// Logarithm of the mixture likelihood ratio that the share of `bad` among `of` is above `allowed`, the
/// mixture being uniform over (`allowed`, 1): ∫ q^k (1−q)^(n−k) dq / (1 − a) / (a^k (1−a)^(n−k)).
fn evidence(bad: u64, of: u64, allowed: f64) -> f64 {
    if of == 0 || !(allowed > 0.0 && allowed < 1.0) {
        return f64::NEG_INFINITY;
    }
    let (k, n) = (bad.min(of) as f64, of as f64);
    let above = 1.0_f64 - beta_reg(k + 1.0, n - k + 1.0, allowed);
    let alternative = ln_beta(k + 1.0, n - k + 1.0) + above.ln() - (-allowed).ln_1p();
    alternative - k * allowed.ln() - (n - k) * (-allowed).ln_1p()
}

fn share(bad: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { bad as f64 / of as f64 }
}

/// Upper Wilson score bound (Wilson 1927) of a binomial share.
fn upper_bound(bad: u64, n: u64) -> f64 {
    if n == 0 {
        return 1.0;
    }
    let (bad, n) = (bad.min(n) as f64, n as f64);
    let p = bad / n;
    let centre = p + Z * Z / (2.0 * n);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((centre + spread) / (1.0 + Z * Z / n)).min(1.0)
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

    /// Runs 400 good releases through 200 looks each: the share that ever fails keeps to the stated rate,
    /// where a fixed bound looked at as often would not.
    #[test]
    fn looking_often_does_not_raise_the_error_rate() {
        let (mut failed, mut naive, mut state) = (0, 0, 0x9e37_79b9_7f4a_7c15_u64);
        for _ in 0..400 {
            let (mut bad, mut of, mut crossed, mut proven) = (0, 0, false, false);
            for _ in 0..200 {
                for _ in 0..10 {
                    // xorshift64 (Marsaglia 2003): the share of failures is exactly what is allowed.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    bad += u64::from(state % 100 == 0);
                    of += 1;
                }
                let concern =
                    Concern { code: Code::ProbationErrors, what: "failed", bad, of, allowed: TOLERATED_BAD };
                proven |= concern.finding() == Finding::Proven;
                // A one-sided z test at 1 %, looked at each time.
                let p = share(bad, of);
                crossed |= of >= 100 && (p - 0.01) / (0.01 * 0.99 / of as f64).sqrt() > 2.33;
            }
            failed += u64::from(proven);
            naive += u64::from(crossed);
        }
        assert!(failed <= 3, "{failed} of 400 good releases failed; 0.4 are expected at most");
        assert!(naive > 20, "the comparison shows nothing: {naive}");
    }

    #[test]
    fn evidence_is_finite_or_none_for_any_counts() {
        for (bad, of, allowed) in
            [(0, 0, 0.1), (5, 3, 0.1), (0, 10, 0.0), (10, 10, 1.0), (1 << 40, 1 << 41, 0.9)]
        {
            assert!(!evidence(bad, of, allowed).is_nan(), "{bad} {of} {allowed}");
        }
        assert!(evidence(50, 100, 0.01) > 100.0);
        assert!(evidence(1, 1_000, 0.01) < 0.0);
    }
}
