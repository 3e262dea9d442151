//! Table tests of each path and a property test of the rules that hold at any instant.

use farlight_wire::Counts;
use proptest::prelude::*;

use super::*;
use crate::health::Policy;

const POLICY: Policy = Policy { duration: Millis(1_000), min_requests: 40 };

const SHADOW: shadow::Policy =
    shadow::Policy { trial: POLICY, share_permille: 1000, cpu_permille: 100, agreement_permille: 0 };

fn release(version: &str) -> Slot {
    Slot { release: format!("m/{version}").parse().unwrap(), digest: format!("digest of {version}") }
}

fn want(version: &str, rollout: &str) -> Want {
    Want {
        slot: release(version),
        rollout: Some(rollout.parse().unwrap()),
        assignment: 1,
        policy: POLICY,
        shadow: None,
        known_bad: KnownBad::Refuse,
    }
}

fn shadowing(version: &str, rollout: &str) -> Want {
    Want { shadow: Some(SHADOW), ..want(version, rollout) }
}

fn machine(running: Option<&str>) -> Machine {
    Machine::idle("m".parse().unwrap(), running.map(release), BadList::new())
}

fn shadowed(n: u64) -> Event {
    Event::Shadowed(Box::new(Shadowed { ok: n, agreed: n, ..Shadowed::default() }))
}

fn hold() -> Event {
    Event::Hold(Some(Hold::OutsideWindow))
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
    let observed = |health| Event::Observed { slot: release("2.0.0"), health };
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
    let effects = m.step(Event::Observed { slot: release("2.0.0"), health: constant() }, Millis(10));
    assert_eq!(effects[0], Effect::RollBack(release("2.0.0")));
    assert_eq!(error(&effects).as_deref(), Some("probation.degenerate"));
    let effects = m.step(Event::RolledBack, Millis(20));
    assert_eq!(states(&effects), [UpdateState::RolledBack]);
    assert_eq!(m.running(), Some(&release("1.0.0")));
    let again = m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(30));
    assert_eq!(error(&again).as_deref(), Some("update.known_bad"));
    let newer = m.step(Event::Assigned { want: want("2.0.0", "r2"), attempts: 0 }, Millis(30));
    assert_eq!(error(&newer).as_deref(), Some("update.known_bad"), "another rollout alone changes nothing");
    let insisting = |rollout| Want { known_bad: KnownBad::TryAgain, ..want("2.0.0", rollout) };
    let same = m.step(Event::Assigned { want: insisting("r1"), attempts: 0 }, Millis(30));
    assert_eq!(error(&same).as_deref(), Some("update.known_bad"), "a rollout tries once");
    let insisted = m.step(Event::Assigned { want: insisting("r2"), attempts: 0 }, Millis(30));
    assert_eq!(states(&insisted), [UpdateState::Fetching]);
    // The same version with other content is another release.
    m.step(Event::Withdrawn, Millis(30));
    let mut other = want("2.0.0", "r3");
    other.slot.digest = "another".into();
    let other = m.step(Event::Assigned { want: other, attempts: 0 }, Millis(30));
    assert_eq!(states(&other), [UpdateState::Fetching]);
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
    for wished in 0..=7 {
        let mut m = in_phase(wished);
        let before = m.state().phase();
        let mut effects = m.step(Event::Assigned { want: want("3.0.0", "r2"), attempts: 0 }, Millis(0));
        if before == Some(UpdateState::Activating) {
            effects.extend(m.step(Event::Activated { previous: healthy() }, Millis(0)));
        }
        let steps = wished;
        if matches!(m.state(), State::RollingBack { .. }) {
            effects.extend(m.step(Event::RolledBack, Millis(0)));
        }
        let State::Fetching(job) = m.state() else { panic!("{steps}: {:?}", m.state()) };
        assert_eq!(job.want.slot, release("3.0.0"), "{steps}");
        // The one before has one end, and it is said.
        let ends = |state| matches!(state, UpdateState::Failed | UpdateState::RolledBack);
        assert_eq!(
            states(&effects).into_iter().filter(|state| ends(*state)).count(),
            usize::from(wished > 0)
        );
        assert_eq!(m.running(), Some(&release("1.0.0")), "{steps}");
    }
}

#[test]
fn a_model_that_is_no_longer_assigned_is_removed_from_every_state() {
    for steps in 0..=7 {
        let mut m = in_phase(steps);
        let before = m.state().phase();
        let mut effects = m.step(Event::Withdrawn, Millis(0));
        if before == Some(UpdateState::Activating) {
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
    let none = BadList::new();
    let mut m =
        Machine::on_probation(want("2.0.0", "r1"), Some(release("1.0.0")), *healthy(), none, Millis(0));
    let effects = m.step(Event::Observed { slot: release("2.0.0"), health: constant() }, Millis(10));
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
    assert!(m.step(Event::Tick, FETCH_DEADLINE).is_empty());
    let effects = m.step(Event::Tick, Millis(FETCH_DEADLINE.0 + 1));
    assert_eq!(error(&effects).as_deref(), Some("update.deadline"));
}

/// A machine that runs 1.0.0 and is `steps` into an update to 2.0.0 by way of shadow and a wait.
fn in_phase(steps: usize) -> Machine {
    let mut m = machine(Some("1.0.0"));
    m.step(hold(), Millis(0));
    let path: [(Event, u64); 7] = [
        (Event::Assigned { want: shadowing("2.0.0", "r1"), attempts: 0 }, 0),
        (Event::Fetched, 0),
        (Event::Verified, 0),
        (Event::SelfTested, 0),
        (shadowed(100), 1_000),
        (Event::Hold(None), 1_000),
        (Event::Activated { previous: healthy() }, 1_000),
    ];
    for (event, now) in path.into_iter().take(steps) {
        m.step(event, Millis(now));
    }
    let phases = [
        None,
        Some(UpdateState::Fetching),
        Some(UpdateState::Verifying),
        Some(UpdateState::SelfTest),
        Some(UpdateState::Shadow),
        Some(UpdateState::Staged),
        Some(UpdateState::Activating),
        Some(UpdateState::Probation),
    ];
    assert_eq!(m.state().phase(), phases[steps], "{steps}");
    m
}

#[test]
fn every_phase_has_a_deadline_and_an_end() {
    for steps in 1..=7 {
        let mut m = in_phase(steps);
        let (mut now, mut ends) = (Millis(2_000), Vec::new());
        for _ in 0..10 {
            now = now.plus(STAGED_DEADLINE).plus(Millis(1));
            let effects = m.step(Event::Tick, now);
            let failed = effects.iter().find_map(|effect| match effect {
                Effect::Report(report)
                    if matches!(report.state, UpdateState::Failed | UpdateState::RolledBack) =>
                {
                    report.error.as_ref().map(|error| error.code.clone())
                }
                _ => None,
            });
            ends.extend(failed);
        }
        assert_eq!(m.state(), &State::Idle, "{steps}");
        let expected = match steps {
            4 => "shadow.inconclusive",
            6 | 7 => "rollback.stuck",
            _ => "update.deadline",
        };
        assert_eq!(ends, [expected], "{steps}");
        if steps < 6 {
            assert_eq!(m.running(), Some(&release("1.0.0")), "{steps}");
        }
    }
}

#[test]
fn calling_an_update_off_is_wanting_what_runs_and_works_in_every_phase() {
    for steps in 1..=7 {
        let mut m = in_phase(steps);
        let before = m.state().phase();
        let back = || Event::Assigned { want: want("1.0.0", "r0"), attempts: 0 };
        let mut effects = m.step(back(), Millis(1_000));
        if before == Some(UpdateState::Activating) {
            effects.extend(m.step(Event::Activated { previous: healthy() }, Millis(1_000)));
        }
        if matches!(m.state(), State::RollingBack { .. }) {
            effects.extend(m.step(back(), Millis(1_000)));
            effects.extend(m.step(Event::RolledBack, Millis(1_000)));
        }
        assert_eq!((m.state(), m.running()), (&State::Idle, Some(&release("1.0.0"))), "{steps}");
        assert_eq!(states(&effects).last(), Some(&UpdateState::Confirmed), "{steps}");
        assert!(!effects.iter().any(|e| matches!(e, Effect::Fetch(_) | Effect::RememberBad(..))), "{steps}");
        // Asking again changes nothing.
        assert_eq!(states(&m.step(back(), Millis(1_000))), [UpdateState::Confirmed], "{steps}");
    }
}

#[test]
fn an_activation_waits_while_it_is_held_and_goes_on_by_itself() {
    let mut m = in_phase(5);
    assert!(m.step(Event::Tick, Millis(2_000)).is_empty());
    assert!(m.step(hold(), Millis(2_000)).is_empty());
    let effects = m.step(Event::Hold(None), Millis(3_000));
    assert_eq!(states(&effects), [UpdateState::Activating]);
    // Without a hold there is no wait.
    let mut m = machine(Some("1.0.0"));
    m.step(Event::Assigned { want: want("2.0.0", "r1"), attempts: 0 }, Millis(0));
    for event in [Event::Fetched, Event::Verified] {
        m.step(event, Millis(0));
    }
    assert_eq!(states(&m.step(Event::SelfTested, Millis(0))), [UpdateState::Activating]);
}

#[test]
fn a_shadow_that_fails_never_runs() {
    let mut m = in_phase(4);
    let failing = Shadowed { failed: 60, ok: 40, agreed: 40, ..Shadowed::default() };
    let effects = m.step(Event::Shadowed(Box::new(failing)), Millis(10));
    assert_eq!(error(&effects).as_deref(), Some("shadow.errors"));
    assert!(effects.contains(&Effect::Cancel));
    assert_eq!((m.state(), m.running()), (&State::Idle, Some(&release("1.0.0"))));
    // A first release has nothing to be compared with.
    let mut m = machine(None);
    m.step(Event::Assigned { want: shadowing("2.0.0", "r1"), attempts: 0 }, Millis(0));
    for event in [Event::Fetched, Event::Verified] {
        m.step(event, Millis(0));
    }
    assert_eq!(states(&m.step(Event::SelfTested, Millis(0))), [UpdateState::Activating]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let versions = prop::sample::select(vec!["1.0.0", "2.0.0", "3.0.0"]);
    let rollouts = prop::sample::select(vec!["r1", "r2"]);
    let known_bad = prop::sample::select(vec![KnownBad::Refuse, KnownBad::TryAgain]);
    prop_oneof![
        4 => (versions.clone(), rollouts, 0_u32..4, any::<bool>(), known_bad)
            .prop_map(|(v, r, attempts, shadow, known_bad)| {
                let shadow = shadow.then_some(SHADOW);
                Event::Assigned { want: Want { shadow, known_bad, ..want(v, r) }, attempts }
            }),
        2 => (0_u64..80).prop_map(shadowed),
        2 => any::<bool>().prop_map(|held| if held { hold() } else { Event::Hold(None) }),
        1 => Just(Event::Withdrawn),
        4 => Just(Event::Fetched),
        4 => Just(Event::Verified),
        4 => Just(Event::SelfTested),
        4 => Just(Event::Activated { previous: healthy() }),
        3 => Just(Event::RolledBack),
        3 => (versions, any::<bool>()).prop_map(|(v, good)| Event::Observed {
            slot: release(v),
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
        let (mut open, mut tested): (Option<Slot>, Option<Slot>) = (None, None);
        for (event, passed) in events {
            now += passed;
            let test_passed = matches!((m.state(), &event), (State::SelfTest(_), Event::SelfTested));
            if test_passed { tested = m.state().job().map(|job| job.want.slot.clone()); }
            for effect in m.step(event, Millis(now)) {
                match effect {
                    Effect::Fetch(release) => { tested = None; open = Some(release); }
                    Effect::Activate(want) => {
                        prop_assert_eq!(Some(&want.slot), tested.as_ref());
                        prop_assert_eq!(m.hold(), None);
                    }
                    Effect::Confirm(release) => confirmed = Some(release),
                    Effect::Remove(release) => {
                        prop_assert_eq!(Some(release), confirmed.take());
                    }
                    Effect::Report(report) => match report.state {
                        UpdateState::Failed | UpdateState::RolledBack | UpdateState::Confirmed => {
                            if report.state == UpdateState::Confirmed {
                                prop_assert_eq!(m.running().map(|slot| &slot.release), Some(&report.release));
                            }
                            open = open.filter(|slot| slot.release != report.release);
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
                State::Probation { job, .. } => prop_assert_eq!(m.running(), Some(&job.want.slot)),
                State::Fetching(_) | State::Verifying(_) | State::SelfTest(_) | State::Shadow { .. } | State::Staged(_) =>
                    prop_assert_eq!(m.running(), confirmed.as_ref()),
                State::Activating(_) | State::RollingBack { .. } => {}
            }
        }
    }
}
