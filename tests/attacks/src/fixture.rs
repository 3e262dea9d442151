//! A fixture on disk: `attack.json`, the files that the attacker's repository has beyond the honest one's, and
//! what the device is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// How an attack reaches the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// The repository serves it when the device looks for metadata.
    Metadata,
    /// A message says it is the device's desired state.
    Assignment,
    /// Somebody plugs in a stick.
    Bundle,
}

/// What an attack is and how it must end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// In a sentence.
    pub title: String,
    /// How it reaches the device.
    pub delivery: Delivery,
    /// The error code that the device refuses it with and reports.
    pub code: String,
    /// Path in the repository that never ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endless: Option<String>,
    /// Path in the repository that comes a byte at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<String>,
    /// Link in the bundle, and where it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<(String, String)>,
}

/// A fixture: the attack, the attacker's files, and the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixture {
    /// Name of the attack and of its folder.
    pub name: String,
    /// What it is.
    pub attack: Attack,
    /// The repository's files that differ from the honest ones, by path; `None` for one that is missing.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The document that is sent as the device's desired state.
    pub assignment: Option<Vec<u8>>,
}

/// Name of the folder with the honest repository, from which every attack begins.
pub const HONEST: &str = "honest";

impl Fixture {
    /// Every file of the folder, by path.
    ///
    /// # Errors
    /// When the description cannot be written.
    pub fn to_files(&self) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
        let at = |path: &str| Path::new(&self.name).join(path);
        let mut text = serde_json::to_vec_pretty(&self.attack)?;
        text.push(b'\n');
        let mut all = BTreeMap::from([(at("attack.json"), text)]);
        if let Some(assignment) = &self.assignment {
            all.insert(at("assignment.json"), assignment.clone());
        }
        all.extend(self.files.iter().map(|(path, bytes)| (at("repo").join(path), bytes.clone())));
        Ok(all)
    }

    /// Reads a fixture's folder.
    ///
    /// # Errors
    /// When a file cannot be read or understood.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.file_name().and_then(|name| name.to_str()).context("a fixture has a name")?;
        let text =
            std::fs::read(folder.join("attack.json")).with_context(|| format!("read attack {name}"))?;
        let assignment = folder.join("assignment.json");
        Ok(Self {
            name: name.to_owned(),
            attack: serde_json::from_slice(&text).with_context(|| format!("understand attack {name}"))?,
            files: read_tree(&folder.join("repo"))?,
            assignment: assignment.is_file().then(|| std::fs::read(assignment)).transpose()?,
        })
    }
}

/// Reads all files below a folder, by their path in it; none when it is not there.
///
/// # Errors
/// When one cannot be read.
pub fn read_tree(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path)?);
        }
    }
    Ok(files)
}

/// The table of all attacks as it stands in `docs/attacks.md`.
pub fn table(fixtures: &[Fixture]) -> String {
    let mut out = String::from("| attack | what happens | refused with |\n|---|---|---|\n");
    for fixture in fixtures {
        let (attack, name) = (&fixture.attack, &fixture.name);
        out.push_str(&format!("| `{name}` | {} | `{}` |\n", attack.title, attack.code));
    }
    out
}
