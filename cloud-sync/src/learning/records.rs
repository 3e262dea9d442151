//! The tables `datasets` and `training_jobs`.

use farlight_wire::{Millis, ModelName, ReleaseId};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::jobs::{Detail, State};
use crate::clock;
use crate::store::{During, Store, StoreError, audit, int, uint};

/// Most rows of one answer.
const MAX_LISTED: i64 = 1000;

/// A named data set.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatasetRecord {
    /// Its name.
    pub name: String,
    /// The model it is for.
    pub model: String,
    /// Digest of its snapshot.
    pub snapshot: String,
    /// When it was imported, Unix milliseconds.
    pub created: u64,
    /// By which operator.
    pub created_by: String,
}

/// A training job.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobRecord {
    /// Its id.
    pub id: String,
    /// The release it begins from.
    #[schema(value_type = String)]
    pub base: ReleaseId,
    /// The data set.
    pub dataset: String,
    /// Where it stands.
    pub state: State,
    /// What is known of it.
    #[schema(value_type = Object)]
    pub detail: Detail,
    /// When it was ordered, Unix milliseconds.
    pub created: u64,
    /// When its state changed last.
    pub updated: u64,
    /// By which operator.
    pub created_by: String,
}

/// Names a snapshot; a name that exists moves to the new one.
///
/// # Errors
/// [`StoreError`].
pub async fn name(
    store: &Store,
    name: &str,
    model: &ModelName,
    snapshot: &str,
    actor: &str,
) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    sqlx::query(
        "INSERT INTO datasets (name, model, snapshot, created, created_by) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (name) DO UPDATE SET model = excluded.model, snapshot = excluded.snapshot, \
         created = excluded.created, created_by = excluded.created_by",
    )
    .bind(name)
    .bind(model.as_str())
    .bind(snapshot)
    .bind(int(clock::now().0))
    .bind(actor)
    .execute(write.connection())
    .await
    .during("name a data set")?;
    audit(&mut write, actor, "dataset.import", name, snapshot).await?;
    write.commit().await
}

/// The data sets by name.
///
/// # Errors
/// [`StoreError`].
pub async fn datasets(store: &Store) -> Result<Vec<DatasetRecord>, StoreError> {
    let rows =
        sqlx::query("SELECT name, model, snapshot, created, created_by FROM datasets ORDER BY name LIMIT $1")
            .bind(MAX_LISTED)
            .fetch_all(store.reader())
            .await
            .during("list data sets")?;
    Ok(rows
        .iter()
        .map(|row| DatasetRecord {
            name: row.get(0),
            model: row.get(1),
            snapshot: row.get(2),
            created: uint(row.get(3)),
            created_by: row.get(4),
        })
        .collect())
}

/// Records a job that waits for its turn.
///
/// # Errors
/// [`StoreError`].
pub async fn order(
    store: &Store,
    id: &str,
    base: &ReleaseId,
    dataset: &str,
    actor: &str,
) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    sqlx::query(
        "INSERT INTO training_jobs (id, model, base, dataset, state, detail, created, updated, created_by) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
    )
    .bind(id)
    .bind(base.model.as_str())
    .bind(base.to_string())
    .bind(dataset)
    .bind(word(State::Queued))
    .bind("{}")
    .bind(int(clock::now().0))
    .bind(actor)
    .execute(write.connection())
    .await
    .during("record a training job")?;
    audit(&mut write, actor, "training.start", id, &base.to_string()).await?;
    write.commit().await
}

/// Records where a job stands.
///
/// # Errors
/// [`StoreError`].
pub async fn update(store: &Store, id: &str, state: State, detail: &Detail) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    sqlx::query("UPDATE training_jobs SET state = $1, detail = $2, updated = $3 WHERE id = $4")
        .bind(word(state))
        .bind(serde_json::to_string(detail).unwrap_or_default())
        .bind(int(clock::now().0))
        .bind(id)
        .execute(write.connection())
        .await
        .during("record a training job's state")?;
    write.commit().await
}

/// Ends the jobs that a former life of the service left behind: those ordered before `start`.
///
/// # Errors
/// [`StoreError`].
pub async fn abandon(store: &Store, start: Millis) -> Result<(), StoreError> {
    let left = |job: &JobRecord| !job.state.is_final() && job.created < start.0;
    for job in list(store, None).await?.into_iter().filter(left) {
        let message = Some("the service ended while it ran: start it again".to_owned());
        update(store, &job.id, State::Failed, &Detail { message, ..job.detail }).await?;
    }
    Ok(())
}

/// The jobs, newest first; of one model, if that is given.
///
/// # Errors
/// [`StoreError`].
pub async fn list(store: &Store, model: Option<&ModelName>) -> Result<Vec<JobRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, base, dataset, state, detail, created, updated, created_by FROM training_jobs \
         WHERE $1 = '' OR model = $1 ORDER BY created DESC, id LIMIT $2",
    )
    .bind(model.map_or("", ModelName::as_str))
    .bind(MAX_LISTED)
    .fetch_all(store.reader())
    .await
    .during("list training jobs")?;
    rows.iter().map(job).collect()
}

/// One job.
///
/// # Errors
/// [`StoreError`].
pub async fn get(store: &Store, id: &str) -> Result<Option<JobRecord>, StoreError> {
    let row = sqlx::query(
        "SELECT id, base, dataset, state, detail, created, updated, created_by FROM training_jobs WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(store.reader())
    .await
    .during("read a training job")?;
    row.as_ref().map(job).transpose()
}

fn word(state: State) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn job(row: &AnyRow) -> Result<JobRecord, StoreError> {
    let damaged = |why: String| StoreError::Damaged { what: "table training_jobs", why };
    let (base, state, detail) = (row.get::<String, _>(1), row.get::<String, _>(3), row.get::<String, _>(4));
    Ok(JobRecord {
        id: row.get(0),
        base: base.parse().map_err(|error: farlight_wire::IdError| damaged(error.to_string()))?,
        dataset: row.get(2),
        state: serde_json::from_value(state.into()).map_err(|error| damaged(error.to_string()))?,
        detail: serde_json::from_str(&detail).map_err(|error| damaged(error.to_string()))?,
        created: uint(row.get(5)),
        updated: uint(row.get(6)),
        created_by: row.get(7),
    })
}
