//! The driver's slow steps, each a task that answers with one event.

use std::sync::Arc;
use std::time::Duration;

use farlight_device::backoff::Backoff;
use farlight_device::codes::Code;
use farlight_device::pointer::Slot;
use farlight_device::update::Failure;
use farlight_release::Verified;
use farlight_release::assignment::{self, Assignment};
use farlight_release::manifest::Manifest;
use farlight_wire::{DeviceId, Millis, ModelName, ReleaseId};
use tokio::sync::Mutex;

use super::{Done, Driver, Input, Step};
use crate::clock;
use crate::fetch::Repository;
use crate::models::{Loaded, Models};
use crate::selftest;
use crate::slots::Slots;
use crate::trust::Trust;

/// Waits between tries to reach the repository.
const RETRY_FIRST: Millis = Millis(500);
const RETRY_LAST: Millis = Millis(60_000);

impl Driver {
    fn spawn(&mut self, name: &ModelName, work: impl Future<Output = Done> + Send + 'static) {
        let Some(model) = self.models.get_mut(name) else { return };
        model.generation += 1;
        let (generation, sender, name) = (model.generation, self.sender.clone(), name.clone());
        let task = tokio::spawn(async move {
            let done = work.await;
            let _ = sender.send(Input::Step(Step { model: name, generation, done })).await;
        });
        if let Some(old) = model.task.replace(task.abort_handle()) {
            old.abort();
        }
    }

    pub(super) fn spawn_fetch(&mut self, name: &ModelName, release: ReleaseId) {
        let lost = || Done::Failed(Failure::new(Code::TrustLost, "the trust store is unreadable"));
        let Some(trust) = self.trust.clone() else {
            self.spawn(name, async move { lost() });
            return;
        };
        let (repository, slots) = (self.parts.repository.clone(), self.parts.slots.clone());
        let labels = self.parts.labels.clone();
        self.spawn(name, async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
            loop {
                match fetch(&repository, &trust, &slots, &release, &labels).await {
                    Ok(slot) => return Done::Fetched(slot),
                    Err(failure) if failure.code == Code::FetchUnreachable.as_str() => {
                        tracing::warn!(%release, "{}", failure.message);
                        wait(&mut backoff).await;
                    }
                    Err(failure) => return Done::Failed(failure),
                }
            }
        });
    }

    fn staged(&self, name: &ModelName) -> Result<Slot, Done> {
        let staged = self.models.get(name).and_then(|model| model.staged.clone());
        staged.ok_or_else(|| Done::Failed(Failure::new(Code::VerifyMismatch, "nothing is staged")))
    }

    pub(super) fn spawn_verify(&mut self, name: &ModelName) {
        let (staged, slots) = (self.staged(name), self.parts.slots.clone());
        self.spawn(name, async move {
            let slot = match staged {
                Ok(slot) => slot,
                Err(done) => return done,
            };
            blocking(move || match slots.open(&slot) {
                Ok(_) => Done::Verified,
                Err(error) => Done::Failed(Failure::new(Code::VerifyMismatch, error.to_string())),
            })
            .await
        });
    }

    pub(super) fn spawn_self_test(&mut self, name: &ModelName) {
        let (staged, slots, limit) = (self.staged(name), self.parts.slots.clone(), self.parts.self_test);
        self.spawn(name, async move {
            let slot = match staged {
                Ok(slot) => slot,
                Err(done) => return done,
            };
            match selftest::run(&slots.folder(&slot), &slot.digest, limit).await {
                Ok(_) => Done::SelfTested,
                Err(failure) => Done::Failed(failure),
            }
        });
    }

    pub(super) fn spawn_load(&mut self, name: &ModelName) {
        let (staged, slots, models) =
            (self.staged(name), self.parts.slots.clone(), Arc::clone(&self.parts.models));
        self.spawn(name, async move {
            let slot = match staged {
                Ok(slot) => slot,
                Err(done) => return done,
            };
            blocking(move || match load(&slots, &slot, &models) {
                Ok(loaded) => Done::Loaded(loaded),
                Err(failure) => Done::Failed(failure),
            })
            .await
        });
    }

    /// Loads what the pointer says after a rollback whose previous release is not in memory.
    pub(super) fn spawn_restore(&mut self, name: &ModelName) {
        let active = self.models.get(name).and_then(|model| model.pointer.active.clone());
        let (slots, models) = (self.parts.slots.clone(), Arc::clone(&self.parts.models));
        self.spawn(name, async move {
            let Some(slot) = active else { return Done::Restored(None) };
            blocking(move || match load(&slots, &slot, &models) {
                Ok(loaded) => Done::Restored(Some(loaded)),
                Err(failure) => {
                    tracing::error!(
                        code = failure.code,
                        "the previous release does not load: {}",
                        failure.message
                    );
                    Done::Restored(None)
                }
            })
            .await
        });
    }

    /// Verifies a desired state; the newest one replaces those still waiting.
    pub(super) fn spawn_desired(&mut self, bytes: Vec<u8>) {
        let Some(trust) = self.trust.clone() else {
            let failure = Failure::new(Code::TrustLost, "the trust store is unreadable");
            self.handle(Self::refusal("assignment", failure));
            return;
        };
        let (repository, device) = (self.parts.repository.clone(), self.parts.identity.device.clone());
        let sender = self.sender.clone();
        let task = tokio::spawn(async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
            loop {
                let input = match admit(&repository, &trust, &device, &bytes).await {
                    Ok(assignment) => Input::Assigned(Box::new(assignment)),
                    Err(failure) if failure.code == Code::FetchUnreachable.as_str() => {
                        wait(&mut backoff).await;
                        continue;
                    }
                    Err(failure) => Self::refusal("assignment", failure),
                };
                let _ = sender.send(input).await;
                return;
            }
        });
        if let Some(old) = self.desired.replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Looks for newer release metadata.
    pub(super) fn spawn_refresh(&mut self) {
        let Some(trust) = self.trust.clone() else { return };
        let (repository, sender) = (self.parts.repository.clone(), self.sender.clone());
        tokio::spawn(async move {
            let mut trust = trust.lock().await;
            match repository.refresh(&mut trust, clock::now()).await {
                Ok(()) => {}
                Err(failure) if failure.code.starts_with("tuf.") => {
                    let _ = sender.send(Self::refusal("metadata", failure)).await;
                }
                Err(failure) => tracing::debug!(code = failure.code, "metadata: {}", failure.message),
            }
        });
    }
}

async fn wait(backoff: &mut Backoff) {
    tokio::time::sleep(Duration::from_millis(backoff.next(rand::random()).0)).await;
}

async fn blocking(work: impl FnOnce() -> Done + Send + 'static) -> Done {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Done::Failed(Failure::new(Code::SelfTestCrashed, format!("the step panicked: {error}")))
    })
}

/// Opens a slot (which hashes all of it) and loads it.
pub(super) fn load(slots: &Slots, slot: &Slot, models: &Models) -> Result<Arc<Loaded>, Failure> {
    let whole = slots.open(slot).map_err(|error| Failure::new(Code::VerifyMismatch, error.to_string()))?;
    Loaded::new(slot.clone(), &whole.manifest, &whole.model, models.scheduling())
        .map(Arc::new)
        .map_err(|error| Failure::new(Code::SelfTestLoad, error.to_string()))
}

async fn fetch(
    repository: &Repository,
    trust: &Mutex<Trust>,
    slots: &Slots,
    release: &ReleaseId,
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<Slot, Failure> {
    let (manifest, bytes) = {
        let mut trust = trust.lock().await;
        repository.refresh(&mut trust, clock::now()).await?;
        repository.manifest(&trust.client, release, clock::now()).await?
    };
    compatible(&manifest, labels)?;
    let slot = Slot { release: release.clone(), digest: manifest.sha256().to_owned() };
    repository.slot(slots, &slot, &manifest, &bytes).await?;
    Ok(slot)
}

fn compatible(
    manifest: &Manifest,
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::new(Code::Incompatible, text));
    let requires = &manifest.requires;
    let version = semver::Version::parse(env!("CARGO_PKG_VERSION"));
    if let (Some(wanted), Ok(version)) = (&requires.agent, version)
        && !wanted.matches(&version)
    {
        return refuse(format!("{} needs agent {wanted}, this is {version}", manifest.release));
    }
    let arch = std::env::consts::ARCH;
    if !requires.architectures.is_empty() && !requires.architectures.iter().any(|a| a == arch) {
        return refuse(format!(
            "{} needs one of {:?}, this is {arch}",
            manifest.release, requires.architectures
        ));
    }
    for (key, value) in &requires.labels {
        if labels.get(key) != Some(value) {
            return refuse(format!("{} needs the label {key}={value}", manifest.release));
        }
    }
    Ok(())
}

/// Verifies a desired state against keys, device, time, the last one and the release repository, and makes
/// it durable. Metadata is refreshed first when what it needs is not there.
async fn admit(
    repository: &Repository,
    trust: &Mutex<Trust>,
    device: &DeviceId,
    bytes: &[u8],
) -> Result<Verified<Assignment>, Failure> {
    let mut trust = trust.lock().await;
    let first = check(&trust, device, bytes);
    let assignment = match first {
        Ok(assignment) => assignment,
        // A new key or a new release: look once, then judge.
        Err(failure) if is_stale(&failure) => {
            repository.refresh(&mut trust, clock::now()).await?;
            check(&trust, device, bytes)?
        }
        Err(failure) => return Err(failure),
    };
    if trust.last_assignment() != Some(&assignment.last()) {
        let kept = trust.keep_assignment(bytes, assignment.last());
        kept.map_err(|error| Failure::new(Code::StorageFailed, error.to_string()))?;
    }
    Ok(assignment)
}

fn is_stale(failure: &Failure) -> bool {
    ["assignment.signature", "tuf.incomplete", "tuf.unknown_target"].contains(&failure.code.as_str())
}

fn check(trust: &Trust, device: &DeviceId, bytes: &[u8]) -> Result<Verified<Assignment>, Failure> {
    let coded = |code: &'static str, text: String| Failure { code: code.to_owned(), message: text };
    let keys = trust.assignment_keys().unwrap_or_default();
    let assignment = assignment::verify(bytes, &keys, device, clock::now(), trust.last_assignment())
        .map_err(|e| coded(e.code(), e.to_string()))?;
    assignment.check_releases(&trust.client).map_err(|e| coded(e.code(), e.to_string()))?;
    Ok(assignment)
}
