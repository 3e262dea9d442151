//! Rollouts and their devices as rows: what the driver reads before it plans and what it writes after.

use std::collections::BTreeMap;

use farlight_fleet::gate::Limits;
use farlight_fleet::rollout::{DeviceState, Progress, RolloutSpec, Standing};
use farlight_release::assignment::{Probation, Shadow};
use farlight_wire::{DeviceId, FleetId, Millis, ReleaseId, RolloutId};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{During, Store, StoreError, Write, int, uint};

/// What a rollout was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutSettings {
    /// What the planner needs.
    pub plan: RolloutSpec,
    /// The fleet.
    pub fleet: FleetId,
    /// Labels a device must have.
    pub selector: BTreeMap<String, String>,
    /// How the release proves itself on each device.
    pub probation: Probation,
    /// How it proves itself there before activation, if it has to.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// Whether devices on which this very release failed before try it once more.
    #[serde(default)]
    pub retry_failed: bool,
    /// How the gate judges.
    pub gate: Limits,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// What it was asked to do.
    pub settings: RolloutSettings,
    /// Where it is.
    pub progress: Progress,
    /// Why, for people.
    pub reason: String,
    /// The gate's last verdict, JSON.
    pub gate: String,
    /// When it was created.
    pub created: Millis,
    /// When it last changed.
    pub updated: Millis,
}

impl Rollout {
    /// Its id.
    pub fn id(&self) -> &RolloutId {
        &self.settings.plan.id
    }
}

fn damaged(what: &'static str) -> impl Fn(serde_json::Error) -> StoreError {
    move |error| StoreError::Damaged { what, why: error.to_string() }
}

fn id_damaged(error: farlight_wire::IdError) -> StoreError {
    StoreError::Damaged { what: "a rollout's row", why: error.to_string() }
}

const COLUMNS: &str = "spec, progress, reason, gate, created, updated";

fn rollout(row: &AnyRow) -> Result<Rollout, StoreError> {
    Ok(Rollout {
        settings: serde_json::from_str(&row.get::<String, _>(0))
            .map_err(damaged("a rollout's specification"))?,
        progress: serde_json::from_str(&row.get::<String, _>(1)).map_err(damaged("a rollout's progress"))?,
        reason: row.get(2),
        gate: row.get(3),
        created: Millis(uint(row.get(4))),
        updated: Millis(uint(row.get(5))),
    })
}

async fn select(store: &Store, rest: &str, bind: &str, limit: i64) -> Result<Vec<Rollout>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM rollouts {rest}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(bind)
        .bind(limit)
        .fetch_all(store.reader())
        .await
        .during("read rollouts")?;
    rows.iter().map(rollout).collect()
}

/// Rollouts that have something to do.
pub(super) async fn active(store: &Store) -> Result<Vec<Rollout>, StoreError> {
    select(store, "WHERE active = 1 AND $1 = '' ORDER BY created, id LIMIT $2", "", 1000).await
}

/// The newest rollouts.
pub(crate) async fn list(store: &Store, limit: u32) -> Result<Vec<Rollout>, StoreError> {
    select(store, "WHERE $1 = '' ORDER BY created DESC, id LIMIT $2", "", i64::from(limit)).await
}

/// One rollout.
pub(crate) async fn find(store: &Store, id: &str) -> Result<Option<Rollout>, StoreError> {
    Ok(select(store, "WHERE id = $1 LIMIT $2", id, 1).await?.pop())
}

/// The rollout of the same model and fleet that still moves devices, if there is one, and how far it is.
pub(super) async fn conflicting(
    write: &mut Write,
    settings: &RolloutSettings,
) -> Result<Option<(String, Progress)>, StoreError> {
    let row = sqlx::query(
        "SELECT id, progress FROM rollouts WHERE active = 1 AND fleet = $1 AND model = $2 LIMIT 1",
    )
    .bind(settings.fleet.as_str())
    .bind(settings.plan.release.model.as_str())
    .fetch_optional(write.connection())
    .await
    .during("look for a conflicting rollout")?;
    let Some(row) = row else { return Ok(None) };
    let progress = serde_json::from_str(&row.get::<String, _>(1)).map_err(damaged("a rollout's progress"))?;
    Ok(Some((row.get(0), progress)))
}

pub(super) async fn insert(write: &mut Write, rollout: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rollouts (id, model, release, fleet, spec, progress, active, reason, gate, created, updated) \
         VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $8, $9, $10)",
    )
    .bind(rollout.id().as_str())
    .bind(rollout.settings.plan.release.model.as_str())
    .bind(rollout.settings.plan.release.to_string())
    .bind(rollout.settings.fleet.as_str())
    .bind(serde_json::to_string(&rollout.settings).map_err(damaged("a rollout's specification"))?)
    .bind(serde_json::to_string(&rollout.progress).map_err(damaged("a rollout's progress"))?)
    .bind(&rollout.reason)
    .bind(&rollout.gate)
    .bind(int(rollout.created.0))
    .bind(int(rollout.updated.0))
    .execute(write.connection())
    .await
    .during("store a rollout")?;
    Ok(())
}

/// The progress as it is now, inside a transaction.
pub(super) async fn progress(write: &mut Write, id: &RolloutId) -> Result<Option<Progress>, StoreError> {
    let row = sqlx::query("SELECT progress FROM rollouts WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(write.connection())
        .await
        .during("read a rollout's progress")?;
    row.map(|row| serde_json::from_str(&row.get::<String, _>(0)).map_err(damaged("a rollout's progress")))
        .transpose()
}

pub(super) async fn update(
    write: &mut Write,
    id: &RolloutId,
    progress: &Progress,
    active: bool,
    reason: &str,
    gate: &str,
    now: Millis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollouts SET progress = $1, active = $2, reason = $3, gate = $4, updated = $5 WHERE id = $6",
    )
    .bind(serde_json::to_string(progress).map_err(damaged("a rollout's progress"))?)
    .bind(i64::from(active))
    .bind(reason)
    .bind(gate)
    .bind(int(now.0))
    .bind(id.as_str())
    .execute(write.connection())
    .await
    .during("store a rollout's progress")?;
    Ok(())
}

/// The devices of a rollout's fleet that its selector takes, as they stand in it.
pub(super) async fn observe(store: &Store, rollout: &Rollout) -> Result<Vec<DeviceState>, StoreError> {
    let release = rollout.settings.plan.release.to_string();
    let rows = sqlx::query(
        "SELECT d.id, d.labels, COALESCE(r.standing, ''), COALESCE(r.assigned, 0), COALESCE(r.heard, 0), \
         COALESCE(r.ended, 0), COALESCE(r.sequence, 0), d.assignment, COALESCE(n.release, ''), \
         COALESCE(n.confirmed, 0), COALESCE(n.since, 0), COALESCE(n.digest, ''), COALESCE(p.manifest_sha256, '') \
         FROM devices AS d LEFT JOIN releases AS p ON p.id = $4 \
         LEFT JOIN rollout_devices AS r ON r.device = d.id AND r.rollout = $1 \
         LEFT JOIN running AS n ON n.device = d.id AND n.model = $2 \
         WHERE d.fleet = $3 AND (d.revoked = 0 OR r.standing IS NOT NULL) ORDER BY d.id",
    )
    .bind(rollout.id().as_str())
    .bind(rollout.settings.plan.release.model.as_str())
    .bind(rollout.settings.fleet.as_str())
    .bind(&release)
    .fetch_all(store.reader())
    .await
    .during("observe the devices of a rollout")?;
    let mut devices = Vec::with_capacity(rows.len());
    for row in &rows {
        let standing: String = row.get(2);
        if standing.is_empty() && !selected(&rollout.settings.selector, &row.get::<String, _>(1)) {
            continue;
        }
        let (assigned, ended) = (Millis(uint(row.get(3))), Millis(uint(row.get(5))));
        let heard = row.get::<i64, _>(4) > 0;
        // A device that already obeys the assignment and runs the release confirmed has nothing to report. One
        // that found another digest on its disk runs something else, whatever it calls it.
        let (digest, signed): (String, String) = (row.get(11), row.get(12));
        let done = (digest.is_empty() || digest == signed)
            && row.get::<i64, _>(7) >= row.get::<i64, _>(6)
            && row.get::<String, _>(8) == release
            && row.get::<i64, _>(9) != 0;
        let standing = match standing.as_str() {
            "" => Standing::Waiting,
            "assigned" | "unreached" | "timed_out" if done => {
                Standing::Confirmed { at: Millis(uint(row.get(10))).max(assigned) }
            }
            "assigned" => Standing::Assigned { at: assigned, heard },
            "confirmed" => Standing::Confirmed { at: ended },
            "timed_out" => Standing::TimedOut { at: ended },
            "unreached" => Standing::Unreached { at: ended },
            "reverted" => Standing::Reverted,
            _ => Standing::Failed { at: ended },
        };
        devices.push(DeviceState { device: row.get::<String, _>(0).parse().map_err(id_damaged)?, standing });
    }
    Ok(devices)
}

fn selected(selector: &BTreeMap<String, String>, labels: &str) -> bool {
    let labels: BTreeMap<String, String> = serde_json::from_str(labels).unwrap_or_default();
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// How a device is to take what is desired of it.
struct Manner<'a> {
    rollout: &'a str,
    probation: Probation,
    shadow: Option<Shadow>,
    retry_failed: bool,
}

impl<'a> Manner<'a> {
    /// As the rollout asks.
    fn of(rollout: &'a Rollout) -> Self {
        let settings = &rollout.settings;
        Self {
            rollout: rollout.id().as_str(),
            probation: settings.probation,
            shadow: settings.shadow,
            retry_failed: settings.retry_failed,
        }
    }

    /// Back to what ran before: it proved itself there once.
    fn back(probation: Probation) -> Self {
        Self { rollout: "", probation, shadow: None, retry_failed: true }
    }
}

async fn desire(
    write: &mut Write,
    device: &DeviceId,
    model: &str,
    release: &str,
    manner: &Manner<'_>,
    now: Millis,
) -> Result<(), StoreError> {
    let shadow = manner.shadow.map(|shadow| serde_json::to_string(&shadow)).transpose();
    let shadow = shadow.map_err(damaged("a shadow's settings"))?.unwrap_or_default();
    sqlx::query(
        "INSERT INTO desired (device, model, release, rollout, probation_ms, min_requests, changed, shadow, \
         retry_failed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (device, model) DO UPDATE SET \
         release = excluded.release, rollout = excluded.rollout, probation_ms = excluded.probation_ms, \
         min_requests = excluded.min_requests, changed = excluded.changed, shadow = excluded.shadow, \
         retry_failed = excluded.retry_failed",
    )
    .bind(device.as_str())
    .bind(model)
    .bind(release)
    .bind(manner.rollout)
    .bind(int(manner.probation.duration.0))
    .bind(int(manner.probation.min_requests))
    .bind(int(now.0))
    .bind(shadow)
    .bind(i64::from(manner.retry_failed))
    .execute(write.connection())
    .await
    .during("desire a release of a device")?;
    Ok(())
}

/// Assigns a device, keeping what was desired of it before.
pub(super) async fn assign(
    write: &mut Write,
    rollout: &Rollout,
    device: &DeviceId,
    now: Millis,
) -> Result<(), StoreError> {
    let model = rollout.settings.plan.release.model.as_str();
    let previous = sqlx::query("SELECT release FROM desired WHERE device = $1 AND model = $2")
        .bind(device.as_str())
        .bind(model)
        .fetch_optional(write.connection())
        .await
        .during("read what is desired of a device")?
        .map_or_else(String::new, |row| row.get(0));
    sqlx::query(
        "INSERT INTO rollout_devices (rollout, device, standing, previous, assigned, sequence, heard, ended, code, \
         message) VALUES ($1, $2, 'assigned', $3, $4, 0, 0, 0, '', '') ON CONFLICT (rollout, device) DO NOTHING",
    )
    .bind(rollout.id().as_str())
    .bind(device.as_str())
    .bind(previous)
    .bind(int(now.0))
    .execute(write.connection())
    .await
    .during("assign a device")?;
    let release = rollout.settings.plan.release.to_string();
    desire(write, device, model, &release, &Manner::of(rollout), now).await
}

pub(super) async fn note_sequence(
    write: &mut Write,
    rollout: &Rollout,
    device: &DeviceId,
    sequence: u64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE rollout_devices SET sequence = $1 WHERE rollout = $2 AND device = $3")
        .bind(int(sequence))
        .bind(rollout.id().as_str())
        .bind(device.as_str())
        .execute(write.connection())
        .await
        .during("note the assignment of a device")?;
    Ok(())
}

/// Devices that obey the assignment and run the release confirmed are done, whether or not they had an
/// update to report.
pub(super) async fn confirm_done(
    write: &mut Write,
    rollout: &Rollout,
    now: Millis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollout_devices SET standing = 'confirmed', ended = $1 WHERE rollout = $2 \
         AND standing IN ('assigned', 'unreached', 'timed_out') AND sequence > 0 AND EXISTS \
         (SELECT 1 FROM running AS n JOIN devices AS d ON d.id = n.device WHERE n.device = rollout_devices.device \
         AND n.release = $3 AND n.confirmed = 1 AND d.assignment >= rollout_devices.sequence AND n.digest IN \
         ('', (SELECT manifest_sha256 FROM releases WHERE id = $3)))",
    )
    .bind(int(now.0))
    .bind(rollout.id().as_str())
    .bind(rollout.settings.plan.release.to_string())
    .execute(write.connection())
    .await
    .during("confirm devices that are done")?;
    Ok(())
}

/// Ends an assignment that took too long.
pub(super) async fn end(
    write: &mut Write,
    rollout: &Rollout,
    device: &DeviceId,
    standing: &str,
    now: Millis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollout_devices SET standing = $1, ended = $2 WHERE rollout = $3 AND device = $4 AND standing = 'assigned'",
    )
    .bind(standing)
    .bind(int(now.0))
    .bind(rollout.id().as_str())
    .bind(device.as_str())
    .execute(write.connection())
    .await
    .during("end an overdue assignment")?;
    Ok(())
}

/// Desires the previous release again of every device on which this one failed; returns them.
pub(super) async fn release_failed(
    write: &mut Write,
    rollout: &Rollout,
    now: Millis,
) -> Result<Vec<DeviceId>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.device, r.previous FROM rollout_devices AS r JOIN desired AS w ON w.device = r.device \
         AND w.model = $1 AND w.rollout = r.rollout WHERE r.rollout = $2 \
         AND r.standing IN ('failed', 'rolled_back', 'timed_out')",
    )
    .bind(rollout.settings.plan.release.model.as_str())
    .bind(rollout.id().as_str())
    .fetch_all(write.connection())
    .await
    .during("read failed devices")?;
    let mut devices = Vec::with_capacity(rows.len());
    for row in &rows {
        let device: DeviceId = row.get::<String, _>(0).parse().map_err(id_damaged)?;
        desire_previous(write, rollout, &device, &row.get::<String, _>(1), now).await?;
        devices.push(device);
    }
    Ok(devices)
}

async fn desire_previous(
    write: &mut Write,
    rollout: &Rollout,
    device: &DeviceId,
    previous: &str,
    now: Millis,
) -> Result<(), StoreError> {
    if !previous.is_empty() {
        let model = rollout.settings.plan.release.model.as_str();
        let manner = Manner::back(rollout.settings.probation);
        return desire(write, device, model, previous, &manner, now).await;
    }
    sqlx::query("DELETE FROM desired WHERE device = $1 AND model = $2")
        .bind(device.as_str())
        .bind(rollout.settings.plan.release.model.as_str())
        .execute(write.connection())
        .await
        .during("desire nothing of a device")?;
    Ok(())
}

/// Takes a device back to what was desired before; whether that changed its desired state.
pub(super) async fn revert(
    write: &mut Write,
    rollout: &Rollout,
    device: &DeviceId,
    now: Millis,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT r.previous, COALESCE(w.rollout, '') FROM rollout_devices AS r \
         LEFT JOIN desired AS w ON w.device = r.device AND w.model = $1 WHERE r.rollout = $2 AND r.device = $3",
    )
    .bind(rollout.settings.plan.release.model.as_str())
    .bind(rollout.id().as_str())
    .bind(device.as_str())
    .fetch_optional(write.connection())
    .await
    .during("read what a device ran before")?;
    sqlx::query("UPDATE rollout_devices SET standing = 'reverted' WHERE rollout = $1 AND device = $2")
        .bind(rollout.id().as_str())
        .bind(device.as_str())
        .execute(write.connection())
        .await
        .during("revert a device")?;
    match row {
        // Only what this rollout desires is taken back.
        Some(row) if row.get::<String, _>(1) == rollout.id().as_str() => {
            desire_previous(write, rollout, device, &row.get::<String, _>(0), now).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The release of a model that a device was to run before the one it is to run now, by the newest rollout
/// that changed it.
pub(super) async fn before(
    write: &mut Write,
    device: &DeviceId,
    model: &str,
) -> Result<Option<String>, StoreError> {
    let row = sqlx::query(
        "SELECT r.previous FROM rollout_devices AS r JOIN rollouts AS o ON o.id = r.rollout JOIN desired AS w \
         ON w.device = r.device AND w.model = o.model WHERE r.device = $1 AND o.model = $2 AND r.previous <> '' \
         AND r.previous <> w.release ORDER BY r.assigned DESC LIMIT 1",
    )
    .bind(device.as_str())
    .bind(model)
    .fetch_optional(write.connection())
    .await
    .during("read what a device ran before")?;
    Ok(row.map(|row| row.get(0)))
}

/// Desires an earlier release of one device again, whatever rollouts say: they leave the device alone.
pub(super) async fn take_back(
    write: &mut Write,
    device: &DeviceId,
    release: &ReleaseId,
    probation: Probation,
    now: Millis,
) -> Result<(), StoreError> {
    let model = release.model.as_str();
    sqlx::query(
        "UPDATE rollout_devices SET standing = 'reverted', ended = $1 WHERE device = $2 AND rollout IN \
         (SELECT id FROM rollouts WHERE model = $3 AND active = 1)",
    )
    .bind(int(now.0))
    .bind(device.as_str())
    .bind(model)
    .execute(write.connection())
    .await
    .during("take a device out of its rollouts")?;
    desire(write, device, model, &release.to_string(), &Manner::back(probation), now).await
}

/// Desires of a device that joined late what the completed rollouts of its fleet ended with, where
/// nothing is desired of it yet; how many models that are.
pub(super) async fn adopt(write: &mut Write, device: &DeviceId, now: Millis) -> Result<usize, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM rollouts WHERE fleet = (SELECT fleet FROM devices WHERE id = $1) \
         AND model NOT IN (SELECT model FROM desired WHERE device = $1) AND active = 0 \
         AND model NOT IN (SELECT model FROM rollout_devices AS r JOIN rollouts AS o ON o.id = r.rollout WHERE r.device = $1) \
         ORDER BY updated DESC LIMIT 1000"
    );
    let labels = sqlx::query("SELECT labels FROM devices WHERE id = $1")
        .bind(device.as_str())
        .fetch_optional(write.connection())
        .await
        .during("read a device's labels")?
        .map_or_else(String::new, |row| row.get(0));
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(device.as_str())
        .fetch_all(write.connection())
        .await
        .during("read the rollouts of a fleet")?;
    let mut adopted = std::collections::BTreeSet::new();
    for row in &rows {
        let rollout = rollout(row)?;
        let (model, name) =
            (rollout.settings.plan.release.model.clone(), &rollout.settings.plan.release.model);
        let completed = rollout.progress == Progress::Completed
            && rollout.settings.plan.waves.last() == Some(&farlight_wire::Permille::ALL);
        if completed && selected(&rollout.settings.selector, &labels) && adopted.insert(model) {
            let manner = Manner { rollout: "", ..Manner::of(&rollout) };
            let release = rollout.settings.plan.release.to_string();
            desire(write, device, name.as_str(), &release, &manner, now).await?;
        }
    }
    Ok(adopted.len())
}
