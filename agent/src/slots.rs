//! Slots: verified releases on disk, one folder a manifest digest, and the pointer files that say which
//! runs. What is opened is always hashed first, so nothing unverified reaches an engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farlight_device::pointer::{MAX_POINTER, Pointer, Slot};
use farlight_release::Verified;
use farlight_release::blob::{ChunkVerifier, FetchError};
use farlight_release::config::{self, ConfigManifest};
use farlight_release::manifest::{Blob, Delta, MAX_MANIFEST, Manifest, ManifestError};
use farlight_wire::ModelName;

use crate::choice::{self, Pins, Plan, Way};
use crate::durable::{self, Access};
use crate::transfer::Shortcut;

/// The file that says that a slot passed its self-test on this device.
const TESTED: &str = "self-tested";
/// Bytes read at a time while hashing.
const READ: usize = 256 * 1024;

/// Why a slot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// A file or folder failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The manifest is not the one the slot is named after, or not usable.
    #[error("manifest of slot {digest}: {source}")]
    Manifest {
        /// The slot.
        digest: String,
        /// Why.
        source: ManifestError,
    },
    /// A file is missing from the slot.
    #[error("slot {digest} lacks {what}")]
    Missing {
        /// The slot.
        digest: String,
        /// What is missing.
        what: String,
    },
    /// A blob's bytes are not the signed ones.
    #[error("slot {digest}: {source}")]
    Blob {
        /// The slot.
        digest: String,
        /// Why.
        source: FetchError,
    },
}

/// The folder of all models.
#[derive(Debug, Clone)]
pub struct Slots {
    root: PathBuf,
    plan: Arc<Plan>,
}

/// A slot whose every byte was hashed.
#[derive(Debug)]
pub enum Opened {
    /// A model.
    Model(Box<Whole>),
    /// A configuration.
    Config(Box<Verified<ConfigManifest>>),
}

/// A model's slot whose every byte was hashed.
#[derive(Debug)]
pub struct Whole {
    /// Its manifest.
    pub manifest: Verified<Manifest>,
    /// Id of the variant to run.
    pub variant: String,
    /// Its precision.
    pub precision: String,
    /// How it is to be run.
    pub way: Way,
    /// Its bytes.
    pub model: Vec<u8>,
    /// Bytes of the golden vectors.
    pub golden: Vec<u8>,
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SlotError {
    let path = path.to_path_buf();
    move |source| SlotError::Io { action, path, source }
}

impl Slots {
    /// The slots below a state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("models"), plan: Arc::default() }
    }

    /// The same with what the device's owner has set for single models.
    #[must_use]
    pub fn pinned(self, plan: Plan) -> Self {
        Self { plan: Arc::new(plan), ..self }
    }

    /// What the device's owner has set for a model.
    pub fn pins(&self, model: &ModelName) -> Pins {
        self.plan.of(model.as_str())
    }

    /// The folder of a slot.
    pub fn folder(&self, slot: &Slot) -> PathBuf {
        self.root.join(slot.release.model.as_str()).join(&slot.digest)
    }

    /// The folder a slot is filled in.
    pub fn part(&self, slot: &Slot) -> PathBuf {
        self.folder(slot).with_extension("part")
    }

    fn pointer_path(&self, model: &ModelName) -> PathBuf {
        self.root.join(model.as_str()).join("active")
    }

    /// Models that have a folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn models(&self) -> Result<Vec<ModelName>, SlotError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io("list", &self.root))?,
        };
        let mut models: Vec<ModelName> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        models.sort();
        Ok(models)
    }

    /// Reads the pointer of a model; a missing one is empty, a damaged one `None`.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn pointer(&self, model: &ModelName) -> Result<Option<Pointer>, SlotError> {
        let path = self.pointer_path(model);
        let bytes = durable::read_limited(&path, MAX_POINTER as u64).map_err(io("read", &path))?;
        Ok(match bytes {
            None => Some(Pointer::default()),
            Some(bytes) => Pointer::decode(&bytes).ok(),
        })
    }

    /// Makes a pointer durable: from its return on, it says what runs.
    ///
    /// # Errors
    /// When it cannot be written; the old one then still holds.
    pub fn write_pointer(&self, model: &ModelName, pointer: &Pointer) -> Result<(), SlotError> {
        let path = self.pointer_path(model);
        let folder = self.root.join(model.as_str());
        durable::create_folder(&folder).map_err(io("create", &folder))?;
        durable::replace(&path, &pointer.encode(), Access::Normal).map_err(io("write", &path))
    }

    /// Reads a slot and hashes every byte of it.
    ///
    /// # Errors
    /// [`SlotError`] when anything is missing or not what was signed.
    pub fn open(&self, slot: &Slot) -> Result<Opened, SlotError> {
        let model = &slot.release.model;
        open_either(model, &self.folder(slot), &slot.digest, self.pins(model))
    }

    /// The manifest of a slot.
    ///
    /// # Errors
    /// [`SlotError`] when it is missing or not what was signed.
    pub fn manifest(&self, slot: &Slot) -> Result<Verified<Manifest>, SlotError> {
        manifest(&self.folder(slot), &slot.digest)
    }

    /// Hashes every file of a slot, also those of which only one will be run.
    ///
    /// # Errors
    /// [`SlotError`] when anything is missing or not what was signed.
    pub fn verify(&self, slot: &Slot) -> Result<(), SlotError> {
        let Opened::Model(whole) = self.open(slot)? else { return Ok(()) };
        let folder = self.folder(slot);
        let others = whole.manifest.variants.iter().filter(|variant| variant.blob.id != whole.variant);
        for variant in others.filter(|variant| folder.join(&variant.blob.id).is_file()) {
            read_blob(&folder, &slot.digest, &variant.blob)?;
        }
        Ok(())
    }

    /// Notes durably that a slot passed its self-test on this device.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mark_tested(&self, slot: &Slot) -> Result<(), SlotError> {
        let path = self.folder(slot).join(TESTED);
        durable::replace(&path, b"", Access::Normal).map_err(io("write", &path))
    }

    /// A valid slot of a model that passed its self-test here and is not `failed`, whichever is found first:
    /// the last resort when the pointer is damaged, or what it names cannot be loaded.
    pub fn any(&self, model: &ModelName, failed: &[&str]) -> Option<Slot> {
        let folder = self.root.join(model.as_str());
        fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let digest = entry.file_name().to_str()?.to_owned();
            if failed.contains(&digest.as_str()) || !entry.path().join(TESTED).is_file() {
                return None;
            }
            let release = match open_either(model, &entry.path(), &digest, self.pins(model)).ok()? {
                Opened::Model(whole) => whole.manifest.release.clone(),
                Opened::Config(config) => config.release.clone(),
            };
            Some(Slot { release, digest })
        })
    }

    /// The smallest of `deltas` whose older file lies in the slot that runs or the one before it. That file is
    /// not hashed here: what is made of it is.
    pub fn shortcut<'a>(&self, model: &ModelName, deltas: &'a [Delta]) -> Option<Shortcut<'a>> {
        let pointer = self.pointer(model).ok().flatten()?;
        let slots: Vec<PathBuf> =
            pointer.active.iter().chain(&pointer.previous).map(|slot| self.folder(slot)).collect();
        let usable = deltas.iter().filter_map(|delta| {
            let old = slots.iter().map(|slot| slot.join(&delta.from)).find(|old| old.is_file())?;
            Some(Shortcut { old, delta: &delta.blob })
        });
        usable.min_by_key(|shortcut| shortcut.delta.length)
    }

    /// Deletes every folder of a model that is not in `keep`.
    ///
    /// # Errors
    /// When the folder cannot be read or changed.
    pub fn collect(&self, model: &ModelName, keep: &[&str]) -> Result<(), SlotError> {
        let folder = self.root.join(model.as_str());
        for entry in fs::read_dir(&folder).map_err(io("list", &folder))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let digest = name.strip_suffix(".part").unwrap_or(&name);
            if !entry.path().is_dir() || keep.contains(&digest) {
                continue;
            }
            // Renamed first: a half deleted folder must not look like a slot.
            let trash = folder.join(format!(".trash-{digest}"));
            if entry.path() != trash {
                let _ = fs::remove_dir_all(&trash);
                fs::rename(entry.path(), &trash).map_err(io("rename", &entry.path()))?;
                durable::sync_folder(&folder).map_err(io("sync", &folder))?;
            }
            fs::remove_dir_all(&trash).map_err(io("delete", &trash))?;
        }
        Ok(())
    }
}

fn open_either(model: &ModelName, folder: &Path, digest: &str, pins: Pins) -> Result<Opened, SlotError> {
    if model.as_str() != config::NAME {
        return open_folder(folder, digest, File::Chosen(pins)).map(|whole| Opened::Model(Box::new(whole)));
    }
    let bytes = read_manifest(folder, digest)?;
    let fail = |source| SlotError::Manifest { digest: digest.to_owned(), source };
    ConfigManifest::reopen(&bytes, digest).map(|config| Opened::Config(Box::new(config))).map_err(fail)
}

fn read_manifest(folder: &Path, digest: &str) -> Result<Vec<u8>, SlotError> {
    let path = folder.join("manifest.json");
    let bytes = durable::read_limited(&path, MAX_MANIFEST).map_err(io("read", &path))?;
    bytes.ok_or_else(|| SlotError::Missing { digest: digest.to_owned(), what: "manifest.json".to_owned() })
}

fn manifest(folder: &Path, digest: &str) -> Result<Verified<Manifest>, SlotError> {
    let bytes = read_manifest(folder, digest)?;
    Manifest::reopen(&bytes, digest)
        .map_err(|source| SlotError::Manifest { digest: digest.to_owned(), source })
}

/// Which of a release's files.
#[derive(Debug, Clone, Copy)]
pub enum File<'a> {
    /// What is to be run on this device.
    Chosen(Pins),
    /// The one with this id.
    Of(&'a str),
}

/// Reads and hashes a model's slot folder named `digest`, with one of the files that can run.
///
/// # Errors
/// [`SlotError`] when anything is missing or not what was signed.
pub fn open_folder(folder: &Path, digest: &str, file: File<'_>) -> Result<Whole, SlotError> {
    let missing = |what: String| SlotError::Missing { digest: digest.to_owned(), what };
    let manifest = manifest(folder, digest)?;
    let (variant, way) = match file {
        File::Chosen(pins) => choice::what(folder, &manifest.variants, pins),
        File::Of(id) => (manifest.variants.iter().find(|variant| variant.blob.id == id), Way::default()),
    };
    let variant = variant.ok_or_else(|| missing("a variant".to_owned()))?;
    let model = read_blob(folder, digest, &variant.blob)?;
    let golden = read_blob(folder, digest, &manifest.golden)?;
    let (variant, precision) = (variant.blob.id.clone(), variant.precision.clone());
    Ok(Whole { manifest, variant, precision, way, model, golden })
}

fn read_blob(folder: &Path, digest: &str, blob: &Blob) -> Result<Vec<u8>, SlotError> {
    use std::io::Read;
    let fail = |source| SlotError::Blob { digest: digest.to_owned(), source };
    let path = folder.join(&blob.id);
    let mut file = match fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SlotError::Missing { digest: digest.to_owned(), what: format!("blob {}", blob.id) });
        }
        other => other.map_err(io("open", &path))?,
    };
    let mut verifier = ChunkVerifier::new(blob).map_err(fail)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; READ];
    loop {
        let read = file.read(&mut buffer).map_err(io("read", &path))?;
        if read == 0 {
            break;
        }
        let mut received = &buffer[..read];
        while let Some(chunk) = verifier.push(&mut received).map_err(fail)? {
            bytes.extend_from_slice(chunk.bytes);
        }
    }
    verifier.finish().map_err(fail)?;
    Ok(bytes)
}
