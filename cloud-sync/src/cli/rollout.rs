//! `farlight rollout`: bring a release to a fleet in waves, watch it, stop it.

use std::time::Duration;

use clap::{Args, Subcommand};
use farlight_wire::{FleetId, Permille, ReleaseId, RolloutId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::context::Context;
use super::device::{stamp, text};
use super::error::CliError;

/// Time between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_millis(500);

/// Commands on rollouts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin a rollout
    Create(Create),
    /// Show a rollout, or all of them
    Status {
        /// The rollout
        rollout: Option<RolloutId>,
        /// Follow it until it ends; fails when it is aborted
        #[arg(long, requires = "rollout")]
        watch: bool,
    },
    /// Assign nothing more until it is resumed
    Pause {
        /// The rollout
        rollout: RolloutId,
    },
    /// Go on with a paused rollout
    Resume {
        /// The rollout
        rollout: RolloutId,
    },
    /// Give it up and take back what was updated
    Abort {
        /// The rollout
        rollout: RolloutId,
    },
}

/// Arguments of `rollout create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The release, `‹model›/‹version›`
    release: ReleaseId,
    /// The fleet
    #[arg(long, default_value = "default", value_name = "FLEET")]
    fleet: FleetId,
    /// Share of the fleet covered after each wave, in thousandths
    #[arg(long, value_delimiter = ',', default_value = "10,100,500,1000", value_parser = permille, value_name = "PERMILLE,…")]
    waves: Vec<Permille>,
    /// Seconds that a finished wave is watched
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    soak: u64,
    /// Seconds that the release is watched on each device
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    probation: u64,
    /// Requests it must have served on each device
    #[arg(long, default_value_t = 100, value_name = "N")]
    min_requests: u64,
    /// Share of finished devices that may fail, in thousandths
    #[arg(long, default_value_t = 50, value_name = "PERMILLE")]
    max_failures: u16,
    /// Seconds for a device from its assignment to an end
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS")]
    deadline: u64,
    /// A label that devices must have. Repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    selector: Vec<String>,
    /// Seconds that it sees live inputs on each device before activation, deciding nothing; 0 = not at all
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    shadow: u64,
    /// Inputs it must have seen in the shadow
    #[arg(long, default_value_t = 100, value_name = "N", requires = "shadow")]
    shadow_requests: u64,
    /// Share of inputs it sees in the shadow, in thousandths
    #[arg(long, default_value_t = 1000, value_name = "PERMILLE", requires = "shadow")]
    shadow_share: u16,
    /// Share of one core that the shadow may use, in thousandths
    #[arg(long, default_value_t = 100, value_name = "PERMILLE", requires = "shadow")]
    shadow_cpu: u16,
    /// Share of answers that must agree with the running release, in thousandths; 0 asks for none
    #[arg(long, default_value_t = 0, value_name = "PERMILLE", requires = "shadow")]
    shadow_agreement: u16,
    /// Also on devices where this very release failed before
    #[arg(long)]
    retry_failed: bool,
}

fn permille(text: &str) -> Result<Permille, String> {
    let value: u16 = text.trim().parse().map_err(|_| "use numbers from 1 to 1000".to_owned())?;
    Permille::new(value).map_err(|e| e.to_string())
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Create(args) => create(args, context).await,
        Command::Status { rollout: None, .. } => list(context).await,
        Command::Status { rollout: Some(rollout), watch: false } => {
            let answer: Value = context.api()?.get(&format!("/api/v1/rollouts/{rollout}")).await?;
            context.answer(&answer, describe)
        }
        Command::Status { rollout: Some(rollout), watch: true } => follow(&rollout, context).await,
        Command::Pause { rollout } => change(&rollout, "pause", context).await,
        Command::Resume { rollout } => change(&rollout, "resume", context).await,
        Command::Abort { rollout } => change(&rollout, "abort", context).await,
    }
}

async fn create(args: Create, context: &Context) -> Result<(), CliError> {
    let mut selector = serde_json::Map::new();
    for label in &args.selector {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| CliError::usage(format!("--selector {label:?}: write KEY=VALUE")))?;
        selector.insert(key.to_owned(), value.into());
    }
    let waves: Vec<Value> = args.waves.iter().map(|permille| json!({ "permille": permille })).collect();
    let shadow = (args.shadow > 0).then(|| {
        json!({ "seconds": args.shadow, "min_requests": args.shadow_requests, "share_permille": args.shadow_share,
            "cpu_permille": args.shadow_cpu, "agreement_permille": args.shadow_agreement })
    });
    let body = json!({
        "shadow": shadow, "retry_failed": args.retry_failed,
        "release": args.release, "fleet": args.fleet, "waves": waves, "soak_seconds": args.soak,
        "probation_seconds": args.probation, "min_requests": args.min_requests,
        "max_failures_permille": args.max_failures, "deadline_seconds": args.deadline, "selector": selector,
    });
    let answer: Value = context.api()?.post("/api/v1/rollouts", &body).await?;
    context.answer(&answer, |answer| {
        let id = text(answer, "id");
        format!("{id}\nfollow it: farlight rollout status {id} --watch")
    })
}

async fn list(context: &Context) -> Result<(), CliError> {
    let rollouts: Vec<Value> = context.api()?.get("/api/v1/rollouts").await?;
    context.list(&rollouts, ["ROLLOUT", "RELEASE", "FLEET", "STATE", "WAVE", "WHY", "CREATED"], |rollout| {
        [
            text(rollout, "id"),
            text(rollout, "release"),
            text(rollout, "fleet"),
            text(rollout, "state"),
            wave(rollout),
            text(rollout, "reason"),
            stamp(rollout, "created"),
        ]
    })
}

fn wave(rollout: &Value) -> String {
    let waves = rollout["waves"].as_array().map_or(0, Vec::len);
    format!("{} of {waves}", rollout["wave"].as_u64().unwrap_or(0) + 1)
}

fn describe(rollout: &Value) -> String {
    let mut lines = vec![
        format!("{}  {} to {}", text(rollout, "id"), text(rollout, "release"), text(rollout, "fleet")),
        format!("{}, wave {}: {}", text(rollout, "state"), wave(rollout), text(rollout, "reason")),
        format!("gate: {} {}", text(&rollout["gate"], "verdict"), text(&rollout["gate"], "reason")),
    ];
    for device in rollout["devices"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let error = match text(device, "error_code") {
            code if code.is_empty() => String::new(),
            code => format!("  {code}: {}", text(device, "error_message")),
        };
        lines.push(format!(
            "  {:<24} {:<12} {}{error}",
            text(device, "device"),
            text(device, "state"),
            text(device, "step")
        ));
    }
    lines.join("\n")
}

async fn change(rollout: &RolloutId, verb: &str, context: &Context) -> Result<(), CliError> {
    let answer: Value =
        context.api()?.post(&format!("/api/v1/rollouts/{rollout}/{verb}"), &json!({})).await?;
    context.answer(&answer, |answer| {
        format!("{rollout} is {}: {}", text(answer, "state"), text(answer, "reason"))
    })
}

async fn follow(rollout: &RolloutId, context: &Context) -> Result<(), CliError> {
    let api = context.api()?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {pos}/{len} confirmed  {wide_msg}") {
        bar.set_style(style);
    }
    loop {
        let answer: Value = api.get(&format!("/api/v1/rollouts/{rollout}")).await?;
        let number = |key: &str| answer["tally"][key].as_u64().unwrap_or(0);
        bar.set_length(number("covered"));
        bar.set_position(number("confirmed"));
        bar.set_message(format!("{} {}", text(&answer, "state"), text(&answer, "reason")));
        match text(&answer, "state").as_str() {
            "completed" => {
                bar.finish_and_clear();
                return context.answer(&answer, describe);
            }
            "aborted" => {
                bar.finish_and_clear();
                context.answer(&answer, describe)?;
                let why = text(&answer, "reason");
                return Err(CliError::failure(format!("rollout {rollout} was aborted: {why}")));
            }
            _ => {}
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
