//! Memory to apply a delta as a device does it, in a process of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use farlight_onnx::{Dim, GraphBuilder};
use farlight_release::{blob, delta};
use farlight_training::random::Random;
use serde::{Deserialize, Serialize};

use crate::report::{Goal, Report};

/// Layers of the model: 50 matrices of 1 MB make 50 MB, and the smaller the largest is, the stricter the goal.
const LAYERS: usize = 50;
/// Elements of a layer.
const ELEMENTS: usize = 512 * 512;
/// Most memory of the whole process, MiB.
const MOST_MIB: f64 = 64.0;
/// What applying may take beside twice the largest tensor, MiB.
const BESIDE_MIB: f64 = 8.0;

/// Files of one update.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    old: PathBuf,
    delta: PathBuf,
    new: PathBuf,
    /// The description of the new file, JSON
    blob: PathBuf,
}

/// Peak resident memory, KiB.
#[derive(Debug, Serialize, Deserialize)]
struct Peak {
    before: u64,
    after: u64,
}

/// Measures a child that applies a delta of a 50 MB model.
pub(crate) fn measure() -> anyhow::Result<Vec<Report>> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (old, new) = (model(0.0)?, model(1e-4)?);
    let delta = delta::encode(&old, &new, &mut |_| {})?;
    std::fs::write(path("old"), &old)?;
    std::fs::write(path("delta"), &delta)?;
    std::fs::write(path("blob"), serde_json::to_vec(&blob::describe(&new))?)?;
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("apply").args(["old", "delta", "new", "blob"].map(path));
    let output = child.output().context("start this program again")?;
    if !output.status.success() {
        bail!("apply: {}", String::from_utf8_lossy(&output.stderr));
    }
    let peak: Peak = serde_json::from_slice(&output.stdout)?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let largest = (ELEMENTS * size_of::<f32>()) as f64 / (1024.0 * 1024.0);
    let most = 2.0 * largest + BESIDE_MIB;
    let detail = format!("model of {} bytes, delta of {}", new.len(), delta.len());
    Ok(vec![
        Report::new(
            "delta/memory/process",
            mib(peak.after),
            "MiB peak",
            None,
            Goal { value: Some(MOST_MIB), ..Goal::default() },
        )
        .detail(detail),
        Report::new(
            "delta/memory/apply",
            mib(peak.after - peak.before),
            "MiB more",
            None,
            Goal { value: Some(most), ..Goal::default() },
        )
        .detail(format!("largest tensor {largest} MiB, {} MiB before", mib(peak.before))),
    ])
}

/// A model whose weights differ by about `by` from those of `model(0.0)`.
fn model(by: f32) -> anyhow::Result<Vec<u8>> {
    let mut graph = GraphBuilder::new("large").input("x", &[Dim::Fixed(1), Dim::Fixed(512)]);
    let (mut weights, mut steps) = (Random::new(1), Random::new(2));
    let mut last = "x".to_owned();
    for layer in 0..LAYERS {
        let (name, next) = (format!("w{layer}"), format!("h{layer}"));
        let values: Vec<f32> = (0..ELEMENTS).map(|_| weights.normal() * 0.05 + steps.normal() * by).collect();
        graph = graph.f32(&name, &[512, 512], &values).node("MatMul", &[&last, &name], &[&next], &[]);
        last = next;
    }
    Ok(graph.output(&last, &[Dim::Fixed(1), Dim::Fixed(512)]).finish()?.to_bytes())
}

/// Applies a delta by the agent's own code and prints the peak memory before and after.
pub(crate) fn apply(args: &Args) -> anyhow::Result<()> {
    let blob = serde_json::from_slice(&std::fs::read(&args.blob)?)?;
    let before = peak()?;
    if let Err(failure) = farlight_agent::delta::apply(&args.old, &args.delta, &args.new, &blob) {
        bail!("{}: {}", failure.code.as_str(), failure.message);
    }
    serde_json::to_writer(std::io::stdout(), &Peak { before, after: peak()? })?;
    Ok(())
}

/// Most resident memory of this process so far, KiB.
fn peak() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
