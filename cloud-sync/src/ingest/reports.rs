//! Reports as rows, and what they change in the device's twin and in the rollout that asked.

use farlight_wire::report::{Event, Feedback, Inventory, Running, Truth, UpdateReport, UpdateState};
use farlight_wire::{DeviceId, Millis, ReleaseId, Report, RolloutId, Seq};
use sqlx::Row;

use super::writer::{Changes, Outcome, text};
use crate::store::{During, StoreError, Write, int};

/// Largest JSON value kept of a report, in bytes.
const MAX_JSON: usize = 64 * 1024;

pub(super) async fn store(
    write: &mut Write,
    device: &DeviceId,
    epoch: i64,
    seq: Seq,
    report: &Report,
    now: Millis,
    changes: &mut Changes,
) -> Result<Outcome, StoreError> {
    let of = |rollout: Option<&RolloutId>| rollout.map(ToString::to_string).unwrap_or_default();
    let (kind, rollout, code) = match &report.event {
        Event::Hello(_) => ("hello", String::new(), String::new()),
        Event::Update(update) => (
            "update",
            of(update.rollout.as_ref()),
            update.error.as_ref().map(|error| text(&error.code)).unwrap_or_default(),
        ),
        Event::Refused(refusal) => ("refused", String::new(), text(&refusal.error.code)),
        Event::Loss { .. } => ("loss", String::new(), String::new()),
        Event::CommandResult { .. } => ("command", String::new(), String::new()),
        Event::Running(_) => ("running", String::new(), String::new()),
        Event::Progress(progress) => ("progress", of(progress.rollout.as_ref()), String::new()),
        Event::Shadow(shadow) => ("shadow", of(shadow.rollout.as_ref()), String::new()),
        Event::Diagnostics { .. } => ("diagnostics", String::new(), String::new()),
        Event::Feedback(_) => ("feedback", String::new(), String::new()),
        Event::Choice(_) => ("choice", String::new(), String::new()),
    };
    let body = json_text(&serde_json::to_value(&report.event).unwrap_or_default());
    let rows = sqlx::query(
        "INSERT INTO reports (device, epoch, seq, at, received, kind, rollout, code, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (device, epoch, seq) DO NOTHING",
    )
    .bind(device.as_str())
    .bind(epoch)
    .bind(int(seq.0))
    .bind(int(report.at.0))
    .bind(int(now.0))
    .bind(kind)
    .bind(rollout)
    .bind(code)
    .bind(body)
    .execute(write.connection())
    .await
    .during("store a report")?
    .rows_affected();
    if rows == 0 {
        return Ok(Outcome::Known);
    }
    match &report.event {
        Event::Hello(inventory) => {
            hello(write, device, inventory, now).await?;
            changes.hellos.insert(device.clone());
            changes.updates = true;
        }
        Event::Update(step) => {
            update(write, device, step, report.at, now).await?;
            changes.updates = true;
        }
        Event::Running(list) => {
            reconcile(write, device, list, now).await?;
            changes.updates = true;
        }
        Event::Progress(progress) => {
            sqlx::query("UPDATE updates SET done = $1, total = $2 WHERE device = $3 AND release = $4")
                .bind(int(progress.done))
                .bind(int(progress.total))
                .bind(device.as_str())
                .bind(progress.release.to_string())
                .execute(write.connection())
                .await
                .during("note how far a download is")?;
        }
        Event::Feedback(feedback) => store_feedback(write, device, feedback, report.at, now).await?,
        Event::Refused(_)
        | Event::Loss { .. }
        | Event::CommandResult { .. }
        | Event::Shadow(_)
        | Event::Choice(_)
        | Event::Diagnostics { .. } => {}
    }
    Ok(Outcome::Stored)
}

/// The newest truth about a request counts. A case of the same request waits for it, or came before it: its label is
/// read where it is needed, so that it does not matter which.
async fn store_feedback(
    write: &mut Write,
    device: &DeviceId,
    feedback: &Feedback,
    at: Millis,
    now: Millis,
) -> Result<(), StoreError> {
    let (verdict, label) = match &feedback.truth {
        Truth::Is(label) => ("is", text(label)),
        Truth::Right => ("right", String::new()),
        Truth::Wrong => ("wrong", String::new()),
    };
    sqlx::query(
        "INSERT INTO feedback (device, model, request_id, verdict, label, at, received) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device, model, request_id) DO UPDATE SET \
         verdict = excluded.verdict, label = excluded.label, at = excluded.at, received = excluded.received \
         WHERE excluded.at >= feedback.at",
    )
    .bind(device.as_str())
    .bind(feedback.model.as_str())
    .bind(text(&feedback.request_id))
    .bind(verdict)
    .bind(label)
    .bind(int(at.0))
    .bind(int(now.0))
    .execute(write.connection())
    .await
    .during("store feedback")?;
    Ok(())
}

async fn hello(
    write: &mut Write,
    device: &DeviceId,
    inventory: &Inventory,
    now: Millis,
) -> Result<(), StoreError> {
    let mut json = serde_json::to_value(inventory).unwrap_or_default();
    for key in ["agent_version", "arch", "os"] {
        if let Some(serde_json::Value::String(value)) = json.get_mut(key) {
            *value = text(value);
        }
    }
    sqlx::query("UPDATE devices SET inventory = $1, assignment = $2, seen = $3, online = 1 WHERE id = $4")
        .bind(json_text(&json))
        .bind(int(inventory.assignment))
        .bind(int(now.0))
        .bind(device.as_str())
        .execute(write.connection())
        .await
        .during("store a device's inventory")?;
    reconcile(write, device, &inventory.running, now).await
}

/// What a device says it runs is what it runs, with the digests it found on its own disk.
async fn reconcile(
    write: &mut Write,
    device: &DeviceId,
    list: &[Running],
    now: Millis,
) -> Result<(), StoreError> {
    let known = sqlx::query("SELECT model FROM running WHERE device = $1")
        .bind(device.as_str())
        .fetch_all(write.connection())
        .await
        .during("read what a device runs")?;
    for row in known {
        let model: String = row.get(0);
        if !list.iter().any(|running| running.release.model.as_str() == model) {
            stopped(write, device, &model).await?;
        }
    }
    for running in list {
        runs(write, device, &running.release, running.confirmed, now).await?;
        sqlx::query("UPDATE running SET digest = $1 WHERE device = $2 AND model = $3")
            .bind(text(&running.manifest_sha256))
            .bind(device.as_str())
            .bind(running.release.model.as_str())
            .execute(write.connection())
            .await
            .during("note the digest of what a device runs")?;
    }
    Ok(())
}

async fn update(
    write: &mut Write,
    device: &DeviceId,
    step: &UpdateReport,
    at: Millis,
    now: Millis,
) -> Result<(), StoreError> {
    let (code, message) = step.error.as_ref().map(|e| (text(&e.code), text(&e.message))).unwrap_or_default();
    let rollout = step.rollout.as_ref().map(ToString::to_string).unwrap_or_default();
    sqlx::query(
        "INSERT INTO updates (device, model, release, rollout, assignment, state, error_code, error_message, at, \
         received, elapsed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (device, model) DO UPDATE SET release = excluded.release, rollout = excluded.rollout, \
         assignment = excluded.assignment, state = excluded.state, error_code = excluded.error_code, \
         error_message = excluded.error_message, at = excluded.at, received = excluded.received, \
         elapsed = excluded.elapsed, done = 0, total = 0",
    )
    .bind(device.as_str())
    .bind(step.model.as_str())
    .bind(step.release.to_string())
    .bind(&rollout)
    .bind(int(step.assignment))
    .bind(state_name(step.state))
    .bind(&code)
    .bind(&message)
    .bind(int(at.0))
    .bind(int(now.0))
    .bind(int(step.elapsed.0))
    .execute(write.connection())
    .await
    .during("store an update's state")?;
    sqlx::query("UPDATE devices SET assignment = $1 WHERE id = $2 AND assignment < $1")
        .bind(int(step.assignment))
        .bind(device.as_str())
        .execute(write.connection())
        .await
        .during("note the assignment a device obeys")?;
    match &step.running {
        Some(release) => {
            let confirmed = *release != step.release || step.state == UpdateState::Confirmed;
            runs(write, device, release, confirmed, now).await?;
        }
        None => stopped(write, device, step.model.as_str()).await?,
    }
    if !rollout.is_empty() {
        rollout_step(write, device, step, &rollout, (&code, &message), now).await?;
    }
    Ok(())
}

/// A report may also revoke an earlier success: a confirmed release that is rolled back later counts
/// as rolled back.
async fn rollout_step(
    write: &mut Write,
    device: &DeviceId,
    step: &UpdateReport,
    rollout: &str,
    (code, message): (&str, &str),
    now: Millis,
) -> Result<(), StoreError> {
    let (standing, ended) = match step.state {
        UpdateState::Confirmed => ("confirmed", now.0),
        UpdateState::Failed => ("failed", now.0),
        UpdateState::RolledBack => ("rolled_back", now.0),
        UpdateState::Assigned
        | UpdateState::Fetching
        | UpdateState::Verifying
        | UpdateState::Staged
        | UpdateState::SelfTest
        | UpdateState::Activating
        | UpdateState::Shadow
        | UpdateState::Probation
        | UpdateState::RollingBack => ("assigned", 0),
    };
    sqlx::query(
        "UPDATE rollout_devices SET standing = $1, ended = $2, heard = $3, code = $4, message = $5 \
         WHERE rollout = $6 AND device = $7 AND standing <> 'reverted' \
         AND EXISTS (SELECT 1 FROM rollouts WHERE id = $6 AND release = $8)",
    )
    .bind(standing)
    .bind(int(ended))
    .bind(int(now.0))
    .bind(code)
    .bind(message)
    .bind(rollout)
    .bind(device.as_str())
    .bind(step.release.to_string())
    .execute(write.connection())
    .await
    .during("note a device's step in a rollout")?;
    Ok(())
}

async fn runs(
    write: &mut Write,
    device: &DeviceId,
    release: &ReleaseId,
    confirmed: bool,
    now: Millis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO running (device, model, release, confirmed, since) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (device, model) DO UPDATE SET \
         since = CASE WHEN running.release = excluded.release THEN running.since ELSE excluded.since END, \
         digest = CASE WHEN running.release = excluded.release THEN running.digest ELSE '' END, \
         release = excluded.release, confirmed = excluded.confirmed",
    )
    .bind(device.as_str())
    .bind(release.model.as_str())
    .bind(release.to_string())
    .bind(i64::from(confirmed))
    .bind(int(now.0))
    .execute(write.connection())
    .await
    .during("note what a device runs")?;
    Ok(())
}

async fn stopped(write: &mut Write, device: &DeviceId, model: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM running WHERE device = $1 AND model = $2")
        .bind(device.as_str())
        .bind(model)
        .execute(write.connection())
        .await
        .during("note what a device no longer runs")?;
    Ok(())
}

/// A JSON value as text; one that is too large to be honest is left out as a whole, because half a
/// value is none.
fn json_text(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if text.len() > MAX_JSON { "{}".to_owned() } else { text }
}

/// The name of a state as in JSON.
pub(crate) fn state_name(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Assigned => "assigned",
        UpdateState::Fetching => "fetching",
        UpdateState::Verifying => "verifying",
        UpdateState::Staged => "staged",
        UpdateState::SelfTest => "self_test",
        UpdateState::Activating => "activating",
        UpdateState::Probation => "probation",
        UpdateState::Confirmed => "confirmed",
        UpdateState::Failed => "failed",
        UpdateState::RollingBack => "rolling_back",
        UpdateState::RolledBack => "rolled_back",
        UpdateState::Shadow => "shadow",
    }
}
