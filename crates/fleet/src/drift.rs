//! The drift verdict of a release: observed counts in the reference bins of its manifest, pooled over
//! devices. Drift needs significance (χ² with false-discovery control over features) *and* effect (PSI);
//! small samples are inconclusive; one device off while its cohort is not is a sensor fault.

use farlight_wire::DeviceId;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Fewest samples for a verdict: below, PSI alone raises false alarms (30 % at 100 samples, 10 bins).
pub const MIN_SAMPLES: u64 = 500;
/// Fewest samples of one device before it is compared with the others.
pub const MIN_DEVICE_SAMPLES: u64 = 100;
/// PSI from which a shift is worth watching.
pub const PSI_WATCH: f64 = 0.1;
/// PSI from which a shift is worth acting on.
pub const PSI_ACT: f64 = 0.25;
/// False-discovery rate over the features of one verdict.
pub const FALSE_DISCOVERY: f64 = 0.01;
/// Share of devices that are off from which it is drift of the fleet and not a fault of some sensors.
pub const FAULT_SHARE: f64 = 0.2;
/// Fewest devices before one can be called an outlier among them.
pub const MIN_COHORT: usize = 5;
/// Half a count in each bin, so that an empty one does not make PSI infinite.
const PRIOR: f64 = 0.5;

/// A feature's reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// For people.
    pub name: String,
    /// Counts per bin.
    pub counts: Vec<u32>,
}

/// What one device counted, per feature in the order of the references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The device.
    pub device: DeviceId,
    /// Counts per feature and bin.
    pub features: Vec<Vec<u64>>,
    /// Windows they come from.
    pub windows: u64,
}

/// How a feature is judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Population stability index against the reference.
    pub psi: f64,
    /// p-value of the χ² test against the reference.
    pub p: f64,
    /// Significant after false-discovery control, and PSI at least [`PSI_WATCH`].
    pub drifted: bool,
    /// Samples.
    pub samples: u64,
    /// Share of the reference in each bin.
    pub reference: Vec<f64>,
    /// Share of the samples in each bin.
    pub observed: Vec<f64>,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Inputs are as in the reference.
    Stable,
    /// Inputs have shifted: act.
    Drift,
    /// Too few samples to say.
    Inconclusive,
}

/// A device whose inputs are off while those of the others are not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The device.
    pub device: DeviceId,
    /// The feature that is off most.
    pub feature: String,
    /// Its PSI.
    pub psi: f64,
}

/// The verdict with what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The answer.
    pub verdict: Verdict,
    /// Why, for people.
    pub reason: String,
    /// Samples pooled.
    pub samples: u64,
    /// Windows pooled.
    pub windows: u64,
    /// Devices pooled.
    pub devices: usize,
    /// Devices with enough samples that are off by themselves.
    pub devices_off: usize,
    /// Per feature.
    pub features: Vec<Feature>,
    /// Devices with a sensor fault; their counts are not in the above.
    pub faults: Vec<Fault>,
}

/// Judges a release.
pub fn judge(references: &[Reference], observed: &[Observed]) -> Judgement {
    let judged: Vec<(&Observed, Option<Fault>)> = observed
        .iter()
        .filter(|device| samples(&device.features) >= MIN_DEVICE_SAMPLES)
        .map(|device| (device, off(references, device)))
        .collect();
    let devices_off = judged.iter().filter(|(_, fault)| fault.is_some()).count();
    let share = devices_off as f64 / judged.len().max(1) as f64;
    let few = judged.len() >= MIN_COHORT && share < FAULT_SHARE;
    let mut faults: Vec<Fault> =
        if few { judged.into_iter().filter_map(|(_, fault)| fault).collect() } else { vec![] };
    let mut pooled = pool(references, observed, &faults);
    if verdict(&pooled) != Verdict::Stable && !faults.is_empty() {
        // The others are off as well: nobody is an outlier among them.
        faults.clear();
        pooled = pool(references, observed, &faults);
    }
    let kept = || observed.iter().filter(|device| !faults.iter().any(|fault| fault.device == device.device));
    let samples = pooled.iter().map(|feature| feature.samples).max().unwrap_or(0);
    let widespread = devices_off > 0 && !few && share >= FAULT_SHARE;
    let verdict = match verdict(&pooled) {
        Verdict::Stable if widespread => Verdict::Drift,
        verdict => verdict,
    };
    let worst = pooled.iter().max_by(|a, b| a.psi.total_cmp(&b.psi));
    let reason = match (verdict, worst) {
        (Verdict::Inconclusive, _) => format!("{samples} samples, at least {MIN_SAMPLES} are needed"),
        (Verdict::Drift, Some(worst)) => {
            let drifted = pooled.iter().filter(|feature| feature.drifted).count();
            format!(
                "{drifted} of {} features shifted, most {} (PSI {:.2}); {devices_off} devices off",
                pooled.len(),
                worst.name,
                worst.psi
            )
        }
        (_, Some(worst)) => format!("largest shift {} (PSI {:.2})", worst.name, worst.psi),
        (_, None) => "the release has no reference features".to_owned(),
    };
    Judgement {
        verdict,
        reason,
        samples,
        windows: kept().map(|device| device.windows).sum(),
        devices: kept().count(),
        devices_off,
        features: pooled,
        faults: faults.clone(),
    }
}

fn verdict(features: &[Feature]) -> Verdict {
    if features.iter().all(|feature| feature.samples < MIN_SAMPLES) {
        Verdict::Inconclusive
    } else if features.iter().any(|feature| feature.drifted && feature.psi >= PSI_ACT) {
        Verdict::Drift
    } else {
        Verdict::Stable
    }
}

fn samples(features: &[Vec<u64>]) -> u64 {
    features.iter().map(|counts| counts.iter().sum()).max().unwrap_or(0)
}

fn pool(references: &[Reference], observed: &[Observed], without: &[Fault]) -> Vec<Feature> {
    let mut features: Vec<Feature> = references
        .iter()
        .enumerate()
        .map(|(index, reference)| {
            let mut counts = vec![0_u64; reference.counts.len()];
            for device in observed.iter().filter(|d| !without.iter().any(|fault| fault.device == d.device)) {
                let own = device.features.get(index).map_or(&[][..], Vec::as_slice);
                counts.iter_mut().zip(own).for_each(|(sum, more)| *sum = sum.saturating_add(*more));
            }
            compare(reference, &counts)
        })
        .collect();
    control(&mut features);
    features
}

/// The feature of a device that is off most, when one is. The bias of PSI in small samples,
/// (bins − 1)(1/n + 1/m), is taken off first.
fn off(references: &[Reference], device: &Observed) -> Option<Fault> {
    let features = pool(references, std::slice::from_ref(device), &[]);
    let worst = features.iter().filter(|feature| feature.drifted).max_by(|a, b| a.psi.total_cmp(&b.psi))?;
    let reference = references.iter().find(|reference| reference.name == worst.name)?;
    let m: u64 = reference.counts.iter().map(|count| u64::from(*count)).sum();
    let bins = reference.counts.len().saturating_sub(1) as f64;
    let bias = bins * (1.0 / worst.samples.max(1) as f64 + 1.0 / m.max(1) as f64);
    (worst.psi - bias >= PSI_ACT).then(|| Fault {
        device: device.device.clone(),
        feature: worst.name.clone(),
        psi: worst.psi,
    })
}

/// Compares counts with a reference; `drifted` is decided by [`control`] over all features.
fn compare(reference: &Reference, counts: &[u64]) -> Feature {
    let n: u64 = counts.iter().sum();
    let m: u64 = reference.counts.iter().map(|count| u64::from(*count)).sum();
    let bins = counts.len() as f64;
    let shares = |counts: &mut dyn Iterator<Item = f64>, total: u64| -> Vec<f64> {
        counts.map(|count| (count + PRIOR) / (total as f64 + PRIOR * bins)).collect()
    };
    let expected = shares(&mut reference.counts.iter().map(|count| f64::from(*count)), m);
    let actual = shares(&mut counts.iter().map(|count| *count as f64), n);
    let (psi, p) = if n == 0 || m == 0 {
        (0.0, 1.0)
    } else {
        let psi = expected.iter().zip(&actual).map(|(e, a)| (a - e) * (a / e).ln()).sum();
        (psi, p_value(&reference.counts, counts, m as f64, n as f64))
    };
    Feature {
        name: reference.name.clone(),
        psi,
        p,
        drifted: false,
        samples: n,
        reference: expected,
        observed: actual,
    }
}

/// Two-sample χ² test: the reference is a sample as well.
fn p_value(reference: &[u32], counts: &[u64], m: f64, n: f64) -> f64 {
    let (mut statistic, mut used) = (0.0, 0_u32);
    for (r, o) in reference.iter().map(|r| f64::from(*r)).zip(counts.iter().map(|o| *o as f64)) {
        if r + o > 0.0 {
            statistic += ((n / m).sqrt() * r - (m / n).sqrt() * o).powi(2) / (r + o);
            used += 1;
        }
    }
    match ChiSquared::new(f64::from(used) - 1.0) {
        Ok(distribution) => distribution.sf(statistic),
        Err(_) => 1.0,
    }
}

/// Benjamini–Hochberg over the features, then the effect.
fn control(features: &mut [Feature]) {
    let mut values: Vec<f64> = features.iter().map(|feature| feature.p).collect();
    values.sort_by(f64::total_cmp);
    let tests = values.len() as f64;
    let cut = values
        .iter()
        .enumerate()
        .filter(|(rank, p)| **p <= FALSE_DISCOVERY * (*rank as f64 + 1.0) / tests)
        .map(|(_, p)| *p)
        .next_back();
    for feature in features {
        feature.drifted = cut.is_some_and(|cut| feature.p <= cut) && feature.psi >= PSI_WATCH;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ten even bins, one for what is missing.
    fn references(features: usize) -> Vec<Reference> {
        (0..features)
            .map(|index| Reference {
                name: format!("f{index}"),
                counts: [[100; 10].as_slice(), &[0]].concat(),
            })
            .collect()
    }

    fn device(index: usize, counts: &[u64], features: usize) -> Observed {
        Observed {
            device: DeviceId::new(format!("gw-{index}")).unwrap(),
            features: vec![counts.to_vec(); features],
            windows: 4,
        }
    }

    const EVEN: [u64; 11] = [20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 0];
    const SHIFTED: [u64; 11] = [0, 0, 0, 0, 0, 10, 20, 30, 60, 80, 0];

    #[test]
    fn fleets() {
        let fleet = |off: usize, of: usize| -> Vec<Observed> {
            (0..of).map(|i| device(i, if i < off { &SHIFTED } else { &EVEN }, 3)).collect()
        };
        for (off, of, expected, faults) in [
            (0, 12, Verdict::Stable, 0),
            (1, 12, Verdict::Stable, 1),
            (2, 12, Verdict::Stable, 2),
            (3, 12, Verdict::Drift, 0),
            (6, 12, Verdict::Drift, 0),
            (12, 12, Verdict::Drift, 0),
            (0, 2, Verdict::Inconclusive, 0),
            (0, 0, Verdict::Inconclusive, 0),
            // In a cohort of three nobody can be called an outlier.
            (1, 3, Verdict::Drift, 0),
        ] {
            let judgement = judge(&references(3), &fleet(off, of));
            assert_eq!(
                (judgement.verdict, judgement.faults.len()),
                (expected, faults),
                "{off} of {of}: {judgement:?}"
            );
        }
    }

    #[test]
    fn significance_alone_is_no_drift() {
        // A harmless shift in a million samples: p is tiny, the effect is too.
        let counts: Vec<u64> = (0..11).map(|bin| if bin == 10 { 0 } else { 100_000 + bin * 2_000 }).collect();
        let mut references = references(1);
        references[0].counts.iter_mut().for_each(|count| *count *= 1000);
        let judgement = judge(&references, &[device(0, &counts, 1)]);
        assert!(judgement.features[0].p < 0.01);
        assert_eq!(judgement.verdict, Verdict::Stable);
    }

    #[test]
    fn one_outlier_does_not_hide_a_shift() {
        let mut counts = SHIFTED.map(|count| count * 5).to_vec();
        counts[10] = 1;
        assert_eq!(judge(&references(1), &[device(0, &counts, 1)]).verdict, Verdict::Drift);
    }

    proptest! {
        #[test]
        fn any_counts_give_finite_numbers(
            reference in prop::collection::vec(any::<u32>(), 0..20),
            counts in prop::collection::vec(prop::collection::vec(0_u64..u64::from(u32::MAX), 0..20), 0..8),
        ) {
            let observed: Vec<Observed> = counts.iter().enumerate().map(|(i, c)| device(i, c, 1)).collect();
            let judgement = judge(&[Reference { name: "f".to_owned(), counts: reference }], &observed);
            for feature in &judgement.features {
                prop_assert!(feature.psi.is_finite() && (0.0..=1.0).contains(&feature.p), "{feature:?}");
            }
        }

        #[test]
        fn under_the_minimum_is_inconclusive(counts in prop::collection::vec(0_u64..49, 10)) {
            let judgement = judge(&references(1), &[device(0, &[counts.as_slice(), &[0]].concat(), 1)]);
            prop_assume!(judgement.samples < MIN_SAMPLES && judgement.devices_off == 0);
            prop_assert_eq!(judgement.verdict, Verdict::Inconclusive);
        }
    }
}
