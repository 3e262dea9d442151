//! `bench routing`: what a route costs over none: one stage, a shadow that is switched off, and a stage before it that
//! is left out because it failed.

use anyhow::ensure;

use crate::client::{Connection, Form, Taken, client, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Span, Subject};

/// Calls until the breaker of a failing stage is open, with room.
const CALLS: usize = 100;
/// Most that an open breaker may add, µs at the 99th percentile.
const BREAKER_MICROS: f64 = 5_000.0;
/// A route of one stage.
const ONE: &str = "[[routes.watch-gestures.stages]]\nask = { model = \"watch-gestures\" }\n";
/// A shadow that sees nothing.
const SHADOW: &str = "[routes.watch-gestures.shadow]\nmodel = \"watch-gestures\"\npermille = 0\n";
/// A stage that cannot be reached: nothing listens on port 9.
const BROKEN: &str =
    "[[routes.watch-gestures.stages]]\nask = { remote = \"http://127.0.0.1:9/v2/models/x\" }\n";
/// Left out for longer than the benchmark takes.
const BREAKER: &str = "[routes.watch-gestures.breaker]\ncalls = 20\nopen_ms = 3600000\n";

/// Arguments of `bench routing`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    span: Span,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::reference("watch-gestures")?;
    let mut serving = Serving::with("[router]\nremote = true\n", &[&subject])?;
    let request = request(subject.name, Form::Binary, subject.shape, &subject.input());
    let time = args.span.each();
    let ask = |serving: &Serving| client(&serving.unix(), &request, time);
    let mut none = ask(&serving)?;
    serving.configure(ONE)?;
    let one = ask(&serving)?;
    serving.configure(&format!("{ONE}{SHADOW}"))?;
    let shadow = ask(&serving)?;
    serving.configure(&format!("{BROKEN}{ONE}{BREAKER}"))?;
    let mut connection = Connection::open(&serving.unix())?;
    for _ in 0..CALLS {
        let status = connection.ask(&request)?;
        ensure!(status == 200, "while a stage fails a request is answered with status {status}");
    }
    let open = ask(&serving)?;
    // An empty configuration takes the routes back: the baseline is on both sides of what it is compared with.
    serving.configure("")?;
    none.then(ask(&serving)?);
    let none = none.sort();
    let goal = Goal { above: Some(BREAKER_MICROS), ..Goal::default() };
    for (name, taken, what) in [
        ("one-stage", &one, "a route of one stage against no route"),
        ("shadow-off", &shadow, "the same with a shadow of 0 thousandths against no route"),
        ("open-breaker", &open, "a stage that is left out and one that answers against no route"),
    ] {
        let print = |suffix: &str, permille, goal, printer: &mut Printer| {
            let name = format!("routing/{name}/{suffix}");
            let (value, baseline) = (Taken::permille(taken, permille), none.permille(permille));
            let report = Report::new(&name, value, "µs", Some(baseline), goal);
            printer.print(&report.detail(format!("{what}: {:+.1} µs", value - baseline)))
        };
        print("p50", 500, Goal::default(), printer)?;
        print("p99", 990, if name == "open-breaker" { goal } else { Goal::default() }, printer)?;
    }
    Ok(())
}
