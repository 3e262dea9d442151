//! The registry: releases that were signed offline, verified when they are uploaded, published in the
//! repository, recorded for ever. Rollouts choose among them; the service cannot make one.

pub mod api;
mod change;
mod document;
mod guard;
mod online;
mod records;
mod repository;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farlight_onnx::OnnxError;
use farlight_release::Verified;
use farlight_release::blob::FetchError;
use farlight_release::key::KeyPair;
use farlight_release::manifest::{Manifest, ManifestError};
use farlight_release::tuf::{TufError, VerifyError};
use farlight_wire::codes::Code;
use farlight_wire::{Millis, ReleaseId};
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

pub use change::Change;
pub use document::{Document, Plain};
pub use online::{OnlineKeys, OnlinePublic};
pub use records::Record;
pub use repository::{Repository, RoleStatus, Status};

use crate::clock;
use crate::files::{self, FileError};
use crate::store::{Store, StoreError};

/// How often the online signatures are looked at; they are renewed at half of their days.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// Why the registry refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Signed metadata does not verify.
    #[error(transparent)]
    Tuf(#[from] TufError),
    /// A manifest breaks a rule.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The bytes of a blob are not what its id says.
    #[error(transparent)]
    Blob(#[from] FetchError),
    /// A model file is over a limit, or no model.
    #[error("model file {blob}: {source}")]
    Model {
        /// The blob.
        blob: String,
        /// Why.
        source: OnnxError,
    },
    /// An upload does not hold together.
    #[error("{0}")]
    Refused(String),
    /// A release names a blob that was not uploaded.
    #[error("blob {0} was not uploaded")]
    MissingBlob(String),
    /// A published target would change.
    #[error("target {0:?} is published with other content; a release never changes")]
    Immutable(String),
    /// There is a root already.
    #[error("the repository has another root already")]
    Initialised,
    /// There is no root yet.
    #[error("the repository has no root yet")]
    NotInitialised,
    /// An online key cannot be used.
    #[error("online key {path}: {why}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task of ours ended early.
    #[error("a task of the registry ended early: {0}")]
    Task(String),
}

impl RegistryError {
    /// The code of a refusal; `None` for a failure of the service itself.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Tuf(error) => Some(error.code()),
            Self::Manifest(error) => Some(error.code()),
            Self::Blob(error) => Some(error.code()),
            Self::Model { source, .. } => Some(source.code()),
            Self::Refused(_) => Some(Code::RegistryRefused),
            Self::MissingBlob(_) => Some(Code::RegistryMissingBlob),
            Self::Immutable(_) => Some(Code::RegistryImmutable),
            Self::Initialised => Some(Code::RegistryInitialised),
            Self::NotInitialised => Some(Code::RegistryNotInitialised),
            Self::Key { .. } | Self::File(_) | Self::Store(_) | Self::Task(_) => None,
        }
    }
}

impl From<VerifyError> for RegistryError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Tuf(error) => Self::Tuf(error),
            VerifyError::Manifest(error) => Self::Manifest(error),
        }
    }
}

/// The registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    repository: Arc<RwLock<Repository>>,
    data: PathBuf,
    store: Store,
}

impl Registry {
    /// Opens the registry below the data folder: `keys/`, `repo/`, `uploads/` and the table `releases`.
    /// Releases that a crash kept out of the table are recorded now.
    ///
    /// # Errors
    /// [`RegistryError`] when files or database cannot be used, or the repository does not verify.
    pub async fn open(data: &Path, store: Store) -> Result<Self, RegistryError> {
        let uploads = data.join("uploads");
        // What a crash left half uploaded is worth nothing: its digest is not known.
        let _ = std::fs::remove_dir_all(&uploads);
        files::folder(&uploads)?;
        let repository = Repository::open(&data.join("repo"), &data.join("keys"))?;
        let registry = Self { repository: Arc::new(RwLock::new(repository)), data: data.to_owned(), store };
        registry.reconcile().await?;
        Ok(registry)
    }

    /// The key that signs assignments.
    pub async fn assignment_key(&self) -> KeyPair {
        self.repository.read().await.keys().assignment.clone()
    }

    /// The newest root as it was uploaded; `None` before `farlight repo init`.
    pub async fn newest_root(&self) -> Option<Vec<u8>> {
        self.repository.read().await.newest_root().map(<[u8]>::to_vec)
    }

    /// The public halves of the online keys.
    pub async fn online_keys(&self) -> OnlinePublic {
        self.repository.read().await.keys().public()
    }

    /// The keys that are to replace the online keys. See [`Repository::next_keys`].
    ///
    /// # Errors
    /// [`RegistryError`] when they cannot be made.
    pub async fn next_online_keys(&self, actor: &str) -> Result<OnlinePublic, RegistryError> {
        let next = self.change(|repository, _| repository.next_keys()).await?;
        records::note(&self.store, actor, "repo.online_keys", "next keys asked for").await?;
        Ok(next)
    }

    /// Where the repository stands; `None` before `farlight repo init`.
    pub async fn status(&self) -> Option<Status> {
        self.repository.read().await.status()
    }

    /// Takes the first root and targets. See [`Repository::init`].
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold.
    pub async fn init_root(
        &self,
        root: Vec<u8>,
        targets: Vec<u8>,
        assignment_keys: Vec<u8>,
        actor: &str,
    ) -> Result<(), RegistryError> {
        self.change(move |repository, now| repository.init(&root, &targets, &assignment_keys, now)).await?;
        records::note(&self.store, actor, "repo.init", "root 1").await?;
        Ok(())
    }

    /// Takes metadata that adds a release. See [`Repository::accept`].
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold.
    pub async fn publish(&self, change: Change, actor: &str) -> Result<Record, RegistryError> {
        let added = self.change(move |repository, now| repository.accept(&change, now)).await?;
        let Some(added) = added else {
            return Err(RegistryError::Refused("the document of the release is missing".to_owned()));
        };
        Ok(records::record(&self.store, &added, actor, clock::now()).await?)
    }

    /// Takes metadata that adds nothing: later expiry, a raised floor, a withdrawn release, other keys.
    ///
    /// # Errors
    /// [`RegistryError`] saying what does not hold.
    pub async fn renew(&self, change: Change, actor: &str) -> Result<(), RegistryError> {
        let change = Change { release: None, ..change };
        let mut roles: Vec<String> = change.roles.keys().cloned().collect();
        roles.extend(change.targets.iter().map(|_| "targets".to_owned()));
        roles.extend(change.root.iter().map(|_| "root".to_owned()));
        self.change(move |repository, now| repository.accept(&change, now)).await?;
        records::note(&self.store, actor, "repo.metadata", &roles.join(", ")).await?;
        Ok(())
    }

    /// The releases, newest first; of one model, if that is given.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn releases(&self, model: Option<&str>) -> Result<Vec<Record>, RegistryError> {
        Ok(records::list(&self.store, model).await?)
    }

    /// One release.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn release(&self, id: &ReleaseId) -> Result<Option<Record>, RegistryError> {
        Ok(records::get(&self.store, id).await?)
    }

    /// The document of a release that is published now.
    ///
    /// # Errors
    /// [`RegistryError`] when its file cannot be read or was changed.
    pub async fn document(&self, id: &ReleaseId) -> Result<Option<Document>, RegistryError> {
        self.repository.read().await.document(id)
    }

    /// The manifest of a release of a model that is published now.
    ///
    /// # Errors
    /// [`RegistryError`] when its file cannot be read or was changed.
    pub async fn manifest(&self, id: &ReleaseId) -> Result<Option<Verified<Manifest>>, RegistryError> {
        Ok(self.document(id).await?.and_then(Document::into_manifest))
    }

    /// Whether an assignment may name this release: signed, and not below its model's floor.
    pub async fn permits(&self, id: &ReleaseId) -> Result<(), RegistryError> {
        self.repository.read().await.permits(id)
    }

    /// Where the file of a blob is; `None` when `id` is no digest.
    pub async fn blob(&self, id: &str) -> Option<PathBuf> {
        self.repository.read().await.blob(id)
    }

    /// Folder for files that are not verified yet, on the same file system as the blobs.
    pub fn uploads(&self) -> PathBuf {
        self.data.join("uploads")
    }

    /// Folder that is served under `/repo`.
    pub fn folder(&self) -> PathBuf {
        self.data.join("repo")
    }

    /// Keeps the online signatures fresh until `shutdown`.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        loop {
            match self.change(|repository, now| repository.renew(now)).await {
                Ok(true) => tracing::info!("signed snapshot and timestamp again"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "snapshot and timestamp could not be signed again"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RENEWAL_CHECK) => {}
            }
        }
    }

    /// Runs a change of the repository, one at a time, off the asynchronous threads: it syncs files.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Repository, Millis) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let mut repository = Arc::clone(&self.repository).write_owned().await;
        tokio::task::spawn_blocking(move || change(&mut repository, clock::now()))
            .await
            .map_err(|e| RegistryError::Task(e.to_string()))?
    }

    async fn reconcile(&self) -> Result<(), RegistryError> {
        let repository = self.repository.read().await;
        for id in repository.releases() {
            if records::get(&self.store, &id).await?.is_none()
                && let Some(document) = repository.document(&id)?
            {
                records::record(&self.store, &document, "registry", clock::now()).await?;
            }
        }
        Ok(())
    }
}
