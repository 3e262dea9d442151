//! Simplifies each model of a folder that `reference.py` wrote, runs it, and compares with ONNX Runtime.
//! Prints a table; ends with 1 when a model does not do what is expected of it. Run by `tests/interop/run models`.
#![expect(clippy::print_stdout, reason = "the table is the product")]

mod case;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use case::{Case, Expectation};
use farlight_inference::Tensor;
use farlight_inference::simplify::fold::Plan;
use farlight_inference::simplify::{Report, simplify, unsupported};

/// Largest relative error that counts as equal.
const MAX_ERROR: f64 = 1e-3;
/// Timed calls of one model end after this many or this long, whichever is first.
const TIMED: (usize, Duration) = (2_000, Duration::from_secs(3));

fn main() -> Result<ExitCode> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("usage: interop-models FOLDER")?);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("read {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    folders.retain(|folder| folder.join("case.json").is_file());
    folders.sort();
    ensure!(!folders.is_empty(), "no cases in {}", folder.display());
    println!("| model | result | max relative error | tract p50 µs | ORT p50 µs | simplified |");
    println!("|---|---|---|---|---|---|");
    let mut failed = 0;
    for folder in &folders {
        failed += usize::from(!examine(folder)?);
    }
    println!("\n{} models, {failed} not as expected", folders.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the row of one model; whether it does what is expected.
fn examine(folder: &Path) -> Result<bool> {
    let case = Case::read(folder)?;
    match run(&case) {
        Ok(row) => {
            let good = case.expect == Expectation::Runs && row.error <= MAX_ERROR;
            let result = if good { "equal" } else { "**not as expected**" };
            println!(
                "| {} | {result} | {:.1e} | {} | {} | {} |",
                case.name,
                row.error,
                micros(row.p50_us),
                micros(case.ort_p50_us),
                summary(&row.report)
            );
            Ok(good)
        }
        Err(error) => {
            let text = format!("{error:#}").replace('\n', " ").replace('|', "\\|");
            let named = case.operator.as_ref().is_none_or(|operator| text.contains(operator.as_str()));
            let good = case.expect == Expectation::Refused && named;
            let result = if good { "refused" } else { "**not as expected**" };
            println!("| {} | {result}: {text} | – | – | {} | – |", case.name, micros(case.ort_p50_us));
            Ok(good)
        }
    }
}

fn micros(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

fn summary(report: &Report) -> String {
    let folded: usize = report.folded.values().sum();
    format!("{} If inlined, {folded} nodes folded, {} dropped", report.inlined.len(), report.dropped)
}

/// What one model gave.
struct Row {
    error: f64,
    p50_us: f64,
    report: Report,
}

fn run(case: &Case) -> Result<Row> {
    let simplified = simplify(&case.model()?, &case.options()?)?;
    case.keep(&simplified.onnx)?;
    let refused = unsupported(&simplified.onnx)?;
    if !refused.is_empty() {
        bail!("{}", refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    }
    let plan = Plan::load(&simplified.onnx).map_err(anyhow::Error::msg)?;
    let (inputs, errors) = compare(case, &plan)?;
    let error = errors.iter().map(Difference::relative).fold(0.0, f64::max);
    Ok(Row { error, p50_us: p50(&plan, &inputs)?, report: simplified.report })
}

/// Runs all calls of a case, handing state on, and compares each output with ONNX Runtime's. Returns the inputs of
/// the first call too, to time it.
fn compare(case: &Case, plan: &Plan) -> Result<(Vec<Tensor>, Vec<Difference>)> {
    let mut state: HashMap<String, Tensor> = HashMap::new();
    let mut differences: Vec<Difference> = case.outputs.iter().map(|_| Difference::default()).collect();
    let mut first = None;
    for (mut inputs, expected) in case.calls()? {
        inputs.extend(state.drain());
        let in_order =
            case.inputs.iter().map(|name| inputs.remove(name).with_context(|| format!("no input {name:?}")));
        let in_order: Vec<Tensor> = in_order.collect::<Result<_>>()?;
        let outputs = plan.run(&in_order).map_err(anyhow::Error::msg)?;
        first.get_or_insert(in_order);
        ensure!(outputs.len() == case.outputs.len(), "{} outputs", outputs.len());
        for ((name, output), difference) in case.outputs.iter().zip(outputs).zip(&mut differences) {
            difference.add(&output, expected.get(name).with_context(|| format!("no output {name:?}"))?)?;
            if let Some(input) = case.state.get(name) {
                state.insert(input.clone(), output);
            }
        }
    }
    Ok((first.context("no calls")?, differences))
}

/// How far an output was from ONNX Runtime's over all calls, and how large it got.
#[derive(Default)]
struct Difference {
    far: f64,
    scale: f64,
}

impl Difference {
    fn add(&mut self, found: &Tensor, expected: &Tensor) -> Result<()> {
        ensure!(found.shape == expected.shape, "shape {:?}, not {:?}", found.shape, expected.shape);
        let (datatype, wanted) = (found.values.datatype(), expected.values.datatype());
        ensure!(datatype == wanted, "datatype {datatype:?}, not {wanted:?}");
        let numbers = |tensor: &Tensor| tensor.values.to_f32().map(Cow::into_owned).context("no numbers");
        for (found, expected) in numbers(found)?.into_iter().zip(numbers(expected)?) {
            let (found, expected) = (f64::from(found), f64::from(expected));
            let far = (found - expected).abs();
            // A difference that is no number is the largest there is.
            self.far = if far.is_nan() { f64::INFINITY } else { self.far.max(far) };
            self.scale = self.scale.max(expected.abs());
        }
        Ok(())
    }

    /// Relative to the largest value of the output in any call: a probability near 0 is as exact as one near 1.
    fn relative(&self) -> f64 {
        self.far / (1e-6 + self.scale)
    }
}

fn p50(plan: &Plan, inputs: &[Tensor]) -> Result<f64> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < TIMED.0 && start.elapsed() < TIMED.1 {
        let call = Instant::now();
        plan.run(inputs).map_err(anyhow::Error::msg)?;
        times.push(call.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("no calls")
}
