//! The data folder of a device as the cuts of a real machine left it, held to the rules. `tests/vm/run` switches the
//! machine off and writes what is judged here:
//!
//! - `good/` and `bad/`: bundles of releases. All pass their self-test on the device; the bad ones never their probation.
//! - `0/state`, `1/state`, …: the device's data folder before the first cut, and as each cut left it.
//! - `1/told`, …: what the device had told before that cut, a line each: a pointer as its file has it, from a moment at
//!   which no update was under way, or `started` and the digest of the release that answered after the start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use farlight_device::pointer::{Pointer, TRIALS};

use crate::boot::Starter;
use crate::evidence::Required;
use crate::look;
use crate::rules::{self, Violation};
use crate::trace::Tree;

/// Holds what the last cut left to all that was before it. The number of that cut, and what is broken.
///
/// # Errors
/// When the folder does not hold what it must.
pub fn judge(folder: &Path) -> anyhow::Result<(u32, Vec<Violation>)> {
    let state = |number: u32| folder.join(number.to_string()).join("state");
    let mut tree = Tree::read(&state(0))?;
    let mut required = first(&tree, folder)?;
    let mut number = 0;
    while state(number + 1).exists() {
        number += 1;
        required.left(&tree);
        let told = folder.join(number.to_string()).join("told");
        let told = std::fs::read_to_string(&told).with_context(|| format!("read {}", told.display()))?;
        relied(&mut required, &look::pointers(&tree), &told);
        tree = Tree::read(&state(number))?;
    }
    let outcome = Starter::new()?.examine(&tree)?;
    Ok((number, rules::judge(&outcome, &required)))
}

/// What holds of a device that runs a confirmed release.
fn first(tree: &Tree, folder: &Path) -> anyhow::Result<Required> {
    let good = digests(&folder.join("good"))?;
    let is_confirmed = |pointer: &Pointer| {
        pointer.trials.is_none() && pointer.active.as_ref().is_some_and(|slot| good.contains(&slot.digest))
    };
    let serving: BTreeSet<String> = look::pointers(tree)
        .into_iter()
        .filter(|(_, pointer)| pointer.as_ref().is_some_and(is_confirmed))
        .map(|(model, _)| model)
        .collect();
    ensure!(!serving.is_empty(), "no release was confirmed before the first cut");
    let tested = good.union(&digests(&folder.join("bad"))?).cloned().collect();
    Ok(Required { serving, tested, confirmed: good, is_enrolled: true, ..Required::default() })
}

/// Digests of the releases of the bundles in a folder.
fn digests(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let bundles = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    bundles
        .map(|bundle| {
            let manifest = bundle?.path().join("manifest.json");
            let bytes = std::fs::read(&manifest).with_context(|| format!("read {}", manifest.display()))?;
            Ok(farlight_release::digest::sha256(&bytes))
        })
        .collect()
}

/// Adds what a life told that began with these pointers. The cut may have torn the last line.
fn relied(required: &mut Required, before: &BTreeMap<String, Option<Pointer>>, told: &str) {
    required.starts.retain(|digest, _| before.values().flatten().any(|one| on_trial(one) == Some(digest)));
    for line in told.lines() {
        if let Some(digest) = line.strip_prefix("started ") {
            let started = |one: &&Pointer| on_trial(one) == Some(digest);
            if let Some(pointer) = before.values().flatten().find(started) {
                let starts = required.starts.entry(digest.to_owned()).or_default();
                // An activation begins to count anew.
                *starts = if pointer.trials == Some(TRIALS) { 1 } else { *starts + 1 };
            }
        } else if let Ok(pointer) = serde_json::from_str::<Pointer>(line)
            && let Some(slot) = &pointer.active
        {
            required.pointers.insert(slot.release.model.to_string(), pointer.sequence);
        }
    }
}

/// The release on trial (its digest).
fn on_trial(pointer: &Pointer) -> Option<&str> {
    pointer.trials.and(pointer.active.as_ref()).map(|slot| slot.digest.as_str())
}

#[cfg(test)]
mod tests {
    use farlight_device::pointer::Slot;

    use super::*;

    const MODEL: &str = "watch-gestures";

    fn before(trials: Option<u8>) -> BTreeMap<String, Option<Pointer>> {
        let release = format!("{MODEL}/1.0.0").parse().unwrap();
        let active = Some(Slot { release, digest: "d1".to_owned() });
        BTreeMap::from([(
            MODEL.to_owned(),
            Some(Pointer { sequence: 4, active, trials, ..Pointer::default() }),
        )])
    }

    #[test]
    fn starts_on_trial_are_counted_from_the_activation_on() {
        let mut required = Required::default();
        let mut life = |trials, told: &str| {
            relied(&mut required, &before(trials), told);
            required.starts.get("d1").copied()
        };
        assert_eq!(life(Some(TRIALS), "started d1\n"), Some(1));
        assert_eq!(life(Some(TRIALS - 1), "started d1\n"), Some(2));
        // A life that ended before anything answered, and another release.
        assert_eq!(life(Some(TRIALS - 2), ""), Some(2));
        assert_eq!(life(Some(TRIALS - 2), "started d2\n"), Some(2));
        // Activated again, and then confirmed.
        assert_eq!(life(Some(TRIALS), "started d1\n"), Some(1));
        assert_eq!(life(None, "started d1\n"), None);
    }

    #[test]
    fn a_pointer_that_was_told_is_the_least_and_a_torn_line_is_none() {
        let mut required = Required::default();
        let told = serde_json::to_string(&before(None)[MODEL]).unwrap();
        relied(&mut required, &before(None), &format!("{told}\n{}", &told[..told.len() / 2]));
        assert_eq!(required.pointers, BTreeMap::from([(MODEL.to_owned(), 4)]));
    }
}
