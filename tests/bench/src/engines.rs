//! `bench engines`: the repository's two models as tract runs them, with weights in f32, f16 and int8, and as ONNX
//! Runtime does, where its library is named. One thread, one item.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use farlight_inference::simplify::fold::Plan;
use farlight_inference::simplify::{Simplify, simplify};
use farlight_inference::{Engines, Kind, OnnxRuntime, Provider, Tensor, Values};
use farlight_onnx::{Limits, Model, convert};

use crate::bare::Bare;
use crate::client::closed;
use crate::report::{Goal, Printer, Report};
use crate::serving::Subject;

/// Turns.
const ROUNDS: u32 = 3;

/// Arguments of `bench engines`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// ONNX Runtime's library, as tests/interop/onnxruntime-library fetches it
    #[arg(long)]
    library: Option<PathBuf>,
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
    if args.library.is_some() {
        farlight_agent::engines::be_quiet()?;
    }
    let engines = Engines::open(args.library.clone().map(|library| OnnxRuntime {
        library,
        providers: vec![Provider::cpu()],
        session_options: Default::default(),
    }));
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
        let other = args.library.as_ref().map(|_| onnxruntime(&subject, &engines)).transpose()?;
        let mut others = crate::client::Taken::default();
        for _ in 0..ROUNDS {
            for (bare, taken) in bare.iter().zip(&mut taken) {
                let bare = bare.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
                taken.then(bare.run(1, turn)?);
            }
            if let Some((plan, input)) = &other {
                let run = |(): &mut ()| plan.run(input).map(drop).map_err(anyhow::Error::msg);
                others.then(closed(1, turn, || Ok(()), run)?);
            }
        }
        let taken = taken.map(crate::client::Taken::sort);
        let first = taken[0].permille(500);
        for ((form, onnx), taken) in forms.iter().zip(&taken) {
            let name = format!("engines/{name}/tract/{form}");
            let report = Report::new(&name, taken.permille(500), "µs", Some(first), Goal::default());
            printer.print(&report.detail(format!("median; {} bytes; the baseline is f32", onnx.len())))?;
        }
        if other.is_some() {
            let name = format!("engines/{name}/onnxruntime");
            let report = Report::new(&name, others.sort().permille(500), "µs", Some(first), Goal::default());
            printer.print(&report.detail("median, in this process; the baseline is tract with f32"))?;
        }
    }
    Ok(())
}

/// The model as ONNX Runtime runs it, with its input.
fn onnxruntime(subject: &Subject, engines: &Engines) -> anyhow::Result<(Plan, [Tensor; 1])> {
    let shape: Vec<usize> = std::iter::once(&1).chain(subject.shape).copied().collect();
    let shapes = [("x".to_owned(), shape.clone())].into_iter().collect();
    let simplified = simplify(&subject.onnx, &Simplify { shapes, ..Simplify::default() })?;
    let plan = Plan::load_with(&simplified.onnx, Kind::OnnxRuntime, engines).map_err(anyhow::Error::msg)?;
    ensure!(plan.refused().is_empty(), "{}", plan.refused().join("; "));
    let input = Tensor::new(shape, Values::Fp32(subject.input())).context("the input has another shape")?;
    Ok((plan, [input]))
}
