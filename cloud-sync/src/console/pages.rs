//! The pages: fleet, rollouts, drift, cases. Each reads what the API reads and writes HTML.

use std::fmt::Write as _;

use axum::Extension;
use axum::extract::State;
use axum::response::{Html, Redirect};
use serde::Deserialize;

use super::html::{ago, bins, escape, lines, page, tag};
use crate::api::{ApiError, Form, Operator, Path};
use crate::app::Shared;
use crate::cases::api::{
    CaseLabel, CaseQuery, cases as list_cases, detail as case_detail, set as set_labels,
};
use crate::clock;
use crate::drift::api::all as all_drift;
use crate::rollouts::api::{RolloutSummary, detail as rollout_detail, newest, steer};

/// Devices on the fleet page.
const MAX_DEVICES: u32 = 500;
/// Cases on the cases page: each is a plot.
const MAX_CASES: u32 = 24;

pub(super) async fn fleet(State(app): State<Shared>) -> Result<Html<String>, ApiError> {
    let now = clock::now().0;
    let devices = crate::devices::api::devices(&app, None, None, MAX_DEVICES).await?;
    let online = devices.iter().filter(|device| device.online).count();
    let mut body = format!(
        "<p>{online} of {} devices online.</p><table><tr><th>Device<th>Fleet<th>Presence<th>Running<th>Last update<th>Seen",
        devices.len()
    );
    for device in &devices {
        let presence = match (device.revoked, device.online) {
            (true, _) => "revoked",
            (false, true) => "online",
            (false, false) => "offline",
        };
        let _ = write!(
            body,
            "<tr><td><code>{}</code><td>{}<td>{}<td>",
            escape(&device.device),
            escape(&device.fleet),
            tag(presence)
        );
        for running in &device.running {
            let state = if running.confirmed { "confirmed" } else { "probation" };
            let _ = write!(body, "<code>{}</code> {} ", escape(&running.release), tag(state));
        }
        body.push_str("<td>");
        for update in &device.updates {
            let _ = write!(
                body,
                "<code>{}</code> {} {} ",
                escape(&update.release),
                tag(&update.state),
                escape(&update.error_code)
            );
        }
        let _ = write!(body, "<td class=dim>{}", ago(device.seen, now));
    }
    Ok(page("Fleet", "/console", &(body + "</table>")))
}

fn progress(rollout: &RolloutSummary) -> String {
    let waves = rollout.waves.len().max(1);
    let done = if rollout.state == "completed" { waves } else { rollout.wave };
    format!("<div class=bar><i style=\"width:{}%\"></i></div>", done * 100 / waves)
}

pub(super) async fn rollouts(State(app): State<Shared>) -> Result<Html<String>, ApiError> {
    let now = clock::now().0;
    let mut body =
        "<table><tr><th>Rollout<th>Release<th>Fleet<th>State<th>Waves<th>Why<th>Created".to_owned();
    for rollout in newest(&app).await? {
        let _ = write!(
            body,
            "<tr><td><a href=/console/rollouts/{0}><code>{0}</code></a><td><code>{1}</code><td>{2}<td>{3}<td>{4}<td>{5}<td class=dim>{6}",
            escape(&rollout.id),
            escape(&rollout.release),
            escape(&rollout.fleet),
            tag(rollout.state),
            progress(&rollout),
            escape(&rollout.reason),
            ago(rollout.created, now),
        );
    }
    Ok(page("Rollouts", "/console/rollouts", &(body + "</table>")))
}

pub(super) async fn rollout(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Html<String>, ApiError> {
    let now = clock::now().0;
    let detail = rollout_detail(&app, &id).await?;
    let rollout = &detail.rollout;
    let gate = |key: &str| escape(rollout.gate[key].as_str().unwrap_or("–"));
    let mut body = format!(
        "<p><code>{}</code> to {} · {} · wave {} of {}</p>{}<p>{}</p><p>Gate: {} {}</p>",
        escape(&rollout.release),
        escape(&rollout.fleet),
        tag(rollout.state),
        rollout.wave + 1,
        rollout.waves.len(),
        progress(rollout),
        escape(&rollout.reason),
        tag(rollout.gate["verdict"].as_str().unwrap_or("–")),
        gate("reason"),
    );
    let verbs: &[&str] = match rollout.state {
        "running" => &["pause", "abort"],
        "paused" => &["resume", "abort"],
        _ => &[],
    };
    for verb in verbs {
        let _ = write!(
            body,
            "<form class=row method=post action=/console/rollouts/{}/{verb}><button>{verb}</button></form> ",
            escape(&rollout.id)
        );
    }
    body.push_str("<table><tr><th>Device<th>State<th>Step<th>Before<th>Assigned<th>Error");
    for device in &detail.devices {
        let _ = write!(
            body,
            "<tr><td><code>{}</code><td>{}<td>{}<td><code>{}</code><td class=dim>{}<td>{} {}",
            escape(&device.device),
            tag(&device.state),
            escape(&device.step),
            escape(&device.previous),
            ago(device.assigned, now),
            escape(&device.error_code),
            escape(&device.error_message),
        );
    }
    Ok(page(&format!("Rollout {id}"), "/console/rollouts", &(body + "</table>")))
}

pub(super) async fn change_rollout(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path((id, verb)): Path<(String, String)>,
) -> Result<Redirect, ApiError> {
    let changed = steer(&app, &operator, &id, &verb).await?;
    Ok(Redirect::to(&format!("/console/rollouts/{}", changed.id)))
}

pub(super) async fn drift(State(app): State<Shared>) -> Result<Html<String>, ApiError> {
    let mut body = String::new();
    for drift in all_drift(&app, None).await? {
        let _ = write!(
            body,
            "<h2><code>{}</code> in {} {}</h2><p>{}. {} samples of {} windows on {} devices.</p><div class=grid>",
            escape(&drift.release),
            escape(&drift.fleet),
            tag(crate::drift::name(drift.verdict)),
            escape(&drift.reason),
            drift.samples,
            drift.windows,
            drift.pooled_devices,
        );
        for feature in &drift.features {
            let class = if feature.drifted { "bad" } else { "dim" };
            let _ = write!(
                body,
                "<div class=card><b>{}</b> <span class={class}>PSI {:.3}, p {:.1e}</span>{}</div>",
                escape(&feature.name),
                feature.psi,
                feature.p,
                bins(feature)
            );
        }
        body.push_str("</div>");
        for fault in &drift.devices {
            let _ = write!(
                body,
                "<p class=warn>Sensor fault: <code>{}</code>, {} (PSI {:.2})</p>",
                escape(fault.device.as_str()),
                escape(&fault.feature),
                fault.psi
            );
        }
    }
    if body.is_empty() {
        body = "<p class=dim>No release of the registry runs anywhere yet.</p>".to_owned();
    } else {
        body.insert_str(
            0,
            "<p class=dim>Grey: the reference the release was evaluated on. Coloured: the field.</p>",
        );
    }
    Ok(page("Drift", "/console/drift", &body))
}

pub(super) async fn cases(State(app): State<Shared>) -> Result<Html<String>, ApiError> {
    let query = CaseQuery { unlabelled: Some(true), limit: Some(MAX_CASES), ..CaseQuery::default() };
    let mut body = "<p class=dim>The newest cases without a label.</p><div class=grid>".to_owned();
    for case in list_cases(&app, query).await? {
        let detail = case_detail(&app, &case.id).await?;
        let predicted = case.class_label.clone().unwrap_or_else(|| case.class.to_string());
        let _ = write!(
            body,
            "<div class=card><b>{}</b> {:.2} {}<br><span class=dim><code>{}</code> · {}</span>{}",
            escape(&predicted),
            case.score_permille as f64 / 1000.0,
            tag(&case.kind),
            escape(&case.device),
            escape(&case.release),
            lines(&detail.shape, &detail.input),
        );
        let _ = write!(body, "<form class=row method=post action=/console/cases/{}/label>", escape(&case.id));
        for label in &detail.labels {
            let label = escape(label);
            let _ = write!(body, "<button name=label value=\"{label}\">{label}</button>");
        }
        body.push_str("</form></div>");
    }
    Ok(page("Cases", "/console/cases", &(body + "</div>")))
}

#[derive(Deserialize)]
pub(super) struct ChosenLabel {
    label: String,
}

pub(super) async fn label(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Form(chosen): Form<ChosenLabel>,
) -> Result<Redirect, ApiError> {
    set_labels(&app, &operator, vec![CaseLabel { id, label: Some(chosen.label) }]).await?;
    Ok(Redirect::to("/console/cases"))
}
