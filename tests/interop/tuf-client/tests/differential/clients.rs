//! The clients, each with what it has stored, and their verdicts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use farlight_release::digest;
use farlight_release::tuf::{Client, Step, TARGETS, TufError};
use serde_json::{Value, json};
use sigstore_tuf::cache::MetadataStore;
use sigstore_tuf::client::Updater;
use sigstore_tuf::transport::{FetchFuture, Repository as Transport};

use super::python::Python;
use super::repository::{NOW, Repository};

/// What a client makes of a repository.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It does not take the top-level metadata.
    Refused,
    /// It does; the digest of each target that it takes.
    Accepted(Vec<Option<String>>),
}

/// All clients.
pub(crate) struct Clients<'a> {
    root: Vec<u8>,
    stored: Files,
    store: Arc<Mutex<Files>>,
    python: Option<&'a mut Python>,
    python_stored: Value,
}

/// What they have stored: ours, `sigstore-tuf`'s, python-tuf's.
type State = (Files, Files, Value);

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What `sigstore-tuf` stores.
struct Store(Arc<Mutex<Files>>);

impl MetadataStore for Store {
    fn load(&self, name: &str) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }

    fn store(&self, name: &str, bytes: &[u8]) -> sigstore_tuf::Result<()> {
        self.0.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
}

impl<'a> Clients<'a> {
    /// Clients that know the first root.
    pub(crate) fn new(repository: &Repository, python: Option<&'a mut Python>) -> Self {
        let root = repository.published["root"][0].clone();
        let stored = BTreeMap::from([("root.json".to_owned(), root.clone())]);
        Self { root, stored, store: Arc::default(), python, python_stored: json!({}) }
    }

    /// What all have stored, to go back to.
    pub(crate) fn state(&self) -> State {
        (self.stored.clone(), self.store.lock().unwrap().clone(), self.python_stored.clone())
    }

    /// Goes back to an earlier state.
    pub(crate) fn restore(&mut self, (ours, theirs, python): State) {
        self.stored = ours;
        *self.store.lock().unwrap() = theirs;
        self.python_stored = python;
    }

    /// The verdicts of the others, by name.
    pub(crate) fn others(
        &mut self,
        repository: &mut Repository,
        paths: &[String],
    ) -> Vec<(&'static str, Verdict)> {
        let files = files(repository, paths);
        let mut verdicts = Vec::new();
        if let Some(python) = &mut self.python {
            let (verdict, stored) = python.ask(&self.root, &self.python_stored, &files, paths);
            self.python_stored = stored;
            verdicts.push(("python-tuf", verdict));
        }
        verdicts.push(("sigstore-tuf", self.sigstore(files, paths)));
        verdicts
    }

    /// Starts our client, refreshes and gets each target.
    pub(crate) fn ours(&mut self, repository: &mut Repository, paths: &[String]) -> Verdict {
        let Ok(mut client) = Client::load(&self.stored) else { return Verdict::Refused };
        client.begin_refresh(NOW);
        if self.drive(&mut client, repository).is_err() {
            return Verdict::Refused;
        }
        let mut target = |path: &str| -> Result<String, TufError> {
            client.begin_lookup(path, NOW);
            self.drive(&mut client, repository)?;
            let file = format!("{TARGETS}{}", client.target_file(path)?);
            let bytes = get(repository, &file).ok_or(TufError::Missing { path: file })?;
            client.target(path)?.verify(path, &bytes)?;
            Ok(digest::sha256(&bytes))
        };
        Verdict::Accepted(paths.iter().map(|path| target(path).ok()).collect())
    }

    fn drive(&mut self, client: &mut Client, repository: &mut Repository) -> Result<(), TufError> {
        while let Step::Fetch { path, .. } = client.next() {
            if let Some(keep) = client.supply(get(repository, &path).as_deref())? {
                keep.forget.iter().for_each(|name| drop(self.stored.remove(name)));
                self.stored.insert(keep.name, keep.bytes);
            }
        }
        Ok(())
    }

    fn sigstore(&mut self, files: Files, paths: &[String]) -> Verdict {
        let now = jiff::Timestamp::from_millisecond(i64::try_from(NOW.0).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let Ok(updater) = Updater::new(Served(files), &self.root) else { return Verdict::Refused };
            let mut updater = updater.with_store(Store(Arc::clone(&self.store)));
            if updater.refresh(now).await.is_err() {
                return Verdict::Refused;
            }
            let mut targets = Vec::new();
            for path in paths {
                let found = updater.get_target_info(path, now).await.ok().flatten();
                let bytes = match found {
                    Some(target) => updater.download_target(&target, path).await.ok(),
                    None => None,
                };
                targets.push(bytes.map(|bytes| digest::sha256(&bytes)));
            }
            Verdict::Accepted(targets)
        })
    }
}

/// All files that can be asked for.
struct Served(Files);

impl Served {
    fn get(&self, path: &str, limit: u64) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        match self.0.get(path) {
            Some(bytes) if bytes.len() as u64 > limit => {
                Err(sigstore_tuf::Error::Malformed("longer than was asked for".to_owned()))
            }
            file => Ok(file.cloned()),
        }
    }
}

impl Transport for Served {
    fn fetch_metadata<'a>(&'a self, name: &'a str, limit: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.get(&format!("metadata/{name}"), limit) })
    }

    fn fetch_target<'a>(&'a self, path: &'a str, limit: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.get(&format!("targets/{path}"), limit) })
    }
}

/// A file; what is empty is withheld.
fn get(repository: &mut Repository, path: &str) -> Option<Vec<u8>> {
    repository.get(path).filter(|bytes| !bytes.is_empty())
}

/// Every file of a repository by its path.
fn files(repository: &mut Repository, paths: &[String]) -> Files {
    let mut names = vec!["metadata/timestamp.json".to_owned()];
    for (role, versions) in &repository.published {
        names.extend((1..=versions.len()).map(|version| format!("metadata/{version}.{role}.json")));
    }
    for path in paths {
        let (folder, file) = path.rsplit_once('/').unwrap();
        for digest in repository.artifacts.get(path).iter().flat_map(|artifact| &artifact.digests) {
            names.push(format!("targets/{folder}/{digest}.{file}"));
        }
    }
    names.into_iter().filter_map(|name| Some((name.clone(), get(repository, &name)?))).collect()
}
