//! Whether a candidate may replace the model that runs: pure statistics over the answers of both to
//! the same inputs. Old knowledge must not be lost (non-inferiority), field inputs must be answered
//! better (superiority), both with confidence bounds; too little evidence never passes.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// Bins of the calibration error.
const CALIBRATION_BINS: usize = 10;
/// Fewest inputs of a class for its slice to be judged.
const MIN_SLICE: usize = 20;

/// What both models answered to one input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The right class.
    pub label: usize,
    /// Top class of the model that runs.
    pub base: usize,
    /// Its score, 0 to 1.
    pub base_score: f32,
    /// Top class of the candidate.
    pub candidate: usize,
    /// Its score, 0 to 1.
    pub candidate_score: f32,
}

/// What it takes to pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Criteria {
    /// One-sided confidence of every bound.
    pub confidence: f64,
    /// Accuracy on old data that may at most be lost.
    pub old_margin: f64,
    /// Accuracy of one class on old data that may at most be lost.
    pub class_margin: f64,
    /// Rise of the calibration error on old data that is allowed.
    pub calibration_margin: f64,
    /// Fewest old inputs.
    pub min_old: usize,
    /// Fewest field inputs.
    pub min_field: usize,
    /// Largest file, relative to the model that runs.
    pub max_size_ratio: f64,
    /// Largest median latency, relative to the model that runs.
    pub max_latency_ratio: f64,
}

impl Default for Criteria {
    /// Margins that an operator would call "no worse"; twice the latency allows for a noisy machine.
    fn default() -> Self {
        Self {
            confidence: 0.95,
            old_margin: 0.05,
            class_margin: 0.25,
            calibration_margin: 0.10,
            min_old: 100,
            min_field: 20,
            max_size_ratio: 1.25,
            max_latency_ratio: 2.0,
        }
    }
}

/// Size and speed of both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Bytes of the model that runs.
    pub base_bytes: u64,
    /// Bytes of the candidate.
    pub candidate_bytes: u64,
    /// Median latency of the model that runs, µs.
    pub base_p50_us: f64,
    /// Median latency of the candidate, µs.
    pub candidate_p50_us: f64,
}

/// Result of a check and of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Shown to hold.
    Pass,
    /// Shown not to hold, or not shown to hold on enough evidence.
    Fail,
    /// Too little evidence; does not pass.
    Inconclusive,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Which.
    pub name: String,
    /// Its result.
    pub verdict: Verdict,
    /// What was measured.
    pub value: f64,
    /// What it was held against.
    pub limit: f64,
    /// In words.
    pub detail: String,
}

/// How both do on one set, in pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Inputs.
    pub count: usize,
    /// Accuracy of the model that runs.
    pub base: f64,
    /// Accuracy of the candidate.
    pub candidate: f64,
    /// Lower bound of the gain, one-sided.
    pub lower: f64,
    /// Upper bound of the gain, one-sided.
    pub upper: f64,
    /// p-value of McNemar's exact test that both are equally good.
    pub p: f64,
    /// Expected calibration error of the model that runs.
    pub base_ece: f64,
    /// Expected calibration error of the candidate.
    pub candidate_ece: f64,
}

/// The gate's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Pass only when every check passes.
    pub verdict: Verdict,
    /// On old data.
    pub old: Comparison,
    /// On field data.
    pub field: Comparison,
    /// Each check.
    pub checks: Vec<Check>,
}

/// Judges a candidate.
pub fn judge(
    old: &[Answer],
    field: &[Answer],
    labels: &[String],
    costs: &Costs,
    criteria: &Criteria,
) -> Report {
    let on_old = compare(old, criteria.confidence);
    let on_field = compare(field, criteria.confidence);
    let enough = |count: usize, least: usize, holds: bool| match (count >= least, holds) {
        (false, _) => Verdict::Inconclusive,
        (true, true) => Verdict::Pass,
        (true, false) => Verdict::Fail,
    };
    let text = |c: &Comparison| {
        format!(
            "{:.3} to {:.3} on {} inputs, gain at least {:.3} with {:.0} % confidence",
            c.base,
            c.candidate,
            c.count,
            c.lower,
            criteria.confidence * 100.0
        )
    };
    let mut checks = vec![
        Check {
            name: "old data: not worse".into(),
            verdict: enough(on_old.count, criteria.min_old, on_old.lower > -criteria.old_margin),
            value: on_old.lower,
            limit: -criteria.old_margin,
            detail: text(&on_old),
        },
        Check {
            name: "field data: better".into(),
            verdict: enough(on_field.count, criteria.min_field, on_field.lower > 0.0),
            value: on_field.lower,
            limit: 0.0,
            detail: text(&on_field),
        },
    ];
    let rise = on_old.candidate_ece - on_old.base_ece;
    checks.push(Check {
        name: "old data: calibrated".into(),
        verdict: enough(on_old.count, criteria.min_old, rise <= criteria.calibration_margin),
        value: rise,
        limit: criteria.calibration_margin,
        detail: format!("calibration error {:.3} to {:.3}", on_old.base_ece, on_old.candidate_ece),
    });
    for (class, label) in labels.iter().enumerate() {
        let slice: Vec<Answer> = old.iter().copied().filter(|answer| answer.label == class).collect();
        if slice.len() < MIN_SLICE {
            continue;
        }
        let slice = compare(&slice, criteria.confidence);
        // A slice is small: fail it only where the loss is shown, not where it cannot be excluded.
        let loss = slice.candidate - slice.base;
        let lost = loss < -criteria.class_margin && slice.upper < 0.0;
        checks.push(Check {
            name: format!("old data: class {label}"),
            verdict: if lost { Verdict::Fail } else { Verdict::Pass },
            value: loss,
            limit: -criteria.class_margin,
            detail: format!("{:.3} to {:.3} on {} inputs", slice.base, slice.candidate, slice.count),
        });
    }
    let size = costs.candidate_bytes as f64 / costs.base_bytes.max(1) as f64;
    let latency = costs.candidate_p50_us / costs.base_p50_us.max(1e-3);
    for (name, value, limit, detail) in [
        (
            "size",
            size,
            criteria.max_size_ratio,
            format!("{} to {} bytes", costs.base_bytes, costs.candidate_bytes),
        ),
        (
            "latency",
            latency,
            criteria.max_latency_ratio,
            format!("{:.1} to {:.1} µs (median)", costs.base_p50_us, costs.candidate_p50_us),
        ),
    ] {
        let verdict = if value <= limit { Verdict::Pass } else { Verdict::Fail };
        checks.push(Check { name: name.into(), verdict, value, limit, detail });
    }
    let any = |verdict| checks.iter().any(|check| check.verdict == verdict);
    let verdict = match (any(Verdict::Fail), any(Verdict::Inconclusive)) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Inconclusive,
        (false, false) => Verdict::Pass,
    };
    Report { verdict, old: on_old, field: on_field, checks }
}

/// Compares both on one set, with a one-sided `confidence` for each bound of the gain.
pub fn compare(answers: &[Answer], confidence: f64) -> Comparison {
    let count = answers.len();
    if count == 0 {
        return Comparison {
            count,
            base: 0.0,
            candidate: 0.0,
            lower: -1.0,
            upper: 1.0,
            p: 1.0,
            base_ece: 0.0,
            candidate_ece: 0.0,
        };
    }
    let tally = |base: bool, candidate: bool| {
        answers
            .iter()
            .filter(|a| (a.base == a.label) == base && (a.candidate == a.label) == candidate)
            .count()
    };
    let (both, lost, won) = (tally(true, true), tally(true, false), tally(false, true));
    let (lower, upper) = newcombe(both, lost, won, count, confidence);
    Comparison {
        count,
        base: (both + lost) as f64 / count as f64,
        candidate: (both + won) as f64 / count as f64,
        lower,
        upper,
        p: mcnemar(lost, won),
        base_ece: calibration_error(answers.iter().map(|a| (a.base_score, a.base == a.label))),
        candidate_ece: calibration_error(answers.iter().map(|a| (a.candidate_score, a.candidate == a.label))),
    }
}

/// Wilson's score interval of a proportion.
fn wilson(hits: usize, count: usize, z: f64) -> (f64, f64) {
    let (n, p) = (count as f64, hits as f64 / count as f64);
    let centre = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

/// Newcombe's interval 10 (Statistics in Medicine 17, 1998) of the difference of paired proportions.
fn newcombe(both: usize, lost: usize, won: usize, count: usize, confidence: f64) -> (f64, f64) {
    let z = Normal::standard().inverse_cdf(confidence.clamp(0.5, 0.999_999));
    let n = count as f64;
    let (old, new) = ((both + lost) as f64 / n, (both + won) as f64 / n);
    let (old_low, old_high) = wilson(both + lost, count, z);
    let (new_low, new_high) = wilson(both + won, count, z);
    let neither = (count - both - lost - won) as f64;
    let (a, b, c) = (both as f64, lost as f64, won as f64);
    let margins = (a + b) * (c + neither) * (a + c) * (b + neither);
    let cross = a * neither - b * c;
    let cross = if cross > 0.0 { (cross - n / 2.0).max(0.0) } else { cross };
    let phi = if margins > 0.0 { cross / margins.sqrt() } else { 0.0 };
    let spread = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
    let gain = new - old;
    (gain - spread(new - new_low, old_high - old), gain + spread(new_high - new, old - old_low))
}

/// McNemar's exact test, two-sided.
fn mcnemar(lost: usize, won: usize) -> f64 {
    let discordant = (lost + won) as u64;
    match Binomial::new(0.5, discordant) {
        Ok(binomial) if discordant > 0 => (2.0 * binomial.cdf(lost.min(won) as u64)).min(1.0),
        _ => 1.0,
    }
}

/// Expected calibration error: mean gap between score and accuracy over bins of the score.
fn calibration_error(answers: impl Iterator<Item = (f32, bool)>) -> f64 {
    let mut bins = [(0usize, 0.0f64, 0usize); CALIBRATION_BINS];
    let mut count = 0usize;
    for (score, right) in answers {
        let score = f64::from(score).clamp(0.0, 1.0);
        let score = if score.is_nan() { 0.0 } else { score };
        let bin = &mut bins[((score * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + score, bin.2 + usize::from(right));
        count += 1;
    }
    bins.iter().map(|(_, scores, right)| (scores - *right as f64).abs()).sum::<f64>() / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answers(both: usize, lost: usize, won: usize, neither: usize) -> Vec<Answer> {
        let one = |base: bool, candidate: bool| Answer {
            label: 0,
            base: usize::from(!base),
            base_score: 0.9,
            candidate: usize::from(!candidate),
            candidate_score: 0.9,
        };
        let mut all = vec![one(true, true); both];
        all.extend(vec![one(true, false); lost]);
        all.extend(vec![one(false, true); won]);
        all.extend(vec![one(false, false); neither]);
        all
    }

    fn costs() -> Costs {
        Costs { base_bytes: 100, candidate_bytes: 100, base_p50_us: 20.0, candidate_p50_us: 21.0 }
    }

    fn gate(old: &[Answer], field: &[Answer]) -> Report {
        judge(old, field, &["a".into()], &costs(), &Criteria::default())
    }

    #[test]
    fn the_interval_is_newcombes_published_one() {
        // Newcombe 1998, table II, method 10: 36, 12, 2, 0 of 50 gives 0.0569 to 0.3404 (two-sided 95 %).
        let (lower, upper) = newcombe(36, 2, 12, 50, 0.975);
        assert!((lower - 0.0569).abs() < 1e-4 && (upper - 0.3404).abs() < 1e-4, "{lower} {upper}");
        assert!((wilson(81, 263, 1.959_964).0 - 0.2553).abs() < 1e-4);
    }

    #[test]
    fn mcnemar_is_exact() {
        assert!((mcnemar(1, 9) - 0.021_484_375).abs() < 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(5, 5)), (1.0, 1.0));
    }

    #[test]
    fn a_better_model_passes_and_says_what_held() {
        let report = gate(&answers(550, 10, 12, 28), &answers(10, 0, 25, 5));
        assert_eq!(report.verdict, Verdict::Pass, "{report:#?}");
        assert!(report.field.lower > 0.3 && report.field.p < 1e-6);
    }

    #[test]
    fn forgetting_fails_and_little_evidence_never_passes() {
        assert_eq!(gate(&answers(450, 80, 2, 28), &answers(10, 0, 25, 5)).verdict, Verdict::Fail);
        assert_eq!(gate(&answers(550, 10, 12, 28), &answers(10, 3, 4, 20)).verdict, Verdict::Fail);
        assert_eq!(gate(&answers(550, 10, 12, 28), &answers(0, 0, 19, 0)).verdict, Verdict::Inconclusive);
        assert_eq!(gate(&[], &[]).verdict, Verdict::Inconclusive);
        let slow = Costs { candidate_p50_us: 90.0, ..costs() };
        let report =
            judge(&answers(550, 1, 2, 3), &answers(10, 0, 25, 5), &["a".into()], &slow, &Criteria::default());
        assert_eq!(report.verdict, Verdict::Fail);
    }

    #[test]
    fn calibration_is_the_gap_between_score_and_accuracy() {
        let over = (0..100).map(|at| (0.95f32, at < 60));
        assert!((calibration_error(over) - 0.35).abs() < 1e-6);
        assert_eq!(calibration_error(std::iter::empty()), 0.0);
        assert!(calibration_error([(f32::NAN, true)].into_iter()).is_finite());
    }

    proptest! {
        #[test]
        fn bounds_enclose_the_gain(both in 0usize..200, lost in 0usize..200, won in 0usize..200, neither in 0usize..200) {
            let all = answers(both, lost, won, neither);
            let c = compare(&all, 0.95);
            let gain = c.candidate - c.base;
            prop_assert!(c.lower <= gain + 1e-12 && gain <= c.upper + 1e-12);
            prop_assert!((-1.0 - 1e-9..=1.0 + 1e-9).contains(&c.lower) && c.upper <= 1.0 + 1e-9);
        }
    }
}
