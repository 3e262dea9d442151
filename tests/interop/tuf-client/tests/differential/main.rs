//! Our client, `sigstore-tuf` and python-tuf on the same repositories: generated, changed in ways that are
//! signed again, and damaged. The same verdict on every one of them, by clients that have seen the state
//! before. A failing case prints its seed; `FARLIGHT_SEED=‹n› FARLIGHT_CASES=1` runs it alone.

#![allow(clippy::unwrap_used, reason = "tests")]

mod changes;
mod clients;
mod python;
#[path = "../../../../../crates/release/tests/conformance/repository.rs"]
#[expect(dead_code, reason = "the conformance cases need more of it")]
mod repository;

use rand::SeedableRng;
use rand::rngs::StdRng;

use clients::{Clients, Verdict};
use python::Python;

/// The top-level roles.
const ALL: [&str; 4] = ["root", "targets", "snapshot", "timestamp"];
/// Cases of one run; each is a first state and up to four changes of it.
const CASES: u64 = 400;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn by_chance() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::from(since.subsec_nanos())
}

#[test]
fn our_client_and_others_agree() {
    let first = setting("FARLIGHT_SEED").unwrap_or_else(by_chance);
    let cases = setting("FARLIGHT_CASES").unwrap_or(CASES);
    println!("seeds {first} to {}", first + cases - 1);
    let mut python = Python::start();
    println!("with python-tuf: {}", python.is_some());
    let (mut accepted, mut refused, mut found) = (0, 0, 0);
    for seed in first..first + cases {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut repository, paths) = changes::generate(&mut rng);
        let mut clients = Clients::new(&repository, python.as_mut());
        let mut history = vec!["generated".to_owned()];
        for step in 0..5 {
            let before = (clients.state(), repository.clone());
            if step > 0 {
                history.push(changes::change(&mut repository, &mut rng));
            }
            let ours = clients.ours(&mut repository, &paths);
            let case = format!("seed {seed}: {history:?}");
            for (name, theirs) in clients.others(&mut repository, &paths) {
                assert_eq!(ours, theirs, "{case}: ours, {name}'s");
            }
            match &ours {
                Verdict::Refused => {
                    refused += 1;
                    // After a refresh that broke off between timestamp and snapshot sigstore-tuf has no
                    // floor for what the snapshot lists, and we have: each change meets whole clients, and
                    // no version number comes twice.
                    clients.restore(before.0);
                    repository = before.1;
                }
                Verdict::Accepted(targets) => {
                    accepted += 1;
                    found += targets.iter().flatten().count();
                }
            }
            if step == 0 {
                assert_ne!(ours, Verdict::Refused, "{case}");
            }
        }
    }
    println!("{accepted} states accepted, {refused} refused, {found} targets found, the same by all");
    assert!(accepted > 0 && refused > 0 && found > 0 || cases < 50);
}
