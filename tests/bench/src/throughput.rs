//! `bench throughput`: requests a second of a model of about a millisecond, against tract alone on every core. The
//! clients run on the same cores; what they take of them is said with each result.

use std::time::Duration;

use crate::bare::Bare;
use crate::client::{Form, Taken, clients, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Subject};

/// Matrix products of the model: about a millisecond on a desktop core.
const LAYERS: usize = 8;
/// Clients at once.
const CLIENTS: [usize; 3] = [1, 4, 16];
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
    let mut taken = CLIENTS.map(|_| Taken::default());
    for _ in 0..ROUNDS {
        single.then(bare.run(1, turn)?);
        alone.then(bare.run(cores, turn)?);
        for (taken, clients_at_once) in taken.iter_mut().zip(CLIENTS) {
            taken.then(clients(&serving.unix(), &request, clients_at_once, turn)?);
        }
    }
    let (alone, single) = (alone.sort(), single.sort());
    for (taken, count) in taken.into_iter().zip(CLIENTS) {
        let taken = taken.sort();
        let most = Some(LEAST).filter(|_| count == CLIENTS[2]);
        let goal = Goal { least_ratio: most, ..Goal::default() };
        // One client never keeps more than one core busy.
        let baseline = if count == 1 { single.rate() } else { alone.rate() };
        let name = format!("throughput/{count}-clients");
        let report = Report::new(&name, taken.rate(), "requests/s", Some(baseline), goal);
        printer.print(&report.detail(format!(
            "the model takes {:.0} µs alone; baseline on {} of {cores} cores; p99 {:.0} µs; the clients take {:.1} % of all cores",
            single.permille(500),
            count.min(cores),
            taken.permille(990),
            100.0 * taken.processor.as_secs_f64() / (taken.elapsed.as_secs_f64() * cores as f64),
        )))?;
    }
    Ok(())
}
