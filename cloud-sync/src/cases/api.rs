//! `GET /api/v1/cases[/{id}]`, `POST /api/v1/cases/{id}/label`, `POST /api/v1/labels`.

use axum::extract::State;
use axum::{Extension, Json};
use farlight_wire::ReleaseId;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;
use utoipa::ToSchema;

use super::decode_tensor;
use crate::api::{ApiError, Body, Operator, Path, Query};
use crate::app::Shared;
use crate::clock;
use crate::store::{During, StoreError, Write, audit, int, uint};

/// Cases of one answer unless said otherwise, and at most.
const PAGE: (u32, u32) = (100, 10_000);
/// Most labels of one request.
const MAX_LABELS: usize = 10_000;

/// A case in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct CaseSummary {
    /// Id.
    pub id: String,
    /// The device.
    pub device: String,
    /// The release that answered.
    pub release: String,
    /// When it was seen, by the device's clock, Unix milliseconds.
    pub at: u64,
    /// When it came in, Unix milliseconds.
    pub received: u64,
    /// The request's id.
    pub request_id: String,
    /// Why it was kept.
    pub kind: String,
    /// Probability with which it was kept, thousandths.
    pub kept_permille: u64,
    /// Hardness, thousandths.
    pub hardness_permille: u64,
    /// Predicted class, index into the labels.
    pub class: u64,
    /// Its name, when the release is in the registry.
    pub class_label: Option<String>,
    /// Score of that class, thousandths.
    pub score_permille: u64,
    /// The label a person gave.
    pub label: Option<String>,
}

/// A case with its input.
#[derive(Debug, Serialize, ToSchema)]
pub struct CaseDetail {
    /// What lists show.
    #[serde(flatten)]
    pub case: CaseSummary,
    /// Shape of the input without the batch dimension.
    pub shape: Vec<usize>,
    /// The input, row-major.
    pub input: Vec<f32>,
    /// Names that it can be labelled with.
    pub labels: Vec<String>,
}

/// Which cases.
#[derive(Debug, Default, Deserialize)]
pub struct CaseQuery {
    /// Of this model.
    pub model: Option<String>,
    /// Of this device.
    pub device: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// With this request id.
    pub request_id: Option<String>,
    /// Only those with or without a label.
    pub unlabelled: Option<bool>,
    /// Received at or after this, Unix milliseconds.
    pub since: Option<u64>,
    /// So many.
    pub limit: Option<u32>,
}

const COLUMNS: &str = "id, device, release, at, received, request_id, kind, kept_permille, hardness_permille, class, \
                       score_permille, label";

fn summary(row: &AnyRow) -> CaseSummary {
    CaseSummary {
        id: row.get(0),
        device: row.get(1),
        release: row.get(2),
        at: uint(row.get(3)),
        received: uint(row.get(4)),
        request_id: row.get(5),
        kind: row.get(6),
        kept_permille: uint(row.get(7)),
        hardness_permille: uint(row.get(8)),
        class: uint(row.get(9)),
        class_label: None,
        score_permille: uint(row.get(10)),
        label: row.get(11),
    }
}

/// The labels of a release's manifest; empty when it is not in the registry.
pub(super) async fn labels(app: &Shared, release: &str) -> Result<Vec<String>, ApiError> {
    let Ok(release) = release.parse::<ReleaseId>() else { return Ok(vec![]) };
    let manifest = app.registry.manifest(&release).await.map_err(ApiError::internal)?;
    Ok(manifest.map(|manifest| manifest.labels.clone()).unwrap_or_default())
}

/// Lists cases, newest first.
#[utoipa::path(get, path = "/api/v1/cases", tag = "cases",
    params(("model" = Option<String>, Query), ("device" = Option<String>, Query), ("kind" = Option<String>, Query),
           ("request_id" = Option<String>, Query), ("unlabelled" = Option<bool>, Query),
           ("since" = Option<u64>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = [CaseSummary]), (status = 401)))]
pub async fn list(
    State(app): State<Shared>,
    Query(query): Query<CaseQuery>,
) -> Result<Json<Vec<CaseSummary>>, ApiError> {
    Ok(Json(cases(&app, query).await?))
}

/// Cases, newest first.
pub(crate) async fn cases(app: &Shared, query: CaseQuery) -> Result<Vec<CaseSummary>, ApiError> {
    let labelled = match query.unlabelled {
        None => -1_i64,
        Some(unlabelled) => i64::from(!unlabelled),
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM cases WHERE ($1 = '' OR model = $1) AND ($2 = '' OR device = $2) \
         AND ($3 = '' OR kind = $3) AND ($4 = '' OR request_id = $4) AND received >= $5 \
         AND ($6 < 0 OR ($6 = 0 AND label IS NULL) OR ($6 = 1 AND label IS NOT NULL)) \
         ORDER BY received DESC, id DESC LIMIT $7"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(query.model.unwrap_or_default())
        .bind(query.device.unwrap_or_default())
        .bind(query.kind.unwrap_or_default())
        .bind(query.request_id.unwrap_or_default())
        .bind(int(query.since.unwrap_or(0)))
        .bind(labelled)
        .bind(i64::from(query.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1)))
        .fetch_all(app.store.reader())
        .await
        .during("list cases")?;
    let mut known = std::collections::BTreeMap::new();
    let mut cases = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut case = summary(row);
        if !known.contains_key(&case.release) {
            known.insert(case.release.clone(), labels(app, &case.release).await?);
        }
        case.class_label = known.get(&case.release).and_then(|names| names.get(case.class as usize)).cloned();
        cases.push(case);
    }
    Ok(cases)
}

/// Shows a case with its input.
#[utoipa::path(get, path = "/api/v1/cases/{id}", tag = "cases", params(("id" = String, Path)),
    responses((status = 200, body = CaseDetail), (status = 401), (status = 404)))]
pub async fn show(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<CaseDetail>, ApiError> {
    Ok(Json(detail(&app, &id).await?))
}

/// A case with its input.
pub(crate) async fn detail(app: &Shared, id: &str) -> Result<CaseDetail, ApiError> {
    let sql = format!("SELECT {COLUMNS}, shape, encoding, tensor FROM cases WHERE id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(app.store.reader())
        .await
        .during("read a case")?
        .ok_or_else(|| unknown(id))?;
    let mut case = summary(&row);
    let labels = labels(app, &case.release).await?;
    case.class_label = labels.get(case.class as usize).cloned();
    let (shape, input) =
        decode_tensor(&row.get::<String, _>(12), &row.get::<String, _>(13), &row.get::<Vec<u8>, _>(14))
            .map_err(ApiError::internal)?;
    Ok(CaseDetail { case, shape, input, labels })
}

fn unknown(id: &str) -> ApiError {
    ApiError::missing("case.unknown", format!("there is no case {id:?}"))
        .hint("farlight cases list shows them")
}

/// A label; `null` takes one back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLabel {
    /// A name from the manifest's labels.
    pub label: Option<String>,
}

/// Labels of many cases.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLabels {
    /// The labels.
    pub labels: Vec<CaseLabel>,
}

/// The label of one case.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaseLabel {
    /// The case.
    pub id: String,
    /// A name from the manifest's labels; `null` takes it back.
    pub label: Option<String>,
}

/// How many cases were labelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct Labelled {
    /// Cases whose label was set or taken back.
    pub labelled: usize,
}

/// Labels a case.
#[utoipa::path(post, path = "/api/v1/cases/{id}/label", tag = "cases", params(("id" = String, Path)),
    request_body = SetLabel, responses((status = 200, body = Labelled), (status = 400), (status = 401), (status = 404)))]
pub async fn label(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(body): Body<SetLabel>,
) -> Result<Json<Labelled>, ApiError> {
    Ok(Json(set(&app, &operator, vec![CaseLabel { id, label: body.label }]).await?))
}

/// Labels many cases: all of them, or none when one is wrong.
#[utoipa::path(post, path = "/api/v1/labels", tag = "cases", request_body = SetLabels,
    responses((status = 200, body = Labelled), (status = 400), (status = 401), (status = 404)))]
pub async fn label_many(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Body(body): Body<SetLabels>,
) -> Result<Json<Labelled>, ApiError> {
    Ok(Json(set(&app, &operator, body.labels).await?))
}

/// Sets labels in one transaction.
pub(crate) async fn set(
    app: &Shared,
    operator: &Operator,
    wanted: Vec<CaseLabel>,
) -> Result<Labelled, ApiError> {
    if wanted.len() > MAX_LABELS {
        return Err(ApiError::bad_request("case.too_many", format!("use at most {MAX_LABELS} labels")));
    }
    let mut known: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    let mut write = app.store.write().await?;
    for one in &wanted {
        let release: String = sqlx::query("SELECT release FROM cases WHERE id = $1")
            .bind(&one.id)
            .fetch_optional(write.connection())
            .await
            .during("read a case")?
            .ok_or_else(|| unknown(&one.id))?
            .get(0);
        if !known.contains_key(&release) {
            let names = labels(app, &release).await?;
            known.insert(release.clone(), names);
        }
        let names = known.get(&release).map(Vec::as_slice).unwrap_or_default();
        let index = match &one.label {
            None => None,
            Some(label) => Some(names.iter().position(|name| name == label).ok_or_else(|| {
                ApiError::bad_request("case.label", format!("{label:?} is no label of {release}"))
                    .hint(format!("use one of: {}", names.join(", ")))
            })?),
        };
        store_label(&mut write, one, index, operator).await?;
    }
    audit(&mut write, &operator.0, "cases.label", "", &format!("{} cases", wanted.len())).await?;
    write.commit().await?;
    Ok(Labelled { labelled: wanted.len() })
}

async fn store_label(
    write: &mut Write,
    one: &CaseLabel,
    index: Option<usize>,
    operator: &Operator,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE cases SET label = $1, label_index = $2, labelled = $3, labelled_by = $4 WHERE id = $5",
    )
    .bind(one.label.clone())
    .bind(index.map(|index| int(index as u64)))
    .bind(int(clock::now().0))
    .bind(operator.0.clone())
    .bind(one.id.clone())
    .execute(write.connection())
    .await
    .during("label a case")?;
    Ok(())
}
