//! Eviction by value: what leaves the telemetry store when it is over its ceiling. Raw cases go before
//! aggregates, easy hard cases before hard ones, control samples last among cases, old windows last.

use farlight_wire::case::CaseKind;

/// Value of a case: higher stays longer. Control samples are worth more than any hard case, because their
/// value is that they are a complete random sample.
pub fn case_value(kind: CaseKind, hardness_permille: u16) -> u16 {
    match kind {
        CaseKind::Control => 2_000,
        CaseKind::Contract => 500,
        CaseKind::Margin | CaseKind::LowScore | CaseKind::Novelty | CaseKind::Disagreement => {
            hardness_permille.min(1_000)
        }
    }
}

/// What to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evict {
    /// Nothing: under the ceiling.
    Nothing,
    /// So many of the least valuable, then oldest cases.
    Cases(u64),
    /// So many of the oldest windows.
    Windows(u64),
}

/// Rows deleted at a time: small, so that eviction never holds the store for long.
pub const BATCH: u64 = 64;

/// Decides the next eviction step for a store of `bytes` with a `ceiling`.
pub fn plan(bytes: u64, ceiling: u64, cases: u64, windows: u64) -> Evict {
    if bytes <= ceiling {
        Evict::Nothing
    } else if cases > 0 {
        Evict::Cases(cases.min(BATCH))
    } else if windows > 1 {
        Evict::Windows((windows - 1).min(BATCH))
    } else {
        Evict::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_go_before_windows_and_the_last_window_stays() {
        assert_eq!(plan(10, 10, 5, 5), Evict::Nothing);
        assert_eq!(plan(11, 10, 5, 5), Evict::Cases(5));
        assert_eq!(plan(11, 10, 500, 5), Evict::Cases(BATCH));
        assert_eq!(plan(11, 10, 0, 5), Evict::Windows(4));
        assert_eq!(plan(11, 10, 0, 1), Evict::Nothing);
        assert!(case_value(CaseKind::Control, 0) > case_value(CaseKind::Margin, 1000));
    }
}
