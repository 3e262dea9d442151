//! `power-cut`: records scenarios and replays every state that a cut may leave; or kills the agent at
//! random moments. Exit code 1 when a rule was broken.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use farlight_power_cut::replay::{self, Plan, Summary};
use farlight_power_cut::rules::Violation;
use farlight_power_cut::scenario::{self, Recording, Scenario};
use farlight_power_cut::{device, kills, machine};
use farlight_test_support::workspace_root;

/// States examined of each scenario when neither all nor another number is asked for: two cores take about
/// twenty seconds for them.
const SAMPLE: usize = 1_000;
/// Violations printed of each scenario: more say little new.
const SHOWN: usize = 5;

/// Proves that no power cut breaks a device.
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  tests/power-cut/run --full\n  tests/power-cut/run --kills 500")]
struct Args {
    /// Examine every state instead of a random sample of each scenario.
    #[arg(long)]
    full: bool,
    /// Examine a random sample of so many states of each scenario.
    #[arg(long, value_name = "N", default_value_t = SAMPLE, conflicts_with = "full")]
    sample: usize,
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<Scenario>,
    /// Seed of all random choices; without it another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Instead of replaying, kill the agent so many times at random moments of updates and rollbacks.
    #[arg(long, value_name = "N")]
    kills: Option<u32>,
    /// Instead of replaying, switch a machine with a disk of its own off so many times while the agent installs
    /// releases.
    #[arg(long, value_name = "N", conflicts_with = "kills")]
    cuts: Option<u32>,
    /// Leave every sync of the agent out, and succeed when that is found out.
    #[arg(long, requires = "cuts")]
    unsynced: bool,
    /// Instead of replaying, hold what the last cut of a booted machine left to the rules: `tests/vm/run` writes the
    /// folder.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["kills", "cuts"])]
    judge: Option<PathBuf>,
    /// Replay the recording in this folder again.
    #[arg(long, value_name = "FOLDER")]
    replay: Option<PathBuf>,
    /// Examine only this state of it.
    #[arg(long, value_name = "N", requires = "replay")]
    state: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that closed the pipe has read enough.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn run(args: &Args) -> anyhow::Result<bool> {
    if let Some(folder) = &args.judge {
        let (number, broken) = device::judge(folder)?;
        say(&format!("cut {number}: {} violations", broken.len()));
        tell(&broken);
        return Ok(broken.is_empty());
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    if let Some(count) = args.kills {
        let again = || format!("again: tests/power-cut/run --kills {count} --seed {seed}");
        return runtime.block_on(kills::run(count, seed, &say)).with_context(again);
    }
    if let Some(count) = args.cuts {
        let again = || format!("again: tests/power-cut/run --cuts {count} --seed {seed}");
        return machine::run(&runtime, count, seed, args.unsynced, &say).with_context(again);
    }
    let limit = if args.full { usize::MAX } else { args.sample };
    let plan = Plan { seed, from: 0, limit, only: args.state, until: None };
    if let Some(folder) = &args.replay {
        let recording = scenario::load(folder)?;
        return examine(&recording, folder, &plan);
    }
    let mut holds = true;
    for scenario in Scenario::ALL.into_iter().filter(|one| args.scenario.is_none_or(|wanted| wanted == *one))
    {
        let folder = workspace_root().join("target/power-cut").join(scenario.name());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        let recording = runtime.block_on(scenario::record(scenario, &folder)).with_context(|| {
            let name = scenario.name();
            format!("record {name}; again: tests/power-cut/run --scenario {name} --seed {seed}")
        })?;
        holds &= examine(&recording, &folder, &plan)?;
    }
    Ok(holds)
}

fn tell(broken: &[Violation]) {
    for violation in broken {
        say(&format!("    {:?}: {}", violation.rule, violation.text));
    }
}

/// Replays a recording and prints what was found; whether every rule held.
fn examine(recording: &Recording, folder: &Path, plan: &Plan) -> anyhow::Result<bool> {
    let began = Instant::now();
    let name = recording.scenario.name();
    let summary = replay::replay(&recording.trace, recording.scenario.may_remove(), plan)?;
    let Summary { events, points, states, examined, violations } = summary;
    say(&format!(
        "{name}: {events} events, {points} cut points, {states} states, {examined} examined in {} s, {} violations",
        began.elapsed().as_secs(),
        violations.len(),
    ));
    for (state, broken) in violations.iter().take(SHOWN) {
        say(&format!("  seed {} scenario {name} state {state}:", plan.seed));
        tell(broken);
        say(&format!(
            "    again: tests/power-cut/run --replay {} --seed {} --state {state}",
            folder.display(),
            plan.seed
        ));
    }
    Ok(violations.is_empty())
}
