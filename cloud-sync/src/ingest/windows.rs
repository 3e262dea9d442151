//! Windows as rows: the vitals once, and one row a release with the columns that queries need beside
//! the whole measurement.

use farlight_wire::limits::{MAX_FEATURES, MAX_MODELS};
use farlight_wire::{DeviceId, Millis, Seq, Sketch, Window};

use super::writer::Outcome;
use crate::store::{During, StoreError, Write, int};

pub(super) async fn store(
    write: &mut Write,
    device: &DeviceId,
    epoch: i64,
    seq: Seq,
    window: &Window,
    now: Millis,
) -> Result<Outcome, StoreError> {
    if window.models.len() > MAX_MODELS {
        return Ok(Outcome::Refused("a window with too many models"));
    }
    if window.models.iter().any(|model| model.drift.len() > MAX_FEATURES) {
        return Ok(Outcome::Refused("a window with too many features"));
    }
    let vitals = &window.vitals;
    let vitals = serde_json::json!({
        "cpu_permille": vitals.cpu_permille, "rss_kib": vitals.rss_kib,
        "free_memory_kib": vitals.free_memory_kib, "free_disk_kib": vitals.free_disk_kib,
        "uptime_s": vitals.uptime_s, "evicted": vitals.evicted, "dropped": vitals.dropped,
    });
    let rows = sqlx::query(
        "INSERT INTO windows (device, epoch, seq, start, length, received, vitals) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device, epoch, seq) DO NOTHING",
    )
    .bind(device.as_str())
    .bind(epoch)
    .bind(int(seq.0))
    .bind(int(window.start.0))
    .bind(int(window.length.0))
    .bind(int(now.0))
    .bind(vitals.to_string())
    .execute(write.connection())
    .await
    .during("store a window")?
    .rows_affected();
    if rows == 0 {
        return Ok(Outcome::Known);
    }
    for model in &window.models {
        let quantile = |sketch: &Sketch, q| int(sketch.quantile(q).unwrap_or(0.0) as u64);
        let body = postcard::to_allocvec(model)
            .map_err(|e| StoreError::Damaged { what: "a window", why: e.to_string() })?;
        sqlx::query(
            "INSERT INTO model_windows (device, epoch, seq, model, release, start, length, received, ok, failed, \
             rejected, contract_violations, non_finite, abstained, p50_us, p95_us, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
             ON CONFLICT (device, epoch, seq, release) DO NOTHING",
        )
        .bind(device.as_str())
        .bind(epoch)
        .bind(int(seq.0))
        .bind(model.release.model.as_str())
        .bind(model.release.to_string())
        .bind(int(window.start.0))
        .bind(int(window.length.0))
        .bind(int(now.0))
        .bind(int(model.ok))
        .bind(int(model.failed))
        .bind(int(model.rejected))
        .bind(int(model.contract_violations))
        .bind(int(model.non_finite))
        .bind(int(model.abstained))
        .bind(quantile(&model.latency_us, 0.5))
        .bind(quantile(&model.latency_us, 0.95))
        .bind(body)
        .execute(write.connection())
        .await
        .during("store a window of a release")?;
    }
    Ok(Outcome::Stored)
}
