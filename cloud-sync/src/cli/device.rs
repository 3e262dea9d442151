//! `farlight device`: invite devices and look at them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use farlight_release::timestamp;
use farlight_wire::{DeviceId, FleetId, Millis, ModelName, ReleaseId};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::files;

/// How long a connected device may take to answer a command.
const WAIT: Duration = Duration::from_secs(30);
/// How often its answer is looked for.
const POLL: Duration = Duration::from_millis(200);

/// Commands on devices.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Invite a device: writes the file with which its agent enrols
    Enrol(Enrol),
    /// List the devices
    List {
        /// Only those of this fleet
        #[arg(long, value_name = "FLEET")]
        fleet: Option<FleetId>,
    },
    /// Show one device
    Show {
        /// The device
        device: DeviceId,
    },
    /// Take a device back to an earlier release, by a signed assignment
    #[command(after_help = "Example:\n  farlight device rollback gw-1 watch-gestures")]
    Rollback {
        /// The device
        device: DeviceId,
        /// The model
        model: ModelName,
        /// The release, `‹model›/‹version›`; the one before the present one when left out
        #[arg(long, value_name = "RELEASE")]
        release: Option<ReleaseId>,
        /// Seconds that it is watched
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        probation: u64,
    },
    /// Let a device activate nothing for a while; downloads go on, and going back never waits
    Pause {
        /// The device
        device: DeviceId,
        /// For how long
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        hours: u64,
    },
    /// End a pause
    Resume {
        /// The device
        device: DeviceId,
    },
    /// Let a device look for metadata and its desired state now
    Refresh {
        /// The device
        device: DeviceId,
    },
    /// Collect what helps to see what is wrong on a device: state, history, last log lines
    #[command(after_help = "Example:\n  farlight device diagnostics gw-1 > gw-1.json")]
    Diagnostics {
        /// The device
        device: DeviceId,
        /// Seconds to wait for its answer
        #[arg(long, default_value_t = 30, value_name = "SECONDS")]
        wait: u64,
    },
    /// Revoke a device's certificate and end its connections
    Revoke {
        /// The device
        device: DeviceId,
    },
}

/// Arguments of `device enrol`.
#[derive(Debug, Args)]
pub struct Enrol {
    /// Id of the device, for example gw-0042
    device: DeviceId,
    /// Fleet it joins
    #[arg(long, default_value = "default", value_name = "FLEET")]
    fleet: FleetId,
    /// A label for selecting devices. Repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Hours that the file is valid
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=720), value_name = "HOURS")]
    hours: u64,
    /// File to write; it holds a secret
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Enrol(args) => enrol(args, context).await,
        Command::List { fleet } => list(fleet, context).await,
        Command::Show { device } => show(&device, context).await,
        Command::Rollback { device, model, release, probation } => {
            let body = json!({ "model": model, "release": release, "probation_seconds": probation });
            let answer: Value =
                context.api()?.post(&format!("/api/v1/devices/{device}/rollback"), &body).await?;
            context.answer(&answer, |answer| format!("{device} goes back to {}", text(answer, "release")))
        }
        Command::Pause { device, hours } => {
            let seconds = hours.saturating_mul(3600);
            let body = json!({ "action": "pause_updates", "seconds": seconds });
            let answer = outcome(&device, &body, context, WAIT).await?;
            context.answer(&answer, |answer| text(answer, "detail"))
        }
        Command::Resume { device } => {
            let answer = outcome(&device, &json!({ "action": "resume_updates" }), context, WAIT).await?;
            context.answer(&answer, |answer| text(answer, "detail"))
        }
        Command::Refresh { device } => {
            let answer = outcome(&device, &json!({ "action": "refresh" }), context, WAIT).await?;
            context.answer(&answer, |answer| text(answer, "detail"))
        }
        Command::Diagnostics { device, wait } => diagnostics(&device, wait, context).await,
        Command::Revoke { device } => {
            let answer: Value = context.api()?.delete(&format!("/api/v1/devices/{device}")).await?;
            context.answer(&answer, |_| format!("revoked {device}"))
        }
    }
}

/// Sends a command and waits until the device has answered it.
async fn outcome(
    device: &DeviceId,
    body: &Value,
    context: &Context,
    wait: Duration,
) -> Result<Value, CliError> {
    let sent: Value = context.api()?.post(&format!("/api/v1/devices/{device}/commands"), body).await?;
    let result = answered(device, &text(&sent, "id"), "CommandResult", context, wait).await?;
    match result["ok"] == true {
        true => Ok(result),
        false => Err(CliError::failure(format!("{device}: {}", text(&result, "detail")))),
    }
}

async fn diagnostics(device: &DeviceId, wait: u64, context: &Context) -> Result<(), CliError> {
    let body = json!({ "action": "diagnostics" });
    let sent: Value = context.api()?.post(&format!("/api/v1/devices/{device}/commands"), &body).await?;
    let wait = Duration::from_secs(wait);
    let report = answered(device, &text(&sent, "id"), "Diagnostics", context, wait).await?;
    let document: Value = serde_json::from_str(&text(&report, "document"))
        .map_err(|e| CliError::failure(format!("read the diagnostics of {device}: {e}")))?;
    context.answer(&document, |document| serde_json::to_string_pretty(document).unwrap_or_default())
}

/// The report of a kind that answers a command.
async fn answered(
    device: &DeviceId,
    id: &str,
    kind: &str,
    context: &Context,
    wait: Duration,
) -> Result<Value, CliError> {
    let (api, until) = (context.api()?, tokio::time::Instant::now() + wait);
    loop {
        let shown: Value = api.get(&format!("/api/v1/devices/{device}")).await?;
        let reports = array(&shown, "reports").iter().map(|report| &report["event"][kind]);
        if let Some(report) = reports.into_iter().find(|report| report["id"] == id) {
            return Ok(report.clone());
        }
        if tokio::time::Instant::now() >= until {
            let text = format!("{device} did not answer command {id} within {} s", wait.as_secs());
            return Err(CliError::failure(text).hint("is it connected? See farlight device show"));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn enrol(args: Enrol, context: &Context) -> Result<(), CliError> {
    let labels: BTreeMap<String, String> = args.label.into_iter().collect();
    let body = json!({
        "device": args.device, "fleet": args.fleet, "labels": labels, "ttl_seconds": args.hours * 3600,
    });
    let invitation: Value = context.api()?.post("/api/v1/devices", &body).await?;
    let text = serde_json::to_string_pretty(&invitation)
        .map_err(|e| CliError::failure(format!("write the invitation: {e}")))?;
    files::write_secret(&args.out, &text)?;
    let answer = json!({"device": args.device, "fleet": args.fleet, "file": args.out, "expires": invitation["expires"]});
    context.answer(&answer, |_| format!("wrote {}; it works once, for {} h", args.out.display(), args.hours))
}

/// A text field of an answer.
pub(super) fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// A stamp of an answer, for people.
pub(super) fn stamp(value: &Value, key: &str) -> String {
    match value[key].as_u64() {
        Some(0) | None => "-".to_owned(),
        Some(at) => timestamp::format(Millis(at)),
    }
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

async fn list(fleet: Option<FleetId>, context: &Context) -> Result<(), CliError> {
    let fleet = fleet.map(|fleet| fleet.to_string()).unwrap_or_default();
    let (api, mut devices, mut after) = (context.api()?, Vec::<Value>::new(), String::new());
    loop {
        let query = [("fleet", fleet.as_str()), ("after", after.as_str())];
        let page: Vec<Value> = api.get_with("/api/v1/devices", &query).await?;
        let Some(last) = page.last() else { break };
        after = text(last, "device");
        devices.extend(page);
    }
    context.list(&devices, ["DEVICE", "FLEET", "ONLINE", "RUNNING", "LAST UPDATE", "SEEN"], |device| {
        let running: Vec<String> = array(device, "running")
            .iter()
            .map(|r| {
                format!("{}{}", text(r, "release"), if r["confirmed"] == true { "" } else { " (probation)" })
            })
            .collect();
        let updates: Vec<String> = array(device, "updates")
            .iter()
            .map(|u| format!("{} {}", text(u, "release"), text(u, "state")))
            .collect();
        [
            text(device, "device"),
            text(device, "fleet"),
            if device["online"] == true { "yes" } else { "no" }.to_owned(),
            running.join(", "),
            updates.join(", "),
            stamp(device, "seen"),
        ]
    })
}

async fn show(device: &DeviceId, context: &Context) -> Result<(), CliError> {
    let answer: Value = context.api()?.get(&format!("/api/v1/devices/{device}")).await?;
    context.answer(&answer, |answer| serde_json::to_string_pretty(answer).unwrap_or_default())
}
