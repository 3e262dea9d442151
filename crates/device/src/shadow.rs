//! Shadow: a candidate that passed its self-test sees a share of live inputs and decides nothing. What it
//! answers is compared with what the running release answered; the same sequential tests as on probation
//! ([`crate::health`]) judge it.

use farlight_wire::codes::Code;
use farlight_wire::{Millis, Sketch};
use serde::{Deserialize, Serialize};

use crate::health::{self, Concern, Verdict};

/// A share of failing or non-finite answers that is tolerated.
const TOLERATED_BAD: f64 = 0.01;

/// What a rollout asks of a shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long, and how many inputs the candidate must have seen.
    pub trial: health::Policy,
    /// Share of inputs it sees, thousandths.
    pub share_permille: u16,
    /// Share of one core it may use, thousandths; inputs beyond it are skipped.
    pub cpu_permille: u16,
    /// Share of answers that must agree with the running release, thousandths; 0 asks for none, because a
    /// better model is meant to differ.
    pub agreement_permille: u16,
}

/// What a candidate did in the shadow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadowed {
    /// Inputs it answered.
    pub ok: u64,
    /// Inputs it failed on, where the running release answered.
    pub failed: u64,
    /// Answers that are not finite.
    pub non_finite: u64,
    /// Answers of the same class as the running release's.
    pub agreed: u64,
    /// Inputs it did not see: over the CPU budget, or its queue was full.
    pub skipped: u64,
    /// Absolute difference of the scores, in thousandths.
    pub score_delta: Sketch,
    /// Inference time, µs.
    pub infer_us: Sketch,
}

impl Shadowed {
    /// Adds later counts.
    pub fn merge(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.non_finite += other.non_finite;
        self.agreed += other.agreed;
        self.skipped += other.skipped;
        self.score_delta.merge(&other.score_delta);
        self.infer_us.merge(&other.infer_us);
    }

    /// Inputs it saw.
    pub fn requests(&self) -> u64 {
        self.ok + self.failed
    }
}

/// Judges a candidate after `elapsed` in the shadow. Too little traffic extends it and never passes.
pub fn judge(shadowed: &Shadowed, policy: Policy, elapsed: Millis) -> Verdict {
    let n = shadowed.requests();
    let mut concerns = vec![
        Concern {
            code: Code::ShadowErrors,
            what: "shadowed requests failed",
            bad: shadowed.failed,
            of: n,
            allowed: TOLERATED_BAD,
        },
        Concern {
            code: Code::ShadowNonFinite,
            what: "shadowed answers were not finite",
            bad: shadowed.non_finite,
            of: n,
            allowed: TOLERATED_BAD,
        },
    ];
    if policy.agreement_permille > 0 {
        let allowed = f64::from(1000_u16.saturating_sub(policy.agreement_permille)) / 1000.0;
        concerns.push(Concern {
            code: Code::ShadowDisagrees,
            what: "shadowed answers differ from the running release's",
            bad: shadowed.ok.saturating_sub(shadowed.agreed),
            of: shadowed.ok,
            allowed: allowed.max(TOLERATED_BAD),
        });
    }
    health::weigh(&concerns, n, policy.trial, Code::ShadowInconclusive, elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        trial: health::Policy { duration: Millis(1_000), min_requests: 50 },
        share_permille: 1000,
        cpu_permille: 100,
        agreement_permille: 900,
    };

    fn seen(ok: u64, agreed: u64) -> Shadowed {
        Shadowed { ok, agreed, ..Shadowed::default() }
    }

    fn code(verdict: Verdict) -> Option<Code> {
        match verdict {
            Verdict::Fail(code, _) => Some(code),
            Verdict::Wait | Verdict::Pass => None,
        }
    }

    #[test]
    fn agreement_failures_and_too_little_traffic_are_told_apart() {
        assert_eq!(judge(&seen(100, 99), POLICY, Millis(999)), Verdict::Wait);
        assert_eq!(judge(&seen(100, 99), POLICY, Millis(1_000)), Verdict::Pass);
        assert_eq!(judge(&seen(10, 10), POLICY, Millis(1_000)), Verdict::Wait);
        assert_eq!(code(judge(&seen(10, 10), POLICY, Millis(20_000))), Some(Code::ShadowInconclusive));
        assert_eq!(code(judge(&seen(100, 50), POLICY, Millis(1))), Some(Code::ShadowDisagrees));
        let open = Policy { agreement_permille: 0, ..POLICY };
        assert_eq!(judge(&seen(100, 0), open, Millis(1_000)), Verdict::Pass);
        let failing = Shadowed { failed: 30, ..seen(70, 70) };
        assert_eq!(code(judge(&failing, POLICY, Millis(1))), Some(Code::ShadowErrors));
        let nan = Shadowed { non_finite: 30, ..seen(100, 100) };
        assert_eq!(code(judge(&nan, POLICY, Millis(1))), Some(Code::ShadowNonFinite));
    }
}
