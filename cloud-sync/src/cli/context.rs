//! What every command gets: the profile's path, how to answer, and the way to the cloud. The profile is
//! read when a command first needs it, so that offline commands work without one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::CliError;
use super::files;
use super::http::Api;
use super::output;

/// `operator.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Profile {
    /// Base URL of the cloud.
    pub cloud: String,
    /// The operator's bearer token.
    pub token: String,
    /// The certificate authority of the cloud.
    pub ca_pem: String,
}

/// What every command gets.
#[derive(Debug, Clone)]
pub struct Context {
    profile: Option<PathBuf>,
    json: bool,
}

impl Context {
    /// A context with `--profile` and `--json` as given.
    pub fn new(profile: Option<PathBuf>, json: bool) -> Self {
        Self { profile, json }
    }

    /// Whether to answer in JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// The way to the cloud.
    ///
    /// # Errors
    /// [`CliError`] when no profile is given or it cannot be used.
    pub fn api(&self) -> Result<Api, CliError> {
        const HINT: &str = "give --profile FILE or set FARLIGHT_PROFILE; farlight-cloud writes operator.json into its data folder";
        let path = self
            .profile
            .as_ref()
            .ok_or_else(|| CliError::usage("no operator profile is given").hint(HINT))?;
        let bytes = files::read(path)?;
        let profile: Profile = serde_json::from_slice(&bytes).map_err(|e| {
            CliError::usage(format!("profile {} is not an operator.json: {e}", path.display())).hint(HINT)
        })?;
        Api::new(&profile)
    }

    /// Prints an answer: as JSON, or as `text` writes it.
    ///
    /// # Errors
    /// [`CliError`] when standard output cannot be written.
    pub fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        if self.json { output::json(value) } else { output::text(&text(value)) }
    }

    /// Prints a list: as JSON, or as a table of `columns` with one row an item.
    ///
    /// # Errors
    /// [`CliError`] when standard output cannot be written.
    pub fn list<T: Serialize, const N: usize>(
        &self,
        items: &[T],
        columns: [&str; N],
        row: impl FnMut(&T) -> [String; N],
    ) -> Result<(), CliError> {
        if self.json {
            return output::json(&items);
        }
        let rows: Vec<[String; N]> = items.iter().map(row).collect();
        output::text(&output::table(columns, &rows))
    }
}
