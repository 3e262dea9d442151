//! Drift of the fleet's inputs: pools the newest windows of each device that runs a release, compares
//! them with the reference in its manifest (`farlight_fleet::drift`), and keeps each change of verdict.

pub mod api;

use std::time::Duration;

use farlight_fleet::drift::{Judgement, Observed, Reference, Verdict, judge};
use farlight_wire::telemetry::ModelWindowV1;
use farlight_wire::{DeviceId, ReleaseId};
use sqlx::Row;
use tokio_util::sync::CancellationToken;

use crate::app::Shared;
use crate::clock;
use crate::registry::RegistryError;
use crate::store::{During, StoreError, audit, int};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// Most windows of one verdict: bounds memory and time.
const MAX_WINDOWS: i64 = 200_000;

/// What can go wrong with a verdict.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// A release that runs in a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The release.
    pub release: ReleaseId,
    /// The fleet.
    pub fleet: String,
}

/// The releases that run, by fleet; of one model, if that is given.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn subjects(app: &Shared, model: Option<&str>) -> Result<Vec<Subject>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT n.release, d.fleet FROM running AS n JOIN devices AS d ON d.id = n.device \
         WHERE ($1 = '' OR n.model = $1) ORDER BY n.release, d.fleet",
    )
    .bind(model.unwrap_or_default())
    .fetch_all(app.store.reader())
    .await
    .during("read what runs")?;
    let subject = |row: &sqlx::any::AnyRow| {
        Some(Subject { release: row.get::<String, _>(0).parse().ok()?, fleet: row.get(1) })
    };
    Ok(rows.iter().filter_map(subject).collect())
}

/// Judges a release in a fleet from the newest windows of each device that runs it; `None` when the
/// release is not in the registry.
///
/// # Errors
/// [`DriftError`] when windows or manifest cannot be read.
pub async fn verdict(app: &Shared, subject: &Subject) -> Result<Option<Judgement>, DriftError> {
    let Some(manifest) = app.registry.manifest(&subject.release).await? else { return Ok(None) };
    let references: Vec<Reference> = manifest
        .profile
        .features
        .iter()
        .map(|feature| Reference { name: feature.name.clone(), counts: feature.counts.clone() })
        .collect();
    let observed = observe(app, subject, &references).await?;
    Ok(Some(judge(&references, &observed)))
}

async fn observe(
    app: &Shared,
    subject: &Subject,
    references: &[Reference],
) -> Result<Vec<Observed>, StoreError> {
    // Windows without a request say nothing of inputs and must not push out those that do.
    let rows = sqlx::query(
        "SELECT device, body FROM (SELECT w.device, w.body, w.received, w.seq, ROW_NUMBER() OVER \
         (PARTITION BY w.device ORDER BY w.received DESC, w.seq DESC) AS place FROM model_windows AS w \
         JOIN devices AS d ON d.id = w.device JOIN running AS n ON n.device = w.device AND n.release = w.release \
         WHERE w.release = $1 AND d.fleet = $2 AND w.ok > 0) AS newest WHERE place <= $3 ORDER BY device LIMIT $4",
    )
    .bind(subject.release.to_string())
    .bind(&subject.fleet)
    .bind(i64::from(app.settings.drift_windows))
    .bind(MAX_WINDOWS)
    .fetch_all(app.store.reader())
    .await
    .during("read the windows of a release")?;
    let mut observed: Vec<Observed> = vec![];
    for row in &rows {
        let Ok(device) = row.get::<String, _>(0).parse::<DeviceId>() else { continue };
        let Ok(window) = postcard::from_bytes::<ModelWindowV1>(&row.get::<Vec<u8>, _>(1)) else { continue };
        if observed.last().is_none_or(|last| last.device != device) {
            let features = references.iter().map(|reference| vec![0; reference.counts.len()]).collect();
            observed.push(Observed { device, features, windows: 0 });
        }
        if let Some(sum) = observed.last_mut() {
            sum.windows += 1;
            for (counts, more) in sum.features.iter_mut().zip(&window.drift) {
                counts.iter_mut().zip(&more.0).for_each(|(count, more)| *count += u64::from(*more));
            }
        }
    }
    Ok(observed)
}

/// Looks at every release that runs, when windows came, until cancelled.
pub async fn watch(app: Shared, shutdown: CancellationToken) {
    let mut seen = 0;
    loop {
        let stored = app.metrics.commits.get();
        if stored != seen {
            seen = stored;
            if let Err(error) = look(&app).await {
                tracing::warn!(%error, "drift not judged; will try again");
            }
        }
        if tokio::time::timeout(INTERVAL, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn look(app: &Shared) -> Result<(), DriftError> {
    for subject in subjects(app, None).await? {
        let Some(judgement) = verdict(app, &subject).await? else { continue };
        note(app, &subject, &judgement).await?;
    }
    Ok(())
}

/// The name of a verdict as in JSON.
pub(crate) fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stable => "stable",
        Verdict::Drift => "drift",
        Verdict::Inconclusive => "inconclusive",
    }
}

/// Keeps a verdict when it is another one than the last.
async fn note(app: &Shared, subject: &Subject, judgement: &Judgement) -> Result<(), StoreError> {
    let release = subject.release.to_string();
    let mut write = app.store.write().await?;
    let last = sqlx::query(
        "SELECT verdict FROM drift_verdicts WHERE release = $1 AND fleet = $2 ORDER BY at DESC LIMIT 1",
    )
    .bind(&release)
    .bind(&subject.fleet)
    .fetch_optional(write.connection())
    .await
    .during("read the last drift verdict")?
    .map_or_else(|| "inconclusive".to_owned(), |row| row.get::<String, _>(0));
    let now = name(judgement.verdict);
    if last == now {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO drift_verdicts (release, fleet, at, verdict, windows, detail) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (release, fleet, at) DO NOTHING",
    )
    .bind(&release)
    .bind(&subject.fleet)
    .bind(int(clock::now().0))
    .bind(now)
    .bind(int(judgement.windows))
    .bind(serde_json::to_string(judgement).unwrap_or_default())
    .execute(write.connection())
    .await
    .during("store a drift verdict")?;
    audit(&mut write, "drift", &format!("drift.{now}"), &release, &judgement.reason).await?;
    write.commit().await?;
    tracing::info!(
        release,
        fleet = subject.fleet,
        verdict = now,
        reason = judgement.reason,
        "drift verdict changed"
    );
    Ok(())
}
