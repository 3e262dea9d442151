//! Snapping: trained weights are moved to the nearest multiple of a step away from where they began. What lies
//! below the step is noise of the training, but a delta would have to write it (crates/release/DELTA.md).

use std::ops::RangeInclusive;

/// Exponents of steps: of the smallest and the largest power of two among the f32.
const STEPS: RangeInclusive<i32> = -149..=127;
/// Bias of the exponent of a double.
const BIAS: i32 = 1023;
/// Bits of its mantissa.
const MANTISSA: u32 = 52;

/// Snaps `trained` to `base` plus a multiple of a power of two: the largest that is at most 2 to the power of
/// `-bits` of the root mean square change, so that what is moved by is no more than 2^-(bits + 1) of that.
pub(super) fn snap(base: &[f32], trained: &mut [f32], bits: u32) {
    let changes = base.iter().zip(&*trained).map(|(base, trained)| f64::from(*trained) - f64::from(*base));
    let square: f64 = changes.map(|change| change * change).sum::<f64>() / trained.len().max(1) as f64;
    let size = square.sqrt();
    if !size.is_normal() {
        return;
    }
    // Its exponent; the sign bit is not set.
    let exponent = (size.to_bits() >> MANTISSA) as i32 - BIAS - bits as i32;
    if !STEPS.contains(&exponent) {
        return;
    }
    let step = f64::from_bits(((exponent + BIAS) as u64) << MANTISSA);
    for (base, trained) in base.iter().zip(trained) {
        let from = f64::from(*base);
        let multiple = ((f64::from(*trained) - from) / step).round();
        // A delta makes the same of base and multiple, by the same product, sum and rounding; what did not
        // move keeps its bits.
        *trained = if multiple == 0.0 { *base } else { (from + multiple * step) as f32 };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Random;

    fn change(base: &[f32], trained: &[f32]) -> Vec<f64> {
        base.iter().zip(trained).map(|(base, trained)| f64::from(*trained) - f64::from(*base)).collect()
    }

    fn size(changes: &[f64]) -> f64 {
        (changes.iter().map(|change| change * change).sum::<f64>() / changes.len() as f64).sqrt()
    }

    proptest! {
        #[test]
        fn a_weight_is_moved_by_at_most_half_a_step(seed in any::<u64>(), by in -8i32..0, bits in 1u32..12) {
            let mut random = Random::new(seed);
            let base: Vec<f32> = (0..500).map(|_| random.normal() * 0.05).collect();
            let trained: Vec<f32> = base.iter().map(|w| w + random.normal() * 2f32.powi(by)).collect();
            let mut snapped = trained.clone();
            snap(&base, &mut snapped, bits);
            let most = size(&change(&base, &trained)) / f64::from(2 << bits);
            // Beside the rounding to f32 of a number of at most about 5.
            prop_assert!(change(&trained, &snapped).iter().all(|moved| moved.abs() <= most + 3e-7));
            let mut again = snapped.clone();
            snap(&base, &mut again, bits + 1);
            let most = 1e-6 + most * 0.01;
            prop_assert!(change(&again, &snapped).iter().all(|moved| moved.abs() <= most), "stays");
        }
    }

    #[test]
    fn what_did_not_move_or_is_no_number_stays() {
        let base = [1.0f32, -0.0, 0.0, 2.5];
        let mut same = base;
        snap(&base, &mut same, 8);
        assert_eq!(same.map(f32::to_bits), base.map(f32::to_bits));
        for odd in [f32::NAN, f32::INFINITY] {
            let mut trained = [1.1, odd];
            snap(&[1.0, 1.0], &mut trained, 8);
            assert_eq!((trained[0], trained[1].to_bits()), (1.1, odd.to_bits()));
        }
        snap(&[], &mut [], 8);
    }
}
