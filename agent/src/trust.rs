//! The durable trust store: TUF metadata, the assignment keys and the last assignment, in two checksummed
//! copies, and a mark that says how far they had come. If that cannot be told any more the device keeps
//! running what it runs and refuses new installs: going on from less would let an attacker roll it back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farlight_release::assignment::Last;
use farlight_release::key::PublicKey;
use farlight_release::tuf::{Client, Keep, Role, TufError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::durable::{self, Access};

/// Largest copy in bytes: the sum of the metadata limits with base64 overhead.
const MAX_COPY: u64 = 24 * 1024 * 1024;
/// Largest mark in bytes: a number and a digest.
const MAX_MARK: u64 = 256;

/// What is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Content {
    /// Rises with every commit.
    sequence: u64,
    /// Metadata files by name, as received.
    metadata: BTreeMap<String, Bytes>,
    assignment_keys: Option<Bytes>,
    assignment: Option<Bytes>,
    last: Option<Last>,
}

/// Bytes, base64 in the file.
#[derive(Debug, Clone, PartialEq)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// How far the copies had come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Mark {
    sequence: u64,
}

/// Why the trust store failed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// What was trusted last cannot be told from what is there.
    #[error("the trust store in {folder} is lost ({why}); enrol the device again")]
    Lost {
        /// The state directory.
        folder: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file cannot be written.
    #[error("write the trust store {path}: {source}")]
    Write {
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
    /// Whether something waits for [`Trust::commit`].
    dirty: bool,
    /// The verified metadata.
    pub client: Client,
}

fn copies(folder: &Path) -> [PathBuf; 2] {
    [folder.join("trust-a.json"), folder.join("trust-b.json")]
}

fn mark(folder: &Path) -> PathBuf {
    folder.join("trust-mark.json")
}

impl Trust {
    /// Begins with the root from the enrolment.
    ///
    /// # Errors
    /// When the root does not verify or the folder cannot be written.
    pub fn create(folder: &Path, root: &[u8]) -> Result<Self, TrustError> {
        let client = Client::new(root)?;
        // Beyond what a store that was here before had come to.
        let sequence = read::<Mark>(&mark(folder), MAX_MARK).map_or(0, |mark| mark.sequence);
        let metadata = BTreeMap::from([(Role::Root.file().to_owned(), Bytes(root.to_vec()))]);
        let content = Content { sequence, metadata, ..Content::default() };
        let mut trust = Self { folder: folder.to_path_buf(), content, dirty: true, client };
        trust.commit()?;
        Ok(trust)
    }

    /// Opens the store as the last life left it.
    ///
    /// | copies | mark | then |
    /// |---|---|---|
    /// | one at least is at the mark or beyond it | readable | that one counts |
    /// | both are whole and the same | unreadable | they count |
    /// | anything else | | lost |
    ///
    /// Each commit writes both copies before the mark, so that a power cut or one damaged file always
    /// leaves one of the first two. As long as one of the three files is the newest, nothing older passes.
    ///
    /// # Errors
    /// [`TrustError::Lost`] or [`TrustError::Metadata`]: run on and install nothing.
    pub fn open(folder: &Path) -> Result<Self, TrustError> {
        let lost = |why| TrustError::Lost { folder: folder.to_path_buf(), why };
        let [a, b] = copies(folder).map(|path| read::<Content>(&path, MAX_COPY));
        let mark = read::<Mark>(&mark(folder), MAX_MARK);
        let same = a.is_some() && a == b;
        let content = match (a, b) {
            (Some(a), Some(b)) => {
                if a.sequence >= b.sequence {
                    a
                } else {
                    b
                }
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return Err(lost("both copies are damaged or missing")),
        };
        match mark {
            Some(mark) if content.sequence < mark.sequence => {
                return Err(lost("what is left is older than what was trusted last"));
            }
            None if !same => return Err(lost("one copy and the mark are damaged or missing")),
            _ => {}
        }
        let files = content.metadata.iter().map(|(name, bytes)| (name.clone(), bytes.0.clone())).collect();
        let client = Client::load(&files)?;
        // One damaged file must not wait for a second one; the next commit makes them whole.
        let dirty = !same || mark.is_none_or(|mark| mark.sequence != content.sequence);
        Ok(Self { folder: folder.to_path_buf(), content, dirty, client })
    }

    /// Makes what was kept durable.
    ///
    /// # Errors
    /// When it cannot be written: nothing that was kept may be acted on. The next commit tries again.
    pub fn commit(&mut self) -> Result<(), TrustError> {
        if !self.dirty {
            return Ok(());
        }
        self.content.sequence += 1;
        for path in copies(&self.folder) {
            write(&path, &self.content)?;
        }
        write(&mark(&self.folder), &Mark { sequence: self.content.sequence })?;
        self.dirty = false;
        Ok(())
    }

    /// Keeps a metadata file that the client accepted, for the next [`Trust::commit`].
    pub fn keep(&mut self, keep: Keep) {
        for name in &keep.forget {
            self.content.metadata.remove(name);
        }
        self.content.metadata.insert(keep.name, Bytes(keep.bytes));
        self.dirty = true;
    }

    /// The keys that may sign assignments, if their target was fetched and still is the signed one.
    pub fn assignment_keys(&self) -> Option<Vec<PublicKey>> {
        self.client.assignment_keys(&self.content.assignment_keys.as_ref()?.0).ok()
    }

    /// Keeps the verified assignment-keys target, for the next [`Trust::commit`].
    pub fn keep_assignment_keys(&mut self, bytes: &[u8]) {
        self.content.assignment_keys = Some(Bytes(bytes.to_vec()));
        self.dirty = true;
    }

    /// What a new assignment must not fall behind.
    pub fn last_assignment(&self) -> Option<&Last> {
        self.content.last.as_ref()
    }

    /// The bytes of the last accepted assignment.
    pub fn assignment(&self) -> Option<Vec<u8>> {
        self.content.assignment.as_ref().map(|bytes| bytes.0.clone())
    }

    /// Makes an accepted assignment durable, before anything is done about it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_assignment(&mut self, bytes: &[u8], last: Last) -> Result<(), TrustError> {
        self.content.assignment = Some(Bytes(bytes.to_vec()));
        self.content.last = Some(last);
        self.dirty = true;
        self.commit()
    }
}

/// One line of JSON and one with its digest.
fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), TrustError> {
    let fail = |source| TrustError::Write { path: path.to_path_buf(), source };
    let line = serde_json::to_string(content).map_err(|e| fail(e.into()))?;
    let digest = hex::encode(Sha256::digest(line.as_bytes()));
    durable::replace(path, format!("{line}\n{digest}\n").as_bytes(), Access::Normal).map_err(fail)
}

/// `None` for a file that is missing, unreadable or not as it was written.
fn read<T: DeserializeOwned>(path: &Path, limit: u64) -> Option<T> {
    let bytes = durable::read_limited(path, limit).ok()??;
    let text = std::str::from_utf8(&bytes).ok()?;
    let (line, digest) = text.split_once('\n')?;
    (digest == format!("{}\n", hex::encode(Sha256::digest(line.as_bytes()))))
        .then(|| serde_json::from_str(line).ok())
        .flatten()
}

#[cfg(test)]
mod tests;
