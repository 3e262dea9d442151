//! The durable trust store: TUF metadata, the assignment keys and the last assignment, in two checksummed,
//! sequence-numbered copies written in turn. If both are unreadable the device keeps running what it runs
//! and refuses new installs: going on from nothing would let an attacker roll the repository back.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farlight_release::assignment::Last;
use farlight_release::key::PublicKey;
use farlight_release::tuf::{Client, Role, TufError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::durable::{self, Access};

/// Largest copy in bytes: the sum of the metadata limits with base64 overhead.
const MAX_COPY: u64 = 16 * 1024 * 1024;

/// What is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Content {
    sequence: u64,
    root: String,
    timestamp: Option<String>,
    snapshot: Option<String>,
    targets: Option<String>,
    assignment_keys: Option<String>,
    assignment: Option<String>,
    last: Option<Last>,
}

/// Why the trust store failed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Neither copy is readable.
    #[error("both copies of the trust store in {0} are damaged; enrol the device again")]
    Lost(PathBuf),
    /// A copy cannot be read or written.
    #[error("trust store {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The stored metadata does not verify.
    #[error("stored release metadata: {0}")]
    Metadata(#[from] TufError),
}

/// The trust store and the TUF client that works on it.
pub struct Trust {
    folder: PathBuf,
    content: Content,
    /// The verified metadata.
    pub client: Client,
}

fn copies(folder: &Path) -> [PathBuf; 2] {
    [folder.join("trust-a.json"), folder.join("trust-b.json")]
}

impl Trust {
    /// Begins with the root from the enrolment.
    ///
    /// # Errors
    /// When the root does not verify or the folder cannot be written.
    pub fn create(folder: &Path, root: &[u8]) -> Result<Self, TrustError> {
        let client = Client::new(root)?;
        let content = Content { root: BASE64.encode(root), ..Content::default() };
        let mut trust = Self { folder: folder.to_path_buf(), content, client };
        // Both copies, so that one damaged file is never "both".
        trust.write()?;
        trust.write()?;
        Ok(trust)
    }

    /// Opens the newer readable copy.
    ///
    /// # Errors
    /// [`TrustError::Lost`] when neither is readable; [`TrustError::Metadata`] when it does not verify.
    pub fn open(folder: &Path) -> Result<Self, TrustError> {
        let mut newest: Option<Content> = None;
        for path in copies(folder) {
            let bytes = durable::read_limited(&path, MAX_COPY);
            let bytes = bytes.map_err(|source| TrustError::Io { path: path.clone(), source })?;
            let Some(content) = bytes.and_then(|bytes| parse(&bytes)) else { continue };
            if newest.as_ref().is_none_or(|known| known.sequence < content.sequence) {
                newest = Some(content);
            }
        }
        let content = newest.ok_or_else(|| TrustError::Lost(folder.to_path_buf()))?;
        let decode = |text: &Option<String>| text.as_ref().and_then(|text| BASE64.decode(text).ok());
        let root = BASE64.decode(&content.root).map_err(|_| TrustError::Lost(folder.to_path_buf()))?;
        let client = Client::load(
            &root,
            decode(&content.timestamp).as_deref(),
            decode(&content.snapshot).as_deref(),
            decode(&content.targets).as_deref(),
        )?;
        Ok(Self { folder: folder.to_path_buf(), content, client })
    }

    /// Whether the folder holds a trust store, readable or not.
    pub fn exists(folder: &Path) -> bool {
        copies(folder).iter().any(|path| path.exists())
    }

    fn write(&mut self) -> Result<(), TrustError> {
        self.content.sequence += 1;
        let path = copies(&self.folder)[(self.content.sequence % 2) as usize].clone();
        let line = serde_json::to_string(&self.content).unwrap_or_default();
        let digest = hex::encode(Sha256::digest(line.as_bytes()));
        durable::replace(&path, format!("{line}\n{digest}\n").as_bytes(), Access::Normal)
            .map_err(|source| TrustError::Io { path, source })
    }

    /// Makes an accepted metadata file durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&mut self, role: Role, bytes: &[u8]) -> Result<(), TrustError> {
        let text = BASE64.encode(bytes);
        match role {
            Role::Root => self.content.root = text,
            Role::Timestamp => self.content.timestamp = Some(text),
            Role::Snapshot => self.content.snapshot = Some(text),
            Role::Targets => self.content.targets = Some(text),
        }
        self.write()
    }

    /// The keys that may sign assignments, if their target was fetched and still is the signed one.
    pub fn assignment_keys(&self) -> Option<Vec<PublicKey>> {
        let bytes = BASE64.decode(self.content.assignment_keys.as_ref()?).ok()?;
        self.client.assignment_keys(&bytes).ok()
    }

    /// Makes the verified assignment-keys target durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_assignment_keys(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.content.assignment_keys = Some(BASE64.encode(bytes));
        self.write()
    }

    /// What a new assignment must not fall behind.
    pub fn last_assignment(&self) -> Option<&Last> {
        self.content.last.as_ref()
    }

    /// The bytes of the last accepted assignment.
    pub fn assignment(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.content.assignment.as_ref()?).ok()
    }

    /// Makes an accepted assignment durable, before anything is done about it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_assignment(&mut self, bytes: &[u8], last: Last) -> Result<(), TrustError> {
        self.content.assignment = Some(BASE64.encode(bytes));
        self.content.last = Some(last);
        self.write()
    }
}

fn parse(bytes: &[u8]) -> Option<Content> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (line, digest) = text.split_once('\n')?;
    (digest.trim_end() == hex::encode(Sha256::digest(line.as_bytes())))
        .then(|| serde_json::from_str(line).ok())
        .flatten()
}
