//! The rollout driver, a reconciler: observe devices and reports, let `farlight_fleet` plan, apply the
//! difference in one transaction, publish. It plans again from what it then observes, so a crash at
//! any point costs nothing but time.

pub mod api;
mod assignments;
mod evidence;
mod records;

use std::collections::BTreeSet;
use std::time::Duration;

use farlight_fleet::rollout::{Plan, Progress, plan};
use farlight_release::assignment;
use farlight_wire::{Desired, DeviceId, Millis, encode, topics};
use tokio_util::sync::CancellationToken;

pub use records::{Rollout, RolloutSettings};

use crate::app::Shared;
use crate::clock;
use crate::store::{StoreError, audit};

/// Time between two plans when nothing is reported: soaks and deadlines pass without a report.
const TICK: Duration = Duration::from_millis(500);
/// Actor in the audit log.
const ACTOR: &str = "rollouts";

/// What can go wrong in the driver.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An assignment cannot be signed.
    #[error("sign the assignment of {device}: {source}")]
    Sign {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: assignment::AssignmentError,
    },
}

/// Drives rollouts until cancelled.
pub async fn drive(app: Shared, shutdown: CancellationToken) {
    let mut changed = app.changes.subscribe();
    // Devices that said hello and were not looked after yet, and those whose newest desired state could
    // not be published yet: kept here, so that a database that is away is asked once a tick, not at once.
    let mut greeting = BTreeSet::new();
    let mut unpublished = BTreeSet::new();
    // Also at the start: a power cut may have come between a new key and what it is to sign.
    let mut rekey = true;
    loop {
        let mut taken = crate::ingest::Changes::default();
        app.changes.send_if_modified(|changes| {
            taken = std::mem::take(changes);
            false
        });
        changed.mark_unchanged();
        greeting.extend(taken.hellos);
        match hello(&app, &greeting).await {
            Ok(()) => unpublished.append(&mut greeting),
            Err(error) => {
                tracing::error!(%error, "devices that said hello were not looked after; will try again");
            }
        }
        rekey |= taken.keys;
        if rekey {
            match sign_again(&app).await {
                Ok(devices) => {
                    rekey = false;
                    unpublished.extend(devices);
                }
                Err(error) => {
                    tracing::error!(%error, "assignments were not signed by the new key; will try again")
                }
            }
        }
        match reconcile(&app).await {
            Ok(devices) => unpublished.extend(devices),
            Err(error) => tracing::error!(%error, "rollouts not driven; will try again"),
        }
        unpublished = publish(&app, unpublished).await;
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// A device that joined after its fleet's rollouts gets what they ended with; one whose assignment is
/// about to expire gets a fresh one.
async fn hello(app: &Shared, devices: &BTreeSet<DeviceId>) -> Result<(), DriveError> {
    let now = clock::now();
    for device in devices {
        let mut write = app.store.write().await?;
        let joined = records::adopt(&mut write, device, now).await?;
        if joined > 0 || assignments::needs_renewal(&mut write, device, now).await? {
            assignments::sign(&mut write, &app.registry.assignment_key().await, device, now).await?;
            write.commit().await?;
        }
    }
    Ok(())
}

/// Signs the assignments of all devices again that another key than the present one signed. The devices.
async fn sign_again(app: &Shared) -> Result<BTreeSet<DeviceId>, DriveError> {
    let mut signed = BTreeSet::new();
    let mut after = None;
    loop {
        let mut write = app.store.write().await?;
        // After the lock: nobody signs by an older key behind this.
        let key = app.registry.assignment_key().await;
        let page = assignments::page(&mut write, after.as_ref()).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (device, document) in &page {
            if !assignment::is_by(document, &key.public()) {
                assignments::sign(&mut write, &key, device, clock::now()).await?;
                signed.insert(device.clone());
            }
        }
        write.commit().await?;
    }
    if !signed.is_empty() {
        tracing::info!(devices = signed.len(), "signed assignments again by the new key");
    }
    Ok(signed)
}

/// One round over all active rollouts; the devices whose desired state changed.
async fn reconcile(app: &Shared) -> Result<BTreeSet<DeviceId>, DriveError> {
    let mut changed = BTreeSet::new();
    let active = records::active(&app.store).await?;
    app.metrics.rollouts_active.set(i64::try_from(active.len()).unwrap_or(i64::MAX));
    for rollout in active {
        let now = clock::now();
        let devices = records::observe(&app.store, &rollout).await?;
        let gate = evidence::gate(&app.store, &rollout).await?;
        let planned = plan(&rollout.settings.plan, &rollout.progress, &devices, &gate, now);
        changed.extend(apply(app, &rollout, &planned, &gate, now).await?);
    }
    Ok(changed)
}

async fn apply(
    app: &Shared,
    rollout: &Rollout,
    planned: &Plan,
    gate: &farlight_fleet::gate::Verdict,
    now: Millis,
) -> Result<BTreeSet<DeviceId>, DriveError> {
    let mut write = app.store.write().await?;
    // An operator may have changed it since it was read: then what was planned is void.
    if records::progress(&mut write, rollout.id()).await?.as_ref() != Some(&rollout.progress) {
        return Ok(BTreeSet::new());
    }
    records::confirm_done(&mut write, rollout, now).await?;
    let mut changed = BTreeSet::new();
    for device in &planned.assign {
        records::assign(&mut write, rollout, device, now).await?;
        changed.insert(device.clone());
    }
    for device in &planned.time_out {
        records::end(&mut write, rollout, device, "timed_out", now).await?;
    }
    for device in &planned.unreached {
        records::end(&mut write, rollout, device, "unreached", now).await?;
    }
    // A device that failed is not asked again, also when the rollout goes on without it.
    changed.extend(records::release_failed(&mut write, rollout, now).await?);
    for device in &planned.revert {
        if records::revert(&mut write, rollout, device, now).await? {
            changed.insert(device.clone());
        }
    }
    let key = app.registry.assignment_key().await;
    for device in &changed {
        let sequence = assignments::sign(&mut write, &key, device, now).await?;
        records::note_sequence(&mut write, rollout, device, sequence).await?;
    }
    let gate = serde_json::to_string(gate).unwrap_or_default();
    let moved = planned.next != rollout.progress;
    // One that was aborted has just given back every device that it held.
    let active = planned.next.is_active();
    let same = !moved && planned.reason == rollout.reason && gate == rollout.gate && changed.is_empty();
    if !same || !active {
        records::update(&mut write, rollout.id(), &planned.next, active, &planned.reason, &gate, now).await?;
    }
    if moved || !changed.is_empty() {
        let detail = format!(
            "{}; assigned {}, reverted {}: {}",
            state_name(&planned.next),
            planned.assign.len(),
            planned.revert.len(),
            planned.reason
        );
        audit(&mut write, ACTOR, "rollout.advance", rollout.id().as_str(), &detail).await?;
        tracing::info!(rollout = %rollout.id(), detail, "rollout advanced");
    }
    write.commit().await?;
    Ok(changed)
}

/// Publishes the current desired state of these devices; returns those it could not reach.
async fn publish(app: &Shared, devices: BTreeSet<DeviceId>) -> BTreeSet<DeviceId> {
    let mut left = BTreeSet::new();
    let mut down = false;
    for device in devices {
        let published = !down
            && match assignments::document(&app.store, &device).await {
                // Nothing was ever desired of it: there is nothing to say.
                Ok(None) => true,
                Ok(Some(assignment)) => match encode(&Desired { assignment }) {
                    Ok(payload) => app.link.publish_retained(topics::want(&device), payload).await.is_ok(),
                    Err(error) => {
                        tracing::error!(%device, %error, "desired state not encoded");
                        true
                    }
                },
                Err(error) => {
                    tracing::error!(%device, %error, "desired state not read; will try again");
                    false
                }
            };
        if !published {
            down = true;
            left.insert(device);
        }
    }
    left
}

/// The name of a state as in JSON.
pub(crate) fn state_name(progress: &Progress) -> &'static str {
    match progress {
        Progress::Running { .. } => "running",
        Progress::Paused { .. } => "paused",
        Progress::Aborted { .. } => "aborted",
        Progress::Completed => "completed",
    }
}
