//! What a server says about the version of a file (RFC 9110, 8.8), kept beside the part that is there, so that a
//! transfer that broke off goes on with the same file, also after a restart. Content is never trusted for it:
//! chunks are hashed in any case. Without it, a server whose file changed sends bytes that are thrown away.

use std::io;
use std::path::{Path, PathBuf};

use reqwest::RequestBuilder;
use reqwest::header::{ETAG, HeaderMap, HeaderName, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED};
use serde::{Deserialize, Serialize};

use crate::durable;

/// Name of the file in a `.part` folder. Files of a release are named by their digest.
const NAME: &str = "validator";
/// Longest header that is kept: tags are a digest or a few numbers.
const MAX_HEADER: usize = 256;

/// A version of a file, by what its server says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validator {
    /// A strong `ETag`: the same bytes, says the server.
    Tag(String),
    /// `Last-Modified`, as the server wrote it.
    Date(String),
}

impl Validator {
    /// The best that an answer has: a weak tag says nothing about bytes, so the date goes before it.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: HeaderName| {
            let text = headers.get(name)?.to_str().ok().filter(|text| text.len() <= MAX_HEADER)?;
            Some(text.to_owned())
        };
        let tag = text(ETAG).filter(|tag| tag.starts_with('"'));
        tag.map(Self::Tag).or_else(|| text(LAST_MODIFIED).map(Self::Date))
    }

    /// Asks for this version and no other.
    pub fn guard(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Tag(tag) => request.header(IF_MATCH, tag),
            Self::Date(date) => request.header(IF_UNMODIFIED_SINCE, date),
        }
    }
}

/// The version of one file that one source gave.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    file: String,
    source: String,
    version: Validator,
}

/// What is kept in a `.part` folder: of the file that is being fetched, from the source that gave it last.
#[derive(Debug)]
pub struct Keeper(PathBuf);

impl Keeper {
    /// Of a `.part` folder.
    pub fn new(part: &Path) -> Self {
        Self(part.join(NAME))
    }

    /// The version of `file` at `source`, as far as it is known.
    pub fn get(&self, file: &str, source: &str) -> Option<Validator> {
        let kept: Kept = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        (kept.file == file && kept.source == source).then_some(kept.version)
    }

    /// Keeps a version. It is not synced: what a power cut tears is as good as forgotten.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, file: &str, source: &str, version: Option<Validator>) -> io::Result<()> {
        let Some(version) = version else { return self.forget() };
        let kept = Kept { file: file.to_owned(), source: source.to_owned(), version };
        std::fs::write(&self.0, serde_json::to_vec(&kept)?)
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn forget(&self) -> io::Result<()> {
        durable::remove(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strong_tag_goes_before_the_date_and_the_date_before_a_weak_one() {
        let of = |pairs: &[(HeaderName, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            Validator::of(&pairs.collect())
        };
        let (date, long) = ("Thu, 26 Nov 2026 11:00:00 GMT", format!("\"{}\"", "x".repeat(MAX_HEADER)));
        let modified = Some(Validator::Date(date.to_owned()));
        assert_eq!(of(&[(ETAG, "\"a\""), (LAST_MODIFIED, date)]), Some(Validator::Tag("\"a\"".to_owned())));
        assert_eq!(of(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, date)]), modified);
        assert_eq!(of(&[(ETAG, &long), (LAST_MODIFIED, date)]), modified);
        assert_eq!(of(&[(ETAG, "W/\"a\"")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_version_is_known_of_its_file_and_source_alone() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(folder.path());
        let version = Validator::Tag("\"a\"".to_owned());
        assert_eq!(keeper.get("file", "source"), None);
        keeper.set("file", "source", Some(version.clone())).unwrap();
        assert_eq!(keeper.get("file", "source"), Some(version.clone()));
        assert_eq!(keeper.get("other", "source"), None);
        assert_eq!(keeper.get("file", "other"), None);
        std::fs::write(folder.path().join(NAME), b"{\"file\":\"fi").unwrap();
        assert_eq!(keeper.get("file", "source"), None, "torn");
        keeper.set("file", "source", Some(version)).unwrap();
        keeper.set("file", "source", None).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
