//! Labels from feedback: what applications found out about their requests labels the cases of the same requests,
//! whichever came first. A label that a person gave stays.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::api::labels;
use crate::api::{ApiError, Query};
use crate::app::Shared;
use crate::store::{During, int};

/// How often cases and feedback are brought together.
const INTERVAL: Duration = Duration::from_secs(2);
/// Cases that are labelled in one transaction.
const AT_ONCE: i64 = 500;
/// Who gave these labels.
const BY: &str = "feedback";
/// Entries on one page, by default and at most.
const PAGE: (u32, u32) = (100, 1_000);

/// Labels cases from time to time until cancelled.
pub async fn label(app: Shared, shutdown: CancellationToken) {
    loop {
        match round(&app).await {
            Ok(0) => {}
            Ok(cases) => tracing::info!(cases, "cases labelled by feedback"),
            Err(error) => tracing::warn!(?error, "cases not labelled by feedback; will try again"),
        }
        if tokio::time::timeout(INTERVAL, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Labels the cases that newer feedback speaks of; what a person labels meanwhile stays.
async fn round(app: &Shared) -> Result<u64, ApiError> {
    let rows = sqlx::query(
        "SELECT c.id, c.release, c.class, f.verdict, f.label, f.device, f.model, f.request_id, f.received FROM feedback f \
         JOIN cases c ON c.request_id = f.request_id AND c.device = f.device AND c.model = f.model \
         WHERE f.verdict IN ('is', 'right') \
         AND (c.label IS NULL OR (c.labelled_by = $1 AND (c.labelled < f.received \
         OR (f.verdict = 'is' AND c.label <> f.label)))) LIMIT $2",
    )
    .bind(BY)
    .bind(AT_ONCE)
    .fetch_all(app.store.reader())
    .await
    .during("find cases with feedback")?;
    if rows.is_empty() {
        return Ok(0);
    }
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut done = 0;
    let mut write = app.store.write().await?;
    for row in &rows {
        let release: String = row.get(1);
        if !names.contains_key(&release) {
            names.insert(release.clone(), labels(app, &release).await?);
        }
        let known = names.get(&release).map(Vec::as_slice).unwrap_or_default();
        let index = match row.get::<String, _>(3).as_str() {
            "right" => usize::try_from(row.get::<i64, _>(2)).ok().filter(|class| *class < known.len()),
            _ => known.iter().position(|name| *name == row.get::<String, _>(4)),
        };
        match index {
            Some(index) => {
                sqlx::query(
                    "UPDATE cases SET label = $1, label_index = $2, labelled = $3, labelled_by = $4 \
                     WHERE id = $5 AND (label IS NULL OR labelled_by = $4)",
                )
                .bind(known.get(index).cloned())
                .bind(int(index as u64))
                // Not now: feedback that comes in between is newer than this.
                .bind(row.get::<i64, _>(8))
                .bind(BY)
                .bind(row.get::<String, _>(0))
                .execute(write.connection())
                .await
                .during("label a case by feedback")?;
                done += 1;
            }
            // A label that the release does not have is not looked at again.
            None => {
                sqlx::query(
                    "UPDATE feedback SET verdict = 'unknown' WHERE device = $1 AND model = $2 AND request_id = $3",
                )
                .bind(row.get::<String, _>(5))
                .bind(row.get::<String, _>(6))
                .bind(row.get::<String, _>(7))
                .execute(write.connection())
                .await
                .during("set feedback aside")?;
            }
        }
    }
    write.commit().await?;
    Ok(done)
}

/// What an application found out about an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackRow {
    /// The device.
    pub device: String,
    /// The model.
    pub model: String,
    /// The request's id.
    pub request_id: String,
    /// `is`, `right`, `wrong`, or `unknown` for a label that the release does not have.
    pub verdict: String,
    /// The label or number, for `is` and `unknown`.
    pub label: String,
    /// When it was said, by the device's clock, Unix milliseconds.
    pub at: u64,
}

/// Which feedback.
#[derive(Debug, Default, Deserialize)]
pub struct FeedbackQuery {
    model: Option<String>,
    device: Option<String>,
    request_id: Option<String>,
    limit: Option<u32>,
}

/// Lists feedback, newest first.
#[utoipa::path(get, path = "/api/v1/feedback", tag = "cases",
    params(("model" = Option<String>, Query), ("device" = Option<String>, Query),
           ("request_id" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = [FeedbackRow]), (status = 401)))]
pub async fn list(
    State(app): State<Shared>,
    Query(query): Query<FeedbackQuery>,
) -> Result<Json<Vec<FeedbackRow>>, ApiError> {
    let rows = sqlx::query(
        "SELECT device, model, request_id, verdict, label, at FROM feedback WHERE ($1 = '' OR model = $1) \
         AND ($2 = '' OR device = $2) AND ($3 = '' OR request_id = $3) ORDER BY received DESC, request_id LIMIT $4",
    )
    .bind(query.model.unwrap_or_default())
    .bind(query.device.unwrap_or_default())
    .bind(query.request_id.unwrap_or_default())
    .bind(i64::from(query.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1)))
    .fetch_all(app.store.reader())
    .await
    .during("list feedback")?;
    let row = |row: &sqlx::any::AnyRow| FeedbackRow {
        device: row.get(0),
        model: row.get(1),
        request_id: row.get(2),
        verdict: row.get(3),
        label: row.get(4),
        at: u64::try_from(row.get::<i64, _>(5)).unwrap_or(0),
    };
    Ok(Json(rows.iter().map(row).collect()))
}
