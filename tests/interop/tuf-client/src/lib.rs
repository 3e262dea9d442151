//! The shell around the client of `farlight-release`: a folder of metadata files, HTTP, a folder of
//! targets. The program and the differential tests use it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use farlight_release::tuf::{Client, Keep, METADATA, Role, Step, TrustedRoot, encode_name};
use farlight_wire::Millis;
use reqwest::StatusCode;

/// Trusted metadata in a folder, one file a role, as received.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Trusts a root.
    ///
    /// # Errors
    /// When it is not signed by its own keys, or cannot be written.
    pub fn init(&self, root: &[u8]) -> anyhow::Result<()> {
        TrustedRoot::open(root).context("the root is not usable")?;
        self.write(Role::Root.file(), root)
    }

    /// The client as it was left.
    ///
    /// # Errors
    /// When the folder cannot be read or holds damaged metadata.
    pub fn load(&self) -> anyhow::Result<Client> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).context("read the metadata folder")? {
            let path = entry?.path();
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && name.ends_with(".json")
            {
                files.insert(name.to_owned(), std::fs::read(&path)?);
            }
        }
        Ok(Client::load(&files)?)
    }

    /// Stores what a client asks to keep.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, keep: &Keep) -> anyhow::Result<()> {
        self.write(&keep.name, &keep.bytes)?;
        for name in &keep.forget {
            match std::fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        replace(&self.folder.join(name), bytes)
    }
}

fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, bytes).with_context(|| format!("write {}", path.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("replace {}", path.display()))
}

/// Refreshes the top-level metadata.
///
/// # Errors
/// When the repository cannot be reached or offers what must not be trusted.
pub async fn refresh(store: &Store, url: &str) -> anyhow::Result<Client> {
    let mut client = store.load()?;
    client.begin_refresh(now());
    drive(store, &mut client, url).await?;
    Ok(client)
}

async fn drive(store: &Store, client: &mut Client, url: &str) -> anyhow::Result<()> {
    while let Step::Fetch { path, max_len } = client.next() {
        let file = get(&join(url, path.strip_prefix(METADATA).unwrap_or(&path)), max_len).await?;
        if let Some(keep) = client.supply(file.as_deref())? {
            store.keep(&keep)?;
        }
    }
    Ok(())
}

/// Where target files come from and go to.
#[derive(Debug, Clone)]
pub struct Downloads {
    /// Address of the repository's target files.
    pub url: String,
    /// The folder they are stored in, under their percent-encoded names.
    pub folder: PathBuf,
}

impl Downloads {
    /// Looks a target up and downloads it, unless it is there already.
    ///
    /// # Errors
    /// When it is not signed, cannot be had, or is not what was signed.
    pub async fn download(
        &self,
        store: &Store,
        client: &mut Client,
        metadata_url: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        client.begin_lookup(name, now());
        drive(store, client, metadata_url).await?;
        let target = client.target(name)?;
        let path = self.folder.join(encode_name(name));
        if std::fs::read(&path).is_ok_and(|bytes| target.verify(name, &bytes).is_ok()) {
            return Ok(());
        }
        let url = join(&self.url, &client.target_file(name)?);
        let Some(bytes) = get(&url, target.length).await? else { bail!("{url} is not there") };
        target.verify(name, &bytes)?;
        replace(&path, &bytes)
    }
}

fn join(base: &str, path: &str) -> String {
    format!("{}/{path}", base.trim_end_matches('/'))
}

/// Gets at most one byte more than `max_len`; `None` when there is nothing.
async fn get(url: &str, max_len: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let mut response = reqwest::get(url).await.with_context(|| format!("get {url}"))?;
    match response.status() {
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(None),
        status if !status.is_success() => bail!("get {url}: status {status}"),
        _ => {}
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.with_context(|| format!("get {url}"))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > max_len {
            break;
        }
    }
    Ok(Some(bytes))
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
