//! The driver's slow steps, each a task that answers with one event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use farlight_device::backoff::Backoff;
use farlight_device::pointer::Slot;
use farlight_device::shadow;
use farlight_device::update::Failure;
use farlight_release::Verified;
use farlight_release::assignment::{self, Assignment};
use farlight_release::manifest::Requires;
use farlight_release::tuf::Client;
use farlight_wire::codes::Code;
use farlight_wire::{DeviceId, Millis, ModelName, ReleaseId};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{Done, Driver, Input, Ready, Step};
use crate::choice::Trial;
use crate::clock;
use crate::fetch::Repository;
use crate::models::{How, Loaded, Models};
use crate::runtime::ConfigSlot;
use crate::slots::{Opened, Slots, Whole};
use crate::source::{Source, Trouble};
use crate::transfer::{Contents, Progress};
use crate::trust::Trust;

/// Waits between tries to reach the repository.
const RETRY_FIRST: Millis = Millis(500);
const RETRY_LAST: Millis = Millis(60_000);
/// Tries that every source was too slow for, before the job fails.
const MAX_SLOW: u32 = 3;
/// Largest list of a bundle's releases in bytes.
const MAX_BUNDLE: u64 = 64 * 1024;

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

    pub(super) fn spawn_fetch(&mut self, name: &ModelName, slot: Slot) {
        let Some(trust) = self.trust.clone() else {
            self.spawn(name, async move { Done::Failed(trust_lost()) });
            return;
        };
        let Some(model) = self.models.get_mut(name) else { return };
        model.told = 0;
        model.progress = Arc::default();
        model.received = Arc::default();
        let work = Fetch {
            repository: match &model.bundle {
                Some(bundle) => self.parts.repository.with_bundle(bundle.clone()),
                None => self.parts.repository.clone(),
            },
            trust,
            slots: self.parts.slots.clone(),
            slot,
            labels: self.parts.labels.clone(),
            progress: Arc::clone(&model.progress),
            received: Arc::clone(&model.received),
        };
        self.spawn(name, async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
            let mut slow = 0;
            loop {
                let trouble = match work.run().await {
                    Ok(()) => return Done::Fetched(work.slot),
                    Err(trouble) => trouble,
                };
                let failure = trouble.failure;
                slow += u32::from(failure.code == Code::FetchTooSlow);
                let again = matches!(failure.code, Code::FetchUnreachable | Code::FetchTooSlow);
                if !again || slow >= MAX_SLOW {
                    return Done::Failed(failure);
                }
                tracing::warn!(release = %work.slot.release, code = failure.code.as_str(), "{}", failure.message);
                match trouble.wait {
                    // Spread, so that a fleet that was sent away does not come back as one.
                    Some(wait) => tokio::time::sleep(wait.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await,
                    None => wait(&mut backoff).await,
                }
            }
        });
    }

    fn staged(&self, name: &ModelName) -> Result<Slot, Failure> {
        let staged = self.models.get(name).and_then(|model| model.staged.clone());
        staged.ok_or_else(|| Failure::new(Code::VerifyMismatch, "nothing is staged"))
    }

    /// Works on the staged slot off the asynchronous threads.
    fn spawn_on_staged(
        &mut self,
        name: &ModelName,
        work: impl FnOnce(&Slots, &Slot, &Models) -> Result<Done, Failure> + Send + 'static,
    ) {
        let staged = self.staged(name);
        let (slots, models) = (self.parts.slots.clone(), Arc::clone(&self.parts.models));
        self.spawn(name, async move {
            match staged {
                Ok(slot) => blocking(move || work(&slots, &slot, &models).unwrap_or_else(Done::Failed)).await,
                Err(failure) => Done::Failed(failure),
            }
        });
    }

    pub(super) fn spawn_verify(&mut self, name: &ModelName) {
        self.spawn_on_staged(name, |slots, slot, _| match slots.verify(slot) {
            Ok(()) => Ok(Done::Verified),
            Err(error) => Err(Failure::new(Code::VerifyMismatch, error.to_string())),
        });
    }

    pub(super) fn spawn_self_test(&mut self, name: &ModelName) {
        let (staged, slots, limit) = (self.staged(name), self.parts.slots.clone(), self.parts.self_test);
        let (program, within) = (self.parts.program.clone(), self.parts.choose);
        let engines = self.parts.models.engines().clone();
        self.spawn(name, async move {
            let slot = match staged {
                Ok(slot) => slot,
                Err(failure) => return Done::Failed(failure),
            };
            if super::is_config(&slot.release.model) {
                // It holds settings only: what reading and checking it can find was found by verifying it.
                return Done::SelfTested(None);
            }
            let (folder, digest) = (slots.folder(&slot), slot.digest.clone());
            let pins = slots.pins(&slot.release.model);
            let trial = Trial { program, folder, digest, limit, within, pins, engines };
            let manifest = match slots.manifest(&slot) {
                Ok(manifest) => manifest,
                Err(error) => return Done::Failed(Failure::new(Code::VerifyMismatch, error.to_string())),
            };
            match trial.run(&manifest).await {
                // Worth telling where there was something to choose from.
                Ok(choice) => Done::SelfTested(
                    Some(Box::new(choice.report(&manifest))).filter(|report| report.tried.len() > 1),
                ),
                Err(failure) => Done::Failed(failure),
            }
        });
    }

    /// Loads a candidate that is to be shadowed.
    pub(super) fn spawn_shadow(&mut self, name: &ModelName, policy: shadow::Policy) {
        self.spawn_on_staged(name, move |slots, slot, models| match load(slots, slot, models)? {
            Ready::Model(loaded) => Ok(Done::ShadowReady(loaded, policy)),
            Ready::Config(_) => Err(Failure::new(Code::ShadowErrors, "a configuration has no shadow")),
        });
    }

    pub(super) fn spawn_load(&mut self, name: &ModelName) {
        self.spawn_on_staged(name, |slots, slot, models| load(slots, slot, models).map(Done::Loaded));
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
                        code = failure.code.as_str(),
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
            self.handle(Self::refusal("assignment", trust_lost()));
            return;
        };
        let (repository, device) = (self.parts.repository.clone(), self.parts.identity.device.clone());
        let sender = self.sender.clone();
        let task = tokio::spawn(async move {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
            loop {
                let input = match admit(&repository, &trust, &device, &bytes).await {
                    Ok((assignment, slots)) => Input::Assigned(Box::new(assignment), slots),
                    Err(failure) if failure.code == Code::FetchUnreachable => {
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
                Err(failure) if failure.code.phase() == "tuf" => {
                    let _ = sender.send(Self::refusal("metadata", failure)).await;
                }
                Err(failure) => {
                    tracing::debug!(code = failure.code.as_str(), "metadata: {}", failure.message);
                }
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

pub(super) fn trust_lost() -> Failure {
    Failure::new(Code::TrustLost, "the trust store is unreadable")
}

/// Opens a slot (which hashes all of it) and loads it.
pub(super) fn load(slots: &Slots, slot: &Slot, models: &Models) -> Result<Ready, Failure> {
    let opened = slots.open(slot).map_err(|error| Failure::new(Code::VerifyMismatch, error.to_string()))?;
    match opened {
        Opened::Config(config) => {
            Ok(Ready::Config(ConfigSlot { slot: slot.clone(), runtime: (*config).into_inner().runtime }))
        }
        Opened::Model(whole) => {
            let scheduling = models.scheduling(slot.release.model.as_str());
            let Whole { manifest, model, precision, way, .. } = &*whole;
            let how = How { scheduling, way: *way, engines: models.engines(), precision };
            let loaded = Loaded::new(slot.clone(), manifest, model, how);
            loaded
                .map(|loaded| Ready::Model(Arc::new(loaded)))
                .map_err(|error| Failure::new(error.code(), error.to_string()))
        }
    }
}

/// What a fetching task works on.
struct Fetch {
    repository: Repository,
    trust: Arc<Mutex<Trust>>,
    slots: Slots,
    slot: Slot,
    labels: BTreeMap<String, String>,
    progress: Arc<Progress>,
    received: Arc<AtomicU64>,
}

impl Fetch {
    async fn run(&self) -> Result<(), Trouble> {
        let release = &self.slot.release;
        let transfer = self.repository.transfer(&self.progress, &self.received);
        if super::is_config(&release.model) {
            let (config, bytes) = {
                let mut trust = self.trust.lock().await;
                self.repository.look_again(&mut trust, clock::now()).await?;
                self.repository.config(&mut trust, release, clock::now()).await?
            };
            compatible(release, &config.requires, &self.labels)?;
            self.is_wanted(config.sha256())?;
            let contents = Contents { manifest: &bytes, blobs: Vec::new(), shortcut: None };
            return transfer.slot(&self.slots, &self.slot, &contents).await;
        }
        let (manifest, bytes) = {
            let mut trust = self.trust.lock().await;
            self.repository.look_again(&mut trust, clock::now()).await?;
            self.repository.manifest(&mut trust, release, clock::now()).await?
        };
        compatible(release, &manifest.requires, &self.labels)?;
        self.is_wanted(manifest.sha256())?;
        let wanted = self.slots.pins(&release.model).wanted(&manifest.variants);
        let blobs = wanted.iter().map(|variant| &variant.blob).chain([&manifest.golden]);
        let shortcut =
            wanted.first().and_then(|variant| self.slots.shortcut(&release.model, &variant.deltas));
        let contents = Contents { manifest: &bytes, blobs: blobs.collect(), shortcut };
        transfer.slot(&self.slots, &self.slot, &contents).await
    }

    /// The metadata may have moved on between the wish and the fetch.
    fn is_wanted(&self, digest: &str) -> Result<(), Failure> {
        if digest == self.slot.digest {
            return Ok(());
        }
        let text = format!(
            "{} was signed anew meanwhile; the next assignment says what is wanted",
            self.slot.release
        );
        Err(Failure::new(Code::Superseded, text))
    }
}

/// The digest that signed metadata gives the manifest of a release.
fn slot_of(client: &Client, release: &ReleaseId) -> Result<Slot, Failure> {
    let target = client.permits(release).map_err(|e| Failure::new(e.code(), e.to_string()))?;
    let digest = target
        .hashes
        .get("sha256")
        .ok_or_else(|| Failure::new(Code::TufMalformed, format!("the target of {release} has no SHA-256")))?;
    Ok(Slot { release: release.clone(), digest: digest.to_owned() })
}

/// The list of a bundle: for people and programs; what is in it is verified by the metadata.
#[derive(Deserialize)]
struct Bundle {
    releases: Vec<ReleaseId>,
}

/// The releases of a bundle, by the newest metadata that can be had.
pub(super) async fn find_bundle(
    repository: &Repository,
    bundle: &Source,
    trust: &mut Trust,
    only: Option<&ReleaseId>,
) -> Result<Vec<Slot>, Failure> {
    let refuse = |text: String| Failure::new(Code::FetchBundle, text);
    let list = bundle.small("bundle.json", MAX_BUNDLE).await?;
    let list = list.ok_or_else(|| {
        refuse(format!("{bundle} has no bundle.json; make it with farlight release export"))
    })?;
    let list: Bundle =
        serde_json::from_slice(&list).map_err(|error| refuse(format!("bundle.json of {bundle}: {error}")))?;
    let releases: Vec<ReleaseId> =
        list.releases.into_iter().filter(|release| only.is_none_or(|only| only == release)).collect();
    if releases.is_empty() || releases.len() > assignment::MAX_MODELS {
        return Err(refuse(format!("{bundle} holds no release that was asked for")));
    }
    repository.look_again(trust, clock::now()).await?;
    let mut slots = Vec::with_capacity(releases.len());
    for release in &releases {
        slots.push(look_up(repository, trust, release).await?);
    }
    Ok(slots)
}

fn compatible(
    release: &ReleaseId,
    requires: &Requires,
    labels: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let refuse = |code: Code, text: String| Err(Failure::new(code, text));
    let version = semver::Version::parse(env!("CARGO_PKG_VERSION"));
    if let (Some(wanted), Ok(version)) = (&requires.agent, version)
        && !wanted.matches(&version)
    {
        return refuse(Code::AgentVersion, format!("{release} needs agent {wanted}, this is {version}"));
    }
    let arch = std::env::consts::ARCH;
    if !requires.architectures.is_empty() && !requires.architectures.iter().any(|a| a == arch) {
        let text = format!("{release} needs one of {:?}, this is {arch}", requires.architectures);
        return refuse(Code::Architecture, text);
    }
    for (key, value) in &requires.labels {
        if labels.get(key) != Some(value) {
            return refuse(Code::Label, format!("{release} needs the label {key}={value}"));
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
) -> Result<(Verified<Assignment>, Vec<Slot>), Failure> {
    let mut trust = trust.lock().await;
    let first = check(repository, &mut trust, device, bytes).await;
    let (assignment, slots) = match first {
        Ok(checked) => checked,
        // A new key or a new release: look once, then judge.
        Err(failure) if is_stale(failure.code) => {
            repository.refresh(&mut trust, clock::now()).await?;
            check(repository, &mut trust, device, bytes).await?
        }
        Err(failure) => return Err(failure),
    };
    if trust.last_assignment() != Some(&assignment.last()) {
        let kept = trust.keep_assignment(bytes, assignment.last());
        kept.map_err(|error| Failure::new(Code::StorageFailed, error.to_string()))?;
    }
    Ok((assignment, slots))
}

fn is_stale(code: Code) -> bool {
    matches!(
        code,
        Code::AssignmentUnknownKey | Code::TufIncomplete | Code::TufUnknownTarget | Code::TufMissing
    )
}

async fn check(
    repository: &Repository,
    trust: &mut Trust,
    device: &DeviceId,
    bytes: &[u8],
) -> Result<(Verified<Assignment>, Vec<Slot>), Failure> {
    let keys = trust.assignment_keys().unwrap_or_default();
    let now = trust.client.trusted_now(clock::now());
    let assignment = assignment::verify(bytes, &keys, device, now, trust.last_assignment())
        .map_err(|e| Failure::new(e.code(), e.to_string()))?;
    let mut slots = Vec::with_capacity(assignment.models.len());
    for model in &assignment.models {
        slots.push(look_up(repository, trust, &model.release).await?);
    }
    Ok((assignment, slots))
}

/// Asks the delegated roles that may speak for a release, and then what the metadata says of it.
async fn look_up(repository: &Repository, trust: &mut Trust, release: &ReleaseId) -> Result<Slot, Failure> {
    repository.look_up(trust, release, clock::now()).await?;
    slot_of(&trust.client, release)
}
