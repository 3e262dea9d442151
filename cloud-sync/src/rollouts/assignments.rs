//! The signed assignment of each device: built from its rows in `desired`, with a sequence that is
//! persisted in the same transaction, before anything is published.

use farlight_release::assignment::{self, Assignment, ModelAssignment, Probation};
use farlight_release::key::KeyPair;
use farlight_wire::{DeviceId, Millis};
use sqlx::Row;

use super::DriveError;
use crate::store::{During, Store, StoreError, Write, int, uint};

/// How long an assignment counts. A device that is away longer asks when it comes back.
const VALIDITY: Millis = Millis::from_secs(30 * 86_400);

/// Assignments that are looked at in one transaction.
const PAGE: i64 = 500;

/// The next assignments, in the order of devices, after that of a device.
pub(super) async fn page(
    write: &mut Write,
    after: Option<&DeviceId>,
) -> Result<Vec<(DeviceId, Vec<u8>)>, StoreError> {
    let rows =
        sqlx::query("SELECT device, document FROM assignments WHERE device > $1 ORDER BY device LIMIT $2")
            .bind(after.map_or("", DeviceId::as_str))
            .bind(PAGE)
            .fetch_all(write.connection())
            .await
            .during("read assignments")?;
    let read = |row: &sqlx::any::AnyRow| {
        let device: String = row.get(0);
        let damaged =
            |why: farlight_wire::IdError| StoreError::Damaged { what: "device", why: why.to_string() };
        Ok((device.parse().map_err(damaged)?, row.get(1)))
    };
    rows.iter().map(read).collect()
}

/// Signs the next assignment of a device; returns its sequence.
pub(super) async fn sign(
    write: &mut Write,
    key: &KeyPair,
    device: &DeviceId,
    now: Millis,
) -> Result<u64, DriveError> {
    let rows = sqlx::query(
        "SELECT release, rollout, probation_ms, min_requests, shadow, retry_failed FROM desired WHERE device = $1 \
         ORDER BY model",
    )
    .bind(device.as_str())
    .fetch_all(write.connection())
    .await
    .during("read what is desired of a device")?;
    let damaged = |why: farlight_wire::IdError| StoreError::Damaged { what: "desired", why: why.to_string() };
    let mut models = Vec::with_capacity(rows.len());
    for row in &rows {
        let rollout: String = row.get(1);
        models.push(ModelAssignment {
            release: row.get::<String, _>(0).parse().map_err(damaged)?,
            rollout: if rollout.is_empty() { None } else { Some(rollout.parse().map_err(damaged)?) },
            probation: Probation { duration: Millis(uint(row.get(2))), min_requests: uint(row.get(3)) },
            shadow: serde_json::from_str(&row.get::<String, _>(4)).ok(),
            retry_failed: row.get::<i64, _>(5) != 0,
        });
    }
    let last = sqlx::query("SELECT sequence FROM assignments WHERE device = $1")
        .bind(device.as_str())
        .fetch_optional(write.connection())
        .await
        .during("read the last assignment of a device")?;
    let known = sqlx::query("SELECT assignment FROM devices WHERE id = $1")
        .bind(device.as_str())
        .fetch_optional(write.connection())
        .await
        .during("read the assignment a device obeys")?;
    // Above what the device says it obeys, too: after a restore from a backup it may be ahead of us.
    let sequence = [last, known]
        .iter()
        .map(|row| row.as_ref().map_or(0, |row| uint(row.get(0))))
        .fold(0, u64::max)
        .saturating_add(1);
    let expires = now.plus(VALIDITY);
    let document = Assignment { device: device.clone(), sequence, issued: now, expires, models };
    let document = assignment::sign(&document, key)
        .map_err(|source| DriveError::Sign { device: device.clone(), source })?;
    sqlx::query(
        "INSERT INTO assignments (device, sequence, issued, expires, document) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (device) DO UPDATE SET sequence = excluded.sequence, issued = excluded.issued, \
         expires = excluded.expires, document = excluded.document",
    )
    .bind(device.as_str())
    .bind(int(sequence))
    .bind(int(now.0))
    .bind(int(expires.0))
    .bind(document)
    .execute(write.connection())
    .await
    .during("store an assignment")?;
    Ok(sequence)
}

/// Whether the assignment of a device has passed half of its validity, or is behind what the device
/// says it obeys.
pub(super) async fn needs_renewal(
    write: &mut Write,
    device: &DeviceId,
    now: Millis,
) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT a.expires, a.sequence, d.assignment FROM assignments AS a JOIN devices AS d ON d.id = a.device \
         WHERE a.device = $1",
    )
    .bind(device.as_str())
    .fetch_optional(write.connection())
    .await
    .during("read when an assignment expires")?;
    Ok(row.is_some_and(|row| {
        uint(row.get(0)) < now.0.saturating_add(VALIDITY.0 / 2) || row.get::<i64, _>(1) < row.get::<i64, _>(2)
    }))
}

/// The newest assignment of a device, as signed.
pub(super) async fn document(store: &Store, device: &DeviceId) -> Result<Option<Vec<u8>>, StoreError> {
    let row = sqlx::query("SELECT document FROM assignments WHERE device = $1")
        .bind(device.as_str())
        .fetch_optional(store.reader())
        .await
        .during("read an assignment")?;
    Ok(row.map(|row| row.get(0)))
}
