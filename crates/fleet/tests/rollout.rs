//! The planner driven by fleets of made-up devices: named cases, and invariants over random fleets,
//! behaviours and operators.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use farlight_fleet::gate::Verdict;
use farlight_fleet::rollout::{DeviceState, Plan, Progress, RolloutSpec, Standing, place, plan};
use farlight_wire::{DeviceId, Millis, Permille};
use proptest::prelude::*;

const SOAK: u64 = 10_000;
const DEADLINE: u64 = 100_000;

fn spec(waves: &[u16], max_failures: u16) -> RolloutSpec {
    RolloutSpec {
        id: "r-1".parse().unwrap(),
        release: "m/1.1.0".parse().unwrap(),
        waves: waves.iter().map(|share| Permille::new(*share).unwrap()).collect(),
        soak: Millis(SOAK),
        deadline: Millis(DEADLINE),
        max_failures: Permille::new(max_failures).unwrap(),
        min_sample: 10,
    }
}

fn pass() -> Verdict {
    Verdict::Pass { reason: String::new() }
}

/// A fleet that the planner is applied to, as the driver does it.
struct Fleet {
    spec: RolloutSpec,
    progress: Progress,
    devices: BTreeMap<DeviceId, Standing>,
    now: u64,
}

impl Fleet {
    fn new(devices: usize, waves: &[u16], max_failures: u16) -> Self {
        let devices = (0..devices).map(|i| (DeviceId::new(format!("gw-{i:04}")).unwrap(), Standing::Waiting));
        Self {
            spec: spec(waves, max_failures),
            progress: Progress::start(Millis(0)),
            devices: devices.collect(),
            now: 0,
        }
    }

    fn states(&self) -> Vec<DeviceState> {
        self.devices
            .iter()
            .map(|(device, standing)| DeviceState { device: device.clone(), standing: *standing })
            .collect()
    }

    fn plan(&self, gate: &Verdict) -> Plan {
        plan(&self.spec, &self.progress, &self.states(), gate, Millis(self.now))
    }

    fn apply(&mut self, gate: &Verdict) -> Plan {
        let plan = self.plan(gate);
        let at = Millis(self.now);
        let mut set = |devices: &[DeviceId], standing| {
            for device in devices {
                self.devices.insert(device.clone(), standing);
            }
        };
        set(&plan.assign, Standing::Assigned { at, heard: false });
        set(&plan.time_out, Standing::TimedOut { at });
        set(&plan.unreached, Standing::Unreached { at });
        set(&plan.revert, Standing::Reverted);
        self.progress = plan.next.clone();
        plan
    }

    /// Every assigned device ends like this.
    fn end(&mut self, with: impl Fn(&DeviceId, Millis) -> Option<Standing>) {
        let at = Millis(self.now);
        for (device, standing) in &mut self.devices {
            if matches!(standing, Standing::Assigned { .. })
                && let Some(end) = with(device, at)
            {
                *standing = end;
            }
        }
    }

    fn wave(&self) -> usize {
        match &self.progress {
            Progress::Running { wave, .. }
            | Progress::Paused { wave, .. }
            | Progress::Aborted { wave, .. } => *wave,
            Progress::Completed => self.spec.waves.len(),
        }
    }

    fn exposed(&self) -> usize {
        self.devices.values().filter(|standing| **standing != Standing::Waiting).count()
    }
}

#[test]
fn a_good_release_goes_through_its_waves() {
    let mut fleet = Fleet::new(100, &[100, 500, 1000], 50);
    let mut waves = vec![];
    for _ in 0..20 {
        let plan = fleet.apply(&pass());
        if !plan.assign.is_empty() {
            waves.push(plan.assign.len());
        }
        fleet.now += 1000;
        fleet.end(|_, at| Some(Standing::Confirmed { at }));
        fleet.now += SOAK;
    }
    assert_eq!(fleet.progress, Progress::Completed);
    assert_eq!(waves.iter().sum::<usize>(), 100);
    assert_eq!(waves.len(), 3, "{waves:?}");
}

#[test]
fn the_next_wave_waits_for_confirmation_and_soak() {
    let mut fleet = Fleet::new(100, &[100, 1000], 50);
    fleet.apply(&pass());
    fleet.now += 50_000;
    assert_eq!(fleet.apply(&pass()).next, Progress::Running { wave: 0, since: Millis(0) });
    fleet.end(|_, at| Some(Standing::Confirmed { at }));
    fleet.now += SOAK - 1;
    assert_eq!(fleet.apply(&pass()).next, Progress::Running { wave: 0, since: Millis(0) });
    fleet.now += 1;
    assert!(matches!(fleet.apply(&pass()).next, Progress::Running { wave: 1, .. }));
}

#[test]
fn the_first_failure_of_a_small_wave_aborts_and_reverts() {
    let mut fleet = Fleet::new(12, &[100, 1000], 50);
    let canaries = fleet.apply(&pass()).assign;
    assert!((1..=4).contains(&canaries.len()));
    let bad = canaries[0].clone();
    fleet.end(|device, at| (*device == bad).then_some(Standing::Failed { at }));
    let plan = fleet.apply(&pass());
    assert!(matches!(plan.next, Progress::Aborted { wave: 0, .. }));
    assert_eq!(plan.revert, canaries);
    assert!(plan.assign.is_empty());
    assert_eq!(fleet.apply(&pass()).revert, vec![]);
}

#[test]
fn a_few_failures_of_many_are_tolerated() {
    let mut fleet = Fleet::new(1000, &[1000], 50);
    fleet.apply(&pass());
    let mut count = 0;
    let bad: Vec<DeviceId> = fleet.devices.keys().step_by(50).cloned().collect();
    fleet.end(|device, at| {
        Some(if bad.contains(device) { Standing::Failed { at } } else { Standing::Confirmed { at } })
    });
    count += bad.len();
    fleet.now += SOAK;
    assert_eq!(count, 20);
    assert_eq!(fleet.apply(&pass()).next, Progress::Completed);
}

#[test]
fn early_failures_are_seen_long_before_the_share_of_all_is_reached() {
    let mut fleet = Fleet::new(1000, &[1000], 50);
    fleet.apply(&pass());
    let first: Vec<DeviceId> = fleet.devices.keys().take(10).cloned().collect();
    fleet.end(|device, at| first.contains(device).then_some(Standing::Failed { at }));
    assert!(matches!(fleet.apply(&pass()).next, Progress::Aborted { .. }));
}

#[test]
fn offline_devices_do_not_block_and_prove_nothing() {
    let mut fleet = Fleet::new(100, &[500, 1000], 50);
    let assigned = fleet.apply(&pass()).assign;
    let silent: Vec<DeviceId> = assigned.iter().take(assigned.len() / 3).cloned().collect();
    fleet.end(|device, at| (!silent.contains(device)).then_some(Standing::Confirmed { at }));
    fleet.now += DEADLINE;
    assert_eq!(fleet.apply(&pass()).unreached, silent);
    fleet.now += SOAK;
    assert!(matches!(fleet.apply(&pass()).next, Progress::Running { wave: 1, .. }));
    // All of them silent: no evidence, no progress, ever.
    let mut fleet = Fleet::new(100, &[500, 1000], 50);
    for _ in 0..50 {
        fleet.apply(&pass());
        fleet.now += DEADLINE;
    }
    assert_eq!(fleet.wave(), 0);
}

#[test]
fn a_device_that_began_and_stalled_is_a_failure() {
    let mut fleet = Fleet::new(3, &[1000], 0);
    fleet.apply(&pass());
    fleet.end(|_, at| Some(Standing::Assigned { at, heard: true }));
    fleet.now += DEADLINE;
    assert_eq!(fleet.apply(&pass()).time_out.len(), 3);
    assert!(matches!(fleet.apply(&pass()).next, Progress::Aborted { .. }));
}

#[test]
fn the_gate_decides() {
    let inconclusive = Verdict::Inconclusive { reason: "few".to_owned() };
    let mut fleet = Fleet::new(100, &[500, 1000], 50);
    fleet.apply(&pass());
    fleet.end(|_, at| Some(Standing::Confirmed { at }));
    fleet.now += 100 * SOAK;
    assert_eq!(fleet.apply(&inconclusive).next, Progress::Running { wave: 0, since: Millis(0) });
    let failed = fleet.apply(&Verdict::Fail { reason: "worse".to_owned() });
    assert!(matches!(failed.next, Progress::Aborted { .. }));
    assert_eq!(failed.revert.len(), fleet.exposed());
}

#[test]
fn late_joiners_belong_to_the_wave_of_their_place() {
    let mut fleet = Fleet::new(100, &[500, 1000], 50);
    fleet.apply(&pass());
    for i in 100..200 {
        fleet.devices.insert(DeviceId::new(format!("gw-{i:04}")).unwrap(), Standing::Waiting);
    }
    let joined = fleet.apply(&pass()).assign;
    assert!(!joined.is_empty());
    assert!(joined.iter().all(|device| place(&fleet.spec.id, device) < 500));
}

#[test]
fn specifications_are_checked() {
    assert!(spec(&[100, 1000], 0).check().is_ok());
    assert!(spec(&[], 0).check().is_err());
    assert!(spec(&[0, 1000], 0).check().is_err());
    assert!(spec(&[500, 500], 0).check().is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Plan,
    End(usize, u8),
    Pause,
    Resume,
    Abort,
    Join,
    Gate(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_u64..60_000).prop_map(Act::Wait),
        6 => Just(Act::Plan),
        6 => (0_usize..40, 0_u8..8).prop_map(|(device, how)| Act::End(device, how)),
        1 => Just(Act::Pause),
        2 => Just(Act::Resume),
        1 => Just(Act::Abort),
        1 => Just(Act::Join),
        1 => (0_u8..6).prop_map(Act::Gate),
    ]
}

proptest! {
    #[test]
    fn invariants(
        size in 0_usize..40,
        max_failures in 0_u16..300,
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut fleet = Fleet::new(size, &[100, 400, 1000], max_failures);
        let (mut gate, mut joined) = (pass(), 0);
        for act in acts {
            match act {
                Act::Wait(time) => fleet.now += time,
                Act::Gate(0) => gate = Verdict::Fail { reason: "worse".to_owned() },
                Act::Gate(1) => gate = Verdict::Inconclusive { reason: "few".to_owned() },
                Act::Gate(_) => gate = pass(),
                Act::Join => {
                    joined += 1;
                    fleet.devices.insert(DeviceId::new(format!("late-{joined}")).unwrap(), Standing::Waiting);
                }
                Act::Pause => fleet.progress = fleet.progress.pause().unwrap_or(fleet.progress.clone()),
                Act::Resume => fleet.progress = fleet.progress.resume().unwrap_or(fleet.progress.clone()),
                Act::Abort => fleet.progress = fleet.progress.abort("asked").unwrap_or(fleet.progress.clone()),
                Act::End(index, how) => {
                    let at = Millis(fleet.now);
                    if let Some(standing) = fleet.devices.values_mut().nth(index)
                        && !matches!(standing, Standing::Waiting | Standing::Reverted)
                    {
                        *standing = match how {
                            0 => Standing::Failed { at },
                            1 => Standing::Assigned { at, heard: true },
                            _ => Standing::Confirmed { at },
                        };
                    }
                }
                Act::Plan => {
                    let before = fleet.progress.clone();
                    let wave_before = fleet.wave();
                    let plan = fleet.apply(&gate);
                    // Paused, aborted and completed assign nothing.
                    if !matches!(before, Progress::Running { .. }) || !plan.next.is_active() {
                        prop_assert!(plan.assign.is_empty() || plan.next == Progress::Completed, "{before:?} {plan:?}");
                    }
                    // Never beyond the wave, but for the one device that stands for an empty one.
                    let share = fleet.spec.waves.get(wave_before).map_or(0, |share| share.get());
                    let beyond = plan.assign.iter().filter(|device| place(&fleet.spec.id, device) >= share).count();
                    prop_assert!(beyond == 0 || (beyond == 1 && plan.assign.len() == 1 && fleet.exposed() == 1));
                    // One wave at a time, and never back.
                    prop_assert!(fleet.wave() >= wave_before && fleet.wave() <= wave_before + 1);
                    // Aborted is final and leaves nobody with the release.
                    if matches!(before, Progress::Aborted { .. }) {
                        prop_assert_eq!(&plan.next, &before);
                    }
                    if matches!(plan.next, Progress::Aborted { .. }) {
                        let clean = fleet.devices.values().all(|s| matches!(s, Standing::Waiting | Standing::Reverted));
                        prop_assert!(clean);
                    }
                    // A wave passes only on evidence.
                    if fleet.wave() > wave_before && !matches!(before, Progress::Paused { .. }) {
                        let confirmed = fleet.devices.values().any(|s| matches!(s, Standing::Confirmed { .. }));
                        prop_assert!(confirmed);
                        let passed = matches!(gate, Verdict::Pass { .. });
                        prop_assert!(passed);
                    }
                    // Planned again with nothing changed, nothing more is done to a device that was done.
                    let again = fleet.plan(&gate);
                    prop_assert!(again.time_out.is_empty() && again.unreached.is_empty());
                    prop_assert!(plan.assign.iter().all(|device| !again.assign.contains(device)));
                    prop_assert!(again.revert.iter().all(|device| !plan.revert.contains(device)));
                }
            }
        }
    }
}
