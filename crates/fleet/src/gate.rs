//! The evidence gate: compares what devices with the new release measured against what devices without
//! it measured at the same time. Three answers: pass, fail, inconclusive; no evidence never passes.
//!
//! Rates: a release that is no worse fails with a probability of at most 1 % per look and metric
//! ([`ALPHA_FAIL`]); one whose error rate is worse by more than [`Limits::margin`] passes with at most
//! 5 % ([`BETA_PASS`]).

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

/// Chance that a harmless release fails one comparison.
pub const ALPHA_FAIL: f64 = 0.01;
/// Chance that a release worse by the margin passes.
pub const BETA_PASS: f64 = 0.05;

/// What a group of devices measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Requests answered.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Answers that were not finite.
    pub non_finite: u64,
    /// Median latency of the group's median window, µs.
    pub p50_us: u64,
    /// The same of the 95th percentile, µs.
    pub p95_us: u64,
    /// Windows it comes from.
    pub windows: u64,
}

impl Evidence {
    /// Requests, answered or not.
    pub fn requests(&self) -> u64 {
        self.ok.saturating_add(self.failed)
    }

    fn errors(&self) -> u64 {
        self.failed.saturating_add(self.non_finite).min(self.requests())
    }
}

/// How much worse is too much, and how much evidence is enough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Fewest requests of the updated devices.
    pub min_requests: u64,
    /// Highest share of errors above that of the control group, 0 to 1; without a control group the
    /// highest share at all.
    pub margin: f64,
    /// Highest ratio of latencies.
    pub latency_ratio: f64,
    /// Latency that is no trouble whatever the ratio, µs.
    pub latency_floor_us: u64,
    /// Fewest windows of each group before latencies are compared.
    pub min_windows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_requests: 100, margin: 0.1, latency_ratio: 3.0, latency_floor_us: 20_000, min_windows: 5 }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Good enough.
    Pass {
        /// What it rests on.
        reason: String,
    },
    /// Worse.
    Fail {
        /// In what.
        reason: String,
    },
    /// Not enough evidence for either.
    Inconclusive {
        /// What is missing.
        reason: String,
    },
}

/// Compares updated devices with concurrent control devices; `None` when no device runs anything else,
/// as in a first release or a last wave.
pub fn judge(updated: &Evidence, control: Option<&Evidence>, limits: &Limits) -> Verdict {
    let control = control.filter(|control| control.requests() > 0);
    let (n, errors) = (updated.requests(), updated.errors());
    let (m, control_errors) = control.map_or((0, 0), |control| (control.requests(), control.errors()));
    let rate = share(errors, n);
    let control_rate = share(control_errors, m);
    if n > 0 && worse(errors, n, control_errors, m, limits) {
        return Verdict::Fail {
            reason: match control {
                Some(_) => format!(
                    "{errors} of {n} requests failed against {control_errors} of {m} on other devices"
                ),
                None => format!("{errors} of {n} requests failed"),
            },
        };
    }
    if let Some(reason) = control.and_then(|control| slower(updated, control, limits)) {
        return Verdict::Fail { reason };
    }
    let needed = limits.min_requests.max(1);
    if n < needed {
        return Verdict::Inconclusive { reason: format!("{n} of {needed} requests so far") };
    }
    let upper = upper(errors, n) - if m >= needed { control_rate } else { 0.0 };
    if upper > limits.margin {
        return Verdict::Inconclusive {
            reason: format!(
                "{n} requests with {:.1} % errors do not yet rule out {:.1} % more",
                rate * 100.0,
                limits.margin * 100.0
            ),
        };
    }
    Verdict::Pass {
        reason: match control {
            Some(_) => {
                format!("{n} requests, {errors} errors, against {m} and {control_errors} on other devices")
            }
            None => format!("{n} requests, {errors} errors; no other devices to compare with"),
        },
    }
}

/// Whether the share of errors is higher with significance and by an amount that matters.
fn worse(errors: u64, n: u64, control_errors: u64, m: u64, limits: &Limits) -> bool {
    let (p, q) = (share(errors, n), share(control_errors, m));
    // An effect below a tenth of the margin is not worth an abort however significant it is.
    if p - q <= limits.margin / 10.0 || errors < 3 {
        return false;
    }
    if m == 0 {
        return lower(errors, n) > limits.margin;
    }
    let pooled = share(errors + control_errors, n + m);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / n as f64 + 1.0 / m as f64)).sqrt();
    deviation > 0.0 && (p - q) / deviation > quantile(1.0 - ALPHA_FAIL)
}

fn slower(updated: &Evidence, control: &Evidence, limits: &Limits) -> Option<String> {
    if updated.windows.min(control.windows) < limits.min_windows {
        return None;
    }
    // Both the middle and the tail, so that one noisy window cannot decide.
    let exceeds = |new: u64, old: u64| {
        new > limits.latency_floor_us && new as f64 > limits.latency_ratio * old.max(1) as f64
    };
    (exceeds(updated.p50_us, control.p50_us) && exceeds(updated.p95_us, control.p95_us))
        .then(|| format!("latency p95 {} µs against {} µs on other devices", updated.p95_us, control.p95_us))
}

fn share(hits: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { hits as f64 / of as f64 }
}

fn quantile(p: f64) -> f64 {
    // The standard normal always exists; 2.33 is its 99 % point.
    Normal::standard().inverse_cdf(p)
}

/// Wilson's one-sided bounds of a share.
fn upper(hits: u64, of: u64) -> f64 {
    bound(hits, of, quantile(1.0 - BETA_PASS))
}

fn lower(hits: u64, of: u64) -> f64 {
    bound(hits, of, -quantile(1.0 - ALPHA_FAIL))
}

fn bound(hits: u64, of: u64, z: f64) -> f64 {
    let (n, p) = (of.max(1) as f64, share(hits, of));
    (p + z * z / (2.0 * n) + z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt()) / (1.0 + z * z / n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn evidence(ok: u64, failed: u64) -> Evidence {
        Evidence { ok, failed, p50_us: 1000, p95_us: 2000, windows: 10, ..Evidence::default() }
    }

    #[test]
    fn table() {
        let limits = Limits::default();
        let slow = Evidence { p50_us: 90_000, p95_us: 200_000, ..evidence(1000, 0) };
        let noisy = Evidence { p95_us: 200_000, ..evidence(1000, 0) };
        let nan = Evidence { non_finite: 600, ..evidence(1000, 0) };
        for (name, updated, control, expected) in [
            ("no evidence", evidence(0, 0), Some(evidence(1000, 0)), "inconclusive"),
            ("little evidence", evidence(50, 0), Some(evidence(1000, 0)), "inconclusive"),
            ("good", evidence(500, 0), Some(evidence(1000, 0)), "pass"),
            ("good, nobody to compare", evidence(500, 0), None, "pass"),
            ("bad", evidence(300, 200), Some(evidence(1000, 3)), "fail"),
            ("bad early", evidence(10, 30), Some(evidence(1000, 3)), "fail"),
            ("bad, nobody to compare", evidence(300, 200), None, "fail"),
            ("as bad as the others", evidence(900, 100), Some(evidence(900, 100)), "pass"),
            ("slow", slow, Some(evidence(1000, 0)), "fail"),
            ("one noisy percentile", noisy, Some(evidence(1000, 0)), "pass"),
            ("not finite", nan, Some(evidence(1000, 0)), "fail"),
        ] {
            let verdict = judge(&updated, control.as_ref(), &limits);
            let actual = match verdict {
                Verdict::Pass { .. } => "pass",
                Verdict::Fail { .. } => "fail",
                Verdict::Inconclusive { .. } => "inconclusive",
            };
            assert_eq!(actual, expected, "{name}: {verdict:?}");
        }
    }

    proptest! {
        #[test]
        fn too_little_never_passes(ok in 0_u64..100, failed in 0_u64..100, c in 0_u64..10_000) {
            let updated = evidence(ok, failed);
            prop_assume!(updated.requests() < Limits::default().min_requests);
            let passed = matches!(judge(&updated, Some(&evidence(c, 0)), &Limits::default()), Verdict::Pass { .. });
            prop_assert!(!passed);
        }

        #[test]
        fn fewer_errors_never_fail(n in 1_u64..10_000, errors in 0_u64..100, more in 0_u64..100) {
            let updated = evidence(n, errors);
            let control = evidence(n, errors + more);
            let failed = matches!(judge(&updated, Some(&control), &Limits::default()), Verdict::Fail { .. });
            prop_assert!(!failed);
        }
    }
}
