//! `bench throughput`: requests a second of a model of about a millisecond, against tract alone on every core. The
//! clients run on the same cores; what they and the agent's threads take of a request is said with each result.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;

use crate::bare::Bare;
use crate::client::{Form, Taken, clients, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Subject};

/// Matrix products of the model: about a millisecond on a desktop core.
const LAYERS: usize = 8;
/// Clients at once for which there is a goal.
const MANY: usize = 16;
/// Least share of bare tract's rate with the most clients.
const LEAST: f64 = 0.90;
/// Turns: the machine is not equally fast from one second to the next.
const ROUNDS: u32 = 6;

/// Arguments of `bench throughput`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for each number of clients
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Numbers of clients at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, MANY], value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    clients: Vec<usize>,
    /// A tenth of the time
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::made(LAYERS)?;
    let serving = Serving::with("", &[&subject])?;
    let input = subject.input();
    let bare = Bare::load(&subject.onnx, subject.shape, &input)?;
    let request = request(subject.name, Form::Binary, subject.shape, &input);
    let cores = std::thread::available_parallelism()?.get();
    let seconds = if args.short { args.seconds / 10.0 } else { args.seconds };
    let turn = Duration::from_secs_f64(seconds / f64::from(ROUNDS));
    let (mut alone, mut single) = (Taken::default(), Taken::default());
    let mut taken: Vec<_> =
        args.clients.iter().map(|count| (*count, Taken::default(), BTreeMap::new())).collect();
    for _ in 0..ROUNDS {
        single.then(bare.run(1, turn)?);
        alone.then(bare.run(cores, turn)?);
        for (count, taken, threads) in &mut taken {
            let before = serving.processor_of_threads()?;
            taken.then(clients(&serving.unix(), &request, *count, turn)?);
            for (name, after) in serving.processor_of_threads()? {
                let before = before.get(&name).copied().unwrap_or_default();
                *threads.entry(name).or_insert(Duration::ZERO) += after.saturating_sub(before);
            }
        }
    }
    let (alone, single) = (alone.sort(), single.sort());
    for (count, taken, threads) in taken {
        let taken = taken.sort();
        let most = Some(LEAST).filter(|_| count == MANY);
        let goal = Goal { least_ratio: most, ..Goal::default() };
        // One client never keeps more than one core busy.
        let baseline = if count == 1 { single.rate() } else { alone.rate() };
        let name = format!("throughput/{count}-clients");
        let report = Report::new(&name, taken.rate(), "requests/s", Some(baseline), goal);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / taken.micros.len() as f64;
        let threads: Vec<String> = threads
            .into_iter()
            .map(|(name, time)| (name, each(time)))
            .filter(|(_, micros)| *micros >= 0.5)
            .map(|(name, micros)| format!("{name} {micros:.1}"))
            .collect();
        printer.print(&report.detail(format!(
            "the model takes {:.0} µs alone; baseline on {} of {cores} cores; p99 {:.0} µs; processor time of a request by thread, µs: {}, client {:.1}",
            single.permille(500),
            count.min(cores),
            taken.permille(990),
            threads.join(", "),
            each(taken.processor),
        )))?;
    }
    Ok(())
}
