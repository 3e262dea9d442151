//! `POST /api/v1/rollouts`, `GET /api/v1/rollouts[/{id}]`, `POST /api/v1/rollouts/{id}/{verb}`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use farlight_fleet::gate::{Limits, Verdict};
use farlight_fleet::rollout::{Progress, RolloutSpec, tally};
use farlight_release::assignment::{Probation, Shadow};
use farlight_wire::codes::Code;
use farlight_wire::{DeviceId, FleetId, Millis, ModelName, Permille, ReleaseId, RolloutId};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use super::records::{self, Rollout, RolloutSettings};
use super::state_name;
use crate::api::{ApiError, Body, Operator, Path};
use crate::app::Shared;
use crate::clock;
use crate::registry::RegistryError;
use crate::store::{During, StoreError, audit, uint};

/// Most rollouts of one answer.
const MAX_LISTED: u32 = 200;
/// Longest soak, probation or deadline in seconds.
const MAX_SECONDS: u64 = 30 * 86_400;
/// Share of failures that is tolerated unless said otherwise, ‰.
const DEFAULT_MAX_FAILURES: u16 = 50;
/// Time for a device to finish unless said otherwise, seconds.
const DEFAULT_DEADLINE: u64 = 24 * 3600;
/// Share of one core that a shadow may use unless said otherwise, ‰.
const DEFAULT_SHADOW_CPU: u16 = 100;
/// Finished devices before their share of failures is judged, unless said otherwise.
const DEFAULT_MIN_SAMPLE: u32 = 10;

/// A rollout to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRollout {
    /// The release.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// The fleet.
    #[schema(value_type = String)]
    pub fleet: FleetId,
    /// The waves.
    pub waves: Vec<WaveShare>,
    /// How long a finished wave is watched.
    pub soak_seconds: u64,
    /// How long the release is watched on each device, at least.
    pub probation_seconds: u64,
    /// How many requests it must have served there, and the gate must have seen.
    pub min_requests: u64,
    /// Share of finished devices that may fail; 50 ‰ when left out.
    #[serde(default)]
    pub max_failures_permille: Option<u16>,
    /// Labels a device must have.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Time for a device from its assignment to an end; 24 hours when left out.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
    /// How the release proves itself on live inputs before activation, deciding nothing; not at all when
    /// left out.
    #[serde(default)]
    pub shadow: Option<ShadowSettings>,
    /// Whether devices on which this very release failed before try it once more.
    #[serde(default)]
    pub retry_failed: bool,
}

/// How a release proves itself in the shadow of the running one.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShadowSettings {
    /// How long, at least.
    pub seconds: u64,
    /// How many inputs it must have seen.
    pub min_requests: u64,
    /// Share of inputs it sees; all when left out.
    #[serde(default)]
    pub share_permille: Option<u16>,
    /// Share of one core it may use; 100 ‰ when left out.
    #[serde(default)]
    pub cpu_permille: Option<u16>,
    /// Share of answers that must agree with the running release; none is asked for when left out.
    #[serde(default)]
    pub agreement_permille: Option<u16>,
}

/// The share of the fleet that is covered after a wave.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WaveShare {
    /// In thousandths.
    #[schema(value_type = u16)]
    pub permille: Permille,
}

/// A rollout in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutSummary {
    /// Id.
    pub id: String,
    /// The release.
    pub release: String,
    /// The fleet.
    pub fleet: String,
    /// `running`, `paused`, `aborted` or `completed`.
    pub state: &'static str,
    /// Index of the wave, from 0.
    pub wave: usize,
    /// The waves.
    pub waves: Vec<WaveShare>,
    /// Why it is in that state.
    pub reason: String,
    /// The gate's verdict.
    #[schema(value_type = Object)]
    pub gate: serde_json::Value,
    /// When it was created, Unix milliseconds.
    pub created: u64,
    /// When it last changed, Unix milliseconds.
    pub updated: u64,
}

/// A rollout with its devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDetail {
    /// What lists show.
    #[serde(flatten)]
    pub rollout: RolloutSummary,
    /// Devices counted by where they stand.
    #[schema(value_type = Object)]
    pub tally: serde_json::Value,
    /// The devices it assigned.
    pub devices: Vec<RolloutDevice>,
}

/// A device of a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDevice {
    /// The device.
    pub device: String,
    /// `assigned`, `confirmed`, `failed`, `rolled_back`, `timed_out`, `unreached` or `reverted`.
    pub state: String,
    /// The last step it reported.
    pub step: String,
    /// What was desired of it before; empty when nothing.
    pub previous: String,
    /// When it was assigned, Unix milliseconds.
    pub assigned: u64,
    /// When it ended, Unix milliseconds; 0 when it has not.
    pub ended: u64,
    /// Code of its error, also when it was reverted since.
    pub error_code: String,
    /// What went wrong.
    pub error_message: String,
}

/// Creates a rollout and begins its first wave.
#[utoipa::path(post, path = "/api/v1/rollouts", tag = "rollouts", request_body = CreateRollout,
    responses((status = 200, body = RolloutSummary), (status = 400), (status = 401), (status = 404), (status = 409)))]
pub async fn create(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Body(request): Body<CreateRollout>,
) -> Result<Json<RolloutSummary>, ApiError> {
    if app.registry.document(&request.release).await.map_err(ApiError::internal)?.is_none() {
        let text = format!("release {} is not published", request.release);
        return Err(ApiError::delivery(StatusCode::NOT_FOUND, Code::ReleaseUnknown, text));
    }
    if let Err(error) = app.registry.permits(&request.release).await {
        return Err(not_permitted(&error));
    }
    let now = clock::now();
    let settings = check(request)?;
    let rollout = Rollout {
        progress: Progress::start(now),
        reason: "created".to_owned(),
        gate: "null".to_owned(),
        created: now,
        updated: now,
        settings,
    };
    let mut write = app.store.write().await?;
    if let Some((other, progress)) = records::conflicting(&mut write, &rollout.settings).await? {
        let (is, hint) = match progress.is_active() {
            true => ("active", format!("wait for it, or end it: farlight rollout abort {other}")),
            false => ("aborted and about to be taken back", "try again in a moment".to_owned()),
        };
        let fleet = &rollout.settings.fleet;
        let message = format!("rollout {other} of this model is {is} in fleet {fleet}");
        return Err(ApiError::delivery(StatusCode::CONFLICT, Code::RolloutConflict, message).hint(hint));
    }
    records::insert(&mut write, &rollout).await?;
    let detail = serde_json::to_string(&rollout.settings).unwrap_or_default();
    audit(&mut write, &operator.0, "rollout.create", rollout.id().as_str(), &detail).await?;
    write.commit().await?;
    app.changes.send_modify(|changes| changes.rollouts = true);
    Ok(Json(summary(&rollout)))
}

fn check(request: CreateRollout) -> Result<RolloutSettings, ApiError> {
    let deadline = request.deadline_seconds.unwrap_or(DEFAULT_DEADLINE);
    let refuse =
        |message: String| ApiError::delivery(StatusCode::BAD_REQUEST, Code::RolloutSettings, message);
    for (name, value) in [
        ("soak_seconds", request.soak_seconds),
        ("probation_seconds", request.probation_seconds),
        ("deadline_seconds", deadline),
    ] {
        if value > MAX_SECONDS {
            return Err(refuse(format!("{name}: use at most {MAX_SECONDS}")));
        }
    }
    if deadline <= request.probation_seconds {
        return Err(refuse("deadline_seconds: must be longer than probation_seconds".to_owned()));
    }
    let max_failures = Permille::new(request.max_failures_permille.unwrap_or(DEFAULT_MAX_FAILURES))
        .map_err(|e| refuse(format!("max_failures_permille: {e}")))?;
    let id = RolloutId::new(format!("r-{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff))
        .map_err(ApiError::internal)?;
    let plan = RolloutSpec {
        id,
        release: request.release,
        waves: request.waves.iter().map(|wave| wave.permille).collect(),
        soak: Millis::from_secs(request.soak_seconds),
        deadline: Millis::from_secs(deadline),
        max_failures,
        min_sample: DEFAULT_MIN_SAMPLE,
    };
    plan.check().map_err(|e| refuse(e.to_string()))?;
    let share = |name: &str, value: Option<u16>, default: u16| {
        Permille::new(value.unwrap_or(default)).map_err(|e| refuse(format!("shadow.{name}: {e}")))
    };
    let shadow = match request.shadow {
        None => None,
        Some(shadow) if shadow.seconds > MAX_SECONDS || shadow.seconds >= deadline => {
            return Err(refuse("shadow.seconds: must be shorter than deadline_seconds".to_owned()));
        }
        Some(shadow) => Some(Shadow {
            duration: Millis::from_secs(shadow.seconds),
            min_requests: shadow.min_requests,
            share: share("share_permille", shadow.share_permille, 1000)?,
            cpu: share("cpu_permille", shadow.cpu_permille, DEFAULT_SHADOW_CPU)?,
            agreement: share("agreement_permille", shadow.agreement_permille, 0)?,
        }),
    };
    Ok(RolloutSettings {
        shadow,
        retry_failed: request.retry_failed,
        plan,
        fleet: request.fleet,
        selector: request.selector,
        probation: Probation {
            duration: Millis::from_secs(request.probation_seconds),
            min_requests: request.min_requests,
        },
        gate: Limits { min_requests: request.min_requests.max(1), ..Limits::default() },
    })
}

fn summary(rollout: &Rollout) -> RolloutSummary {
    let plan = &rollout.settings.plan;
    let wave = match &rollout.progress {
        Progress::Running { wave, .. } | Progress::Paused { wave, .. } | Progress::Aborted { wave, .. } => {
            *wave
        }
        Progress::Completed => plan.waves.len().saturating_sub(1),
    };
    RolloutSummary {
        id: plan.id.to_string(),
        release: plan.release.to_string(),
        fleet: rollout.settings.fleet.to_string(),
        state: state_name(&rollout.progress),
        wave,
        waves: plan.waves.iter().map(|permille| WaveShare { permille: *permille }).collect(),
        reason: rollout.reason.clone(),
        gate: serde_json::from_str::<Option<Verdict>>(&rollout.gate)
            .ok()
            .flatten()
            .and_then(|gate| serde_json::to_value(gate).ok())
            .unwrap_or_default(),
        created: rollout.created.0,
        updated: rollout.updated.0,
    }
}

/// Lists rollouts, newest first.
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts",
    responses((status = 200, body = [RolloutSummary]), (status = 401)))]
pub async fn list(State(app): State<Shared>) -> Result<Json<Vec<RolloutSummary>>, ApiError> {
    Ok(Json(newest(&app).await?))
}

/// The newest rollouts.
pub(crate) async fn newest(app: &Shared) -> Result<Vec<RolloutSummary>, ApiError> {
    Ok(records::list(&app.store, MAX_LISTED).await?.iter().map(summary).collect())
}

fn not_permitted(error: &RegistryError) -> ApiError {
    ApiError::delivery(StatusCode::CONFLICT, Code::ReleaseNotPermitted, error.to_string())
}

async fn find(app: &Shared, id: &str) -> Result<Rollout, ApiError> {
    records::find(&app.store, id).await?.ok_or_else(|| {
        let text = format!("there is no rollout {id:?}");
        ApiError::delivery(StatusCode::NOT_FOUND, Code::RolloutUnknown, text)
    })
}

/// Shows a rollout with its devices.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}", tag = "rollouts", params(("id" = String, Path)),
    responses((status = 200, body = RolloutDetail), (status = 401), (status = 404)))]
pub async fn show(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<RolloutDetail>, ApiError> {
    Ok(Json(detail(&app, &id).await?))
}

/// A rollout with its devices.
pub(crate) async fn detail(app: &Shared, id: &str) -> Result<RolloutDetail, ApiError> {
    let rollout = find(app, id).await?;
    let (counts, _) = tally(records::observe(&app.store, &rollout).await?.iter());
    let devices = devices(app, &rollout).await?;
    Ok(RolloutDetail {
        rollout: summary(&rollout),
        tally: serde_json::to_value(counts).map_err(ApiError::internal)?,
        devices,
    })
}

async fn devices(app: &Shared, rollout: &Rollout) -> Result<Vec<RolloutDevice>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.device, r.standing, COALESCE(u.state, ''), r.previous, r.assigned, r.ended, r.code, r.message \
         FROM rollout_devices AS r LEFT JOIN updates AS u ON u.device = r.device AND u.rollout = r.rollout \
         WHERE r.rollout = $1 ORDER BY r.assigned, r.device",
    )
    .bind(rollout.id().as_str())
    .fetch_all(app.store.reader())
    .await
    .during("read the devices of a rollout")?;
    Ok(rows
        .iter()
        .map(|row| RolloutDevice {
            device: row.get(0),
            state: row.get(1),
            step: row.get(2),
            previous: row.get(3),
            assigned: uint(row.get(4)),
            ended: uint(row.get(5)),
            error_code: row.get(6),
            error_message: row.get(7),
        })
        .collect())
}

/// Pauses, resumes or aborts a rollout. Asking twice is asking once.
#[utoipa::path(post, path = "/api/v1/rollouts/{id}/{verb}", tag = "rollouts",
    params(("id" = String, Path), ("verb" = String, Path, description = "pause, resume or abort")),
    responses((status = 200, body = RolloutSummary), (status = 401), (status = 404), (status = 409)))]
pub async fn change(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path((id, verb)): Path<(String, String)>,
) -> Result<Json<RolloutSummary>, ApiError> {
    Ok(Json(steer(&app, &operator, &id, &verb).await?))
}

/// Pauses, resumes or aborts a rollout.
pub(crate) async fn steer(
    app: &Shared,
    operator: &Operator,
    id: &str,
    verb: &str,
) -> Result<RolloutSummary, ApiError> {
    let mut rollout = find(app, id).await?;
    let mut write = app.store.write().await?;
    if let Some(progress) = records::progress(&mut write, rollout.id()).await? {
        rollout.progress = progress;
    }
    let next = match verb {
        "pause" => rollout.progress.pause(),
        "resume" => rollout.progress.resume(),
        "abort" => rollout.progress.abort(&format!("aborted by {}", operator.0)),
        _ => {
            return Err(ApiError::missing("http.not_found", format!("a rollout cannot {verb:?}"))
                .hint("use pause, resume or abort"));
        }
    };
    let Some(next) = next else {
        let state = state_name(&rollout.progress);
        let text = format!("rollout {id} is {state}: it cannot {verb}");
        return Err(ApiError::delivery(StatusCode::CONFLICT, Code::RolloutState, text));
    };
    if next != rollout.progress {
        rollout.reason = format!("{verb} by {}", operator.0);
        rollout.progress = next;
        rollout.updated = clock::now();
        // Also an aborted one stays active until the driver has taken back what was updated.
        records::update(
            &mut write,
            rollout.id(),
            &rollout.progress,
            true,
            &rollout.reason,
            &rollout.gate,
            rollout.updated,
        )
        .await?;
        audit(&mut write, &operator.0, &format!("rollout.{verb}"), id, "").await?;
        write.commit().await?;
        app.changes.send_modify(|changes| changes.rollouts = true);
    }
    Ok(summary(&rollout))
}

/// Which release a device is to go back to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The model, or `config`.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// The release; the one before the present one when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub release: Option<ReleaseId>,
    /// How long it is watched; a minute when left out.
    #[serde(default)]
    pub probation_seconds: Option<u64>,
}

/// What a device is to go back to.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolledBack {
    /// The device.
    pub device: String,
    /// The release.
    pub release: String,
    /// Sequence of the assignment that says so.
    pub assignment: u64,
}

/// Time that a release is watched which a device goes back to, unless said otherwise, seconds.
const DEFAULT_BACK_PROBATION: u64 = 60;

/// Takes one device back to an earlier release. It is a signed assignment like any other, so the release must
/// be vouched for and not below its floor; rollouts leave the device alone afterwards.
#[utoipa::path(post, path = "/api/v1/devices/{id}/rollback", tag = "devices", params(("id" = String, Path)),
    request_body = RollBack,
    responses((status = 200, body = RolledBack), (status = 401), (status = 404), (status = 409)))]
pub async fn roll_back(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(request): Body<RollBack>,
) -> Result<Json<RolledBack>, ApiError> {
    let unknown = || crate::devices::api::unknown(&id);
    let device: DeviceId = id.parse().map_err(|_| unknown())?;
    let mut write = app.store.write().await?;
    let known = sqlx::query("SELECT 1 FROM devices WHERE id = $1 AND revoked = 0")
        .bind(device.as_str())
        .fetch_optional(write.connection())
        .await
        .during("look for a device")?;
    known.ok_or_else(unknown)?;
    let release = match request.release {
        Some(release) => release,
        None => {
            let before = records::before(&mut write, &device, request.model.as_str()).await?;
            let none = || {
                let text = format!("nothing of {} ran on {id} before", request.model);
                ApiError::delivery(StatusCode::CONFLICT, Code::RollBackNothing, text)
            };
            before.and_then(|text| text.parse().ok()).ok_or_else(none)?
        }
    };
    if release.model != request.model {
        let text = format!("{release} is no release of {}", request.model);
        return Err(ApiError::delivery(StatusCode::BAD_REQUEST, Code::RollBackModel, text));
    }
    if let Err(error) = app.registry.permits(&release).await {
        return Err(not_permitted(&error));
    }
    let seconds = request.probation_seconds.unwrap_or(DEFAULT_BACK_PROBATION).min(MAX_SECONDS);
    let probation = Probation { duration: Millis::from_secs(seconds), min_requests: 0 };
    let now = clock::now();
    records::take_back(&mut write, &device, &release, probation, now).await?;
    let key = app.registry.assignment_key().await;
    let assignment =
        super::assignments::sign(&mut write, &key, &device, now).await.map_err(ApiError::internal)?;
    audit(&mut write, &operator.0, "device.rollback", &id, &release.to_string()).await?;
    write.commit().await?;
    // Looked after like one that said hello: its desired state is published.
    app.changes.send_modify(|changes| {
        changes.hellos.insert(device);
    });
    Ok(Json(RolledBack { device: id, release: release.to_string(), assignment }))
}
