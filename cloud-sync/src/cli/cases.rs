//! `farlight cases`: the inputs that models get wrong, and their labels.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use farlight_wire::{DeviceId, ModelName};
use serde_json::{Value, json};

use super::context::Context;
use super::device::{stamp, text};
use super::error::CliError;
use super::files;

/// Commands on cases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List cases, newest first
    List(List),
    /// Label cases: one by id, or many from a file
    Label(Label),
}

/// Arguments of `cases list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only those of this model
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelName>,
    /// Only those of this device
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Only those without a label
    #[arg(long)]
    unlabelled: bool,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    limit: u32,
}

/// Arguments of `cases label`.
#[derive(Debug, Args)]
pub struct Label {
    /// The case
    #[arg(required_unless_present = "file", requires = "label")]
    case: Option<String>,
    /// Its label, a name from the release's labels
    label: Option<String>,
    /// File with one `‹case›,‹label›` a line instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["case", "label"])]
    file: Option<PathBuf>,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::List(args) => list(args, context).await,
        Command::Label(args) => label(args, context).await,
    }
}

async fn list(args: List, context: &Context) -> Result<(), CliError> {
    let limit = args.limit.to_string();
    let (model, device) = (args.model.map(String::from), args.device.map(String::from));
    let mut query = vec![("limit", limit.as_str())];
    query.extend(model.as_deref().map(|model| ("model", model)));
    query.extend(device.as_deref().map(|device| ("device", device)));
    if args.unlabelled {
        query.push(("unlabelled", "true"));
    }
    let cases: Vec<Value> = context.api()?.get_with("/api/v1/cases", &query).await?;
    context.list(&cases, ["CASE", "RELEASE", "KIND", "PREDICTED", "SCORE", "LABEL", "RECEIVED"], |case| {
        let class = case["class_label"].as_str().map_or_else(|| case["class"].to_string(), str::to_owned);
        [
            text(case, "id"),
            text(case, "release"),
            text(case, "kind"),
            class,
            format!("{:.3}", case["score_permille"].as_f64().unwrap_or(0.0) / 1000.0),
            text(case, "label"),
            stamp(case, "received"),
        ]
    })
}

async fn label(args: Label, context: &Context) -> Result<(), CliError> {
    let mut labels = vec![];
    if let (Some(id), Some(label)) = (args.case, args.label) {
        labels.push(json!({"id": id, "label": label}));
    }
    if let Some(path) = args.file {
        for (number, line) in
            files::read_text(&path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty())
        {
            let (id, label) = line.split_once(',').ok_or_else(|| {
                CliError::file(format!("{}: line {}: write CASE,LABEL", path.display(), number + 1))
            })?;
            labels.push(json!({"id": id.trim(), "label": label.trim()}));
        }
    }
    let answer: Value = context.api()?.post("/api/v1/labels", &json!({ "labels": labels })).await?;
    context.answer(&answer, |answer| format!("labelled {} cases", answer["labelled"]))
}
