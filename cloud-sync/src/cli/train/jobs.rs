//! Training jobs in the cloud: start, watch, fetch, stop.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use farlight_fleet::evaluation::Criteria;
use farlight_release::digest::sha256;
use farlight_wire::ReleaseId;

use crate::cli::context::Context;
use crate::cli::error::{CliError, Exit};
use crate::cli::{files, output};
use crate::learning::api::{JobView, StartRequest};
use crate::learning::jobs::State;
use crate::learning::records::JobRecord;

/// Largest candidate that is fetched.
const MAX_CANDIDATE: u64 = 1 << 30;
/// How often a job is asked about while waiting for its end.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `train start`.
#[derive(Debug, Args)]
pub struct Start {
    /// The release to begin from: ‹model›/‹version›
    base: ReleaseId,
    /// Data set to replay and to hold the candidate against
    #[arg(long)]
    dataset: String,
    /// A setting that differs from the data set's: `--set epochs=20`. Repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, serde_json::Value)>,
    /// Longest training in seconds
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// Wait for the end; fails unless the gate passed
    #[arg(long)]
    wait: bool,
}

/// Arguments of `train status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The job; without it all are listed
    id: Option<String>,
    /// Wait for its end; fails unless the gate passed
    #[arg(long, requires = "id")]
    wait: bool,
}

/// Arguments of `train fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The job
    id: String,
    /// Where to write the candidate
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Fetch it although the gate did not pass
    #[arg(long)]
    refused: bool,
}

fn setting(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((key.to_owned(), value))
}

pub(super) async fn start(args: Start, context: &Context) -> Result<(), CliError> {
    let request = StartRequest {
        base: args.base,
        dataset: args.dataset,
        settings: args.settings.into_iter().collect(),
        criteria: Criteria::default(),
        deadline_seconds: args.deadline,
    };
    let view: JobView = context.api()?.post("/api/v1/training", &request).await?;
    finish(view, args.wait, context).await
}

pub(super) async fn status(args: Status, context: &Context) -> Result<(), CliError> {
    if let Some(id) = args.id {
        let view = ask(&id, context).await?;
        return finish(view, args.wait, context).await;
    }
    let jobs: Vec<JobRecord> = context.api()?.get("/api/v1/training").await?;
    context.list(&jobs, ["job", "base", "state", "why"], |job| {
        let why = job.detail.message.clone().unwrap_or_default();
        [job.id.clone(), job.base.to_string(), word(job.state), why]
    })
}

pub(super) async fn fetch(args: Fetch, context: &Context) -> Result<(), CliError> {
    let view = ask(&args.id, context).await?;
    if view.job.state != State::Passed && !args.refused {
        let text = format!("the gate did not pass job {}: {}", args.id, word(view.job.state));
        return Err(CliError::new(Exit::Failure, "train.not_passed", text)
            .hint("`farlight train status` says why; --refused fetches it anyhow"));
    }
    let path = format!("/api/v1/training/{}/candidate.onnx", args.id);
    let bytes = context.api()?.file(&path, MAX_CANDIDATE).await?;
    let bytes = bytes.ok_or_else(|| CliError::failure(format!("job {} has no candidate", args.id)))?;
    let digest = sha256(&bytes);
    if view.job.detail.candidate_sha256.as_ref() != Some(&digest) {
        let text = "the candidate is not the one that was judged";
        return Err(CliError::new(Exit::Verification, "train.digest", text));
    }
    files::write(&args.out, &bytes)?;
    context.answer(&view, |view| format!("{}: {} bytes, sha256 {digest}", view.job.id, bytes.len()))
}

pub(super) async fn cancel(id: &str, context: &Context) -> Result<(), CliError> {
    let path = format!("/api/v1/training/{id}/cancel");
    let view: JobView = context.api()?.post(&path, &serde_json::json!({})).await?;
    context.answer(&view, |view| format!("{} is being cancelled", view.job.id))
}

async fn ask(id: &str, context: &Context) -> Result<JobView, CliError> {
    context.api()?.get(&format!("/api/v1/training/{id}")).await
}

async fn finish(mut view: JobView, wait: bool, context: &Context) -> Result<(), CliError> {
    let mut said = None;
    while wait && !view.job.state.is_final() {
        tokio::time::sleep(ASK_EVERY).await;
        view = ask(&view.job.id, context).await?;
        let now = (view.job.state, view.progress.as_ref().map(|epoch| epoch.epoch));
        if said.replace(now) != Some(now) {
            output::note(&describe(&view));
        }
    }
    context.answer(&view, describe)?;
    if wait && view.job.state != State::Passed {
        let why = view.job.detail.message.clone().unwrap_or_default();
        let text = format!("job {} ended {}: {why}", view.job.id, word(view.job.state));
        return Err(CliError::new(Exit::Failure, "train.not_passed", text));
    }
    Ok(())
}

fn word(state: State) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn describe(view: &JobView) -> String {
    let mut lines = vec![format!("{} from {}: {}", view.job.id, view.job.base, word(view.job.state))];
    if let (State::Training, Some(epoch)) = (view.job.state, &view.progress) {
        let validation = epoch.validation;
        lines.push(format!(
            "epoch {}/{}: loss {:.3}, validation {:.3}",
            epoch.epoch, epoch.of, epoch.train_loss, validation.accuracy
        ));
    }
    if let Some(report) = &view.job.detail.report {
        let row = |check: &farlight_fleet::evaluation::Check| {
            [check.name.clone(), format!("{:?}", check.verdict).to_lowercase(), check.detail.clone()]
        };
        let rows: Vec<[String; 3]> = report.checks.iter().map(row).collect();
        lines.push(output::table(["check", "verdict", "measured"], &rows));
    }
    lines.extend(view.job.detail.message.clone());
    lines.join("\n")
}
