//! Fetching: release metadata through the TUF client, then manifest and blobs into a slot's `.part`
//! folder. Blobs are hashed before they are written, resume at the last good chunk, and a finished slot is
//! renamed into place; a power cut at any point costs at most one chunk.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use farlight_device::codes::Code;
use farlight_device::pointer::Slot;
use farlight_device::update::Failure;
use farlight_release::Verified;
use farlight_release::blob::ChunkVerifier;
use farlight_release::manifest::{Blob, MAX_MANIFEST, Manifest};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Client, Step};
use farlight_wire::{Millis, ReleaseId};
use reqwest::StatusCode;

use crate::durable;
use crate::slots::Slots;
use crate::trust::Trust;

/// Bytes written between two syncs of a blob.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;
/// Space that must stay free beside a release: room for telemetry and the trust store.
const SPARE_BYTES: u64 = 8 * 1024 * 1024;
/// Largest assignment-keys target in bytes.
const MAX_KEYS: u64 = 64 * 1024;

/// A transport to one repository.
#[derive(Debug, Clone)]
pub struct Repository {
    http: reqwest::Client,
    base: String,
    /// Ceiling in bytes a second; 0 means none.
    max_bytes_per_second: u64,
}

/// Why a file could not be had.
enum Got {
    File(Vec<u8>),
    NotFound,
}

fn unreachable(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::FetchUnreachable, format!("fetch {what}: {error}"))
}

fn storage(what: &Path, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::StorageFull {
        Code::FetchNoSpace
    } else {
        Code::StorageFailed
    };
    Failure::new(code, format!("write {}: {error}", what.display()))
}

impl Repository {
    /// A repository at `base` (ending in `/`).
    pub fn new(http: reqwest::Client, base: String, max_bytes_per_second: u64) -> Self {
        Self { http, base, max_bytes_per_second }
    }

    async fn get(&self, path: &str, max_len: u64) -> Result<Got, Failure> {
        let url = format!("{}{path}", self.base);
        let mut response = self.http.get(&url).send().await.map_err(|e| unreachable(path, &e))?;
        if response.status() == StatusCode::NOT_FOUND || response.status() == StatusCode::FORBIDDEN {
            return Ok(Got::NotFound);
        }
        if !response.status().is_success() {
            return Err(status(path, response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| unreachable(path, &e))? {
            bytes.extend_from_slice(&chunk);
            // One byte more than allowed proves that it is too long; the verifier says so.
            if bytes.len() as u64 > max_len {
                break;
            }
        }
        Ok(Got::File(bytes))
    }

    /// Runs the TUF client workflow; each accepted file is durable before the next is fetched.
    ///
    /// # Errors
    /// The metadata's own code (`tuf.*`), or that the repository cannot be reached.
    pub async fn refresh(&self, trust: &mut Trust, now: Millis) -> Result<(), Failure> {
        trust.client.begin_refresh(now);
        while let Step::Fetch { path, max_len } = trust.client.next() {
            let got = self.get(&path, max_len).await?;
            let bytes = match &got {
                Got::File(bytes) => Some(bytes.as_slice()),
                Got::NotFound => None,
            };
            let keep = trust
                .client
                .supply(bytes)
                .map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
            if let Some(keep) = keep {
                trust
                    .keep(keep.role, &keep.bytes)
                    .map_err(|e| Failure::new(Code::StorageFailed, e.to_string()))?;
            }
        }
        self.refresh_assignment_keys(trust).await
    }

    async fn refresh_assignment_keys(&self, trust: &mut Trust) -> Result<(), Failure> {
        if trust.assignment_keys().is_some() {
            return Ok(());
        }
        let bytes = self.target(&trust.client, ASSIGNMENT_KEYS, MAX_KEYS).await?;
        trust
            .client
            .assignment_keys(&bytes)
            .map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        trust.keep_assignment_keys(&bytes).map_err(|e| Failure::new(Code::StorageFailed, e.to_string()))
    }

    async fn target(&self, client: &Client, path: &str, max_len: u64) -> Result<Vec<u8>, Failure> {
        let file = client.target_file(path).ok_or_else(|| Failure {
            code: "tuf.unknown_target".to_owned(),
            message: format!("{path} is not a target of the release repository"),
        })?;
        match self.get(&format!("targets/{file}"), max_len).await? {
            Got::File(bytes) => Ok(bytes),
            Got::NotFound => Err(Failure::new(Code::FetchRefused, format!("{path} is signed but not there"))),
        }
    }

    /// Fetches and verifies the manifest of a release.
    ///
    /// # Errors
    /// `tuf.*` or `manifest.*`, or that it cannot be fetched.
    pub async fn manifest(
        &self,
        client: &Client,
        release: &ReleaseId,
        now: Millis,
    ) -> Result<(Verified<Manifest>, Vec<u8>), Failure> {
        client.check_fresh(now).map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        client.permits(release).map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        let bytes = self.target(client, &release.target_path(), MAX_MANIFEST).await?;
        let manifest = client
            .verify_manifest(release, &bytes)
            .map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        Ok((manifest, bytes))
    }

    /// Fetches everything the manifest names into the slot and makes it durable. A slot that is there
    /// already is left as it is: verification comes next in any case.
    ///
    /// # Errors
    /// `fetch.*` or `storage.*`.
    pub async fn slot(
        &self,
        slots: &Slots,
        slot: &Slot,
        manifest: &Verified<Manifest>,
        manifest_bytes: &[u8],
    ) -> Result<(), Failure> {
        let folder = slots.folder(slot);
        if folder.is_dir() {
            return Ok(());
        }
        let part = slots.part(slot);
        durable::create_folder(&part).map_err(|e| storage(&part, &e))?;
        let path = part.join("manifest.json");
        durable::replace(&path, manifest_bytes, durable::Access::Normal).map_err(|e| storage(&path, &e))?;
        let blobs: Vec<&Blob> =
            manifest.variants.first().map(|v| &v.blob).into_iter().chain([&manifest.golden]).collect();
        reserve(&part, &blobs)?;
        for blob in blobs {
            self.blob(&part.join(&blob.id), blob).await?;
        }
        durable::sync_folder(&part).map_err(|e| storage(&part, &e))?;
        std::fs::rename(&part, &folder).map_err(|e| storage(&folder, &e))?;
        durable::sync_parent(&folder).map_err(|e| storage(&folder, &e))
    }

    async fn blob(&self, path: &Path, blob: &Blob) -> Result<(), Failure> {
        let mut verifier = ChunkVerifier::new(blob)
            .map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        let mut file = resume(path, &mut verifier).map_err(|e| storage(path, &e))?;
        if verifier.offset() < blob.length {
            self.transfer(path, &mut file, &mut verifier, blob).await?;
        }
        verifier.finish().map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?;
        file.sync_all().map_err(|e| storage(path, &e))
    }

    async fn transfer(
        &self,
        path: &Path,
        file: &mut File,
        verifier: &mut ChunkVerifier,
        blob: &Blob,
    ) -> Result<(), Failure> {
        let name = format!("blobs/{}", blob.id);
        let from = verifier.offset();
        let url = format!("{}{name}", self.base);
        let request = self.http.get(&url).header(reqwest::header::RANGE, format!("bytes={from}-"));
        let mut response = request.send().await.map_err(|e| unreachable(&name, &e))?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            // The server ignores ranges: what is there already is skipped.
            StatusCode::OK => from,
            other => return Err(status(&name, other)),
        };
        let (mut skip, mut unsynced) = (skip, 0_u64);
        let started = tokio::time::Instant::now();
        let mut received_bytes = 0_u64;
        while let Some(bytes) = response.chunk().await.map_err(|e| unreachable(&name, &e))? {
            received_bytes += bytes.len() as u64;
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let mut received = &bytes[skipped as usize..];
            while let Some(chunk) = verifier
                .push(&mut received)
                .map_err(|e| Failure { code: e.code().to_owned(), message: e.to_string() })?
            {
                file.seek(SeekFrom::Start(chunk.offset)).map_err(|e| storage(path, &e))?;
                file.write_all(chunk.bytes).map_err(|e| storage(path, &e))?;
                unsynced += chunk.bytes.len() as u64;
            }
            if unsynced >= SYNC_EVERY {
                file.sync_data().map_err(|e| storage(path, &e))?;
                unsynced = 0;
            }
            if self.max_bytes_per_second > 0 {
                let due = received_bytes as f64 / self.max_bytes_per_second as f64;
                tokio::time::sleep_until(started + Duration::from_secs_f64(due)).await;
            }
        }
        Ok(())
    }
}

/// 4xx will not change by asking again; 5xx, 408 and 429 may.
fn status(what: &str, status: StatusCode) -> Failure {
    let again = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    let code = if again { Code::FetchUnreachable } else { Code::FetchRefused };
    Failure::new(code, format!("fetch {what}: status {status}"))
}

/// Opens a blob and verifies what is there, trusting neither its size nor any bitmap; cuts off the rest.
fn resume(path: &Path, verifier: &mut ChunkVerifier) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    'whole: loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let mut received = &buffer[..read];
        loop {
            match verifier.push(&mut received) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => break 'whole,
            }
        }
    }
    verifier.rewind();
    file.set_len(verifier.offset())?;
    Ok(file)
}

fn reserve(part: &Path, blobs: &[&Blob]) -> Result<(), Failure> {
    let need: u64 = blobs.iter().map(|blob| blob.length).sum::<u64>() + SPARE_BYTES;
    let stat = rustix::fs::statvfs(part).map_err(|e| storage(part, &e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= need {
        return Ok(());
    }
    Err(Failure::new(
        Code::FetchNoSpace,
        format!("{} MiB are needed in {}, {} MiB are free", need >> 20, part.display(), free >> 20),
    ))
}
