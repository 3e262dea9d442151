//! The built-in trainer: `farlight-cloud train-job DIR`, a process of its own, because tensor libraries
//! panic on what they do not expect, and because killing it is how a job is cancelled.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use farlight_onnx::{Limits, Model};
use farlight_training::{FitError, PlanError, fit};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::job::{self, Ending, Folder, Job, Metrics};

/// Address space of a training process in bytes.
const MAX_MEMORY: u64 = 8 << 30;
/// Largest file that it may write.
const MAX_WRITTEN: u64 = 1 << 30;
/// How much it steps back behind the service.
const NICE: i32 = 10;

/// Runs the job in a folder; says why on standard error when there is no candidate.
pub fn run(folder: &Path) -> Ending {
    match train(&Folder(folder.to_owned())) {
        Ok(ending) => ending,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            Ending::Failed
        }
    }
}

fn limit(job: &Job) {
    let set = |resource, value: u64| {
        let _ = setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    };
    set(Resource::As, MAX_MEMORY);
    set(Resource::Core, 0);
    set(Resource::Fsize, MAX_WRITTEN);
    set(Resource::Cpu, job.deadline_seconds.saturating_mul(2).max(1));
    let _ = rustix::process::nice(NICE);
}

fn train(folder: &Folder) -> Result<Ending, String> {
    let job = folder.job()?;
    limit(&job);
    if !matches!(job.device.as_str(), "auto" | "cpu") {
        return Err(format!("device {:?} is not in this build: use auto or cpu", job.device));
    }
    let model = Model::parse(&job::read(&folder.base())?, &Limits::default()).map_err(|e| e.to_string())?;
    let classes = job.task.classes.len();
    let train = job::examples(folder.set("train")?, classes, false);
    let validation = job::examples(folder.set("val")?, classes, true);
    let path = folder.progress();
    let fail = |error: std::io::Error| format!("write {}: {error}", path.display());
    let mut progress = OpenOptions::new().create(true).append(true).open(&path).map_err(fail)?;
    let mut written = Ok(());
    let fitted = fit(&model, &train, &validation, classes, &job.recipe, &mut |epoch| {
        let line = serde_json::to_string(epoch).unwrap_or_default();
        written = writeln!(progress, "{line}");
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written.map_err(fail)?;
    let fitted = match fitted {
        Err(FitError::Plan(error @ (PlanError::Untrainable { .. } | PlanError::NothingToTrain))) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            return Ok(Ending::NotTrainable);
        }
        fitted => fitted.map_err(|error| error.to_string())?,
    };
    if fitted.best_epoch == 0 {
        return Ok(Ending::NoImprovement);
    }
    let before = fitted.history.first().map(|epoch| epoch.validation).unwrap_or_default();
    let metrics = Metrics { best_epoch: fitted.best_epoch, before, after: fitted.validation };
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|error| format!("write {}: {error}", path.display()))
    };
    write(&folder.metrics(), &serde_json::to_vec_pretty(&metrics).unwrap_or_default())?;
    write(&folder.candidate(), &fitted.model.to_bytes())?;
    Ok(Ending::Candidate)
}
