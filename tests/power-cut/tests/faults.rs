//! The rig's own proof: the recordings of real updates, rollbacks and collections hold to every rule as they
//! are, and break the right one as soon as a fault is planted into them.
#![allow(clippy::unwrap_used, reason = "tests")]

use farlight_power_cut::faults::Fault;
use farlight_power_cut::replay::{self, Plan, Summary};
use farlight_power_cut::rules::Rule;
use farlight_power_cut::scenario::{self, Recording, Scenario};
use farlight_power_cut::trace::Trace;

/// Seed of the choices: the recording differs from run to run in any case.
const SEED: u64 = 1;
/// States of the untouched recording that are examined here; `tests/power-cut/run --full` examines all.
const SAMPLE: usize = 200;
/// States examined before all are: most faults are seen in many.
const FEW: usize = 100;

fn replay(recording: &Recording, trace: &Trace, from: usize, limit: usize, until: Option<Rule>) -> Summary {
    let plan = Plan { seed: SEED, from, limit, only: None, until };
    replay::replay(trace, recording.scenario.may_remove(), &plan).unwrap()
}

/// Rules that a fault breaks, and the number of states that were examined to find them.
fn broken_by(fault: Fault, recording: &Recording) -> (Vec<Rule>, usize) {
    let planted = fault.plant(&recording.trace).unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
    // Before the fault everything is as it was without it.
    let same = planted.events.iter().zip(&recording.trace.events).take_while(|(one, other)| one == other);
    let from = same.count();
    let examine = |limit| {
        let found = replay(recording, &planted, from, limit, Some(fault.breaks()));
        let violations = found.violations.values().flatten();
        (violations.map(|violation| violation.rule).collect::<Vec<Rule>>(), found.examined)
    };
    let few = examine(FEW);
    if few.0.contains(&fault.breaks()) { few } else { examine(usize::MAX) }
}

/// Records a scenario, holds it to the rules, then plants each of its faults.
fn each_fault_is_caught(scenario: Scenario) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let recording = runtime.block_on(scenario::record(scenario, folder.path())).unwrap();
    let sound = replay(&recording, &recording.trace, 0, SAMPLE, None);
    assert!(sound.violations.is_empty(), "without a fault: {:?}", sound.violations);
    let faults: Vec<Fault> =
        Fault::ALL.into_iter().filter(|fault| fault.scenarios().contains(&scenario)).collect();
    assert!(!faults.is_empty());
    for fault in faults {
        let (rules, examined) = broken_by(fault, &recording);
        assert!(rules.contains(&fault.breaks()), "{fault:?} is not caught: {rules:?} in {examined} states");
    }
}

#[test]
fn each_fault_of_a_first_release_and_its_removal_is_caught() {
    each_fault_is_caught(Scenario::Install);
}

#[test]
fn each_fault_of_an_update_is_caught() {
    each_fault_is_caught(Scenario::Update);
}

#[test]
fn each_fault_of_a_delta_update_is_caught() {
    each_fault_is_caught(Scenario::Delta);
}

#[test]
fn each_fault_of_a_configuration_update_is_caught() {
    each_fault_is_caught(Scenario::Config);
}

#[test]
fn each_fault_of_a_rollback_is_caught() {
    each_fault_is_caught(Scenario::Rollback);
}

#[test]
fn each_fault_of_a_start_on_trial_is_caught() {
    each_fault_is_caught(Scenario::CrashLoop);
}

#[test]
fn each_fault_of_a_collection_is_caught() {
    each_fault_is_caught(Scenario::Collect);
}
