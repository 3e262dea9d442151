//! `bench overhead`: what one request costs over the model itself, by each way in. One client that asks as soon as
//! it is answered; the ways take turns, so that a change of the machine's pace meets all of them.

use std::time::Duration;

use crate::bare::Bare;
use crate::client::{Endpoint, Form, Taken, clients, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Span, Subject};

/// Turns.
const ROUNDS: u32 = 5;
/// Most that the median request may take longer than the model, µs.
const UNIX_MICROS: f64 = 60.0;
const HTTP_MICROS: f64 = 120.0;

/// A request that runs no model: what the transport costs by itself.
const LIVE: &[u8] = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Arguments of `bench overhead`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    span: Span,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subjects = [Subject::reference("watch-gestures")?, Subject::reference("digits")?];
    let serving = Serving::with("", &subjects.each_ref())?;
    let turn = args.span.each() / ROUNDS;
    for subject in &subjects {
        measure(subject, &serving, turn, printer)?;
    }
    for (kind, endpoint) in [("unix", serving.unix()), ("http", serving.tcp())] {
        let taken = clients(&endpoint, LIVE, 1, turn)?;
        let name = format!("overhead/transport/{kind}/p50");
        let report = Report::new(&name, taken.permille(500), "µs", None, Goal::default());
        printer
            .print(&report.detail("GET /v2/health/live: HTTP and a change of threads both ways, no model"))?;
    }
    Ok(())
}

fn measure(
    subject: &Subject,
    serving: &Serving,
    turn: Duration,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let input = subject.input();
    let bare = Bare::load(&subject.onnx, subject.shape, &input)?;
    let way = |kind: &'static str, endpoint: Endpoint, form: Form, most: Option<f64>| {
        (kind, endpoint, form, most, request(subject.name, form, subject.shape, &input), Taken::default())
    };
    let mut ways = [
        way("unix", serving.unix(), Form::Binary, Some(UNIX_MICROS)),
        way("unix", serving.unix(), Form::Json, None),
        way("http", serving.tcp(), Form::Binary, Some(HTTP_MICROS)),
        way("http", serving.tcp(), Form::Json, None),
    ];
    let mut alone = Taken::default();
    for _ in 0..ROUNDS {
        alone.then(bare.run(1, turn)?);
        for (_, endpoint, _, _, request, taken) in &mut ways {
            taken.then(clients(endpoint, request, 1, turn)?);
        }
    }
    let alone = alone.sort();
    for (kind, _, form, most, _, taken) in ways {
        let taken = taken.sort();
        let name = |what: &str| format!("overhead/{}/{kind}/{}/{what}", subject.name, form.name());
        let goal = Goal { above: most, ..Goal::default() };
        let detail = format!(
            "{} requests, {:.1} µs above bare tract; the client itself takes {:.1} µs of processor time",
            taken.micros.len(),
            taken.permille(500) - alone.permille(500),
            taken.processor.as_secs_f64() * 1e6 / taken.micros.len() as f64,
        );
        let middle = Report::new(&name("p50"), taken.permille(500), "µs", Some(alone.permille(500)), goal);
        printer.print(&middle.detail(detail))?;
        let tail =
            Report::new(&name("p99"), taken.permille(990), "µs", Some(alone.permille(990)), Goal::default());
        printer.print(&tail.detail("99th percentile of the same requests"))?;
    }
    Ok(())
}
