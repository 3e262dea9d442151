//! What was released when and from what: the table `releases`. Rows are added and never changed.

use farlight_release::Verified;
use farlight_release::manifest::{Lineage, Manifest};
use farlight_wire::{Millis, ReleaseId};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{During, Store, StoreError, audit, int, uint};

/// Most releases of one answer.
const MAX_LISTED: i64 = 10_000;
const COLUMNS: &str = "id, manifest_sha256, state, published, published_by, bytes, lineage";

/// A release in the registry.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Record {
    /// `‹model›/‹version›`.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// `published`.
    pub state: String,
    /// When it was published, Unix milliseconds.
    pub published: u64,
    /// By which operator.
    pub published_by: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Where it comes from.
    #[schema(value_type = Object)]
    pub lineage: Lineage,
}

/// Records a release; one that is recorded already stays as it is.
pub(super) async fn record(
    store: &Store,
    manifest: &Verified<Manifest>,
    actor: &str,
    now: Millis,
) -> Result<Record, StoreError> {
    let id = manifest.release.to_string();
    let bytes = manifest.blobs().map(|blob| blob.length).fold(0, u64::saturating_add);
    let lineage = serde_json::to_string(&manifest.lineage).unwrap_or_default();
    let mut write = store.write().await?;
    let added = sqlx::query(
        "INSERT INTO releases (id, model, version, manifest_sha256, state, published, published_by, bytes, lineage) \
         VALUES ($1, $2, $3, $4, 'published', $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&id)
    .bind(manifest.release.model.as_str())
    .bind(manifest.release.version.to_string())
    .bind(manifest.sha256())
    .bind(int(now.0))
    .bind(actor)
    .bind(int(bytes))
    .bind(lineage)
    .execute(write.connection())
    .await
    .during("record a release")?
    .rows_affected();
    if added > 0 {
        audit(&mut write, actor, "release.publish", &id, manifest.sha256()).await?;
    }
    write.commit().await?;
    get(store, &manifest.release)
        .await?
        .ok_or_else(|| StoreError::Damaged { what: "table releases", why: format!("{id} was not kept") })
}

/// Notes a change of the repository in the audit log.
pub(super) async fn note(store: &Store, actor: &str, action: &str, subject: &str) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    audit(&mut write, actor, action, subject, "").await?;
    write.commit().await
}

pub(super) async fn get(store: &Store, id: &ReleaseId) -> Result<Option<Record>, StoreError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM releases WHERE id = $1")))
        .bind(id.to_string())
        .fetch_optional(store.reader())
        .await
        .during("read a release")?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn list(store: &Store, model: Option<&str>) -> Result<Vec<Record>, StoreError> {
    let text = format!(
        "SELECT {COLUMNS} FROM releases WHERE $1 = '' OR model = $2 ORDER BY published DESC, id DESC LIMIT $3"
    );
    let model = model.unwrap_or_default();
    let rows = sqlx::query(sqlx::AssertSqlSafe(text))
        .bind(model)
        .bind(model)
        .bind(MAX_LISTED)
        .fetch_all(store.reader())
        .await
        .during("list releases")?;
    rows.iter().map(read).collect()
}

fn read(row: &AnyRow) -> Result<Record, StoreError> {
    let damaged = |why: String| StoreError::Damaged { what: "a release", why };
    let id: String = row.get(0);
    let lineage: String = row.get(6);
    Ok(Record {
        release: id.parse().map_err(|e: farlight_wire::IdError| damaged(e.to_string()))?,
        manifest_sha256: row.get(1),
        state: row.get(2),
        published: uint(row.get(3)),
        published_by: row.get(4),
        bytes: uint(row.get(5)),
        lineage: serde_json::from_str(&lineage).map_err(|e| damaged(e.to_string()))?,
    })
}
