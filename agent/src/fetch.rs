//! Fetching release metadata through the TUF client, and manifests by it. Files of a release are fetched by
//! `transfer`; where from is `source`'s business.

use std::sync::atomic::AtomicU64;

use farlight_device::update::Failure;
use farlight_release::Verified;
use farlight_release::config::ConfigManifest;
use farlight_release::manifest::{MAX_MANIFEST, Manifest};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Client, Step, TARGETS};
use farlight_wire::codes::Code;
use farlight_wire::{Millis, ReleaseId};

use crate::source::Source;
use crate::transfer::{Limits, Progress, Transfer};
use crate::trust::Trust;

/// Largest assignment-keys target in bytes.
const MAX_KEYS: u64 = 64 * 1024;

/// The places to fetch from, and what that may cost.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Asked for metadata in this order: what the cloud says first.
    metadata: Vec<Source>,
    /// Asked for files in this order: what is near first.
    files: Vec<Source>,
    limits: Limits,
    asked: Asked,
}

/// Who asked for what is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The cloud.
    ByAssignment,
    /// A person with a bundle, which may be older than what the device knows.
    ByBundle,
}

impl Repository {
    /// The cloud's own repository, and mirrors of it.
    pub fn new(cloud: Source, mirrors: Vec<Source>, limits: Limits) -> Self {
        let metadata = std::iter::once(&cloud).chain(&mirrors).cloned().collect();
        let files = mirrors.into_iter().chain([cloud]).collect();
        Self { metadata, files, limits, asked: Asked::ByAssignment }
    }

    /// The same with `bundle` asked for everything first.
    pub fn with_bundle(&self, bundle: Source) -> Self {
        let before = |sources: &[Source]| std::iter::once(&bundle).chain(sources).cloned().collect();
        let (metadata, files) = (before(&self.metadata), before(&self.files));
        Self { metadata, files, limits: self.limits.clone(), asked: Asked::ByBundle }
    }

    /// A transfer of files.
    pub fn transfer<'a>(&'a self, progress: &'a Progress, received: &'a AtomicU64) -> Transfer<'a> {
        Transfer { sources: &self.files, limits: &self.limits, progress, received }
    }

    /// Runs the TUF client workflow on the first source that can be reached and makes what it accepted
    /// durable, also when it ends half-way.
    ///
    /// # Errors
    /// The metadata's own code (`tuf.*`), or that no source can be reached.
    pub async fn refresh(&self, trust: &mut Trust, clock: Millis) -> Result<(), Failure> {
        let refreshed = self.fetch_metadata(trust, |client| client.begin_refresh(clock)).await;
        let refreshed = match refreshed {
            Ok(()) => self.fetch_assignment_keys(trust).await,
            refused => refused,
        };
        commit(trust)?;
        refreshed
    }

    /// Looks a release up in the delegated roles that may speak for it, and makes durable what that takes.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn look_up(
        &self,
        trust: &mut Trust,
        release: &ReleaseId,
        clock: Millis,
    ) -> Result<(), Failure> {
        let path = release.target_path();
        let looked_up = self.fetch_metadata(trust, |client| client.begin_lookup(&path, clock)).await;
        commit(trust)?;
        looked_up
    }

    /// Begins, and goes on until nothing more is wanted; anew on the next source where one is unreachable.
    async fn fetch_metadata(&self, trust: &mut Trust, begin: impl Fn(&mut Client)) -> Result<(), Failure> {
        let mut last = Failure::new(Code::FetchUnreachable, "there is no source of release metadata");
        for source in &self.metadata {
            begin(&mut trust.client);
            match fetch_from(source, trust).await {
                Err(failure) if failure.code == Code::FetchUnreachable => last = failure,
                done => return done,
            }
        }
        Err(last)
    }

    /// The same, but content with metadata that is trusted and fresh where no source can be reached, or a
    /// bundle is older than it: what is trusted is the stricter of the two then.
    ///
    /// # Errors
    /// As [`Self::refresh`], when what is trusted is not fresh.
    pub async fn look_again(&self, trust: &mut Trust, now: Millis) -> Result<(), Failure> {
        match self.refresh(trust, now).await {
            Err(failure)
                if (failure.code == Code::FetchUnreachable
                    || (failure.code == Code::TufRollbackTimestamp && self.asked == Asked::ByBundle))
                    && trust.client.check_fresh(now).is_ok() =>
            {
                tracing::debug!(code = failure.code.as_str(), "metadata: {}", failure.message);
                Ok(())
            }
            done => done,
        }
    }

    async fn fetch_assignment_keys(&self, trust: &mut Trust) -> Result<(), Failure> {
        if trust.assignment_keys().is_some() {
            return Ok(());
        }
        let bytes = self.target(&trust.client, ASSIGNMENT_KEYS, MAX_KEYS).await?;
        trust.client.assignment_keys(&bytes).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        trust.keep_assignment_keys(&bytes);
        Ok(())
    }

    async fn target(&self, client: &Client, path: &str, max_len: u64) -> Result<Vec<u8>, Failure> {
        let file = client.target_file(path).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        let mut last = Failure::new(Code::FetchMissing, format!("{path} is signed but not there"));
        for source in &self.metadata {
            match source.small(&format!("{TARGETS}{file}"), max_len).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// Fetches and verifies the manifest of a release.
    ///
    /// # Errors
    /// `tuf.*` or `manifest.*`, or that it cannot be fetched.
    pub async fn manifest(
        &self,
        trust: &mut Trust,
        release: &ReleaseId,
        clock: Millis,
    ) -> Result<(Verified<Manifest>, Vec<u8>), Failure> {
        let bytes = self.document(trust, release, clock).await?;
        let manifest = trust
            .client
            .verify_manifest(release, &bytes)
            .map_err(|e| Failure::new(e.code(), e.to_string()))?;
        Ok((manifest, bytes))
    }

    /// Fetches and verifies a configuration release.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn config(
        &self,
        trust: &mut Trust,
        release: &ReleaseId,
        clock: Millis,
    ) -> Result<(Verified<ConfigManifest>, Vec<u8>), Failure> {
        let bytes = self.document(trust, release, clock).await?;
        let config =
            trust.client.verify_config(release, &bytes).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        Ok((config, bytes))
    }

    async fn document(
        &self,
        trust: &mut Trust,
        release: &ReleaseId,
        clock: Millis,
    ) -> Result<Vec<u8>, Failure> {
        trust.client.check_fresh(clock).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        self.look_up(trust, release, clock).await?;
        trust.client.permits(release).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        self.target(&trust.client, &release.target_path(), MAX_MANIFEST).await
    }
}

async fn fetch_from(source: &Source, trust: &mut Trust) -> Result<(), Failure> {
    while let Step::Fetch { path, max_len } = trust.client.next() {
        let bytes = source.small(&path, max_len).await?;
        if let Some(keep) =
            trust.client.supply(bytes.as_deref()).map_err(|e| Failure::new(e.code(), e.to_string()))?
        {
            trust.keep(keep);
        }
    }
    Ok(())
}

fn commit(trust: &mut Trust) -> Result<(), Failure> {
    trust.commit().map_err(|e| Failure::new(Code::StorageFailed, e.to_string()))
}
