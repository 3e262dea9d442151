//! `GET /api/v1/drift`.

use axum::Json;
use axum::extract::State;
use farlight_fleet::drift::{Fault, Feature, Verdict};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use super::{DriftError, Subject, subjects, verdict};
use crate::api::{ApiError, Query};
use crate::app::Shared;
use crate::store::{During, StoreError, uint};

/// Changes of verdict that are shown.
const MAX_HISTORY: i64 = 50;

impl From<DriftError> for ApiError {
    fn from(error: DriftError) -> Self {
        Self::internal(error)
    }
}

/// The drift verdict of a release in a fleet.
#[derive(Debug, Serialize, ToSchema)]
pub struct Drift {
    /// The release.
    pub release: String,
    /// The fleet.
    pub fleet: String,
    /// `stable`, `drift` or `inconclusive`.
    #[schema(value_type = String)]
    pub verdict: Verdict,
    /// What it rests on.
    pub reason: String,
    /// Samples pooled.
    pub samples: u64,
    /// Windows pooled.
    pub windows: u64,
    /// Devices pooled.
    pub pooled_devices: usize,
    /// Devices that are off by themselves.
    pub devices_off: usize,
    /// Per feature: `name`, `psi`, `p`, `drifted` and the shares of each bin.
    #[schema(value_type = Vec<Object>)]
    pub features: Vec<Feature>,
    /// Devices with a sensor fault.
    #[schema(value_type = Vec<Object>)]
    pub devices: Vec<Fault>,
    /// Changes of the verdict, newest first.
    pub history: Vec<Change>,
}

/// A change of verdict.
#[derive(Debug, Serialize, ToSchema)]
pub struct Change {
    /// When, Unix milliseconds.
    pub at: u64,
    /// The verdict from then on.
    pub verdict: String,
    /// Windows pooled at that moment.
    pub windows: u64,
}

/// Of which model.
#[derive(Debug, Deserialize)]
pub struct DriftQuery {
    model: Option<String>,
}

/// The drift verdict of every release that runs.
#[utoipa::path(get, path = "/api/v1/drift", tag = "drift", params(("model" = Option<String>, Query)),
    responses((status = 200, body = [Drift]), (status = 401)))]
pub async fn list(
    State(app): State<Shared>,
    Query(query): Query<DriftQuery>,
) -> Result<Json<Vec<Drift>>, ApiError> {
    Ok(Json(all(&app, query.model.as_deref()).await?))
}

/// The drift verdict of every release that runs.
pub(crate) async fn all(app: &Shared, model: Option<&str>) -> Result<Vec<Drift>, ApiError> {
    let mut drifts = vec![];
    for subject in subjects(app, model).await? {
        let Some(judgement) = verdict(app, &subject).await? else { continue };
        let history = history(app, &subject).await?;
        drifts.push(Drift {
            release: subject.release.to_string(),
            fleet: subject.fleet,
            verdict: judgement.verdict,
            reason: judgement.reason,
            samples: judgement.samples,
            windows: judgement.windows,
            pooled_devices: judgement.devices,
            devices_off: judgement.devices_off,
            features: judgement.features,
            devices: judgement.faults,
            history,
        });
    }
    Ok(drifts)
}

async fn history(app: &Shared, subject: &Subject) -> Result<Vec<Change>, StoreError> {
    let rows = sqlx::query(
        "SELECT at, verdict, windows FROM drift_verdicts WHERE release = $1 AND fleet = $2 ORDER BY at DESC LIMIT $3",
    )
    .bind(subject.release.to_string())
    .bind(&subject.fleet)
    .bind(MAX_HISTORY)
    .fetch_all(app.store.reader())
    .await
    .during("read drift verdicts")?;
    Ok(rows
        .iter()
        .map(|row| Change { at: uint(row.get(0)), verdict: row.get(1), windows: uint(row.get(2)) })
        .collect())
}
