//! Which inputs to keep: hard ones at a held rate, and a uniform random control.
//!
//! A total shift makes uncertainty alone pick redundant cases, so the control share is never off, near
//! duplicates are skipped and each class has a quota. Randomness comes in as an argument.

use std::collections::{BTreeMap, VecDeque};

use farlight_wire::Millis;
use farlight_wire::case::CaseKind;

/// Fingerprints remembered to skip near duplicates.
const REMEMBERED: usize = 64;
/// Step of the running quantile, in units of hardness: small enough to be steady, large enough to follow
/// a shift within a few hundred inputs.
const STEP: f32 = 0.02;
/// A class may take this many times its fair share of a day's bytes.
const CLASS_QUOTA: u64 = 3;
const DAY: u64 = 24 * 60 * 60 * 1000;

/// How much to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Share of inputs kept as hard cases, thousandths.
    pub hard_permille: u16,
    /// Share of inputs kept as control, thousandths.
    pub control_permille: u16,
    /// Bytes a day, cases as stored.
    pub bytes_per_day: u64,
}

/// What the sampler looks at.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Highest output, 0 to 1.
    pub score: f32,
    /// Highest minus second highest output, 0 to 1.
    pub margin: f32,
    /// Share of features outside the reference, 0 to 1.
    pub novelty: f32,
    /// Whether the answer was withheld or not finite.
    pub undecided: bool,
    /// Whether the input broke the data contract.
    pub violation: bool,
    /// Index of the best class.
    pub class: u32,
    /// Classes of the model.
    pub classes: u32,
    /// A digest of the input's feature bins: equal for near duplicates.
    pub fingerprint: u64,
    /// Bytes it would take.
    pub bytes: u64,
}

/// A decision to keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keep {
    /// Why.
    pub kind: CaseKind,
    /// With which probability, thousandths.
    pub kept_permille: u16,
    /// Hardness, thousandths.
    pub hardness_permille: u16,
}

/// The state of the sampler of one model.
#[derive(Debug, Clone)]
pub struct Sampler {
    policy: Policy,
    threshold: f32,
    recent: VecDeque<u64>,
    day: u64,
    spent: u64,
    spent_by_class: BTreeMap<u32, u64>,
    /// Cases that the byte budget or a quota refused since the start.
    pub refused: u64,
}

impl Sampler {
    /// A sampler that begins with a threshold in the middle.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            threshold: 0.5,
            recent: VecDeque::with_capacity(REMEMBERED),
            day: 0,
            spent: 0,
            spent_by_class: BTreeMap::new(),
            refused: 0,
        }
    }

    /// Changes what is asked for; what was spent today stays spent.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Decides on one input; `random` is uniform in 0 to 1.
    pub fn decide(&mut self, candidate: &Candidate, random: f64, now: Millis) -> Option<Keep> {
        self.turn_day(now);
        let (kind, hardness) = hardness(candidate);
        let hard = hardness > 0.0 && hardness >= self.threshold;
        // Running quantile (Robbins and Monro 1951): moves up by STEP·(1−target) for each hard input and
        // down by STEP·target for each other one, so that the share above it becomes the target.
        let target = f32::from(self.policy.hard_permille.min(1000)) / 1000.0;
        self.threshold = (self.threshold + STEP * (f32::from(u8::from(hard)) - target)).clamp(0.0, 1.0);

        let hardness_permille = (hardness.clamp(0.0, 1.0) * 1000.0) as u16;
        let control = random < f64::from(self.policy.control_permille.min(1000)) / 1000.0;
        let keep = if control {
            Keep { kind: CaseKind::Control, kept_permille: self.policy.control_permille, hardness_permille }
        } else if hard && target > 0.0 && !self.recent.contains(&candidate.fingerprint) {
            Keep { kind, kept_permille: 1000, hardness_permille }
        } else {
            return None;
        };
        self.spend(candidate, keep.kind).then(|| {
            if self.recent.len() == REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back(candidate.fingerprint);
            keep
        })
    }

    fn turn_day(&mut self, now: Millis) {
        let day = now.0 / DAY;
        // A clock that steps back does not open a new budget.
        if day > self.day {
            (self.day, self.spent) = (day, 0);
            self.spent_by_class.clear();
        }
    }

    fn spend(&mut self, candidate: &Candidate, kind: CaseKind) -> bool {
        let class = self.spent_by_class.entry(candidate.class).or_insert(0);
        let quota =
            self.policy.bytes_per_day.saturating_mul(CLASS_QUOTA) / u64::from(candidate.classes.max(1));
        let within = self.spent + candidate.bytes <= self.policy.bytes_per_day
            && (kind == CaseKind::Control || *class + candidate.bytes <= quota);
        if within {
            self.spent += candidate.bytes;
            *class += candidate.bytes;
        } else {
            self.refused += 1;
        }
        within
    }
}

/// The hardest reason and how hard, 0 to 1. Right at p = 0, one class and empty output: those arrive as
/// score 0 and `undecided`.
fn hardness(candidate: &Candidate) -> (CaseKind, f32) {
    let finite = |v: f32| if v.is_finite() { v.clamp(0.0, 1.0) } else { 0.0 };
    let reasons = [
        (CaseKind::Contract, if candidate.violation { 1.0 } else { 0.0 }),
        (CaseKind::LowScore, if candidate.undecided { 1.0 } else { 1.0 - finite(candidate.score) }),
        (CaseKind::Margin, if candidate.classes > 1 { 1.0 - finite(candidate.margin) } else { 0.0 }),
        // Novelty alone is weaker evidence than an uncertain answer.
        (CaseKind::Novelty, finite(candidate.novelty) * 0.9),
    ];
    let mut best = reasons[0];
    for reason in reasons {
        if reason.1 > best.1 {
            best = reason;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(margin: f32, fingerprint: u64) -> Candidate {
        Candidate {
            score: 0.5 + margin / 2.0,
            margin,
            novelty: 0.0,
            undecided: false,
            violation: false,
            class: (fingerprint % 4) as u32,
            classes: 4,
            fingerprint,
            bytes: 100,
        }
    }

    /// splitmix64 (Steele, Lea, Flood 2014), to make test inputs.
    fn uniform(seed: &mut u64) -> f64 {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn the_rate_is_held_before_and_after_a_shift() {
        let policy = Policy { hard_permille: 50, control_permille: 10, bytes_per_day: u64::MAX / 8 };
        let mut sampler = Sampler::new(policy);
        let mut seed = 7;
        for shift in [1.0, 0.3] {
            let (mut hard, mut control) = (0, 0);
            for n in 0..20_000_u64 {
                let margin = (uniform(&mut seed) * shift) as f32;
                let c = candidate(margin, (shift * 1e9) as u64 + n);
                match sampler.decide(&c, uniform(&mut seed), Millis(1)) {
                    Some(Keep { kind: CaseKind::Control, .. }) => control += 1,
                    Some(_) => hard += 1,
                    None => {}
                }
            }
            assert!((800..1_300).contains(&hard), "{hard} of 20000 at 5 %, shift {shift}");
            assert!((130..270).contains(&control), "{control} of 20000 at 1 %");
        }
    }

    #[test]
    fn near_duplicates_are_kept_once() {
        let policy = Policy { hard_permille: 1000, control_permille: 0, bytes_per_day: 1 << 40 };
        let mut sampler = Sampler::new(policy);
        let kept = (0..50).filter(|_| sampler.decide(&candidate(0.0, 9), 0.5, Millis(1)).is_some()).count();
        assert_eq!(kept, 1);
    }

    #[test]
    fn the_byte_budget_and_quota_hold_and_return_the_next_day() {
        let policy = Policy { hard_permille: 1000, control_permille: 0, bytes_per_day: 1_000 };
        let mut sampler = Sampler::new(policy);
        let keep = |sampler: &mut Sampler, fingerprints: std::ops::Range<u64>, now| {
            fingerprints.filter(|f| sampler.decide(&candidate(0.0, *f), 0.5, Millis(now)).is_some()).count()
        };
        // One class alone gets 3 × 1000 / 4 = 750 bytes, all together 1000.
        let one_class =
            (0..100).filter(|f| sampler.decide(&candidate(0.0, f * 4), 0.5, Millis(1)).is_some()).count();
        assert_eq!(one_class, 7);
        assert_eq!(keep(&mut sampler, 1000..1100, 1), 3);
        assert_eq!(keep(&mut sampler, 2000..2100, DAY + 1), 10);
        assert_eq!(keep(&mut sampler, 3000..3100, 1), 0);
    }

    #[test]
    fn edges_are_hard() {
        let mut c = candidate(0.9, 1);
        c.undecided = true;
        assert_eq!(hardness(&c), (CaseKind::LowScore, 1.0));
        c = candidate(f32::NAN, 1);
        assert_eq!(hardness(&c).1, 1.0);
        c = Candidate { classes: 1, margin: 1.0, score: 1.0, ..candidate(1.0, 1) };
        assert_eq!(hardness(&c).1, 0.0);
        c = Candidate { score: 0.0, margin: 0.0, ..candidate(0.0, 1) };
        assert_eq!(hardness(&c).1, 1.0);
    }
}
