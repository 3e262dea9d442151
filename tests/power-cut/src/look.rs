//! What can be read off a state directory without starting the agent: pointers, trust, rows of the
//! databases. The rig's own reading, so that a fault of the agent's reading does not hide.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farlight_device::pointer::Pointer;
use farlight_wire::Report;
use farlight_wire::report::{self, UpdateReport};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::trace::Tree;

/// The agent's databases.
pub const DATABASES: [&str; 2] = ["state.db", "telemetry.db"];

/// Versions of everything in a trust store; none may ever go back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted(pub BTreeMap<String, u64>);

impl Trusted {
    /// What is older here than in `floor`.
    pub fn behind<'a>(&self, floor: &'a Self) -> Vec<&'a str> {
        let is_older = |(what, version): &(&String, &u64)| self.0.get(*what) < Some(version);
        floor.0.iter().filter(is_older).map(|(what, _)| what.as_str()).collect()
    }
}

/// Models that have a folder in a tree, with their pointers; `None` for a damaged one.
pub fn pointers(tree: &Tree) -> BTreeMap<String, Option<Pointer>> {
    let mut found = BTreeMap::new();
    for path in tree.0.keys() {
        let parts: Vec<&str> = path.split('/').collect();
        if let ["models", model, "active"] = parts[..] {
            let bytes = tree.file(path).unwrap_or_default();
            found.insert(model.to_owned(), Pointer::decode(bytes).ok());
        }
    }
    found
}

/// Pointers as [`pointers`] gives them, of a state directory on disk.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn pointers_on_disk(state: &Path) -> anyhow::Result<BTreeMap<String, Option<Pointer>>> {
    let mut found = BTreeMap::new();
    let models = state.join("models");
    if !models.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(&models).context("list models")? {
        let entry = entry?;
        let path = entry.path().join("active");
        if path.exists() {
            let bytes = std::fs::read(&path).context("read a pointer")?;
            found.insert(entry.file_name().to_string_lossy().into_owned(), Pointer::decode(&bytes).ok());
        }
    }
    Ok(found)
}

/// Reads a copy of the trust store; `None` when it is torn.
pub fn trust_copy(bytes: &[u8]) -> Option<Trusted> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (line, digest) = text.split_once('\n')?;
    if digest.trim_end() != hex::encode(Sha256::digest(line.as_bytes())) {
        return None;
    }
    let document: Value = serde_json::from_str(line).ok()?;
    let mut versions = BTreeMap::new();
    versions.insert("copy".to_owned(), document["sequence"].as_u64()?);
    if let Some(assignment) = document["last"]["sequence"].as_u64() {
        versions.insert("assignment".to_owned(), assignment);
    }
    metadata(&document, &mut versions);
    Some(Trusted(versions))
}

/// Every signed document in the copy, wherever it lies.
fn metadata(value: &Value, versions: &mut BTreeMap<String, u64>) {
    match value {
        Value::String(text) => {
            let document =
                BASE64.decode(text).ok().and_then(|raw| serde_json::from_slice::<Value>(&raw).ok());
            let signed = document.as_ref().map(|document| &document["signed"]);
            if let Some((Some(kind), Some(version))) =
                signed.map(|signed| (signed["_type"].as_str(), signed["version"].as_u64()))
            {
                versions.insert(kind.to_owned(), version);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| metadata(value, versions)),
        Value::Object(values) => values.values().for_each(|value| metadata(value, versions)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The newer readable copy of the trust store.
pub fn trusted(tree: &Tree) -> Option<Trusted> {
    let copies = ["trust-a.json", "trust-b.json"].map(|name| tree.file(name).and_then(trust_copy));
    copies.into_iter().flatten().max_by_key(|copy| copy.0.get("copy").copied())
}

/// A row: its table and a digest of its values.
pub type Row = (String, u64);
/// Rows of a database.
pub type Rows = BTreeSet<Row>;

/// A folder in memory for databases and states.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn new() -> anyhow::Result<Self> {
        let memory = Path::new("/dev/shm");
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("farlight-cut-");
            builder
        };
        // Without one in memory any will do, only slower.
        let folder = builder().tempdir_in(memory).or_else(|_| builder().tempdir());
        Ok(Self { folder: folder.context("make a scratch folder")? })
    }

    /// An empty folder in it.
    ///
    /// # Errors
    /// When it cannot be emptied.
    pub fn empty(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
        }
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// A database of a tree after SQLite's own recovery, in a copy; `None` when there is no readable one.
    ///
    /// # Errors
    /// When the copy cannot be written.
    pub fn database(&self, tree: &Tree, name: &str) -> anyhow::Result<Option<Database>> {
        let folder = self.empty("database")?;
        for suffix in ["", "-wal", "-journal"] {
            let name = format!("{name}{suffix}");
            if let Some(bytes) = tree.file(&name) {
                std::fs::write(folder.join(&name), bytes).context("copy a database")?;
            }
        }
        let path = folder.join(name);
        let open = || -> rusqlite::Result<Database> {
            let db = Connection::open(&path)?;
            db.pragma_update(None, "synchronous", "OFF")?;
            Ok(Database { rows: rows(&db)?, db })
        };
        Ok(path.exists().then(|| open().ok()).flatten())
    }
}

/// A database as a cut left it.
#[derive(Debug)]
pub struct Database {
    /// Its rows.
    pub rows: Rows,
    db: Connection,
}

/// What `state.db` knows.
#[derive(Debug, Default)]
pub struct Journal {
    /// Self-tests begun, by the digest of the release.
    pub attempts: BTreeMap<String, u32>,
    /// Digests of the releases that failed here.
    pub bad: BTreeSet<String>,
    /// The newest update report of each model that the cloud does not have yet.
    pub updates: BTreeMap<String, UpdateReport>,
}

impl Database {
    /// Reads the tables of `state.db`; empty where it has none yet.
    pub fn journal(&self) -> Journal {
        self.read_journal().unwrap_or_default()
    }

    fn read_journal(&self) -> rusqlite::Result<Journal> {
        let mut journal = Journal::default();
        let mut select = self.db.prepare("SELECT digest, sum(count) FROM attempts GROUP BY digest")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            journal.attempts.insert(row.get(0)?, row.get(1)?);
        }
        let mut select = self.db.prepare("SELECT digest FROM bad")?;
        journal.bad = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut select = self.db.prepare("SELECT bytes FROM reports ORDER BY seq")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(0)?;
            if let Ok(Report { event: report::Event::Update(update), .. }) = postcard::from_bytes(&bytes) {
                journal.updates.insert(update.model.to_string(), update);
            }
        }
        Ok(journal)
    }
}

fn rows(db: &Connection) -> rusqlite::Result<Rows> {
    let mut rows = Rows::new();
    let mut tables = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in tables {
        let mut select = db.prepare(&format!("SELECT * FROM \"{table}\""))?;
        let columns = select.column_count();
        let mut found = select.query([])?;
        while let Some(row) = found.next()? {
            let mut hash = DefaultHasher::new();
            for column in 0..columns {
                match row.get_ref(column)? {
                    ValueRef::Null => 0_u8.hash(&mut hash),
                    ValueRef::Integer(value) => value.hash(&mut hash),
                    ValueRef::Real(value) => value.to_bits().hash(&mut hash),
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.hash(&mut hash),
                }
            }
            rows.insert((table.clone(), hash.finish()));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Content, Item};

    #[test]
    fn versions_are_found_and_compared() {
        let signed = |kind: &str, version: u64| {
            BASE64.encode(format!("{{\"signed\":{{\"_type\":\"{kind}\",\"version\":{version}}}}}"))
        };
        let line = serde_json::json!({ "sequence": 4, "root": signed("root", 1), "snapshot": null,
            "more": [signed("targets", 7)], "last": { "sequence": 9 } })
        .to_string();
        let copy = format!("{line}\n{}\n", hex::encode(Sha256::digest(line.as_bytes())));
        let trusted = trust_copy(copy.as_bytes()).unwrap();
        assert_eq!(trusted.0["targets"], 7);
        assert_eq!((trusted.0["copy"], trusted.0["assignment"], trusted.0["root"]), (4, 9, 1));
        assert!(trust_copy(&copy.as_bytes()[..copy.len() - 9]).is_none());
        let mut newer = trusted.clone();
        newer.0.insert("targets".into(), 8);
        assert_eq!(trusted.behind(&newer), ["targets"]);
        assert!(newer.behind(&trusted).is_empty());
        assert_eq!(Trusted::default().behind(&trusted).len(), 4);
    }

    #[test]
    fn rows_are_read_through_the_write_ahead_log() {
        let scratch = Scratch::new().unwrap();
        let folder = scratch.empty("made").unwrap();
        let db = Connection::open(folder.join("state.db")).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch("CREATE TABLE a (x); INSERT INTO a VALUES (1), ('1'), (NULL); CREATE TABLE b (y)")
            .unwrap();
        let tree = Tree::read(&folder).unwrap();
        let rows =
            |tree: &Tree| scratch.database(tree, "state.db").unwrap().map(|database| database.rows.len());
        assert_eq!(rows(&tree), Some(3));
        let mut torn = tree.clone();
        torn.0.remove("state.db-wal");
        assert_eq!(rows(&torn).unwrap_or(0), 0);
        torn.0.insert("state.db".into(), Item::File(Content::new(vec![1; 100])));
        assert_eq!(rows(&torn), None);
    }
}
