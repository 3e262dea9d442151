//! `bench coldstart`: from the start of the agent's process, with an installed release, to its first answer.

use std::time::{Duration, Instant};

use crate::client::{Form, Taken, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Subject};

/// Most that a start may take at the median, ms.
const MOST_MS: f64 = 300.0;
/// How often it is tried whether the agent answers.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `bench coldstart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Starts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    starts: u32,
    /// 3 starts
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::reference("watch-gestures")?;
    let mut serving = Serving::with("", &[&subject])?;
    let request = request(subject.name, Form::Binary, subject.shape, &subject.input());
    let mut taken = Taken::default();
    for _ in 0..if args.short { 3 } else { args.starts } {
        serving.stop()?;
        let started = Instant::now();
        serving.device.launch()?;
        // Before it listens it cannot be reached, before the model is loaded it refuses.
        serving.answers("the agent", LOOK_EVERY, PATIENCE, &request)?;
        taken.micros.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let taken = taken.sort();
    let (count, ms) = (taken.micros.len(), |permille| taken.permille(permille) / 1000.0);
    let goal = Goal { value: Some(MOST_MS), ..Goal::default() };
    let report = Report::new("coldstart/p50", ms(500), "ms", None, goal);
    printer.print(&report.detail(format!(
        "{count} starts, {:.0} to {:.0} ms; files are in the page cache",
        ms(0),
        ms(1000)
    )))
}
