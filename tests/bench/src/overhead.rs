//! `bench overhead`: what one request costs over the model itself, by each way in. One client that asks as soon as
//! it is answered; the ways take turns, so that a change of the machine's pace meets all of them. It is measured with cores that
//! rest between requests as the kernel lets them, and with cores that are kept awake, as those are on which tract alone runs
//! without a pause.

use std::io::Write as _;
use std::time::Duration;

use farlight_agent::awake::Awake;

use crate::bare::Bare;
use crate::client::{Endpoint, Form, Taken, client, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Span, Subject};

/// Turns.
const ROUNDS: u32 = 5;
/// How long the kernel of a virtual machine looks for work before it halts a processor, ns: 200,000 unless somebody changed it.
const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
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
    /// `inference.poll_us` of the agent, instead of what it comes with
    #[arg(long, value_name = "MICROSECONDS")]
    poll_us: Option<u64>,
}

/// Whether cores rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cores {
    /// Between requests, as the kernel lets them.
    Rest,
    /// Never: `inference.wake_latency_us = 0`.
    Awake,
}

impl Cores {
    /// In names of results.
    fn name(self) -> &'static str {
        match self {
            Self::Rest => "overhead",
            Self::Awake => "overhead/awake",
        }
    }

    /// Whether there is a goal for the Unix socket: a virtual machine that halts its processors at once has its host wake up the
    /// client, which takes as long as the host likes. That for HTTP holds everywhere.
    fn unix_goal(self) -> bool {
        self == Self::Awake || std::fs::read_to_string(HALT_POLL).map_or(true, |ns| ns.trim() != "0")
    }

    /// More of the agent's configuration.
    fn settings(self, poll_us: Option<u64>) -> String {
        let mut text = "[inference]\n".to_owned();
        if self == Self::Awake {
            text += "wake_latency_us = 0\n";
        }
        if let Some(micros) = poll_us {
            text += &format!("poll_us = {micros}\n");
        }
        text
    }
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subjects = [Subject::reference("watch-gestures")?, Subject::reference("digits")?];
    let turn = args.span.each() / ROUNDS;
    for cores in [Cores::Rest, Cores::Awake] {
        // The agent says so in its log and runs on; here it would be measured twice as the same.
        if cores == Cores::Awake
            && let Err(error) = Awake::within(0)
        {
            writeln!(
                std::io::stderr(),
                "cores cannot be kept awake here, so no goal is measured: {error:#}"
            )?;
            continue;
        }
        if !cores.unix_goal() {
            writeln!(
                std::io::stderr(),
                "processors are halted at once here ({HALT_POLL} is 0), so the Unix socket has no goal with cores that rest"
            )?;
        }
        let serving = Serving::with(&cores.settings(args.poll_us), &subjects.each_ref())?;
        for subject in &subjects {
            measure(subject, &serving, cores, turn, printer)?;
        }
        for (kind, endpoint) in [("unix", serving.unix()), ("http", serving.tcp())] {
            let taken = client(&endpoint, LIVE, turn)?;
            let name = format!("{}/transport/{kind}/p50", cores.name());
            let report = Report::new(&name, taken.permille(500), "µs", None, Goal::default());
            printer.print(
                &report.detail("GET /v2/health/live: HTTP and a change of threads both ways, no model"),
            )?;
        }
    }
    Ok(())
}

fn measure(
    subject: &Subject,
    serving: &Serving,
    cores: Cores,
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
    let asked = request(subject.name, Form::Binary, subject.shape, &input);
    let (mut alone, mut floor) = (Taken::default(), Taken::default());
    for _ in 0..ROUNDS {
        alone.then(bare.run(1, turn)?);
        floor.then(bare.behind_socket(&asked, turn)?);
        for (_, endpoint, _, _, request, taken) in &mut ways {
            taken.then(client(endpoint, request, turn)?);
        }
    }
    let (alone, floor) = (alone.sort(), floor.sort());
    let name = |what: &str| format!("{}/{}/{what}", cores.name(), subject.name);
    let value = floor.permille(500);
    let report = Report::new(&name("floor/p50"), value, "µs", Some(alone.permille(500)), Goal::default());
    printer
        .print(&report.detail(
            "tract alone, on a thread behind a Unix socket that never rests and knows no protocol",
        ))?;
    for (kind, _, form, most, _, taken) in ways {
        let taken = taken.sort();
        let name = |what: &str| name(&format!("{kind}/{}/{what}", form.name()));
        let goal = Goal { above: most.filter(|_| kind == "http" || cores.unix_goal()), ..Goal::default() };
        let detail = format!(
            "{} requests, {:.1} µs above bare tract, {:.1} µs above the floor; the client itself takes {:.1} µs of processor time",
            taken.micros.len(),
            taken.permille(500) - alone.permille(500),
            taken.permille(500) - floor.permille(500),
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
