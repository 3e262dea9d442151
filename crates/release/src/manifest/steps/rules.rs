//! Rules that several steps share.

use super::StepProblem;
use crate::manifest::check::{MAX_NAME, MAX_RANK};

/// A rule that holds, or the problem.
pub(super) type Rule = Result<(), StepProblem>;

/// The problem, unless `holds`.
pub(super) fn ensure(holds: bool, field: &'static str, rule: impl Into<String>) -> Rule {
    if holds { Ok(()) } else { Err(StepProblem { field, rule: rule.into() }) }
}

/// Every value is finite.
pub(super) fn finite(field: &'static str, values: &[f32]) -> Rule {
    ensure(values.iter().all(|value| value.is_finite()), field, "must be finite everywhere")
}

/// `axes` names each of `rank` axes once.
pub(super) fn permutation(axes: &[usize], rank: usize) -> Rule {
    let each = axes.len() == rank && (0..rank).all(|axis| axes.contains(&axis));
    ensure(rank <= MAX_RANK && each, "axes", format!("must name each of the {rank} axes once"))
}

/// A name of an output.
pub(super) fn name(field: &'static str, name: &str) -> Rule {
    let good = !name.is_empty() && name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control);
    ensure(good, field, format!("must be 1 to {MAX_NAME} characters without control characters"))
}
