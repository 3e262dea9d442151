//! What the gate looks at: windows that came in since the rollout began, of the new release and, from
//! the same fleet at the same time, of everything else of the model.

use farlight_fleet::gate::{Evidence, Verdict, judge};
use sqlx::Row;

use super::Rollout;
use crate::store::{During, Store, StoreError, int, uint};

/// Newest windows whose latency is looked at.
const LATENCY_WINDOWS: i64 = 1000;

pub(super) async fn gate(store: &Store, rollout: &Rollout) -> Result<Verdict, StoreError> {
    let updated = evidence(store, rollout, Group::Updated).await?;
    let control = evidence(store, rollout, Group::Control).await?;
    Ok(judge(&updated, Some(&control), &rollout.settings.gate))
}

#[derive(Clone, Copy)]
enum Group {
    Updated,
    Control,
}

async fn evidence(store: &Store, rollout: &Rollout, group: Group) -> Result<Evidence, StoreError> {
    let (sums, latencies) = match group {
        Group::Updated => (
            "SELECT CAST(COALESCE(SUM(ok), 0) AS BIGINT), CAST(COALESCE(SUM(failed), 0) AS BIGINT), \
             CAST(COALESCE(SUM(non_finite), 0) AS BIGINT), COUNT(*) FROM model_windows AS w \
             JOIN devices AS d ON d.id = w.device \
             WHERE d.fleet = $1 AND w.model = $2 AND w.release = $3 AND w.received >= $4",
            "SELECT p50_us, p95_us FROM model_windows AS w JOIN devices AS d ON d.id = w.device \
             WHERE d.fleet = $1 AND w.model = $2 AND w.release = $3 AND w.received >= $4 AND w.ok > 0 \
             ORDER BY w.received DESC LIMIT $5",
        ),
        Group::Control => (
            "SELECT CAST(COALESCE(SUM(ok), 0) AS BIGINT), CAST(COALESCE(SUM(failed), 0) AS BIGINT), \
             CAST(COALESCE(SUM(non_finite), 0) AS BIGINT), COUNT(*) FROM model_windows AS w \
             JOIN devices AS d ON d.id = w.device \
             WHERE d.fleet = $1 AND w.model = $2 AND w.release <> $3 AND w.received >= $4",
            "SELECT p50_us, p95_us FROM model_windows AS w JOIN devices AS d ON d.id = w.device \
             WHERE d.fleet = $1 AND w.model = $2 AND w.release <> $3 AND w.received >= $4 AND w.ok > 0 \
             ORDER BY w.received DESC LIMIT $5",
        ),
    };
    let release = rollout.settings.plan.release.to_string();
    let model = rollout.settings.plan.release.model.as_str();
    let row = sqlx::query(sums)
        .bind(rollout.settings.fleet.as_str())
        .bind(model)
        .bind(&release)
        .bind(int(rollout.created.0))
        .fetch_one(store.reader())
        .await
        .during("sum up the evidence of a rollout")?;
    let windows = sqlx::query(latencies)
        .bind(rollout.settings.fleet.as_str())
        .bind(model)
        .bind(&release)
        .bind(int(rollout.created.0))
        .bind(LATENCY_WINDOWS)
        .fetch_all(store.reader())
        .await
        .during("read the latencies of a rollout")?;
    let median = |column: usize| {
        let mut values: Vec<u64> = windows.iter().map(|row| uint(row.get(column))).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    Ok(Evidence {
        ok: uint(row.get(0)),
        failed: uint(row.get(1)),
        non_finite: uint(row.get(2)),
        p50_us: median(0),
        p95_us: median(1),
        windows: uint(row.get(3)),
    })
}
