//! The data contract: what an input must be before a model sees it, checked in O(input).

use farlight_release::manifest::{OnViolation, TensorSpec};

use crate::tensor::Values;

/// Counts elements that break the contract and repairs those that are not finite (to 0) in `input`.
pub(crate) fn check(spec: &TensorSpec, input: &mut [f32]) -> u32 {
    let mut violations = 0_u32;
    for value in input {
        if !(*value >= spec.min && *value <= spec.max) {
            violations = violations.saturating_add(1);
            if !value.is_finite() {
                *value = 0.0;
            }
        }
    }
    violations
}

/// Counts elements that break the contract in an input that goes to the model as it is. Byte strings and truth
/// values have none.
pub(crate) fn count(spec: &TensorSpec, input: &Values) -> u32 {
    let (min, max) = (f64::from(spec.min), f64::from(spec.max));
    let outside = |x: f64| u32::from(!(x >= min && x <= max));
    let count = |sum: u32, x: f64| sum.saturating_add(outside(x));
    match input {
        Values::Uint8(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Uint16(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Uint32(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Uint64(v) => v.iter().map(|x| *x as f64).fold(0, count),
        Values::Int8(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Int16(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Int32(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Int64(v) => v.iter().map(|x| *x as f64).fold(0, count),
        Values::Fp16(v) => v.iter().map(|x| x.to_f64()).fold(0, count),
        Values::Fp32(v) => v.iter().map(|x| f64::from(*x)).fold(0, count),
        Values::Fp64(v) => v.iter().copied().fold(0, count),
        Values::Bool(_) | Values::Bytes(_) => 0,
    }
}

/// Whether an input with so many violations is refused.
pub(crate) fn refuses(spec: &TensorSpec, violations: u32) -> bool {
    violations > 0 && spec.on_violation == OnViolation::Refuse
}
