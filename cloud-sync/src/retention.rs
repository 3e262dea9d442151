//! Old rows go: windows, unlabelled cases, reports and watermarks of stores long gone. Labelled cases,
//! rollouts and the audit log stay.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::Shared;
use crate::clock;
use crate::store::{During, Store, StoreError, int};

/// How often old rows are looked for.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Deletes old rows from time to time until cancelled.
pub async fn enforce(app: Shared, shutdown: CancellationToken) {
    loop {
        let before = clock::now().since(app.settings.retention);
        match sweep(&app.store, int(before.0)).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "old rows deleted"),
            Err(error) => tracing::warn!(%error, "old rows not deleted; will try again"),
        }
        if tokio::time::timeout(INTERVAL, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn sweep(store: &Store, before: i64) -> Result<u64, StoreError> {
    let mut deleted = 0;
    for statement in [
        "DELETE FROM model_windows WHERE received < $1",
        "DELETE FROM windows WHERE received < $1",
        "DELETE FROM cases WHERE received < $1 AND label IS NULL",
        "DELETE FROM feedback WHERE received < $1",
        "DELETE FROM reports WHERE received < $1",
        "DELETE FROM watermarks WHERE updated < $1",
        "DELETE FROM enrolment_tokens WHERE expires < $1",
        "DELETE FROM drift_verdicts WHERE at < $1",
    ] {
        // One transaction each: a long one would hold up the ingest.
        let mut write = store.write().await?;
        deleted += sqlx::query(statement)
            .bind(before)
            .execute(write.connection())
            .await
            .during("delete old rows")?
            .rows_affected();
        write.commit().await?;
    }
    Ok(deleted)
}
