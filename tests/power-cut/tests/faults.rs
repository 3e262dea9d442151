//! The rig's own proof: the recordings of a real update and of a crash loop hold to every rule as they are,
//! and break the right one as soon as a fault is planted into them.
#![allow(clippy::unwrap_used, reason = "tests")]

use farlight_power_cut::faults::Fault;
use farlight_power_cut::replay::{self, Plan, Summary};
use farlight_power_cut::rules::Rule;
use farlight_power_cut::scenario::{self, Scenario};
use farlight_power_cut::trace::Trace;

/// Seed of the choices: the recording differs from run to run in any case.
const SEED: u64 = 1;
/// States of the untouched recording that are examined here; `tests/power-cut/run --full` examines all.
const SAMPLE: usize = 300;

fn replay(trace: &Trace, limit: usize, until: Option<Rule>) -> Summary {
    let plan = Plan { seed: SEED, limit, only: None, until };
    replay::replay(trace, false, &plan).unwrap()
}

/// Records a scenario, holds it to the rules, then plants each of its faults.
fn each_fault_is_caught(scenario: Scenario) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let recording = runtime.block_on(scenario::record(scenario, folder.path())).unwrap();
    let sound = replay(&recording.trace, SAMPLE, None);
    assert!(sound.violations.is_empty(), "without a fault: {:?}", sound.violations);
    for fault in Fault::ALL.into_iter().filter(|fault| fault.scenario() == scenario) {
        let planted = fault.plant(&recording.trace).unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        let found = replay(&planted, usize::MAX, Some(fault.breaks()));
        let rules: Vec<Rule> = found.violations.values().flatten().map(|violation| violation.rule).collect();
        assert!(
            rules.contains(&fault.breaks()),
            "{fault:?} is not caught: {rules:?} in {} states",
            found.examined
        );
    }
}

#[test]
fn each_fault_of_an_update_is_caught() {
    each_fault_is_caught(Scenario::Update);
}

#[test]
fn each_fault_of_a_start_on_trial_is_caught() {
    each_fault_is_caught(Scenario::CrashLoop);
}
