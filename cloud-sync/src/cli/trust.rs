//! The operator's own trusted copy of the repository, kept beside the offline keys. What is signed next
//! is built on this copy and not on what the cloud says: a cloud that offers old metadata is found out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use farlight_release::Verified;
use farlight_release::tuf::{Client, Role, Step, Targets, TrustedRoot, TufError};
use farlight_wire::Millis;
use farlight_wire::codes::Code;

use super::error::CliError;
use super::files;
use super::http::Api;

/// Folder of the trusted copy below the keys' folder.
const FOLDER: &str = "trusted";
/// Longest validity that may be asked for, in days.
pub const MAX_DAYS: u32 = 3650;

/// A trusted copy on disk, refreshed from the cloud.
pub struct Trust {
    folder: PathBuf,
    client: Client,
}

impl Trust {
    /// Begins a copy with the first root.
    ///
    /// # Errors
    /// [`CliError`] when the folder cannot be written.
    pub fn begin(keys: &Path, root: &[u8]) -> Result<(), CliError> {
        let folder = keys.join(FOLDER);
        files::private_folder(&folder)?;
        files::write(&folder.join(Role::Root.file()), root)
    }

    /// Whether there is a copy beside the keys.
    pub fn exists(keys: &Path) -> bool {
        keys.join(FOLDER).join(Role::Root.file()).is_file()
    }

    /// Opens the copy beside the keys and refreshes it from the cloud.
    ///
    /// # Errors
    /// [`CliError`] when there is none, it is damaged, or the cloud offers what must not be trusted.
    pub async fn refresh(keys: &Path, api: &Api) -> Result<Self, CliError> {
        let folder = keys.join(FOLDER);
        let path = folder.join(Role::Root.file());
        if !path.is_file() {
            let message = format!("{} is not there: these keys have no repository yet", path.display());
            return Err(CliError::file(message).hint("run `farlight repo init --keys DIR` first"));
        }
        let mut stored = BTreeMap::new();
        for path in files::list(&folder)? {
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && name.ends_with(".json")
            {
                stored.insert(name.to_owned(), files::read(&path)?);
            }
        }
        let client = Client::load(&stored).map_err(refused)?;
        let mut trust = Self { folder, client };
        trust.client.begin_refresh(now());
        trust.fetch(api).await?;
        Ok(trust)
    }

    async fn fetch(&mut self, api: &Api) -> Result<(), CliError> {
        while let Step::Fetch { path, max_len } = self.client.next() {
            let file = api.file(&format!("/repo/{path}"), max_len).await?;
            if let Some(keep) = self.client.supply(file.as_deref()).map_err(refused)? {
                files::write(&self.folder.join(keep.name), &keep.bytes)?;
                for name in keep.forget {
                    // One that stays is dropped when it is loaded.
                    let _ = std::fs::remove_file(self.folder.join(name));
                }
            }
        }
        Ok(())
    }

    /// The root that is trusted.
    pub fn root(&self) -> &TrustedRoot {
        self.client.root()
    }

    /// The metadata of a delegated role as it is published; `None` when it has not signed anything yet.
    ///
    /// # Errors
    /// [`CliError`] when the cloud offers what must not be trusted.
    pub async fn role(&mut self, name: &str, api: &Api) -> Result<Option<Targets>, CliError> {
        let delegations = self.targets()?.delegations.clone();
        let role = delegations.as_ref().and_then(|all| all.role(name));
        // A path that it may speak for: our patterns have no other wildcard than `*`.
        let Some(path) = role.and_then(|role| role.paths.as_ref()?.first()) else { return Ok(None) };
        self.client.begin_lookup(&path.replace('*', "x"), now());
        match self.fetch(api).await {
            Ok(()) => Ok(self.client.role(name).map(|role| Targets::clone(role))),
            Err(error) if error.code() == Code::TufMissing.as_str() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The version of a family's metadata that was published last, 0 for none; revoked ones count.
    pub fn listed(&self, name: &str) -> u64 {
        self.client.listed(name).unwrap_or(0)
    }

    /// The targets as signed last.
    ///
    /// # Errors
    /// [`CliError`] when none are trusted.
    pub fn targets(&self) -> Result<&Verified<Targets>, CliError> {
        self.client.targets().map_err(refused)
    }
}

fn refused(error: TufError) -> CliError {
    let hint = match &error {
        TufError::Expired { .. } => {
            "is the clock right? otherwise sign again: `farlight repo refresh --keys DIR`"
        }
        TufError::Signature { .. } => "are these the keys that `farlight repo init` was run with?",
        TufError::Rollback { .. } => "the cloud offers older metadata than it did before: find out why",
        _ => error.code().hint(),
    };
    CliError::verification(error.code(), error.to_string()).hint(hint)
}

/// The wall clock, Unix time.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// So many days from now.
pub fn in_days(days: u32) -> Millis {
    now().plus(Millis::from_secs(u64::from(days) * 86_400))
}
