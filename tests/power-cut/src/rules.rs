//! The rules that hold after every cut. The first five are the promise of the update machine; the others
//! are what it stands on.

use std::collections::BTreeMap;

use farlight_device::pointer::{Pointer, TRIALS};
use farlight_wire::report::UpdateState;

use crate::boot::{Boot, Outcome};
use crate::evidence::Required;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// 1. Once one was confirmed, a verified release that passed its self-test here answers, from the
    ///    first start on.
    Serves,
    /// 2. Nothing answers that is not whole on disk and did not pass its self-test here.
    Tested,
    /// 3. What a pointer names is whole: the running release, and the last confirmed one until its
    ///    successor is confirmed.
    Kept,
    /// 4. Trials and self-tests are counted before they begin, so that no release is started or tried
    ///    for ever.
    Counted,
    /// 5. A release on trial that never passes is given up for the last confirmed one, without network.
    GivesUp,
    /// What has the name of a slot is whole: neither a download nor a deletion that was cut off looks like a
    /// release that is there.
    Slots,
    /// The agent starts.
    Starts,
    /// A pointer is whole, and no older than what was relied upon.
    Pointer,
    /// The trust store is readable, and no version in it is older than what was relied upon.
    Trust,
    /// The device still knows who it is.
    Identity,
    /// Committed rows are there.
    Rows,
    /// No report says more than the pointer holds.
    Reports,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// How it was broken.
    pub text: String,
}

/// Holds what became of a state to what was required when the cut came.
pub fn judge(outcome: &Outcome, required: &Required) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut broken = |rule, text: String| found.push(Violation { rule, text });
    pointers(outcome, required, &mut broken);
    stores(outcome, required, &mut broken);
    counters(outcome, required, &mut broken);
    reports(outcome, required, &mut broken);
    for (number, boot) in outcome.boots.iter().enumerate() {
        starts(number, boot, required, &mut broken);
    }
    end(outcome, required, &mut broken);
    found
}

fn pointers(outcome: &Outcome, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    for (model, pointer) in &outcome.pointers {
        if pointer.is_none() {
            broken(Rule::Pointer, format!("the pointer of {model} is damaged"));
        }
    }
    for (model, sequence) in &required.pointers {
        match outcome.pointers.get(model) {
            Some(Some(pointer)) if pointer.sequence < *sequence => {
                let text =
                    format!("the pointer of {model} went from {sequence} back to {}", pointer.sequence);
                broken(Rule::Pointer, text);
            }
            None => broken(Rule::Pointer, format!("the pointer of {model} is gone")),
            Some(_) => {}
        }
    }
    for text in &outcome.broken {
        broken(Rule::Kept, format!("a pointer names what is not whole: {text}"));
    }
    for text in &outcome.halves {
        broken(Rule::Slots, format!("half a slot has its name: {text}"));
    }
}

fn stores(outcome: &Outcome, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    if required.is_enrolled && !outcome.is_enrolled {
        broken(Rule::Identity, "the identity is gone or damaged".into());
    }
    match (&required.trust, &outcome.trust) {
        // Before there is an identity the next start enrols again and begins the store anew.
        (Some(_), None) if required.is_enrolled => {
            broken(Rule::Trust, "the trust store is gone or damaged".into());
        }
        (Some(floor), Some(trust)) if !trust.behind(floor).is_empty() => {
            broken(Rule::Trust, format!("{:?} went back", trust.behind(floor)));
        }
        _ => {}
    }
    for (database, rows) in &required.rows {
        let held = outcome.rows.get(database);
        let lost = rows.iter().filter(|row| held.is_none_or(|held| !held.contains(*row)));
        let tables: BTreeMap<&str, usize> = lost.fold(BTreeMap::new(), |mut tables, (table, _)| {
            *tables.entry(table.as_str()).or_default() += 1;
            tables
        });
        if !tables.is_empty() {
            broken(Rule::Rows, format!("{database} lost rows of {tables:?}"));
        }
    }
}

fn counters(outcome: &Outcome, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    for (digest, begun) in &required.tests_begun {
        let counted = outcome.journal.attempts.get(digest).copied().unwrap_or(0);
        if counted < *begun && !outcome.journal.bad.contains(digest) {
            broken(
                Rule::Counted,
                format!("{begun} self-tests of {digest:.8} were begun, {counted} are counted"),
            );
        }
    }
    for (digest, before) in &required.starts {
        let started = outcome.boots.iter().filter(|boot| runs_on_trial(boot, digest)).count() as u32;
        if before + started > u32::from(TRIALS) {
            let text = format!("{before} starts on {digest:.8} before the cut and {started} after it");
            broken(Rule::Counted, text);
        }
    }
}

fn runs_on_trial(boot: &Boot, digest: &str) -> bool {
    let on_trial = boot.before.values().flatten().any(|pointer| {
        pointer.trials.is_some() && pointer.active.as_ref().is_some_and(|slot| slot.digest == digest)
    });
    let runs = |running: &BTreeMap<_, crate::boot::Running>| {
        running.values().any(|running| running.slot.digest == digest)
    };
    on_trial && boot.result.as_ref().is_ok_and(runs)
}

/// The pointer is made durable before the report that tells of it.
fn reports(outcome: &Outcome, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    for (model, update) in &outcome.journal.updates {
        let Some(Some(pointer)) = outcome.pointers.get(model) else { continue };
        let names = |slot: &Option<_>| {
            slot.as_ref().is_some_and(|slot: &farlight_device::pointer::Slot| slot.release == update.release)
        };
        let holds = match update.state {
            UpdateState::Confirmed if required.serving.contains(model) => {
                names(&pointer.previous) || names(&pointer.active) && pointer.trials.is_none()
            }
            UpdateState::RolledBack => !names(&pointer.active),
            _ => true,
        };
        if !holds {
            let text =
                format!("{} is reported {:?}, and the pointer is {pointer:?}", update.release, update.state);
            broken(Rule::Reports, text);
        }
    }
}

fn starts(number: usize, boot: &Boot, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    let running = match &boot.result {
        Ok(running) => running,
        Err(error) => {
            broken(Rule::Starts, format!("start {}: {error}", number + 1));
            return;
        }
    };
    for model in &required.serving {
        if !running.contains_key(model) {
            broken(Rule::Serves, format!("start {}: no release of {model} answers", number + 1));
        }
    }
    for (model, running) in running {
        if !required.tested.contains(&running.slot.digest) {
            let text =
                format!("start {}: {} of {model} passed no self-test here", number + 1, running.slot.release);
            broken(Rule::Tested, text);
        }
        if let Some(problem) = &running.problem {
            broken(Rule::Tested, format!("start {}: {}: {problem}", number + 1, running.slot.release));
        }
    }
}

fn end(outcome: &Outcome, required: &Required, broken: &mut impl FnMut(Rule, String)) {
    let Some(Boot { before, result: Ok(running) }) = outcome.boots.last() else { return };
    let on_trial = |pointer: &Pointer| pointer.active.is_some() && pointer.trials.is_some();
    for (model, pointer) in before {
        if pointer.as_ref().is_some_and(on_trial) {
            broken(Rule::GivesUp, format!("{model} is on trial after {} starts", outcome.boots.len()));
        }
    }
    for (model, running) in running.iter().filter(|(model, _)| required.serving.contains(*model)) {
        if !required.confirmed.contains(&running.slot.digest) {
            let text = format!("{model} ends on {}, which was not confirmed", running.slot.release);
            broken(Rule::GivesUp, text);
        }
    }
}
