//! `GET /api/v1/devices[/{id}]`, `DELETE /api/v1/devices/{id}` and `GET /api/v1/stats`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::{Extension, Json};
use farlight_wire::codes::Code;
use farlight_wire::{DeviceId, Stream};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use crate::api::{ApiError, Operator, Path, Query};
use crate::app::Shared;
use crate::store::{During, StoreError, audit, uint};

/// Most devices of one answer.
const MAX_PAGE: u32 = 1000;

/// A device in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Device {
    /// Id.
    pub device: String,
    /// Fleet.
    pub fleet: String,
    /// Labels given when it was invited.
    pub labels: serde_json::Value,
    /// Whether it is connected.
    pub online: bool,
    /// When something last came from it, Unix milliseconds; 0 when never.
    pub seen: u64,
    /// Whether its certificate was revoked.
    pub revoked: bool,
    /// Sequence of the newest assignment it obeyed.
    pub assignment: u64,
    /// What it said runs there.
    pub running: Vec<RunningRelease>,
    /// The last step of its last updates.
    pub updates: Vec<Update>,
}

/// A release that runs on a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunningRelease {
    /// The release.
    pub release: String,
    /// Whether it is confirmed or on probation.
    pub confirmed: bool,
    /// SHA-256 of its manifest, as the device found it; empty before it said so.
    pub digest: String,
    /// Since when, Unix milliseconds.
    pub since: u64,
}

/// The last step of an update.
#[derive(Debug, Serialize, ToSchema)]
pub struct Update {
    /// The release.
    pub release: String,
    /// The rollout that asked for it; empty when none.
    pub rollout: String,
    /// The state reached, for example `confirmed`.
    pub state: String,
    /// Code of the error, for failures and rollbacks.
    pub error_code: String,
    /// What went wrong.
    pub error_message: String,
    /// When, by the device's clock, Unix milliseconds.
    pub at: u64,
    /// Milliseconds since the update began.
    pub elapsed_ms: u64,
    /// Bytes of the download that are verified on the device, and bytes in all; 0 when not known.
    pub progress: [u64; 2],
    /// What a person can do about the error; empty when there is none.
    pub hint: &'static str,
}

/// A device with everything known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceDetail {
    /// What lists show.
    #[serde(flatten)]
    pub device: Device,
    /// What it said of itself.
    pub inventory: serde_json::Value,
    /// Its newest window of each release.
    pub windows: Vec<WindowSummary>,
    /// Its newest reports, newest first.
    pub reports: Vec<ReportSummary>,
}

/// A window in short.
#[derive(Debug, Serialize, ToSchema)]
pub struct WindowSummary {
    /// The release that answered.
    pub release: String,
    /// Start, Unix milliseconds.
    pub start: u64,
    /// Length in milliseconds.
    pub length_ms: u64,
    /// Requests answered.
    pub ok: u64,
    /// Requests failed.
    pub failed: u64,
    /// Requests refused because of load.
    pub rejected: u64,
    /// Inputs that broke the contract.
    pub contract_violations: u64,
    /// Answers that are not finite.
    pub non_finite: u64,
    /// Median latency in µs.
    pub p50_us: u64,
    /// 95th percentile of latency in µs.
    pub p95_us: u64,
}

/// A report in short.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReportSummary {
    /// When, by the device's clock, Unix milliseconds.
    pub at: u64,
    /// `hello`, `update`, `refused`, `loss` or `command`.
    pub kind: String,
    /// Code of the error, if one.
    pub code: String,
    /// The report.
    pub event: serde_json::Value,
}

/// Which devices.
#[derive(Debug, Deserialize)]
pub struct DeviceQuery {
    fleet: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

const COLUMNS: &str = "id, fleet, labels, online, seen, revoked, assignment, inventory";

/// Lists devices in order of id; `after` continues behind one.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices",
    params(("fleet" = Option<String>, Query), ("after" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = [Device]), (status = 401)))]
pub async fn list(
    State(app): State<Shared>,
    Query(query): Query<DeviceQuery>,
) -> Result<Json<Vec<Device>>, ApiError> {
    Ok(Json(devices(&app, query.fleet, query.after, query.limit.unwrap_or(MAX_PAGE)).await?))
}

/// Devices in order of id.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn devices(
    app: &Shared,
    fleet: Option<String>,
    after: Option<String>,
    limit: u32,
) -> Result<Vec<Device>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM devices WHERE ($1 = '' OR fleet = $1) AND id > $2 ORDER BY id LIMIT $3"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(fleet.unwrap_or_default())
        .bind(after.unwrap_or_default())
        .bind(i64::from(limit.clamp(1, MAX_PAGE)))
        .fetch_all(app.store.reader())
        .await
        .during("list devices")?;
    let mut devices = Vec::with_capacity(rows.len());
    for row in &rows {
        devices.push(device(app, row).await?);
    }
    Ok(devices)
}

async fn device(app: &Shared, row: &sqlx::any::AnyRow) -> Result<Device, StoreError> {
    let id: String = row.get(0);
    let running =
        sqlx::query("SELECT release, confirmed, since, digest FROM running WHERE device = $1 ORDER BY model")
            .bind(&id)
            .fetch_all(app.store.reader())
            .await
            .during("read what a device runs")?;
    let updates = sqlx::query(
        "SELECT release, rollout, state, error_code, error_message, at, elapsed, done, total FROM updates WHERE device = $1 ORDER BY model",
    )
    .bind(&id)
    .fetch_all(app.store.reader())
    .await
    .during("read a device's updates")?;
    Ok(Device {
        device: id,
        fleet: row.get(1),
        labels: json(row.get(2)),
        online: row.get::<i64, _>(3) != 0,
        seen: uint(row.get(4)),
        revoked: row.get::<i64, _>(5) != 0,
        assignment: uint(row.get(6)),
        running: running
            .iter()
            .map(|row| RunningRelease {
                release: row.get(0),
                confirmed: row.get::<i64, _>(1) != 0,
                since: uint(row.get(2)),
                digest: row.get(3),
            })
            .collect(),
        updates: updates
            .iter()
            .map(|row| Update {
                release: row.get(0),
                rollout: row.get(1),
                state: row.get(2),
                error_code: row.get(3),
                error_message: row.get(4),
                at: uint(row.get(5)),
                elapsed_ms: uint(row.get(6)),
                progress: [uint(row.get(7)), uint(row.get(8))],
                hint: Code::parse(&row.get::<String, _>(3)).map_or("", Code::hint),
            })
            .collect(),
    })
}

fn json(text: String) -> serde_json::Value {
    serde_json::from_str(&text).unwrap_or_default()
}

/// Shows a device.
#[utoipa::path(get, path = "/api/v1/devices/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceDetail), (status = 401), (status = 404)))]
pub async fn show(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<DeviceDetail>, ApiError> {
    let sql = format!("SELECT {COLUMNS} FROM devices WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&id)
        .fetch_optional(app.store.reader())
        .await
        .during("read a device")?
        .ok_or_else(|| unknown(&id))?;
    let windows = sqlx::query(
        "SELECT release, start, length, ok, failed, rejected, contract_violations, non_finite, p50_us, p95_us \
         FROM (SELECT w.*, ROW_NUMBER() OVER (PARTITION BY w.release ORDER BY w.received DESC, w.seq DESC) AS place \
         FROM model_windows AS w WHERE w.device = $1) AS newest WHERE place = 1 ORDER BY received DESC LIMIT 16",
    )
    .bind(&id)
    .fetch_all(app.store.reader())
    .await
    .during("read a device's windows")?;
    let reports =
        sqlx::query("SELECT at, kind, code, body FROM reports WHERE device = $1 ORDER BY received DESC, seq DESC LIMIT 50")
            .bind(&id)
            .fetch_all(app.store.reader())
            .await
            .during("read a device's reports")?;
    Ok(Json(DeviceDetail {
        device: device(&app, &row).await?,
        inventory: json(row.get(7)),
        windows: windows
            .iter()
            .map(|row| WindowSummary {
                release: row.get(0),
                start: uint(row.get(1)),
                length_ms: uint(row.get(2)),
                ok: uint(row.get(3)),
                failed: uint(row.get(4)),
                rejected: uint(row.get(5)),
                contract_violations: uint(row.get(6)),
                non_finite: uint(row.get(7)),
                p50_us: uint(row.get(8)),
                p95_us: uint(row.get(9)),
            })
            .collect(),
        reports: reports
            .iter()
            .map(|row| ReportSummary {
                at: uint(row.get(0)),
                kind: row.get(1),
                code: row.get(2),
                event: json(row.get(3)),
            })
            .collect(),
    }))
}

pub(crate) fn unknown(id: &str) -> ApiError {
    ApiError::missing("device.unknown", format!("there is no device {id:?}"))
        .hint("farlight device list shows them")
}

/// Revokes a device's certificate and ends its connections. It can be invited again.
#[utoipa::path(delete, path = "/api/v1/devices/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200), (status = 401), (status = 404)))]
pub async fn revoke(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let device: DeviceId = id.parse().map_err(|_| unknown(&id))?;
    let mut write = app.store.write().await?;
    let rows = sqlx::query("UPDATE devices SET revoked = 1, online = 0 WHERE id = $1")
        .bind(device.as_str())
        .execute(write.connection())
        .await
        .during("revoke a device")?
        .rows_affected();
    if rows == 0 {
        return Err(unknown(&id));
    }
    audit(&mut write, &operator.0, "device.revoke", &id, "").await?;
    write.commit().await?;
    app.access.sessions.end(&device);
    Ok(Json(serde_json::json!({ "device": id, "revoked": true })))
}

/// What was stored, by stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    /// By stream: `tel`, `case` and `rep`.
    pub streams: BTreeMap<String, StreamStats>,
    /// Devices enrolled.
    pub devices: u64,
    /// Devices online.
    pub online: u64,
    /// Cases kept.
    pub cases: u64,
    /// Cases with a label.
    pub labelled: u64,
    /// Bytes of case tensors kept.
    pub case_tensor_bytes: u64,
}

/// What was stored of one stream.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct StreamStats {
    /// Records stored, each exactly once.
    pub stored: u64,
    /// Records that came again and were not stored again.
    pub duplicates: u64,
    /// Batches that came before the one they follow.
    pub gaps: u64,
    /// Payload bytes that came in.
    pub bytes: u64,
}

/// What was stored, by stream; with `device` of that device alone.
#[utoipa::path(get, path = "/api/v1/stats", tag = "service", params(("device" = Option<String>, Query)),
    responses((status = 200, body = Stats), (status = 401)))]
pub async fn stats(
    State(app): State<Shared>,
    Query(query): Query<StatsQuery>,
) -> Result<Json<Stats>, ApiError> {
    let device = query.device.unwrap_or_default();
    let rows = sqlx::query(
        "SELECT stream, CAST(SUM(stored) AS BIGINT), CAST(SUM(duplicates) AS BIGINT), CAST(SUM(gaps) AS BIGINT), \
         CAST(SUM(bytes) AS BIGINT) FROM stream_stats WHERE ($1 = '' OR device = $1) GROUP BY stream ORDER BY stream",
    )
    .bind(&device)
    .fetch_all(app.store.reader())
    .await
    .during("sum up streams")?;
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM devices), (SELECT COUNT(*) FROM devices WHERE online = 1), \
         (SELECT COUNT(*) FROM cases WHERE ($1 = '' OR device = $1)), \
         (SELECT COUNT(*) FROM cases WHERE label IS NOT NULL AND ($1 = '' OR device = $1)), \
         (SELECT CAST(COALESCE(SUM(LENGTH(tensor)), 0) AS BIGINT) FROM cases WHERE ($1 = '' OR device = $1))",
    )
    .bind(&device)
    .fetch_one(app.store.reader())
    .await
    .during("count devices and cases")?;
    // Every stream is named, also before anything came on it.
    let mut streams: BTreeMap<String, StreamStats> =
        Stream::ALL.iter().map(|stream| (stream.topic().to_owned(), StreamStats::default())).collect();
    for row in &rows {
        let sums = StreamStats {
            stored: uint(row.get(1)),
            duplicates: uint(row.get(2)),
            gaps: uint(row.get(3)),
            bytes: uint(row.get(4)),
        };
        streams.insert(row.get(0), sums);
    }
    Ok(Json(Stats {
        streams,
        devices: uint(row.get(0)),
        online: uint(row.get(1)),
        cases: uint(row.get(2)),
        labelled: uint(row.get(3)),
        case_tensor_bytes: uint(row.get(4)),
    }))
}

/// Whose statistics.
#[derive(Debug, Deserialize)]
pub struct StatsQuery {
    device: Option<String>,
}
