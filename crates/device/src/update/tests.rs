//! Table tests of each path and a property test of the rules that hold at any instant.

use farlight_wire::Counts;
use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy { duration: Millis(1_000), min_requests: 40 };

fn release(version: &str) -> ReleaseId {
    format!("m/{version}").parse().unwrap()
}

fn want(version: &str, rollout: &str) -> Want {
    Want { release: release(version), rollout: Some(rollout.parse().unwrap()), assignment: 1, policy: POLICY }
}

fn machine(running: Option<&str>) -> Machine {
    Machine::idle("m".parse().unwrap(), running.map(release), BTreeMap::new())
}

fn healthy() -> Box<Health> {
    Box::new(Health { ok: 100, classes: Counts(vec![50, 50]), ..Health::default() })
}

fn constant() -> Box<Health> {
    Box::new(Health { ok: 200, classes: Counts(vec![0, 200]), ..Health::default() })
}

fn states(effects: &[Effect]) -> Vec<UpdateState> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::Report(report) => Some(report.state),
            _ => None,
        })
        .collect()
}

fn error(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|e| match e {
        Effect::Report(UpdateReport { error: Some(error), .. }) => Some(error.code.clone()),
        _ => None,
    })
}

fn to_probation(machine: &mut Machine, want: Want) {
    machine.step(Event::Assigned { want, attempts: 0 }, Millis(0));
    for event in [Event::Fetched, Event::Verified, Event::SelfTested] {
        machine.step(event, Millis(0));
    }
    machine.step(Event::Activated { previous: healthy() }, Millis(0));
}

#[test]
fn a_good_release_is_confirmed() {
    let mut m = machine(Some("1.0.0"));
    to_probation(&mut m, want("2.0.0", "r1"));
    let observed = |health| Event::Observed { release: release("2.0.0"), health };
    assert!(m.step(observed(healthy()), Millis(500)).is_empty());
    let effects = m.step(Event::Tick, Millis(1_000));
    assert_eq!(states(&effects), [UpdateState::Confirmed]);
    assert!(effects.contains(&Effect::Confirm(release("2.0.0"))));
    assert_eq!(m.running(), Some(&release("2.0.0")));
}

#[test]
fn a_degenerate_release_is_taken_back_and_not_tried_again() {
    let mut m = machine(Some("1.0.0"));
    to_probation(&mut m, want("2.0.0", "r1"));
    let effects = m.step(Event::Observed { release: release("2.0.0"), health: constant() }, Millis(10));
    assert_eq!(effects[0], Effect::RollBack(release("2.0.0")));
    assert_eq!(error(&effects).as_deref(), Some("probation.degenerate"));
    let effects = m.step(Event::RolledBack, Millis(20));
    assert_eq!(states(&effects), [UpdateState::RolledBack]);
    assert_eq!(m.running(), Some(&release("1.0.0")));
    let again = m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(30));
    assert_eq!(error(&again).as_deref(), Some("update.known_bad"));
    let newer = m.step(Event::Assigned { want: want("2.0.0", "r2"), attempts: 0 }, Millis(30));
    assert_eq!(states(&newer), [UpdateState::Fetching]);
}

#[test]
fn each_step_before_activation_can_fail_and_nothing_changes() {
    for steps in 0..3 {
        let mut m = machine(Some("1.0.0"));
        m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(0));
        for event in [Event::Fetched, Event::Verified].into_iter().take(steps) {
            m.step(event, Millis(0));
        }
        let failure = Failure::new(Code::SelfTestGolden, "x");
        let effects = m.step(Event::Failed(failure), Millis(0));
        assert_eq!(states(&effects), [UpdateState::Failed]);
        assert!(!effects.iter().any(|e| matches!(e, Effect::RollBack(_))));
        assert_eq!((m.running(), m.state()), (Some(&release("1.0.0")), &State::Idle));
    }
}

#[test]
fn a_failed_activation_rolls_back() {
    let mut m = machine(Some("1.0.0"));
    m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(0));
    for event in [Event::Fetched, Event::Verified, Event::SelfTested] {
        m.step(event, Millis(0));
    }
    let effects = m.step(Event::Failed(Failure::new(Code::StorageFailed, "x")), Millis(0));
    assert_eq!(effects[0], Effect::RollBack(release("2.0.0")));
    m.step(Event::RolledBack, Millis(0));
    assert_eq!(m.running(), Some(&release("1.0.0")));
}

#[test]
fn a_newer_wish_replaces_an_older_one_in_every_state() {
    for steps in 0..5 {
        let mut m = machine(Some("1.0.0"));
        m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(0));
        let path =
            [Event::Fetched, Event::Verified, Event::SelfTested, Event::Activated { previous: healthy() }];
        for event in path.into_iter().take(steps) {
            m.step(event, Millis(0));
        }
        m.step(Event::Assigned { want: want("3.0.0", "r2"), attempts: 0 }, Millis(0));
        if steps == 3 {
            m.step(Event::Activated { previous: healthy() }, Millis(0));
        }
        if matches!(m.state(), State::RollingBack { .. }) {
            m.step(Event::RolledBack, Millis(0));
        }
        let State::Fetching(job) = m.state() else { panic!("{steps}: {:?}", m.state()) };
        assert_eq!(job.want.release, release("3.0.0"), "{steps}");
        assert_eq!(m.running(), Some(&release("1.0.0")), "{steps}");
    }
}

#[test]
fn a_model_that_is_no_longer_assigned_is_removed_from_every_state() {
    for steps in 0..=5 {
        let mut m = machine(Some("1.0.0"));
        let path = [
            Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 },
            Event::Fetched,
            Event::Verified,
            Event::SelfTested,
            Event::Activated { previous: healthy() },
        ];
        for event in path.into_iter().take(steps) {
            m.step(event, Millis(0));
        }
        let mut effects = m.step(Event::Withdrawn, Millis(0));
        if steps == 4 {
            effects.extend(m.step(Event::Activated { previous: healthy() }, Millis(0)));
        }
        if matches!(m.state(), State::RollingBack { .. }) {
            effects.extend(m.step(Event::RolledBack, Millis(0)));
        }
        // What was confirmed is what goes; a candidate was taken back before.
        assert!(effects.contains(&Effect::Remove(release("1.0.0"))), "{steps}: {effects:?}");
        assert_eq!((m.running(), m.state()), (None, &State::Idle), "{steps}");
        assert!(m.step(Event::Withdrawn, Millis(0)).is_empty(), "{steps}");
    }
}

#[test]
fn a_restart_on_probation_still_compares_with_what_ran_before() {
    let none = BTreeMap::new();
    let mut m =
        Machine::on_probation(want("2.0.0", "r1"), Some(release("1.0.0")), *healthy(), none, Millis(0));
    let effects = m.step(Event::Observed { release: release("2.0.0"), health: constant() }, Millis(10));
    assert_eq!(error(&effects).as_deref(), Some("probation.degenerate"));
}

#[test]
fn going_back_to_the_previous_release_needs_no_network() {
    let mut m = machine(Some("1.0.0"));
    to_probation(&mut m, want("2.0.0", "r1"));
    let effects = m.step(Event::Assigned { want: want("1.0.0", "r2"), attempts: 0 }, Millis(0));
    assert!(effects.contains(&Effect::RollBack(release("2.0.0"))));
    let effects = m.step(Event::RolledBack, Millis(0));
    assert_eq!(states(&effects), [UpdateState::RolledBack, UpdateState::Confirmed]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Fetch(_))));
}

#[test]
fn a_release_that_brings_the_device_down_is_given_up() {
    let mut m = machine(Some("1.0.0"));
    let effects = m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: MAX_ATTEMPTS }, Millis(0));
    assert_eq!(error(&effects).as_deref(), Some("update.too_many_attempts"));
}

#[test]
fn fetching_has_a_deadline() {
    let mut m = machine(None);
    m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(0));
    assert!(m.step(Event::Tick, JOB_DEADLINE).is_empty());
    let effects = m.step(Event::Tick, Millis(JOB_DEADLINE.0 + 1));
    assert_eq!(error(&effects).as_deref(), Some("update.deadline"));
}

fn any_event() -> impl Strategy<Value = Event> {
    let versions = prop::sample::select(vec!["1.0.0", "2.0.0", "3.0.0"]);
    let rollouts = prop::sample::select(vec!["r1", "r2"]);
    prop_oneof![
        4 => (versions.clone(), rollouts, 0_u32..4)
            .prop_map(|(v, r, attempts)| Event::Assigned { want: want(v, r), attempts }),
        1 => Just(Event::Withdrawn),
        4 => Just(Event::Fetched),
        4 => Just(Event::Verified),
        4 => Just(Event::SelfTested),
        4 => Just(Event::Activated { previous: healthy() }),
        3 => Just(Event::RolledBack),
        3 => (versions, any::<bool>()).prop_map(|(v, good)| Event::Observed {
            release: release(v),
            health: if good { healthy() } else { constant() },
        }),
        2 => Just(Event::Failed(Failure::new(Code::SelfTestGolden, "x"))),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens: nothing is activated that was not fetched, verified and self-tested since it was
    /// asked for; what runs is confirmed, on probation or about to be taken back; each job ends once.
    #[test]
    fn the_rules_hold_at_any_instant(events in prop::collection::vec((any_event(), 0_u64..800), 0..120)) {
        let mut m = machine(Some("1.0.0"));
        let (mut now, mut confirmed) = (0, Some(release("1.0.0")));
        let (mut open, mut tested): (Option<ReleaseId>, Option<ReleaseId>) = (None, None);
        for (event, passed) in events {
            now += passed;
            let test_passed = matches!((m.state(), &event), (State::SelfTest(_), Event::SelfTested));
            if test_passed { tested = m.state().job().map(|job| job.want.release.clone()); }
            for effect in m.step(event, Millis(now)) {
                match effect {
                    Effect::Fetch(release) => { tested = None; open = Some(release); }
                    Effect::Activate(want) => prop_assert_eq!(Some(&want.release), tested.as_ref()),
                    Effect::Confirm(release) => confirmed = Some(release),
                    Effect::Remove(release) => {
                        prop_assert_eq!(Some(release), confirmed.take());
                    }
                    Effect::Report(report) => match report.state {
                        UpdateState::Failed | UpdateState::RolledBack | UpdateState::Confirmed => {
                            if report.state == UpdateState::Confirmed {
                                prop_assert_eq!(report.running.as_ref(), Some(&report.release));
                            }
                            open = open.filter(|release| *release != report.release);
                        }
                        _ => {}
                    },
                    _ => {}
                }
            }
            match m.state() {
                State::Idle => {
                    prop_assert_eq!(m.running(), confirmed.as_ref());
                    prop_assert_eq!(&open, &None);
                }
                State::Probation { job, .. } => prop_assert_eq!(m.running(), Some(&job.want.release)),
                State::Fetching(_) | State::Verifying(_) | State::SelfTest(_) =>
                    prop_assert_eq!(m.running(), confirmed.as_ref()),
                State::Activating(_) | State::RollingBack { .. } => {}
            }
        }
    }
}
