//! `bench engines`: the repository's two models as tract runs them, with weights in f32, f16 and int8, and as ONNX
//! Runtime does, where a Python with it is named. One thread, one item.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use farlight_onnx::{Limits, Model, convert};

use crate::bare::Bare;
use crate::report::{Goal, Printer, Report};
use crate::serving::Subject;

/// Turns.
const ROUNDS: u32 = 3;
/// Prints the median of a run in µs; arguments: model, shape, seconds.
const PROGRAM: &str = include_str!("engines/onnxruntime.py");

/// Arguments of `bench engines`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A Python with numpy and onnxruntime, as tests/bench/fetch-peers makes it
    #[arg(long, value_name = "PYTHON")]
    onnxruntime: Option<PathBuf>,
    /// Seconds for each form
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A tenth of the time
    #[arg(long)]
    short: bool,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let seconds = if args.short { args.seconds / 10.0 } else { args.seconds };
    let turn = Duration::from_secs_f64(seconds / f64::from(ROUNDS));
    for name in ["watch-gestures", "digits"] {
        let subject = Subject::reference(name)?;
        let model = Model::parse(&subject.onnx, &Limits::default())?;
        let forms = [
            ("f32", subject.onnx.clone()),
            ("f16", convert::f16(&model)?.to_bytes()),
            ("int8", convert::int8(&model)?.to_bytes()),
        ];
        let bare = forms.each_ref().map(|(_, onnx)| Bare::load(onnx, subject.shape, &subject.input()));
        let mut taken = forms.each_ref().map(|_| crate::client::Taken::default());
        let mut other = Vec::new();
        for _ in 0..ROUNDS {
            for (bare, taken) in bare.iter().zip(&mut taken) {
                let bare = bare.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
                taken.then(bare.run(1, turn)?);
            }
            if let Some(python) = &args.onnxruntime {
                other.push(onnxruntime(python, &subject, turn)?);
            }
        }
        let taken = taken.map(crate::client::Taken::sort);
        let first = taken[0].permille(500);
        for ((form, onnx), taken) in forms.iter().zip(&taken) {
            let name = format!("engines/{name}/tract/{form}");
            let report = Report::new(&name, taken.permille(500), "µs", Some(first), Goal::default());
            printer.print(&report.detail(format!("median; {} bytes; the baseline is f32", onnx.len())))?;
        }
        other.sort_by(f64::total_cmp);
        if let Some(middle) = other.get(other.len() / 2) {
            let name = format!("engines/{name}/onnxruntime");
            let report = Report::new(&name, *middle, "µs", Some(first), Goal::default());
            printer.print(&report.detail("median, called from Python; the baseline is tract with f32"))?;
        }
    }
    Ok(())
}

fn onnxruntime(python: &Path, subject: &Subject, time: Duration) -> anyhow::Result<f64> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&subject.onnx)?;
    let shape: Vec<String> = std::iter::once(&1).chain(subject.shape).map(ToString::to_string).collect();
    let output = Command::new(python)
        .args(["-c", PROGRAM])
        .arg(file.path())
        .arg(shape.join(","))
        .arg(time.as_secs_f64().to_string())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", python.display()))?;
    ensure!(output.status.success(), "onnxruntime: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.trim().parse().context("understand what Python printed")
}
