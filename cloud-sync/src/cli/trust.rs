//! The operator's own trusted copy of the repository, kept beside the offline keys. What is signed next
//! is built on this copy and not on what the cloud says: a cloud that offers old metadata is found out.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use farlight_release::Verified;
use farlight_release::tuf::{Client, Role, Step, Targets, TufError};
use farlight_wire::Millis;

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
        let root = files::read(&path)?;
        let mut stored = [None, None, None];
        for (bytes, role) in stored.iter_mut().zip([Role::Timestamp, Role::Snapshot, Role::Targets]) {
            let path = folder.join(role.file());
            if path.is_file() {
                *bytes = Some(files::read(&path)?);
            }
        }
        let [timestamp, snapshot, targets] = stored.each_ref().map(Option::as_deref);
        let client = Client::load(&root, timestamp, snapshot, targets).map_err(refused)?;
        let mut trust = Self { folder, client };
        trust.update(api).await?;
        Ok(trust)
    }

    async fn update(&mut self, api: &Api) -> Result<(), CliError> {
        self.client.begin_refresh(now());
        while let Step::Fetch { path, max_len } = self.client.next() {
            let file = api.file(&format!("/repo/{path}"), max_len).await?;
            if let Some(keep) = self.client.supply(file.as_deref()).map_err(refused)? {
                files::write(&self.folder.join(keep.name), &keep.bytes)?;
            }
        }
        Ok(())
    }

    /// The targets as signed last.
    ///
    /// # Errors
    /// [`CliError`] when none are trusted.
    pub fn targets(&self) -> Result<&Verified<Targets>, CliError> {
        self.client.targets().map_err(refused)
    }

    /// Whether targets that were just signed are signed by enough of the right keys.
    ///
    /// # Errors
    /// [`CliError`] when they are not.
    pub fn check(&self, targets: &[u8]) -> Result<(), CliError> {
        self.client.root().verify::<Targets>(targets).map(|_| ()).map_err(refused)
    }
}

fn refused(error: TufError) -> CliError {
    let hint = match &error {
        TufError::Expired { .. } => {
            "is the clock right? otherwise sign again: `farlight repo refresh --keys DIR`"
        }
        TufError::Signature { .. } => "are these the keys that `farlight repo init` was run with?",
        TufError::Rollback { .. } => "the cloud offers older metadata than it did before: find out why",
        _ => "",
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
