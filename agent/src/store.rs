//! `telemetry.db`: windows and cases that wait for the cloud's acknowledgement. One writer (the
//! recorder); the uplink reads through a connection of its own. Rows leave only on the cloud's own
//! acknowledgement or, counted, by eviction.

use std::path::{Path, PathBuf};

use crate::durable;
use farlight_device::retention::{self, Evict};
use farlight_wire::{Case, Millis, Seq, Stream, Window};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

/// Version of the tables; another one is quarantined like a damaged file.
const SCHEMA: i64 = 1;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("{action} {path}: {source}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A file could not be moved aside.
    #[error("quarantine {path}: {source}")]
    Quarantine {
        /// The database.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A record could not be serialised; does not occur for the wire's types.
    #[error("serialise record: {0}")]
    Serialise(#[source] postcard::Error),
}

/// The writer's side.
pub struct Store {
    db: Connection,
    path: PathBuf,
    epoch: u64,
    evicted: u64,
}

/// What opening found.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Where a damaged file was moved to, if there was one.
    pub quarantined: Option<PathBuf>,
}

/// A record with its number, as the uplink reads it.
pub struct Row {
    /// Its number in the stream.
    pub seq: Seq,
    /// postcard bytes of the wire's record; `None` when its checksum differs.
    pub bytes: Option<Vec<u8>>,
}

fn table(stream: Stream) -> &'static str {
    match stream {
        Stream::Telemetry => "telemetry",
        Stream::Case => "cases",
        Stream::Report => "reports",
    }
}

const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE telemetry (seq INTEGER PRIMARY KEY AUTOINCREMENT, value INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE cases (seq INTEGER PRIMARY KEY AUTOINCREMENT, value INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE INDEX cases_value ON cases (value, seq);
";

/// Opens a database of the agent with its durability settings; `None` when it is damaged or of another
/// version.
pub(crate) fn open_checked(path: &Path, schema: i64, tables: &str) -> rusqlite::Result<Option<Connection>> {
    let db = Connection::open(path)?;
    let prepared = (|| {
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "journal_size_limit", 1_048_576)?;
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            // A file of no length is a valid empty database.
            db.execute_batch(&format!("BEGIN; {tables} PRAGMA user_version = {schema}; COMMIT;"))?;
            return Ok(true);
        }
        let check: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok(version == schema && check == "ok")
    })();
    match prepared {
        Ok(true) => Ok(Some(db)),
        Ok(false) => Ok(None),
        Err(rusqlite::Error::SqliteFailure(error, _))
            if matches!(
                error.code,
                rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Opens a database; a damaged one is moved aside and a fresh one begun.
pub(crate) fn open_or_quarantine(
    path: &Path,
    schema: i64,
    tables: &str,
    now: Millis,
) -> Result<(Connection, Option<PathBuf>), StoreError> {
    let sqlite = |source| StoreError::Sqlite { action: "open", path: path.into(), source };
    if let Some(db) = open_checked(path, schema, tables).map_err(sqlite)? {
        return Ok((db, None));
    }
    let aside = path.with_extension(format!("damaged-{}", now.0));
    let quarantine = |source| StoreError::Quarantine { path: path.into(), source };
    // The log goes first and durably: a power cut must never leave it beside a fresh database.
    for suffix in ["-wal", "-shm"] {
        let mut extra = path.as_os_str().to_owned();
        extra.push(suffix);
        match std::fs::remove_file(&extra) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(quarantine(error)),
            _ => {}
        }
    }
    durable::sync_parent(path).map_err(quarantine)?;
    std::fs::rename(path, &aside).map_err(quarantine)?;
    durable::sync_parent(path).map_err(quarantine)?;
    let db = open_checked(path, schema, tables).map_err(sqlite)?;
    let db = db.ok_or_else(|| sqlite(rusqlite::Error::InvalidQuery))?;
    Ok((db, Some(aside)))
}

/// The random identity of a fresh store, kept in its `meta` table.
pub(crate) fn epoch(db: &Connection) -> rusqlite::Result<u64> {
    let known: Option<i64> =
        db.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0)).optional()?;
    if let Some(epoch) = known {
        return Ok(epoch as u64);
    }
    // Positive, so that it is the same number as SQLite's signed integer; never 0.
    let epoch = rand::random_range(1..i64::MAX);
    db.execute("INSERT INTO meta (key, value) VALUES ('epoch', ?1)", [epoch])?;
    Ok(epoch as u64)
}

/// Deletes acknowledged rows and remembers the acknowledgement.
pub(crate) fn acknowledge(db: &Connection, stream: Stream, upto: Seq) -> rusqlite::Result<()> {
    let key = format!("acked.{}", stream.topic());
    let transaction = db.unchecked_transaction()?;
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
        params![key, upto.0 as i64],
    )?;
    transaction.execute(&format!("DELETE FROM {} WHERE seq <= ?1", table(stream)), [upto.0 as i64])?;
    transaction.commit()?;
    db.execute_batch("PRAGMA incremental_vacuum(64)")
}

/// Adds a record with its checksum.
pub(crate) fn append(db: &Connection, stream: Stream, value: u16, bytes: &[u8]) -> rusqlite::Result<()> {
    let mut insert =
        db.prepare_cached(&format!("INSERT INTO {} (value, crc, bytes) VALUES (?1, ?2, ?3)", table(stream)))?;
    insert.execute(params![value, crc32fast::hash(bytes), bytes]).map(|_| ())
}

impl Store {
    /// Opens `telemetry.db` in `folder`; a damaged one is moved aside and a fresh one begun.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(folder: &Path, now: Millis) -> Result<Opened, StoreError> {
        let path = folder.join("telemetry.db");
        let (db, quarantined) = open_or_quarantine(&path, SCHEMA, TABLES, now)?;
        let epoch = epoch(&db).map_err(|source| StoreError::Sqlite {
            action: "prepare",
            path: path.clone(),
            source,
        })?;
        Ok(Opened { store: Self { db, path, epoch, evicted: 0 }, quarantined })
    }

    fn sqlite(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sqlite { action, path, source }
    }

    /// Identity of this store.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Commits a window and cases in one transaction.
    ///
    /// # Errors
    /// When SQLite cannot commit; nothing is then stored.
    pub fn commit(&mut self, windows: &[Window], cases: &[Case]) -> Result<(), StoreError> {
        let fail = self.sqlite("commit to");
        let mut records = Vec::with_capacity(windows.len() + cases.len());
        for window in windows {
            let bytes = postcard::to_allocvec(window).map_err(StoreError::Serialise)?;
            records.push((Stream::Telemetry, 0, bytes));
        }
        for case in cases {
            let bytes = postcard::to_allocvec(case).map_err(StoreError::Serialise)?;
            records.push((Stream::Case, retention::case_value(case.kind, case.hardness_permille), bytes));
        }
        let run = || {
            let transaction = self.db.unchecked_transaction()?;
            for (stream, value, bytes) in &records {
                append(&transaction, *stream, *value, bytes)?;
            }
            transaction.commit()
        };
        run().map_err(fail)
    }

    /// Deletes what the cloud acknowledged.
    ///
    /// # Errors
    /// When SQLite cannot commit; the rows then stay and are sent again.
    pub fn acknowledge(&mut self, stream: Stream, upto: Seq) -> Result<(), StoreError> {
        acknowledge(&self.db, stream, upto).map_err(self.sqlite("acknowledge in"))
    }

    /// Evicts by value until the store is under `ceiling` bytes; returns how many records went.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn evict(&mut self, ceiling: u64) -> Result<u64, StoreError> {
        let fail = self.sqlite("evict from");
        let run = || -> rusqlite::Result<u64> {
            let mut evicted = 0;
            loop {
                let number =
                    |sql: &str| self.db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|n| n as u64);
                let pages = number("PRAGMA page_count")?.saturating_sub(number("PRAGMA freelist_count")?);
                let bytes = pages * number("PRAGMA page_size")?;
                let count = |stream| number(&format!("SELECT count(*) FROM {}", table(stream)));
                if bytes <= ceiling {
                    return Ok(evicted);
                }
                let deleted = match retention::plan(bytes, ceiling, count(Stream::Case)?, count(Stream::Telemetry)?) {
                    Evict::Nothing => return Ok(evicted),
                    Evict::Cases(n) => self.db.execute(
                        "DELETE FROM cases WHERE seq IN (SELECT seq FROM cases ORDER BY value, seq LIMIT ?1)",
                        [n as i64],
                    )?,
                    Evict::Windows(n) => self.db.execute(
                        "DELETE FROM telemetry WHERE seq IN (SELECT seq FROM telemetry ORDER BY seq LIMIT ?1)",
                        [n as i64],
                    )?,
                };
                evicted += deleted as u64;
                self.db.execute_batch("PRAGMA incremental_vacuum(256)")?;
            }
        };
        let evicted = run().map_err(fail)?;
        self.evicted += evicted;
        Ok(evicted)
    }

    /// Records evicted since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }
}

/// The uplink's side of a database: reads what waits.
pub struct Outbox {
    db: Connection,
    path: PathBuf,
    /// Identity of the store.
    pub epoch: u64,
}

impl Outbox {
    /// Opens a database for reading. The writer must have opened it before.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || {
            let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            db.busy_timeout(std::time::Duration::from_secs(5))?;
            let epoch: i64 =
                db.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))?;
            Ok((db, epoch as u64))
        };
        let (db, epoch) =
            open().map_err(|source| StoreError::Sqlite { action: "read", path: path.into(), source })?;
        Ok(Self { db, path: path.into(), epoch })
    }

    fn sqlite(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sqlite { action: "read", path: self.path.clone(), source }
    }

    /// The highest number acknowledged in this epoch.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn acked(&self, stream: Stream) -> Result<Seq, StoreError> {
        let key = format!("acked.{}", stream.topic());
        let value: Option<i64> = self
            .db
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(|e| self.sqlite(e))?;
        Ok(Seq(value.unwrap_or(0) as u64))
    }

    /// Records after `after`, in order: at most `limit`, and no more than `max_bytes` together (but at
    /// least one).
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn after(
        &self,
        stream: Stream,
        after: Seq,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let read = || {
            let sql =
                format!("SELECT seq, crc, bytes FROM {} WHERE seq > ?1 ORDER BY seq LIMIT ?2", table(stream));
            let mut select = self.db.prepare_cached(&sql)?;
            let mut rows = select.query(params![after.0 as i64, limit as i64])?;
            let (mut out, mut total) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let bytes: Vec<u8> = row.get(2)?;
                total += bytes.len();
                if total > max_bytes && !out.is_empty() {
                    break;
                }
                let whole = crc32fast::hash(&bytes) == row.get::<_, u32>(1)?;
                out.push(Row { seq: Seq(row.get::<_, i64>(0)? as u64), bytes: whole.then_some(bytes) });
            }
            Ok(out)
        };
        read().map_err(|e| self.sqlite(e))
    }

    /// Records that wait.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn waiting(&self, stream: Stream) -> Result<u64, StoreError> {
        self.db
            .query_row(&format!("SELECT count(*) FROM {}", table(stream)), [], |row| row.get::<_, i64>(0))
            .map(|n| n as u64)
            .map_err(|e| self.sqlite(e))
    }
}

#[cfg(test)]
mod tests {
    use farlight_wire::case::{CaseKind, CaseTensor, TensorEncoding};
    use farlight_wire::telemetry::VitalsV1;

    use super::*;

    fn window(start: u64) -> Window {
        Window { start: Millis(start), length: Millis(1), models: vec![], vitals: VitalsV1::default() }
    }

    fn case(hardness: u16, bytes: usize) -> Case {
        Case {
            at: Millis(1),
            release: "m/1.0.0".parse().unwrap(),
            request_id: "r".into(),
            kind: CaseKind::Margin,
            kept_permille: 1000,
            hardness_permille: hardness,
            class: 0,
            score_permille: 1,
            input: CaseTensor {
                shape: vec![bytes as u32],
                encoding: TensorEncoding::U8,
                bytes: vec![7; bytes],
            },
        }
    }

    #[test]
    fn records_stay_until_acknowledged_and_numbers_are_never_reused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), Millis(1)).unwrap().store;
        store.commit(&[window(1), window(2), window(3)], &[case(1, 1)]).unwrap();
        let outbox = Outbox::open(&dir.path().join("telemetry.db")).unwrap();
        assert_eq!(outbox.epoch, store.epoch());
        let rows = outbox.after(Stream::Telemetry, Seq(1), 10, 1 << 20).unwrap();
        assert_eq!(rows.iter().map(|r| r.seq.0).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(outbox.after(Stream::Telemetry, Seq(0), 10, 1).unwrap().len(), 1);
        store.acknowledge(Stream::Telemetry, Seq(3)).unwrap();
        assert_eq!(outbox.waiting(Stream::Telemetry).unwrap(), 0);
        assert_eq!(outbox.acked(Stream::Telemetry).unwrap(), Seq(3));
        let epoch = store.epoch();
        drop((store, outbox));
        let mut store = Store::open(dir.path(), Millis(1)).unwrap().store;
        assert_eq!(store.epoch(), epoch);
        store.commit(&[window(4)], &[]).unwrap();
        let outbox = Outbox::open(&dir.path().join("telemetry.db")).unwrap();
        assert_eq!(outbox.after(Stream::Telemetry, Seq(0), 10, 1 << 20).unwrap()[0].seq, Seq(4));
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("telemetry.db");
        let epoch = Store::open(dir.path(), Millis(1)).unwrap().store.epoch();
        std::fs::write(&path, vec![0xff; 8192]).unwrap();
        let opened = Store::open(dir.path(), Millis(77)).unwrap();
        assert!(opened.quarantined.unwrap().exists());
        assert_ne!(opened.store.epoch(), epoch);
        drop(opened.store);
        std::fs::write(&path, b"").unwrap();
        assert!(Store::open(dir.path(), Millis(78)).unwrap().quarantined.is_none());
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), Millis(1)).unwrap().store;
        store.commit(&[window(1)], &[]).unwrap();
        store.db.execute("UPDATE telemetry SET bytes = x'00'", []).unwrap();
        let outbox = Outbox::open(&dir.path().join("telemetry.db")).unwrap();
        assert!(outbox.after(Stream::Telemetry, Seq(0), 1, 1 << 20).unwrap()[0].bytes.is_none());
    }

    #[test]
    fn eviction_holds_the_ceiling_and_takes_easy_cases_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), Millis(1)).unwrap().store;
        let cases: Vec<Case> = (0..400).map(|n| case(n, 4_000)).collect();
        store.commit(&[window(1)], &cases).unwrap();
        let evicted = store.evict(1 << 20).unwrap();
        assert!(evicted > 100, "{evicted}");
        assert_eq!(store.take_evicted(), evicted);
        let lowest: i64 = store.db.query_row("SELECT min(value) FROM cases", [], |r| r.get(0)).unwrap();
        assert!(lowest as u64 >= evicted);
        assert!(std::fs::metadata(dir.path().join("telemetry.db")).unwrap().len() <= 2 << 20);
    }
}
