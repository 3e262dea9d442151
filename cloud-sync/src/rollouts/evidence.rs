//! What the gate looks at: windows that came in since the rollout began, of the new release and, from
//! the same fleet at the same time, of everything else of the model (or of the devices without it, when the
//! release is a configuration).

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
    let plan = &rollout.settings.plan;
    let is_config = plan.release.model.as_str() == farlight_release::config::NAME;
    // A configuration answers no requests: what counts is what all models do under it, on the devices that
    // have it and on those that do not.
    let (from, among) = match (group, is_config) {
        (Group::Updated, false) => ("w.model = $2 AND w.release = $3", plan.release.model.as_str()),
        (Group::Control, false) => ("w.model = $2 AND w.release <> $3", plan.release.model.as_str()),
        (Group::Updated, true) => (
            "w.release <> $3 AND EXISTS (SELECT 1 FROM rollout_devices AS r WHERE r.rollout = $2 \
             AND r.device = w.device AND r.assigned <= w.received)",
            plan.id.as_str(),
        ),
        (Group::Control, true) => (
            "w.release <> $3 AND w.device NOT IN (SELECT device FROM rollout_devices WHERE rollout = $2)",
            plan.id.as_str(),
        ),
    };
    let from = format!(
        "FROM model_windows AS w JOIN devices AS d ON d.id = w.device WHERE d.fleet = $1 AND {from} \
         AND w.received >= $4"
    );
    let sums = format!(
        "SELECT CAST(COALESCE(SUM(ok), 0) AS BIGINT), CAST(COALESCE(SUM(failed), 0) AS BIGINT), \
         CAST(COALESCE(SUM(non_finite), 0) AS BIGINT), COUNT(*) {from}"
    );
    let latencies = format!("SELECT p50_us, p95_us {from} AND w.ok > 0 ORDER BY w.received DESC LIMIT $5");
    let release = plan.release.to_string();
    let row = sqlx::query(sqlx::AssertSqlSafe(sums))
        .bind(rollout.settings.fleet.as_str())
        .bind(among)
        .bind(&release)
        .bind(int(rollout.created.0))
        .fetch_one(store.reader())
        .await
        .during("sum up the evidence of a rollout")?;
    let windows = sqlx::query(sqlx::AssertSqlSafe(latencies))
        .bind(rollout.settings.fleet.as_str())
        .bind(among)
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
