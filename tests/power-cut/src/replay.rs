//! Replays a recording: finds the states, examines them on all cores, holds each to the rules.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::anyhow;

use crate::boot::Starter;
use crate::cuts::{self, Cuts};
use crate::evidence::{self, Evidence, Required};
use crate::look::Scratch;
use crate::rules::{self, Rule, Violation};
use crate::trace::{Trace, Tree};

/// States that may wait for a free core.
const WAITING: usize = 4;

/// What to replay.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seed of random choices.
    pub seed: u64,
    /// Only states that a cut after this event or a later one may leave.
    pub from: usize,
    /// Most states to examine; a random sample when there are more.
    pub limit: usize,
    /// Only this state.
    pub only: Option<usize>,
    /// Stop as soon as this rule is broken.
    pub until: Option<Rule>,
}

/// What was found.
#[derive(Debug)]
pub struct Summary {
    /// Events of the recording.
    pub events: usize,
    /// Moments at which a cut leaves something new.
    pub points: usize,
    /// Distinct states.
    pub states: usize,
    /// States examined.
    pub examined: usize,
    /// Broken rules by state.
    pub violations: BTreeMap<usize, Vec<Violation>>,
}

/// Replays. `may_remove`: the recording takes models from the device on purpose.
///
/// # Errors
/// When the rig itself fails.
pub fn replay(trace: &Trace, may_remove: bool, plan: &Plan) -> anyhow::Result<Summary> {
    let evidence = evidence::find(trace, may_remove, &Scratch::new()?)?;
    let cuts = cuts::find(trace, &evidence.after, plan.seed);
    let numbers = match plan.only {
        Some(number) if number < cuts.states.len() => vec![number],
        Some(number) => {
            return Err(anyhow!("there are only {} states, no state {number}", cuts.states.len()));
        }
        None => cuts::sample(&cuts, plan.from, plan.limit, plan.seed),
    };
    let found = Mutex::new(BTreeMap::new());
    let stop = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (sender, receiver) = sync_channel::<(usize, Tree)>(WAITING);
    let receiver = Mutex::new(receiver);
    let mut examined = 0;
    std::thread::scope(|scope| {
        let work = || examine(&receiver, &evidence, &cuts, plan.until, &found, &stop);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        cuts::build(trace, &cuts, &numbers, |number, tree| {
            if !stop.load(Ordering::Relaxed) && sender.send((number, tree)).is_ok() {
                examined += 1;
            }
        });
        drop(sender);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("the rig panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(Summary {
        events: trace.events.len(),
        points: cuts.points,
        states: cuts.states.len(),
        examined,
        violations: found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
    })
}

fn examine(
    receiver: &Mutex<Receiver<(usize, Tree)>>,
    evidence: &Evidence,
    cuts: &Cuts,
    until: Option<Rule>,
    found: &Mutex<BTreeMap<usize, Vec<Violation>>>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let starter = Starter::new()?;
    loop {
        let next = receiver.lock().map_err(|_| anyhow!("the rig panicked"))?.recv();
        // The sender is gone: everything was examined.
        let Ok((number, tree)) = next else { return Ok(()) };
        if stop.load(Ordering::Relaxed) {
            continue;
        }
        let outcome = starter.examine(&tree)?;
        let required = cuts.states[number].required.iter().map(|at| &evidence.required[*at]);
        let mut violations: Vec<Violation> =
            required.flat_map(|required: &Required| rules::judge(&outcome, required)).collect();
        violations.sort_by(|a, b| (a.rule, &a.text).cmp(&(b.rule, &b.text)));
        violations.dedup();
        if !violations.is_empty() {
            if violations.iter().any(|violation| Some(violation.rule) == until) {
                stop.store(true, Ordering::Relaxed);
            }
            found.lock().map_err(|_| anyhow!("the rig panicked"))?.insert(number, violations);
        }
    }
}
