//! `farlight-agent install`: asks the running agent to install a bundle, and follows it to its end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use farlight_wire::ReleaseId;
use serde_json::{Value, json};

use super::{ask, print};
use crate::exit::{ExitCode, Fatal};
use crate::journal::{HistoryRow, Journal};
use crate::settings::Settings;

/// How often the agent is asked how far it is.
const POLL: Duration = Duration::from_millis(300);
/// Steps of the history that are looked through for the end of one installation.
const LOOKED_AT: u32 = 100;

/// Arguments of `install`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farlight-agent install /media/usb/farlight\n\nMake the folder with: farlight release export RELEASE --out FOLDER"
)]
pub(super) struct Args {
    /// The folder, as `farlight release export` made it; the agent's own user must be able to read it.
    bundle: PathBuf,
    /// Only this release of it, for example watch-gestures/1.0.0.
    #[arg(long)]
    release: Option<ReleaseId>,
    /// Seconds that it is watched before it is confirmed.
    #[arg(long, default_value_t = 10)]
    probation: u64,
    /// Requests that it must have answered by then; 0 also confirms a device that nobody asks yet.
    #[arg(long, default_value_t = 0)]
    min_requests: u64,
    /// Return as soon as the agent has begun.
    #[arg(long)]
    no_wait: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Installs, and returns when every release has ended.
///
/// # Errors
/// [`Fatal`] with the agent's own code and hint when it refuses, or a release did not come through.
pub(super) async fn run(settings: &Settings, args: Args) -> Result<(), Fatal> {
    let bundle = std::fs::canonicalize(&args.bundle)
        .with_context(|| format!("find bundle {}", args.bundle.display()))
        .map_err(|e| Fatal::new(ExitCode::Failure, e, "name a folder made with: farlight release export"))?;
    let history = settings.device.state_dir.join("state.db");
    let before = newest(&history)?;
    let request = json!({ "bundle": bundle, "release": args.release,
        "probation_seconds": args.probation, "min_requests": args.min_requests });
    let answer = ask("/farlight/install", settings, Some(&request)).await?;
    if let Some(error) = answer["error"].as_str() {
        let code = answer["code"].as_str().unwrap_or("http");
        let hint = answer["hint"].as_str().unwrap_or("see the agent's log");
        return Err(Fatal::new(ExitCode::Failure, anyhow!("{error} ({code})"), hint));
    }
    let releases: Vec<String> = serde_json::from_value(answer["releases"].clone()).unwrap_or_default();
    if args.no_wait {
        return say(&args, &json!({ "releases": releases }), &format!("began: {}\n", releases.join(", ")));
    }
    let mut ended = Vec::new();
    for release in releases {
        ended.push(follow(settings, &history, &release, before, args.json).await?);
    }
    let text: String = ended.iter().map(|row| format!("{} {}\n", row.release, row.state)).collect();
    say(&args, &serde_json::to_value(&ended).unwrap_or_default(), &text)?;
    match ended.iter().find(|row| row.state != "confirmed") {
        None => Ok(()),
        Some(row) => {
            let hint =
                farlight_wire::codes::Code::parse(&row.code).map_or("see the agent's log", |c| c.hint());
            let error = anyhow!("{} is {}: {} ({})", row.release, row.state, row.message, row.code);
            Err(Fatal::new(ExitCode::Failure, error, hint))
        }
    }
}

fn say(args: &Args, json: &Value, text: &str) -> Result<(), Fatal> {
    if args.json { print(&format!("{json}\n")) } else { print(text) }
}

/// When the newest step of the history was, to tell what comes from what was.
fn newest(history: &std::path::Path) -> Result<u64, Fatal> {
    let hint = "is device.state_dir right, and readable?";
    let rows = Journal::history(history, None, 1).map_err(|e| Fatal::new(ExitCode::Resource, e, hint))?;
    Ok(rows.first().map_or(0, |row| row.at.0))
}

async fn follow(
    settings: &Settings,
    history: &std::path::Path,
    release: &str,
    before: u64,
    quiet: bool,
) -> Result<HistoryRow, Fatal> {
    let mut last = String::new();
    loop {
        let hint = "is device.state_dir right, and readable?";
        let rows = Journal::history(history, None, LOOKED_AT)
            .map_err(|e| Fatal::new(ExitCode::Resource, e, hint))?;
        let ends = ["confirmed", "failed", "rolled_back"];
        let row = rows
            .into_iter()
            .find(|row| row.release == release && row.at.0 >= before && ends.contains(&row.state.as_str()));
        if let Some(row) = row {
            return Ok(row);
        }
        let status = ask("/farlight/status", settings, None).await?;
        let updates = status["updates"].as_object();
        let update = updates.and_then(|all| all.values().find(|update| update["release"] == release));
        let now = update.map_or_else(String::new, describe);
        if !quiet && now != last && !now.is_empty() {
            print(&format!("{release}: {now}\n"))?;
        }
        last = now;
        tokio::time::sleep(POLL).await;
    }
}

fn describe(update: &Value) -> String {
    let state = update["state"].as_str().unwrap_or_default().replace('_', " ");
    if let Some(hold) = update["waits_for"].as_str() {
        return format!("{state}: {hold}");
    }
    match (update["progress"]["done"].as_u64(), update["progress"]["total"].as_u64()) {
        (Some(done), Some(total)) => format!("{state}, {} %", done * 100 / total.max(1)),
        _ => state,
    }
}
