//! Windows of a stream against a plain reading of the rules, in any order of arrival.

use proptest::prelude::*;

use super::*;

/// A sample whose values tell where it belongs: `[t, 1000 + t, …]`.
fn values(at: i64, channels: usize) -> Vec<f32> {
    (0..channels).map(|channel| (1_000 * channel as i64 + at) as f32).collect()
}

fn push(windower: &mut Windower, at: i64) -> (Fate, Vec<Window>) {
    let channels = windower.plan().channels;
    let (fate, windows) = windower.push(EventTime(at), &values(at, channels)).unwrap();
    (fate, windows.collect())
}

/// All windows of these arrivals.
fn cut(plan: Plan, arrivals: &[i64]) -> (Vec<Window>, Counts) {
    let mut windower = Windower::new(plan).unwrap();
    let mut windows: Vec<Window> = arrivals.iter().flat_map(|at| push(&mut windower, *at).1).collect();
    windows.extend(windower.finish());
    (windows, windower.counts())
}

/// The rules, read plainly: who is accepted, then sorted, split at gaps, and cut.
fn expected(plan: Plan, arrivals: &[i64]) -> (Vec<Window>, Counts) {
    let (mut accepted, mut counts, mut newest) = (Vec::new(), Counts::default(), i64::MIN);
    for at in arrivals {
        if newest != i64::MIN && *at < newest - plan.lateness as i64 {
            counts.late += 1;
        } else if accepted.contains(at) {
            counts.duplicates += 1;
        } else {
            accepted.push(*at);
            newest = newest.max(*at);
        }
    }
    accepted.sort_unstable();
    let apart = |a: &i64, b: &i64| plan.max_gap.is_none_or(|gap| (b - a) as u64 <= gap);
    let runs: Vec<&[i64]> = accepted.chunk_by(apart).collect();
    counts.gaps = runs.len().saturating_sub(1) as u64;
    let mut windows = Vec::new();
    for run in runs {
        for start in (0..run.len()).step_by(plan.stride) {
            let Some(times) = run.get(start..start + plan.length) else { break };
            let column = |channel| times.iter().map(move |at| values(*at, plan.channels)[channel]);
            windows.push(Window {
                start: EventTime(times[0]),
                end: EventTime(times[plan.length - 1]),
                values: (0..plan.channels).flat_map(column).collect(),
            });
        }
    }
    (windows, counts)
}

fn plans() -> impl Strategy<Value = Plan> {
    let gap = prop_oneof![Just(None), (1_u64..60).prop_map(Some)];
    (1_usize..4, 1_usize..7, 1_usize..10, 0_u64..40, gap).prop_map(
        |(channels, length, stride, lateness, max_gap)| Plan { channels, length, stride, lateness, max_gap },
    )
}

proptest! {
    #[test]
    fn any_arrivals_give_the_windows_of_the_rules(
        plan in plans(),
        // Fewer than make the stream begin again.
        arrivals in prop::collection::vec(-300_i64..300, 0..RESTART_AFTER),
    ) {
        prop_assert_eq!(cut(plan, &arrivals), expected(plan, &arrivals));
    }

    #[test]
    fn order_within_the_lateness_does_not_matter(
        plan in plans(),
        steps in prop::collection::vec((1_i64..30, 0_u64..1_000), 0..200),
    ) {
        let times: Vec<i64> = steps.iter().scan(0, |at, (step, _)| { *at += step; Some(*at) }).collect();
        let delays = steps.iter().map(|(_, random)| (random % (plan.lateness + 1)) as i64);
        let mut arrivals: Vec<(i64, i64)> = times.iter().zip(delays).map(|(at, delay)| (at + delay, *at)).collect();
        arrivals.sort_by_key(|(arrived, _)| *arrived);
        let arrivals: Vec<i64> = arrivals.into_iter().map(|(_, at)| at).collect();
        let (windows, counts) = cut(plan, &arrivals);
        prop_assert_eq!(counts.late, 0);
        prop_assert_eq!(windows, cut(plan, &times).0);
    }

    #[test]
    fn no_stream_holds_more_than_its_bound(
        lateness in prop_oneof![Just(0_u64), Just(u64::MAX)],
        arrivals in prop::collection::vec(any::<i64>(), 0..60),
    ) {
        // 16 samples may wait.
        let plan = Plan { channels: MAX_VALUES / 16, length: 3, stride: 5, lateness, max_gap: None };
        let mut windower = Windower::new(plan).unwrap();
        let row = vec![0.0; plan.channels];
        for at in arrivals {
            // Windows that nobody takes are not kept either.
            windower.push(EventTime(at), &row).unwrap();
            prop_assert!(windower.held() <= 16 + plan.length);
        }
    }
}

#[test]
fn a_sample_at_the_watermark_is_in_time_and_one_before_it_is_late() {
    let plan = Plan { channels: 1, length: 2, stride: 1, lateness: 10, max_gap: None };
    let mut windower = Windower::new(plan).unwrap();
    assert_eq!(push(&mut windower, 100), (Fate::Accepted, vec![]));
    assert_eq!(push(&mut windower, 90), (Fate::Accepted, vec![]));
    assert_eq!(push(&mut windower, 89), (Fate::Late, vec![]));
    assert_eq!(push(&mut windower, 100), (Fate::Duplicate, vec![]));
    let (fate, windows) = push(&mut windower, 110);
    assert_eq!((fate, windows.len(), windows[0].start), (Fate::Accepted, 1, EventTime(90)));
    assert_eq!(windower.counts(), Counts { late: 1, duplicates: 1, ..Counts::default() });
    assert_eq!(windower.finish().count(), 1);
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_the_stream() {
    let plan = Plan { channels: 1, length: 2, stride: 2, lateness: 5, max_gap: Some(1_000) };
    let mut windower = Windower::new(plan).unwrap();
    push(&mut windower, 1_000_000);
    let fates: Vec<Fate> = (0..150).map(|at| push(&mut windower, at).0).collect();
    assert!(fates[..RESTART_AFTER].iter().all(|fate| *fate == Fate::Late));
    assert!(fates[RESTART_AFTER..].iter().all(|fate| *fate == Fate::Accepted));
    assert_eq!(windower.counts().restarts, 1);
    assert!(!push(&mut windower, 200).1.is_empty());
}

#[test]
fn plans_and_samples_that_cannot_be_are_refused() {
    let plan = Plan { channels: 2, length: 3, stride: 1, lateness: 0, max_gap: None };
    for bad in [Plan { channels: 0, ..plan }, Plan { length: 0, ..plan }, Plan { stride: 0, ..plan }] {
        assert_eq!(Windower::new(bad).unwrap_err(), PlanError::Empty);
    }
    for bad in [Plan { length: MAX_VALUES, ..plan }, Plan { length: usize::MAX, ..plan }] {
        assert_eq!(Windower::new(bad).unwrap_err(), PlanError::TooLarge);
    }
    let mut windower = Windower::new(plan).unwrap();
    let wrong = windower.push(EventTime(0), &[1.0]).unwrap_err();
    assert_eq!(wrong, WrongChannels { expected: 2, found: 1 });
    assert_eq!(windower.held(), 0);
}
