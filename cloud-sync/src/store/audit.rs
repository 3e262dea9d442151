//! The audit log: who changed what, in a chain of hashes so that a changed or missing row shows.

use sha2::{Digest, Sha256};
use sqlx::Row;

use super::{During, Store, StoreError, Write, int, uint};
use crate::clock;

/// Most entries of one answer.
const MAX_ENTRIES: u32 = 1000;

/// One change.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Place in the log, from 1 without holes.
    pub number: u64,
    /// When, Unix milliseconds.
    pub at: u64,
    /// Who: an operator's name, `rollouts` or a device.
    pub actor: String,
    /// What was done, for example `rollout.create`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// More about it.
    pub detail: String,
    /// SHA-256 over the hash before and this row, hex.
    pub hash: String,
}

/// Appends a change to the log, in the transaction that makes the change.
///
/// # Errors
/// [`StoreError`] when the row cannot be written; the change must not be committed then.
pub async fn audit(
    write: &mut Write,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &str,
) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")
        .fetch_optional(write.connection())
        .await
        .during("read the audit log")?;
    let (number, before) = match last {
        Some(row) => (row.get::<i64, _>(0) + 1, row.get::<String, _>(1)),
        None => (1, String::new()),
    };
    let at = int(clock::now().0);
    let mut hash = Sha256::new();
    for part in [before.as_str(), &number.to_string(), &at.to_string(), actor, action, subject, detail] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    sqlx::query(
        "INSERT INTO audit (number, at, actor, action, subject, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(number)
    .bind(at)
    .bind(actor)
    .bind(action)
    .bind(subject)
    .bind(detail)
    .bind(hex::encode(hash.finalize()))
    .execute(write.connection())
    .await
    .during("append to the audit log")?;
    Ok(())
}

/// The newest entries, newest first.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn audit_entries(store: &Store, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT number, at, actor, action, subject, detail, hash FROM audit ORDER BY number DESC LIMIT $1",
    )
    .bind(i64::from(limit.min(MAX_ENTRIES)))
    .fetch_all(store.reader())
    .await
    .during("read the audit log")?;
    Ok(rows
        .iter()
        .map(|row| AuditEntry {
            number: uint(row.get(0)),
            at: uint(row.get(1)),
            actor: row.get(2),
            action: row.get(3),
            subject: row.get(4),
            detail: row.get(5),
            hash: row.get(6),
        })
        .collect())
}
