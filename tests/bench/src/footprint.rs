//! `bench footprint`: what the agent takes while nobody asks it: bytes on disk, memory, processor time.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::client::{Form, client, request};
use crate::report::{Goal, Printer, Report};
use crate::serving::{Serving, Subject};

/// Most bytes of the stripped program, MiB.
const PROGRAM_MIB: f64 = 15.0;
/// Most resident memory without a model, and with watch-gestures, MiB.
const EMPTY_MIB: f64 = 10.0;
const LOADED_MIB: f64 = 22.0;
/// Most processor time while idle, % of a core.
const PERCENT: f64 = 0.3;
/// How long it may rest after a start before it counts as idle.
const REST: Duration = Duration::from_secs(3);

/// Arguments of `bench footprint`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds that processor time is counted
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// 2 seconds
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let subject = Subject::reference("watch-gestures")?;
    let mut serving = Serving::start("")?;
    let most = |value| Goal { value: Some(value), ..Goal::default() };
    let (size, profile, how) = stripped(&serving)?;
    // Only the profile for size is held to the goal.
    let goal = if profile == "small" { most(PROGRAM_MIB) } else { Goal::default() };
    printer.print(&Report::new("footprint/program", size, "MiB", None, goal).detail(how))?;

    serving.pass(REST)?;
    memory(&serving, "empty", "no model, connected to its cloud", most(EMPTY_MIB), printer)?;
    serving.install(&subject)?;
    memory(
        &serving,
        "updated",
        "watch-gestures just installed, as the update left it",
        Goal::default(),
        printer,
    )?;
    serving.restart()?;
    serving.pass(REST)?;
    let request = request(subject.name, Form::Binary, subject.shape, &subject.input());
    client(&serving.unix(), &request, Duration::from_secs(1))?;
    memory(&serving, "loaded", "watch-gestures, after a second of requests", most(LOADED_MIB), printer)?;

    serving.pass(REST)?;
    let time = Duration::from_secs_f64(if args.short { args.seconds / 10.0 } else { args.seconds });
    let before = serving.processor()?;
    serving.pass(time)?;
    let used = serving.processor()?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / time.as_secs_f64();
    let report = Report::new("footprint/idle", percent, "% of a core", None, most(PERCENT));
    printer.print(
        &report.detail(format!(
            "{used:?} in {time:?}, with watch-gestures, connected; {before:?} since its start"
        )),
    )
}

fn memory(
    serving: &Serving,
    name: &str,
    what: &str,
    goal: Goal,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let own = serving.memory("RssAnon")?;
    let report = Report::new(&format!("footprint/{name}"), serving.memory("VmRSS")?, "MiB", None, goal);
    printer.print(
        &report.detail(format!("{what}; {own:.1} MiB of it are its own, the rest are pages of its program")),
    )
}

/// Size of the agent's program without symbols, MiB, the profile that it was built with, and how to build the one for size.
fn stripped(serving: &Serving) -> anyhow::Result<(f64, String, String)> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("agent");
    let done = Command::new("strip").arg("-o").arg(&copy).arg(serving.program()).output();
    let stripped = done.is_ok_and(|done| done.status.success());
    let file = if stripped { &copy } else { serving.program() };
    let size = std::fs::metadata(file)?.len() as f64 / (1024.0 * 1024.0);
    let profile = serving.program().parent().and_then(|folder| folder.file_name());
    let profile = profile.context("the program is in no folder")?.to_string_lossy().into_owned();
    let how = if stripped { "stripped" } else { "not stripped: there is no strip (Debian: binutils)" };
    let detail = format!(
        "profile {profile}, {how}; the one for size: cross/build --profile small x86_64, then FARLIGHT_AGENT=target/x86_64-unknown-linux-gnu/small/farlight-agent"
    );
    Ok((size, profile, detail))
}
