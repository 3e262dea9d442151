//! Fetching the files of a release into a slot's `.part` folder. Chunks are hashed before they are written,
//! a torn download resumes at the last good chunk, and a finished slot is renamed into place; a power cut at
//! any point costs at most one chunk. What it may cost is bounded: bytes, bytes a second, hours of the day.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use farlight_device::pointer::Slot;
use farlight_device::schedule::{self, Window};
use farlight_device::update::Failure;
use farlight_release::blob::ChunkVerifier;
use farlight_release::manifest::Blob;
use farlight_wire::codes::{Again, Code};
use tokio::time::Instant;

use crate::clock::{self, Zone};
use crate::delta;
use crate::durable;
use crate::slots::Slots;
use crate::source::{Source, Trouble};
use crate::validator::Keeper;

/// Bytes written between two syncs of a blob.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;
/// Space that must stay free beside a release: room for telemetry and the trust store.
const SPARE_BYTES: u64 = 8 * 1024 * 1024;
/// A source that sends less than this, in bytes a second, does not mean to finish.
const SLOWEST: u64 = 1024;
/// How often the bytes of a release may come, all sources and tries of one job together.
const BUDGET_FACTOR: u64 = 3;
/// And beyond that: small releases may be tried often.
const BUDGET_SPARE: u64 = 16 * 1024 * 1024;
/// How often a closed download window is looked at again.
const WINDOW_POLL: Duration = Duration::from_secs(1);
/// Name of a delta in a `.part` folder while it is needed. Files of a release are named by their digest.
const DELTA: &str = "delta";

/// What downloads may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Ceiling in bytes a second; 0 means none.
    pub max_bytes_per_second: u64,
    /// A source that is slower than [`SLOWEST`] for so long is given up.
    pub stall: Duration,
    /// When downloads may run; always when empty.
    pub windows: Vec<Window>,
    /// The time zone of the windows.
    pub zone: Zone,
}

impl Limits {
    fn is_open(&self) -> bool {
        let now = clock::now();
        schedule::is_open(&self.windows, now, self.zone.offset_minutes(now))
    }

    async fn opened(&self) {
        while !self.is_open() {
            tokio::time::sleep(WINDOW_POLL).await;
        }
    }
}

/// How far a download is; written by its task, read by status and reports.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Verified bytes on disk, and bytes of the release; `None` before its size is known.
    pub fn get(&self) -> Option<(u64, u64)> {
        let total = self.total.load(Ordering::Relaxed);
        (total > 0).then(|| (self.done.load(Ordering::Relaxed).min(total), total))
    }
}

/// What a slot is made of.
pub struct Contents<'a> {
    /// Its manifest, as signed.
    pub manifest: &'a [u8],
    /// Its files.
    pub blobs: Vec<&'a Blob>,
    /// How the first of them can be made of a file that is there.
    pub shortcut: Option<Shortcut<'a>>,
}

/// A delta that is fetched in place of a file.
#[derive(Debug)]
pub struct Shortcut<'a> {
    /// The older file.
    pub old: PathBuf,
    /// What makes the newer one of it.
    pub delta: &'a Blob,
}

/// One job's transfer.
pub struct Transfer<'a> {
    /// Where to look, in order.
    pub sources: &'a [Source],
    /// What it may cost.
    pub limits: &'a Limits,
    /// How far it is.
    pub progress: &'a Progress,
    /// Bytes that came so far, whether or not they were good.
    pub received: &'a AtomicU64,
}

pub(crate) fn storage(what: &Path, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::StorageFull {
        Code::FetchNoSpace
    } else {
        Code::StorageFailed
    };
    Failure::new(code, format!("write {}: {error}", what.display()))
}

enum Ended {
    Complete,
    WindowClosed,
}

impl Transfer<'_> {
    /// Fetches everything into the slot and makes it durable. A slot that is there already is left as it
    /// is: verification comes next in any case.
    ///
    /// # Errors
    /// `fetch.*` or `storage.*`, and how long a server asks to wait.
    pub async fn slot(&self, slots: &Slots, slot: &Slot, contents: &Contents<'_>) -> Result<(), Trouble> {
        let folder = slots.folder(slot);
        if folder.is_dir() {
            return Ok(());
        }
        let part = slots.part(slot);
        durable::create_folder(&part).map_err(|e| storage(&part, &e))?;
        let path = part.join("manifest.json");
        durable::replace(&path, contents.manifest, durable::Access::Normal)
            .map_err(|e| storage(&path, &e))?;
        let total: u64 = contents.blobs.iter().map(|blob| blob.length).sum();
        let mut blobs = &contents.blobs[..];
        if let (Some((first, rest)), Some(shortcut)) = (blobs.split_first(), &contents.shortcut)
            && self.make(&part, first, shortcut, total).await?
        {
            blobs = rest;
        } else {
            self.progress.begin(total);
        }
        reserve(&part, blobs)?;
        for blob in blobs {
            self.blob(&part.join(&blob.id), blob, total).await?;
        }
        let delta = part.join(DELTA);
        durable::remove(&delta).map_err(|e| storage(&delta, &e))?;
        Keeper::new(&part).forget().map_err(|e| storage(&part, &e))?;
        durable::sync_folder(&part).map_err(|e| storage(&part, &e))?;
        std::fs::rename(&part, &folder).map_err(|e| storage(&folder, &e))?;
        durable::sync_parent(&folder).map_err(|e| storage(&folder, &e).into())
    }

    /// Makes one file by a delta and tells whether it is there; what fails is logged, and the whole file is
    /// fetched from the bytes on that were made.
    ///
    /// # Errors
    /// `delta.bomb`: whoever signed such a delta is not asked for the whole file.
    async fn make(
        &self,
        part: &Path,
        blob: &Blob,
        shortcut: &Shortcut<'_>,
        total: u64,
    ) -> Result<bool, Trouble> {
        let (path, delta) = (part.join(&blob.id), part.join(DELTA));
        // A file without its delta was made, or is being fetched because the delta failed.
        if path.exists() && !delta.exists() {
            return Ok(false);
        }
        self.progress.begin(total - blob.length + shortcut.delta.length);
        let made = async {
            reserve(part, &[blob, shortcut.delta])?;
            self.blob(&delta, shortcut.delta, total).await?;
            let (old, delta, path, blob) = (shortcut.old.clone(), delta.clone(), path.clone(), blob.clone());
            let made = tokio::task::spawn_blocking(move || delta::apply(&old, &delta, &path, &blob)).await;
            made.unwrap_or_else(|error| {
                Err(Failure::new(Code::DeltaMalformed, format!("applying the delta panicked: {error}")))
            })
            .map_err(Trouble::from)
        };
        let made: Result<(), Trouble> = made.await;
        // What the network broke off goes on at the next try.
        let broken_off =
            |trouble: &Trouble| matches!(trouble.failure.code, Code::FetchUnreachable | Code::FetchTooSlow);
        if !made.as_ref().is_err_and(broken_off) {
            let _ = durable::remove(&delta);
        }
        match made {
            Ok(()) => {
                tracing::info!(old = %shortcut.old.display(), bytes = shortcut.delta.length, of = blob.length,
                    "blob {} made by a delta", blob.id);
                Ok(true)
            }
            Err(trouble) if trouble.failure.code == Code::DeltaBomb => Err(trouble),
            Err(Trouble { failure, .. }) => {
                tracing::warn!(
                    code = failure.code.as_str(),
                    "no delta for blob {}, it is fetched whole: {}",
                    blob.id,
                    failure.message
                );
                Ok(false)
            }
        }
    }

    /// Fetches one file, from the first source that gives it whole.
    ///
    /// # Errors
    /// `fetch.*` or `storage.*`. What may be better later goes before what will not.
    pub async fn blob(&self, path: &Path, blob: &Blob, total: u64) -> Result<(), Trouble> {
        let mut verifier = ChunkVerifier::new(blob).map_err(|e| Failure::new(e.code(), e.to_string()))?;
        let mut file = resume(path, &mut verifier).map_err(|e| storage(path, &e))?;
        self.progress.done.fetch_add(verifier.offset(), Ordering::Relaxed);
        // Room is taken before the first byte: a full disk is found now and not half-way. Some file systems
        // cannot.
        if let Err(error) =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, blob.length)
            && error == rustix::io::Errno::NOSPC
        {
            return Err(storage(path, &error.into()).into());
        }
        let mut best: Option<Trouble> = None;
        let mut sources = self.sources.iter();
        let mut source = sources.next();
        while let Some(current) = source {
            if verifier.offset() == blob.length {
                break;
            }
            self.limits.opened().await;
            match self.from(current, path, &mut file, &mut verifier, blob, total).await {
                Ok(Ended::Complete) => break,
                Ok(Ended::WindowClosed) => {}
                Err(trouble) => {
                    tracing::warn!(source = %current, code = trouble.failure.code.as_str(), "{}", trouble.failure.message);
                    if matches!(
                        trouble.failure.code,
                        Code::StorageFailed | Code::FetchNoSpace | Code::FetchBudget
                    ) {
                        return Err(trouble);
                    }
                    verifier.rewind();
                    if verifier.offset() == blob.length {
                        // Whole, and then more: who sends what was not signed is not believed.
                        return Err(trouble);
                    }
                    let later = trouble.failure.code.again() == Again::Later;
                    if best.as_ref().is_none_or(|best| later && best.failure.code.again() == Again::Never) {
                        best = Some(trouble);
                    }
                    source = sources.next();
                }
            }
        }
        if verifier.offset() < blob.length {
            let none = || Failure::new(Code::FetchMissing, format!("no source for blob {}", blob.id));
            return Err(best.unwrap_or_else(|| none().into()));
        }
        verifier.finish().map_err(|e| Failure::new(e.code(), e.to_string()))?;
        file.sync_all().map_err(|e| storage(path, &e).into())
    }

    async fn from(
        &self,
        source: &Source,
        path: &Path,
        file: &mut File,
        verifier: &mut ChunkVerifier,
        blob: &Blob,
        total: u64,
    ) -> Result<Ended, Trouble> {
        let name = format!("blobs/{}", blob.id);
        // A file of one chunk is never resumed.
        let kept = (blob.chunks.len() > 1).then(|| path.parent().map(Keeper::new)).flatten();
        let origin = source.to_string();
        let version = kept.as_ref().and_then(|kept| kept.get(&blob.id, &origin));
        let body = source.open(&name, verifier.offset(), version.as_ref()).await?;
        let missing = || Failure::new(Code::FetchMissing, format!("{name} is signed but not there"));
        let mut body = body.ok_or_else(missing)?;
        if let Some(whole) = body.whole()
            && whole > blob.length
        {
            let text = format!("fetch {name}: {whole} bytes are offered, signed are {}", blob.length);
            return Err(Failure::new(Code::FetchLength, text).into());
        }
        if let Some(kept) = kept
            && body.version() != version
        {
            kept.set(&blob.id, &origin, body.version()).map_err(|e| storage(path, &e))?;
        }
        let budget = total.saturating_mul(BUDGET_FACTOR).saturating_add(BUDGET_SPARE);
        let (mut pace, mut stall) = (Pace::new(self.limits.max_bytes_per_second), Stall::new(self.limits));
        let mut unsynced = 0_u64;
        loop {
            let Ok(next) = tokio::time::timeout(self.limits.stall, body.next()).await else {
                return Err(stall.failure(&name).into());
            };
            let Some(bytes) = next? else { break };
            if self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed) > budget {
                let text = format!("fetch {name}: over {budget} bytes came for a release of {total}");
                return Err(Failure::new(Code::FetchBudget, text).into());
            }
            if stall.is_stuck(bytes.len() as u64) {
                return Err(stall.failure(&name).into());
            }
            let mut received = &bytes[..];
            while let Some(chunk) =
                verifier.push(&mut received).map_err(|e| Failure::new(e.code(), e.to_string()))?
            {
                file.seek(SeekFrom::Start(chunk.offset)).map_err(|e| storage(path, &e))?;
                file.write_all(chunk.bytes).map_err(|e| storage(path, &e))?;
                unsynced += chunk.bytes.len() as u64;
                self.progress.done.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
            if unsynced >= SYNC_EVERY {
                file.sync_data().map_err(|e| storage(path, &e))?;
                unsynced = 0;
                if !self.limits.is_open() {
                    verifier.rewind();
                    return Ok(Ended::WindowClosed);
                }
            }
            pace.wait(bytes.len() as u64).await;
        }
        if verifier.offset() == blob.length {
            return Ok(Ended::Complete);
        }
        let text = format!("blob {}: {} bytes came, signed are {}", blob.id, verifier.offset(), blob.length);
        Err(Failure::new(Code::FetchTruncated, text).into())
    }
}

/// Keeps a transfer under its bytes a second.
struct Pace {
    limit: u64,
    started: Instant,
    bytes: u64,
}

impl Pace {
    fn new(limit: u64) -> Self {
        Self { limit, started: Instant::now(), bytes: 0 }
    }

    async fn wait(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.limit > 0 {
            let due = Duration::from_secs_f64(self.bytes as f64 / self.limit as f64);
            tokio::time::sleep_until(self.started + due).await;
        }
    }
}

/// Notices a source that sends just enough not to be called dead.
struct Stall {
    period: Duration,
    least: u64,
    since: Instant,
    bytes: u64,
}

impl Stall {
    fn new(limits: &Limits) -> Self {
        // Our own ceiling is not the source's fault.
        let slowest = match limits.max_bytes_per_second {
            0 => SLOWEST,
            ceiling => SLOWEST.min(ceiling / 4),
        };
        let least = slowest.saturating_mul(limits.stall.as_secs().max(1));
        Self { period: limits.stall, least, since: Instant::now(), bytes: 0 }
    }

    fn is_stuck(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.since.elapsed() < self.period {
            return false;
        }
        let stuck = self.bytes < self.least;
        self.since = Instant::now();
        self.bytes = 0;
        stuck
    }

    fn failure(&self, name: &str) -> Failure {
        let text =
            format!("fetch {name}: fewer than {} bytes came in {} s", self.least, self.period.as_secs());
        Failure::new(Code::FetchTooSlow, text)
    }
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

/// Refuses a release that does not fit, before its first byte.
fn reserve(part: &Path, blobs: &[&Blob]) -> Result<(), Failure> {
    let there = |blob: &Blob| std::fs::metadata(part.join(&blob.id)).map_or(0, |meta| meta.len());
    let missing: u64 = blobs.iter().map(|blob| blob.length.saturating_sub(there(blob))).sum();
    let need = missing.saturating_add(SPARE_BYTES);
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

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod tests;
