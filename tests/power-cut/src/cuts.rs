//! Which states a cut may leave: for each moment a set of choices of what survives (all of them where little is
//! pending, else each prefix, each change alone and each alone missing, and random ones; torn writes), numbered
//! the same way for the same recording and seed, so that one can be looked at again.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::disk::{Change, Choice, Disk, Part};
use crate::trace::{Trace, Tree};

/// Random subsets tried at each moment.
const RANDOM: usize = 8;
/// Pending changes up to which every subset is tried.
const SUBSETS: usize = 6;
/// Pending changes up to which each prefix, each one dropped and each one kept is tried; of more, a
/// random sample of so many.
const EACH: usize = 24;

/// A state that a cut may leave, told from all others by its content.
#[derive(Debug, Clone)]
pub struct State {
    /// The event after which the first cut that leaves it comes.
    pub cut: usize,
    /// What survives that cut.
    pub choice: Choice,
    /// The event after which the last cut that leaves it comes.
    pub last: usize,
    /// All moments at which a cut may leave it, as numbers of distinct requirements.
    pub required: Vec<usize>,
}

/// All states of a recording.
#[derive(Debug, Default)]
pub struct Cuts {
    /// Moments looked at.
    pub points: usize,
    /// Distinct states in the order they were found.
    pub states: Vec<State>,
}

/// Finds the states. `required` numbers what must hold after each event.
pub fn find(trace: &Trace, required: &[usize], seed: u64) -> Cuts {
    let mut disk = Disk::new(trace);
    let mut known: HashMap<[u8; 32], usize> = HashMap::new();
    let mut cuts = Cuts::default();
    let mut last = None;
    for (cut, event) in trace.events.iter().enumerate() {
        let changed = disk.follow(event);
        // Where neither the disk nor what must hold has changed, a cut leaves nothing new.
        if !changed && last == Some(required[cut]) {
            continue;
        }
        last = Some(required[cut]);
        cuts.points += 1;
        for choice in choices(&disk.pending(), seed, cut) {
            let key = disk.after_cut(&choice).key();
            let number = *known.entry(key).or_insert_with(|| {
                cuts.states.push(State { cut, choice, last: cut, required: Vec::new() });
                cuts.states.len() - 1
            });
            let state = &mut cuts.states[number];
            state.last = cut;
            if !state.required.contains(&required[cut]) {
                state.required.push(required[cut]);
            }
        }
    }
    cuts
}

/// Makes the trees of the states with these numbers, in rising order of their cuts.
pub fn build(trace: &Trace, cuts: &Cuts, numbers: &[usize], mut each: impl FnMut(usize, Tree)) {
    let mut order = numbers.to_vec();
    order.sort_by_key(|number| (cuts.states[*number].cut, *number));
    let mut order = order.into_iter().peekable();
    let mut disk = Disk::new(trace);
    for (cut, event) in trace.events.iter().enumerate() {
        disk.follow(event);
        while let Some(number) = order.next_if(|number| cuts.states[*number].cut == cut) {
            each(number, disk.after_cut(&cuts.states[number].choice));
        }
    }
}

/// A random sample of `limit` states that a cut after event `from` or later may leave, in order; all of them
/// when there are fewer.
pub fn sample(cuts: &Cuts, from: usize, limit: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..cuts.states.len()).collect();
    numbers.retain(|number| cuts.states[*number].last >= from);
    if numbers.len() > limit {
        numbers.shuffle(&mut StdRng::seed_from_u64(seed));
        numbers.truncate(limit);
        numbers.sort_unstable();
    }
    numbers
}

fn choices(pending: &[&Change], seed: u64, cut: usize) -> Vec<Choice> {
    let n = pending.len();
    let mut random = StdRng::seed_from_u64(seed ^ (cut as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let whole = |kept: &dyn Fn(usize) -> bool| -> Choice {
        (0..n).map(|at| kept(at).then_some(Part::Whole)).collect()
    };
    let mut all = vec![whole(&|_| false)];
    if n == 0 {
        return all;
    }
    all.push(whole(&|_| true));
    if n <= SUBSETS {
        all.extend((1..(1_u32 << n) - 1).map(|kept| whole(&|at| kept & 1 << at != 0)));
    } else {
        let mut each: Vec<usize> = (0..n).collect();
        if n > EACH {
            each.shuffle(&mut random);
            each.truncate(EACH);
        }
        for one in each {
            all.push(whole(&|at| at < one));
            all.push(whole(&|at| at != one));
            all.push(whole(&|at| at == one));
        }
    }
    // The last write, torn, with everything before it and with nothing.
    if let Some(last) = pending.iter().rposition(|change| change.sectors() > 0) {
        for part in torn(pending[last], &mut random) {
            for before in [true, false] {
                let mut choice = whole(&|at| before && at < last);
                choice[last] = Some(part);
                all.push(choice);
            }
        }
    }
    if n > 1 {
        for _ in 0..RANDOM {
            let choice = pending.iter().map(|change| survives(change, &mut random)).collect();
            all.push(choice);
        }
    }
    all
}

fn torn(write: &Change, random: &mut StdRng) -> Vec<Part> {
    let sectors = write.sectors();
    let mut parts = vec![Part::Length];
    if sectors > 1 {
        parts.extend([Part::Head(1), Part::Head(sectors - 1), Part::Head(random.random_range(1..sectors))]);
    }
    parts
}

fn survives(change: &Change, random: &mut StdRng) -> Option<Part> {
    let sectors = change.sectors();
    match random.random_range(0..8_u8) {
        0..4 => None,
        4 if sectors > 1 => Some(Part::Head(random.random_range(1..sectors))),
        5 if sectors > 0 => Some(Part::Length),
        _ => Some(Part::Whole),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::trace::{Act, Body, Event, Node, ROOT};

    fn recording() -> Trace {
        let act = |act| Event { thread: 1, process: 1, act };
        let mut events = Vec::new();
        for number in 1..6 {
            let node = Node(number);
            let bytes = Arc::new(vec![number as u8; 700]);
            events.push(act(Act::Create { folder: ROOT, name: number.to_string(), node, is_folder: false }));
            events.push(act(Act::Write { node, offset: 0, bytes }));
        }
        Trace { before: vec![Body::empty_folder()], events }
    }

    #[test]
    fn states_are_distinct_and_the_same_again() {
        let trace = recording();
        let required = vec![0; trace.events.len()];
        let (one, two) = (find(&trace, &required, 7), find(&trace, &required, 7));
        assert_eq!(one.points, trace.events.len());
        assert!(one.states.len() > 50, "{}", one.states.len());
        let numbers: Vec<usize> = (0..one.states.len()).collect();
        let mut keys = HashMap::new();
        build(&trace, &one, &numbers, |number, tree| {
            assert!(keys.insert(tree.key(), number).is_none());
        });
        build(&trace, &two, &numbers, |number, tree| assert_eq!(keys[&tree.key()], number));
        let sampled = sample(&one, 0, 10, 3);
        assert_eq!((sampled.len(), &sampled), (10, &sample(&one, 0, 10, 3)));
        let late = sample(&one, 9, usize::MAX, 3);
        assert!(!late.is_empty() && late.len() < numbers.len());
        assert!(late.iter().all(|number| one.states[*number].last == 9));
    }

    #[test]
    fn of_few_pending_changes_every_subset_is_tried() {
        let change = Change::Resize { node: Node(1), length: 0 };
        for n in 1..=SUBSETS {
            let pending = vec![&change; n];
            let whole = |choice: &Choice| choice.iter().all(|part| matches!(part, None | Some(Part::Whole)));
            let tried = choices(&pending, 7, 0);
            let tried: std::collections::HashSet<Choice> = tried.into_iter().filter(whole).collect();
            assert_eq!(tried.len(), 1 << n);
        }
    }

    #[test]
    fn a_state_is_held_to_every_moment_that_may_leave_it() {
        let trace = recording();
        let required: Vec<usize> = (0..trace.events.len()).collect();
        let cuts = find(&trace, &required, 7);
        // Nothing was synced: the empty folder may be left by a cut at any moment.
        assert_eq!(cuts.states[0].required, required);
    }
}
