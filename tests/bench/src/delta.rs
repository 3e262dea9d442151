//! `bench delta`: pairs of an older and a newer model file, each as our delta and as those of tools that do not
//! know what is in the file. Every delta is applied and compared byte for byte.

mod baselines;
pub(crate) mod memory;
mod pairs;
mod pypi;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use farlight_release::delta;

use crate::report::{Goal, Printer, Report};
use baselines::Python;
use pairs::Pair;

/// What `--only` calls the measurement of memory.
const MEMORY: &str = "memory";
/// How often a delta is applied: the quickest counts, as others use the machine too.
const APPLIED: usize = 5;

/// Arguments of `bench delta`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder with the wheels that `tests/bench/fetch-pypi` fetched and unpacked
    #[arg(long, value_name = "DIR")]
    pypi: Option<PathBuf>,
    /// Write the pairs here, to try other tools on them
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Only pairs whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

pub(crate) fn run(args: &Args, printer: &mut Printer) -> anyhow::Result<()> {
    let python = Python::find(args.pypi.as_deref());
    if python.is_none() {
        printer.note("HDiffPatch is not installed and left out: see tests/bench/fetch-pypi");
    }
    let mut pairs = Vec::new();
    // Training takes its time and is not needed for a model of made-up weights.
    if args.only != MEMORY {
        pairs = pairs::trained(printer)?;
        if let Some(folder) = &args.pypi {
            pairs.extend(pypi::pairs(folder)?);
        }
    }
    for pair in pairs.iter().filter(|pair| pair.name.contains(&args.only)) {
        if let Some(folder) = &args.keep {
            keep(folder, pair)?;
        }
        printer.print(&compare(pair, python.as_ref())?)?;
    }
    if MEMORY.contains(&args.only) {
        for report in memory::measure()? {
            printer.print(&report)?;
        }
    }
    Ok(())
}

fn keep(folder: &Path, pair: &Pair) -> anyhow::Result<()> {
    let folder = folder.join(pair.name.replace('/', "-"));
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    std::fs::write(folder.join("old.onnx"), &pair.old)?;
    std::fs::write(folder.join("new.onnx"), &pair.new)?;
    Ok(())
}

fn compare(pair: &Pair, python: Option<&Python>) -> anyhow::Result<Report> {
    let (old, new) = (&pair.old, &pair.new);
    let started = Instant::now();
    let delta = delta::encode(old, new, &mut |_| {})?;
    let encoded = started.elapsed();
    let mut applied = Duration::MAX;
    for _ in 0..APPLIED {
        let started = Instant::now();
        let mut made = Vec::with_capacity(new.len());
        delta::apply(&mut Cursor::new(old), &delta[..], &mut made, new.len() as u64)?;
        applied = applied.min(started.elapsed());
        ensure!(made == *new, "{}: the delta makes another file", pair.name);
    }

    let share = |bytes: usize| 100.0 * bytes as f64 / new.len() as f64;
    let others = baselines::measure(old, new, python).with_context(|| pair.name.clone())?;
    let best = others.iter().map(|(_, bytes)| *bytes).min().map(share);
    let mut detail: Vec<String> =
        others.iter().map(|(name, bytes)| format!("{name} {:.2}", share(*bytes))).collect();
    detail.push(format!(
        "{} bytes, encoded in {} ms, applied at {:.1} MB/s on one core",
        new.len(),
        encoded.as_millis(),
        new.len() as f64 / applied.as_secs_f64() / 1e6
    ));
    let goal = Goal { value: pair.most_percent, ratio: pair.most_ratio, ..Goal::default() };
    let report =
        Report::new(&format!("delta/{}", pair.name), share(delta.len()), "% of the file", best, goal);
    Ok(report.detail(detail.join(", ")))
}
