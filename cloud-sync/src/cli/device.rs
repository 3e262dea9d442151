//! `farlight device`: invite devices and look at them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use farlight_release::timestamp;
use farlight_wire::{DeviceId, FleetId, Millis};
use serde_json::{Value, json};

use super::context::Context;
use super::error::CliError;
use super::files;

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
        Command::Revoke { device } => {
            let answer: Value = context.api()?.delete(&format!("/api/v1/devices/{device}")).await?;
            context.answer(&answer, |_| format!("revoked {device}"))
        }
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
