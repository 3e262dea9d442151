//! Data sets and training jobs over HTTP: what `farlight dataset` and `farlight train` call.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State as Shares};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farlight_fleet::evaluation::Criteria;
use farlight_training::Settings;
use farlight_training::fit::Epoch;
use farlight_wire::{ModelName, ReleaseId};
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::datasets::{self, DatasetError, Part};
use super::jobs::{self, DEADLINE, Learning, MIN_LABELLED, Order, State};
use super::records::{self, DatasetRecord, JobRecord};
use crate::api::{ApiError, Body, Operator, Path, Query};
use crate::app::Shared;
use crate::cases::labelled_cases;
use crate::clock;

/// Largest upload of a data set in bytes: base64 of about 190 MB of samples.
const MAX_DATASET: usize = 256 * 1024 * 1024;
/// Most classes of a data set.
const MAX_CLASSES: usize = 65_536;
/// Longest training that may be asked for.
const MAX_DEADLINE: u64 = 7 * 24 * 3600;

/// Routes for operators, below `/api/v1`.
pub fn routes(app: &Shared) -> Router<Shared> {
    let routes = Router::new()
        .route("/datasets", get(list_datasets).post(import).layer(DefaultBodyLimit::max(MAX_DATASET)))
        .route("/training", get(list).post(start))
        .route("/training/{id}", get(show))
        .route("/training/{id}/cancel", post(cancel))
        .route("/training/{id}/candidate.onnx", get(candidate));
    let learning =
        Learning::new(&app.settings.data, app.store.clone(), app.registry.clone(), jobs::trainer());
    let (store, start) = (app.store.clone(), clock::now());
    tokio::spawn(async move {
        if let Err(error) = records::abandon(&store, start).await {
            tracing::error!(%error, "training jobs of a former life could not be ended");
        }
    });
    match learning {
        Ok(learning) => routes.layer(Extension(learning)),
        Err(error) => {
            tracing::error!(%error, "the folder of data sets cannot be used; learning is off");
            Router::new()
        }
    }
}

impl From<DatasetError> for ApiError {
    fn from(error: DatasetError) -> Self {
        let text = error.to_string();
        match error {
            DatasetError::Data { .. } | DatasetError::Refused { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "dataset.refused", text)
            }
            DatasetError::File(_) | DatasetError::Damaged { .. } => Self::internal(text),
        }
    }
}

/// A data set to keep.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Name to find it by; an existing name moves on.
    pub name: String,
    /// The model it is for.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Number of classes.
    pub classes: usize,
    /// Arrays by split; `train` is replayed, `holdout` only evaluates.
    pub splits: BTreeMap<String, Arrays>,
    /// How a job retrains with it, unless the job says otherwise.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub settings: Option<Settings>,
}

/// The arrays of a split, `.npy` in base64.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Arrays {
    /// Inputs in the unit that applications send, `[n, shape…]`.
    pub x: String,
    /// Classes, `[n]`.
    pub y: String,
}

/// Keeps a data set.
#[utoipa::path(post, path = "/api/v1/datasets", tag = "learning", request_body = ImportRequest,
    responses((status = 200, body = DatasetRecord), (status = 422)))]
pub async fn import(
    Shares(app): Shares<Shared>,
    Extension(learning): Extension<Learning>,
    Extension(Operator(actor)): Extension<Operator>,
    Body(request): Body<ImportRequest>,
) -> Result<Json<DatasetRecord>, ApiError> {
    let refuse = |text: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "dataset.refused", text);
    // The same rule as for every other name.
    ModelName::new(request.name.as_str()).map_err(|error| refuse(format!("the data set's name: {error}")))?;
    if !(2..=MAX_CLASSES).contains(&request.classes) {
        return Err(refuse(format!("{} classes; use 2 to {MAX_CLASSES}", request.classes)));
    }
    for needed in ["train", "holdout"] {
        if !request.splits.contains_key(needed) {
            return Err(refuse(format!("split {needed:?} is missing"))
                .hint("train is replayed, holdout only evaluates"));
        }
    }
    if let Some(Err(wrong)) = request.settings.as_ref().map(Settings::check) {
        return Err(refuse(format!("settings: {}", wrong.join("; "))));
    }
    let name = request.name.clone();
    let model = request.model.clone();
    let kept = tokio::task::spawn_blocking(move || keep(&learning, request)).await;
    let snapshot = kept.map_err(ApiError::internal)??;
    records::name(&app.store, &name, &model, &snapshot, &actor).await?;
    let all = records::datasets(&app.store).await?;
    let record = all.into_iter().find(|record| record.name == name);
    record.map(Json).ok_or_else(|| ApiError::internal("the data set was not kept"))
}

fn keep(learning: &Learning, request: ImportRequest) -> Result<String, ApiError> {
    let parts = request
        .splits
        .iter()
        .map(|(name, arrays)| {
            let bytes = |which: &str, text: &str| {
                STANDARD.decode(text).map_err(|error| {
                    ApiError::bad_request("dataset.base64", format!("split {name}, array {which}: {error}"))
                })
            };
            let samples = datasets::decode(name, &bytes("x", &arrays.x)?, &bytes("y", &arrays.y)?)?;
            Ok(Part { name: name.clone(), samples, origin: Vec::new() })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(learning.snapshots().keep(&request.model, request.classes, &parts, None, request.settings)?)
}

/// The data sets.
#[utoipa::path(get, path = "/api/v1/datasets", tag = "learning",
    responses((status = 200, body = [DatasetRecord])))]
pub async fn list_datasets(Shares(app): Shares<Shared>) -> Result<Json<Vec<DatasetRecord>>, ApiError> {
    Ok(Json(records::datasets(&app.store).await?))
}

/// What to train.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// The release to begin from: `‹model›/‹version›`.
    #[schema(value_type = String)]
    pub base: ReleaseId,
    /// Name of the data set that is replayed and that the holdout comes from.
    pub dataset: String,
    /// Settings that differ from those of the data set.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// What the gate asks for, where it differs from the default.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub criteria: Criteria,
    /// Longest training in seconds; an hour by default.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
}

/// A job with where its trainer is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job.
    #[serde(flatten)]
    pub job: JobRecord,
    /// The last epoch that the trainer reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub progress: Option<Epoch>,
}

/// Starts a training job with the model's labelled cases.
#[utoipa::path(post, path = "/api/v1/training", tag = "learning", request_body = StartRequest,
    responses((status = 202, body = JobView), (status = 404), (status = 409), (status = 422)))]
pub async fn start(
    Shares(app): Shares<Shared>,
    Extension(learning): Extension<Learning>,
    Extension(Operator(actor)): Extension<Operator>,
    Body(request): Body<StartRequest>,
) -> Result<(StatusCode, Json<JobView>), ApiError> {
    let base = request.base;
    let (manifest, _) =
        learning.release(&base).await.map_err(|text| ApiError::missing("training.unknown_base", text))?;
    let all = records::datasets(&app.store).await?;
    let dataset = all.into_iter().find(|record| record.name == request.dataset).ok_or_else(|| {
        ApiError::missing("training.unknown_dataset", format!("there is no data set {:?}", request.dataset))
            .hint("`farlight dataset import` makes one")
    })?;
    let description = learning.snapshots().describe(&dataset.snapshot)?;
    if dataset.model != base.model.as_str() || description.shape != manifest.input.shape {
        let (shape, wanted) = (&description.shape, &manifest.input.shape);
        return Err(ApiError::conflict(
            "training.other_model",
            format!(
                "data set {} is for {} {shape:?}, the base is {base} {wanted:?}",
                dataset.name, dataset.model
            ),
        ));
    }
    let labelled = labelled_cases(&app.store, &base.model).await?.len();
    if labelled < MIN_LABELLED {
        let text = format!("{} has {labelled} labelled cases, too few to learn from", base.model);
        return Err(ApiError::conflict("training.too_few_labels", text)
            .hint(format!("label at least {MIN_LABELLED}; `farlight cases list` shows them")));
    }
    let settings = settings(description.settings.unwrap_or_default(), request.settings)?;
    let seconds = request.deadline_seconds.unwrap_or(DEADLINE.as_secs());
    if !(1..=MAX_DEADLINE).contains(&seconds) {
        let text = format!("deadline_seconds is {seconds}; use 1 to {MAX_DEADLINE}");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "training.settings", text));
    }
    let id = new_id()?;
    records::order(&app.store, &id, &base, &dataset.name, &actor).await?;
    let order = Order {
        base,
        dataset: dataset.name,
        snapshot: dataset.snapshot,
        settings,
        criteria: request.criteria,
        deadline: Duration::from_secs(seconds),
    };
    learning.begin(id.clone(), order);
    let view = view(&app, &learning, &id).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// Puts changes over settings and checks the result.
fn settings(
    base: Settings,
    changes: serde_json::Map<String, serde_json::Value>,
) -> Result<Settings, ApiError> {
    let wrong = |text: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "training.settings", text);
    let mut merged = serde_json::to_value(base).map_err(ApiError::internal)?;
    if let Some(fields) = merged.as_object_mut() {
        fields.extend(changes);
    }
    let settings: Settings =
        serde_json::from_value(merged).map_err(|error| wrong(format!("settings: {error}")))?;
    settings.check().map_err(|errors| wrong(format!("settings: {}", errors.join("; "))))?;
    Ok(settings)
}

fn new_id() -> Result<String, ApiError> {
    let mut bytes = [0; 8];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(ApiError::internal)?;
    Ok(format!("job-{}", hex::encode(bytes)))
}

async fn find(app: &Shared, id: &str) -> Result<JobRecord, ApiError> {
    let found = records::get(&app.store, id).await?;
    found.ok_or_else(|| ApiError::missing("training.unknown_job", format!("there is no training job {id:?}")))
}

async fn view(app: &Shared, learning: &Learning, id: &str) -> Result<JobView, ApiError> {
    let job = find(app, id).await?;
    let progress = learning.progress(&job);
    Ok(JobView { job, progress })
}

/// Of which model.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    model: Option<ModelName>,
}

/// The jobs, newest first.
#[utoipa::path(get, path = "/api/v1/training", tag = "learning", params(("model" = Option<String>, Query)),
    responses((status = 200, body = [JobRecord])))]
pub async fn list(
    Shares(app): Shares<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<JobRecord>>, ApiError> {
    Ok(Json(records::list(&app.store, query.model.as_ref()).await?))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/training/{id}", tag = "learning",
    responses((status = 200, body = JobView), (status = 404)))]
pub async fn show(
    Shares(app): Shares<Shared>,
    Extension(learning): Extension<Learning>,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    Ok(Json(view(&app, &learning, &id).await?))
}

/// Stops a job.
#[utoipa::path(post, path = "/api/v1/training/{id}/cancel", tag = "learning",
    responses((status = 200, body = JobView), (status = 404), (status = 409)))]
pub async fn cancel(
    Shares(app): Shares<Shared>,
    Extension(learning): Extension<Learning>,
    Path(id): Path<String>,
) -> Result<Json<JobView>, ApiError> {
    let job = find(&app, &id).await?;
    if !learning.cancel(&id) {
        let text = format!("job {id} does not run: its state is {:?}", job.state);
        return Err(ApiError::conflict("training.not_running", text));
    }
    Ok(Json(view(&app, &learning, &id).await?))
}

/// The candidate of a job that trained one, whatever the gate said.
#[utoipa::path(get, path = "/api/v1/training/{id}/candidate.onnx", tag = "learning",
    responses((status = 200, content_type = "application/octet-stream"), (status = 404), (status = 409)))]
pub async fn candidate(
    Shares(app): Shares<Shared>,
    Extension(learning): Extension<Learning>,
    Path(id): Path<String>,
) -> Result<Vec<u8>, ApiError> {
    let job = find(&app, &id).await?;
    if !matches!(job.state, State::Passed | State::Refused | State::Inconclusive) {
        let text = format!("job {id} has no candidate: its state is {:?}", job.state);
        return Err(ApiError::conflict("training.no_candidate", text));
    }
    tokio::fs::read(learning.folder(&id).candidate()).await.map_err(ApiError::internal)
}
