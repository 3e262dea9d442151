//! The data contract: what an input must be before a model sees it, checked in O(input).

use farlight_release::manifest::{OnViolation, TensorSpec};

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

/// Whether an input with so many violations is refused.
pub(crate) fn refuses(spec: &TensorSpec, violations: u32) -> bool {
    violations > 0 && spec.on_violation == OnViolation::Refuse
}
