//! `state.db`: reports that wait for the cloud, attempts, and what failed here. What runs is not in it:
//! the pointer files say that, and this database may be lost without harm to them.

use std::path::{Path, PathBuf};

use farlight_device::health::Health;
use farlight_device::pointer::Slot;
use farlight_device::update::{Bad, BadList, MAX_BAD};
use farlight_wire::report::{Event, UpdateReport};
use farlight_wire::{Millis, ModelName, ReleaseId, Report, RolloutId, Seq, Stream};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::store::{self, StoreError};

const SCHEMA: i64 = 3;
const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE reports (seq INTEGER PRIMARY KEY AUTOINCREMENT, value INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE attempts (digest TEXT NOT NULL, rollout TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (digest, rollout)) STRICT;
CREATE TABLE bad (digest TEXT PRIMARY KEY, release TEXT NOT NULL, rollout TEXT, code TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
CREATE TABLE history (seq INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, model TEXT NOT NULL, release TEXT NOT NULL,
  state TEXT NOT NULL, running TEXT NOT NULL, rollout TEXT NOT NULL, assignment INTEGER NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL) STRICT;
CREATE TABLE baselines (model TEXT PRIMARY KEY, health BLOB NOT NULL) STRICT;
";
/// Most reports kept while offline: the oldest go first, and the loss is itself reported.
const MAX_REPORTS: i64 = 10_000;
/// Reports that go at once, so that their loss is one report among many.
const DROPPED_AT_ONCE: i64 = 1_000;
/// Most steps of updates kept as history: years of a device that is updated weekly.
const MAX_HISTORY: i64 = 5_000;
/// Name of the row that says until when updates are paused.
const PAUSED_UNTIL: &str = "paused_until";

/// The journal.
pub struct Journal {
    db: Connection,
    path: PathBuf,
}

impl Journal {
    /// Opens `state.db` in `folder`; a damaged one is moved aside (second value) and a fresh one begun.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(folder: &Path, now: Millis) -> Result<(Self, Option<PathBuf>), StoreError> {
        let path = folder.join("state.db");
        let (db, quarantined) = store::open_or_quarantine(&path, SCHEMA, TABLES, now)?;
        let journal = Self { db, path };
        store::epoch(&journal.db).map_err(journal.sqlite("prepare"))?;
        Ok((journal, quarantined))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sqlite(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sqlite { action, path, source }
    }

    /// Whether the room of reports is half full.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn reports_are_many(&self) -> Result<bool, StoreError> {
        let kept = self.db.query_row("SELECT count(*) FROM reports", [], |row| row.get::<_, i64>(0));
        Ok(kept.map_err(self.sqlite("count reports in"))? >= MAX_REPORTS / 2)
    }

    /// Keeps a report until the cloud has it.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn report(&self, report: &Report) -> Result<(), StoreError> {
        let bytes = postcard::to_allocvec(report).map_err(StoreError::Serialise)?;
        let loss = postcard::to_allocvec(&Report {
            at: report.at,
            event: Event::Loss { what: "reports".to_owned(), records: DROPPED_AT_ONCE as u64 },
        })
        .map_err(StoreError::Serialise)?;
        let run = || {
            let transaction = self.db.unchecked_transaction()?;
            let kept: i64 = transaction.query_row("SELECT count(*) FROM reports", [], |row| row.get(0))?;
            if kept >= MAX_REPORTS {
                transaction.execute(
                    "DELETE FROM reports WHERE seq IN (SELECT seq FROM reports ORDER BY seq LIMIT ?1)",
                    [DROPPED_AT_ONCE],
                )?;
                store::append(&transaction, Stream::Report, 0, &loss)?;
            }
            store::append(&transaction, Stream::Report, 0, &bytes)?;
            if let Event::Update(step) = &report.event {
                remember(&transaction, report.at, step)?;
            }
            transaction.commit()
        };
        run().map_err(self.sqlite("report to"))
    }

    /// Notes in the history that a model was taken out because nothing assigns it any longer.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn note_removal(&self, at: Millis, slot: &Slot) -> Result<(), StoreError> {
        let step = HistoryRow { state: "removed".to_owned(), ..HistoryRow::new(at, &slot.release) };
        insert_history(&self.db, &step).map_err(self.sqlite("remember in"))
    }

    /// What ran when, and why: newest first, of one model or of all.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn history(
        path: &Path,
        model: Option<&ModelName>,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, StoreError> {
        let at = path.to_path_buf();
        let read = || {
            let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            db.busy_timeout(std::time::Duration::from_secs(5))?;
            let mut select = db.prepare(
                "SELECT at, model, release, state, running, rollout, assignment, code, message FROM history
                 WHERE ?1 = '' OR model = ?1 ORDER BY seq DESC LIMIT ?2",
            )?;
            let rows = select.query_map(params![model.map_or("", ModelName::as_str), limit], |row| {
                Ok(HistoryRow {
                    at: Millis(row.get::<_, i64>(0)?.unsigned_abs()),
                    model: row.get(1)?,
                    release: row.get(2)?,
                    state: row.get(3)?,
                    running: row.get(4)?,
                    rollout: row.get(5)?,
                    assignment: row.get::<_, i64>(6)?.unsigned_abs(),
                    code: row.get(7)?,
                    message: row.get(8)?,
                })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source| StoreError::Sqlite { action: "read history from", path: at, source })
    }

    /// Until when updates are paused; 0 when they are not.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn paused_until(&self) -> Result<Millis, StoreError> {
        let until: Option<i64> = self
            .db
            .query_row("SELECT value FROM meta WHERE key = ?1", [PAUSED_UNTIL], |row| row.get(0))
            .optional()
            .map_err(self.sqlite("read"))?;
        Ok(Millis(until.unwrap_or_default().unsigned_abs()))
    }

    /// Pauses updates until then; 0 ends a pause.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn pause_until(&self, until: Millis) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                params![PAUSED_UNTIL, i64::try_from(until.0).unwrap_or(i64::MAX)],
            )
            .map(|_| ())
            .map_err(self.sqlite("pause in"))
    }

    /// Keeps what the confirmed release of a model did here, before a candidate takes its place.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn keep_baseline(&self, model: &ModelName, health: &Health) -> Result<(), StoreError> {
        let bytes = postcard::to_allocvec(health).map_err(StoreError::Serialise)?;
        self.db
            .execute(
                "INSERT INTO baselines (model, health) VALUES (?1, ?2)
                 ON CONFLICT (model) DO UPDATE SET health = excluded.health",
                params![model.as_str(), bytes],
            )
            .map(|_| ())
            .map_err(self.sqlite("keep a baseline in"))
    }

    /// What the release before the candidate did here; empty when it is not known.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn baseline(&self, model: &ModelName) -> Result<Health, StoreError> {
        let bytes: Option<Vec<u8>> = self
            .db
            .query_row("SELECT health FROM baselines WHERE model = ?1", [model.as_str()], |row| row.get(0))
            .optional()
            .map_err(self.sqlite("read"))?;
        Ok(bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default())
    }

    /// Deletes reports the cloud acknowledged.
    ///
    /// # Errors
    /// When SQLite cannot commit; they are then sent again.
    pub fn acknowledge(&self, upto: Seq) -> Result<(), StoreError> {
        store::acknowledge(&self.db, Stream::Report, upto).map_err(self.sqlite("acknowledge in"))
    }

    /// Self-tests begun for a release of a rollout.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn attempts(&self, digest: &str, rollout: Option<&RolloutId>) -> Result<u32, StoreError> {
        self.db
            .query_row(
                "SELECT count FROM attempts WHERE digest = ?1 AND rollout = ?2",
                params![digest, rollout.map_or("", RolloutId::as_str)],
                |row| row.get(0),
            )
            .optional()
            .map(Option::unwrap_or_default)
            .map_err(self.sqlite("read"))
    }

    /// Counts one more self-test, before it begins.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn count_attempt(&self, digest: &str, rollout: Option<&RolloutId>) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO attempts (digest, rollout, count) VALUES (?1, ?2, 1)
                 ON CONFLICT (digest, rollout) DO UPDATE SET count = count + 1",
                params![digest, rollout.map_or("", RolloutId::as_str)],
            )
            .map(|_| ())
            .map_err(self.sqlite("count in"))
    }

    /// Forgets that a release failed here, and its attempts: it was confirmed since.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn forget(&self, digest: &str) -> Result<(), StoreError> {
        let run = || {
            let transaction = self.db.unchecked_transaction()?;
            transaction.execute("DELETE FROM bad WHERE digest = ?1", [digest])?;
            transaction.execute("DELETE FROM attempts WHERE digest = ?1", [digest])?;
            transaction.commit()
        };
        run().map_err(self.sqlite("forget in"))
    }

    /// Remembers that a release failed here; its attempts came to an end.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn remember_bad(&self, slot: &Slot, bad: &Bad, at: Millis) -> Result<(), StoreError> {
        let run = || {
            let transaction = self.db.unchecked_transaction()?;
            transaction.execute(
                "INSERT INTO bad (digest, release, rollout, code, at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (digest)
                 DO UPDATE SET rollout = excluded.rollout, code = excluded.code, at = excluded.at",
                params![
                    slot.digest,
                    slot.release.to_string(),
                    bad.rollout.as_ref().map(RolloutId::as_str),
                    bad.code,
                    i64::try_from(at.0).unwrap_or(i64::MAX)
                ],
            )?;
            transaction.execute(
                "DELETE FROM bad WHERE digest NOT IN (SELECT digest FROM bad ORDER BY at DESC LIMIT ?1)",
                [MAX_BAD as i64],
            )?;
            transaction.execute("DELETE FROM attempts WHERE digest = ?1", [&slot.digest])?;
            transaction.commit()
        };
        run().map_err(self.sqlite("remember in"))
    }

    /// What failed here, by the digest of its manifest.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn bad(&self) -> Result<BadList, StoreError> {
        let read = || {
            let mut select = self.db.prepare("SELECT digest, rollout, code FROM bad")?;
            let rows = select.query_map([], |row| {
                let rollout: Option<String> = row.get(1)?;
                let rollout = rollout.and_then(|text| text.parse().ok());
                Ok((row.get(0)?, Bad { rollout, code: row.get(2)? }))
            })?;
            rows.collect::<Result<BadList, _>>()
        };
        read().map_err(self.sqlite("read"))
    }
}

/// One step of an update, as history shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryRow {
    /// When, Unix milliseconds.
    pub at: Millis,
    /// The model.
    pub model: String,
    /// The release the step is about.
    pub release: String,
    /// The state reached, for example `confirmed`.
    pub state: String,
    /// The release that ran after it; empty when none.
    pub running: String,
    /// The rollout that asked; empty when none.
    pub rollout: String,
    /// Sequence of the assignment that asked.
    pub assignment: u64,
    /// Code of the error; empty when none.
    pub code: String,
    /// What went wrong.
    pub message: String,
}

impl HistoryRow {
    fn new(at: Millis, release: &ReleaseId) -> Self {
        Self {
            at,
            model: release.model.to_string(),
            release: release.to_string(),
            state: String::new(),
            running: String::new(),
            rollout: String::new(),
            assignment: 0,
            code: String::new(),
            message: String::new(),
        }
    }
}

fn remember(db: &Connection, at: Millis, step: &UpdateReport) -> rusqlite::Result<()> {
    let text = |value: Option<String>| value.unwrap_or_default();
    let row = HistoryRow {
        state: serde_json::to_value(step.state)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default(),
        running: text(step.running.as_ref().map(ToString::to_string)),
        rollout: text(step.rollout.as_ref().map(ToString::to_string)),
        assignment: step.assignment,
        code: text(step.error.as_ref().map(|error| error.code.clone())),
        message: text(step.error.as_ref().map(|error| error.message.clone())),
        ..HistoryRow::new(at, &step.release)
    };
    insert_history(db, &row)
}

fn insert_history(db: &Connection, row: &HistoryRow) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO history (at, model, release, state, running, rollout, assignment, code, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            i64::try_from(row.at.0).unwrap_or(i64::MAX),
            row.model,
            row.release,
            row.state,
            row.running,
            row.rollout,
            i64::try_from(row.assignment).unwrap_or(i64::MAX),
            row.code,
            row.message
        ],
    )?;
    db.execute("DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?1", [MAX_HISTORY])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use farlight_wire::report::{ErrorReport, UpdateState};

    use super::*;

    fn slot() -> Slot {
        Slot { release: "m/1.0.0".parse().unwrap(), digest: "d".repeat(64) }
    }

    #[test]
    fn what_is_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let slot = slot();
        let rollout: RolloutId = "r1".parse().unwrap();
        let bad = Bad { rollout: Some(rollout.clone()), code: "self_test.load".into() };
        {
            let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
            journal.count_attempt(&slot.digest, Some(&rollout)).unwrap();
            journal.count_attempt(&slot.digest, Some(&rollout)).unwrap();
            journal.pause_until(Millis(99)).unwrap();
            let event = Event::Loss { what: "x".into(), records: 1 };
            journal.report(&Report { at: Millis(1), event }).unwrap();
        }
        let (journal, quarantined) = Journal::open(dir.path(), Millis(1)).unwrap();
        assert!(quarantined.is_none());
        assert_eq!(journal.attempts(&slot.digest, Some(&rollout)).unwrap(), 2);
        assert_eq!(journal.attempts(&slot.digest, None).unwrap(), 0);
        assert_eq!(journal.paused_until().unwrap(), Millis(99));
        journal.remember_bad(&slot, &bad, Millis(2)).unwrap();
        assert_eq!(journal.attempts(&slot.digest, Some(&rollout)).unwrap(), 0);
        assert_eq!(journal.bad().unwrap()[&slot.digest], bad);
        let outbox = store::Outbox::open(&dir.path().join("state.db")).unwrap();
        assert_eq!(outbox.waiting(Stream::Report).unwrap(), 1);
        journal.forget(&slot.digest).unwrap();
        assert!(journal.bad().unwrap().is_empty());
        journal.acknowledge(Seq(1)).unwrap();
        assert_eq!(outbox.waiting(Stream::Report).unwrap(), 0);
    }

    #[test]
    fn each_step_of_an_update_is_history() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
        let step = |state, error| UpdateReport {
            model: "m".parse().unwrap(),
            release: slot().release,
            rollout: None,
            assignment: 3,
            state,
            error,
            running: None,
            elapsed: Millis(5),
        };
        let error = ErrorReport { code: "self_test.load".into(), message: "no".into() };
        for (at, step) in
            [(1, step(UpdateState::Fetching, None)), (2, step(UpdateState::Failed, Some(error)))]
        {
            journal.report(&Report { at: Millis(at), event: Event::Update(step) }).unwrap();
        }
        journal.note_removal(Millis(3), &slot()).unwrap();
        let path = dir.path().join("state.db");
        let history = Journal::history(&path, Some(&"m".parse().unwrap()), 10).unwrap();
        let states: Vec<&str> = history.iter().map(|row| row.state.as_str()).collect();
        assert_eq!(states, ["removed", "failed", "fetching"]);
        assert_eq!((history[1].code.as_str(), history[1].assignment), ("self_test.load", 3));
        assert!(Journal::history(&path, Some(&"n".parse().unwrap()), 10).unwrap().is_empty());
        assert_eq!(Journal::history(&path, None, 1).unwrap().len(), 1);
    }

    #[test]
    fn the_baseline_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let model: ModelName = "m".parse().unwrap();
        let mut health = Health { ok: 7, ..Health::default() };
        health.latency_us.add(120.0);
        {
            let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
            assert_eq!(journal.baseline(&model).unwrap(), Health::default());
            journal.keep_baseline(&model, &health).unwrap();
        }
        let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
        assert_eq!(journal.baseline(&model).unwrap(), health);
    }

    #[test]
    fn reports_are_bounded_and_their_loss_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
        let event = Event::CommandResult { id: "c".into(), ok: true, detail: String::new() };
        let report = Report { at: Millis(1), event };
        let bytes = postcard::to_allocvec(&report).unwrap();
        let filling = journal.db.unchecked_transaction().unwrap();
        (0..MAX_REPORTS).for_each(|_| store::append(&filling, Stream::Report, 0, &bytes).unwrap());
        filling.commit().unwrap();
        journal.report(&report).unwrap();
        let outbox = store::Outbox::open(&dir.path().join("state.db")).unwrap();
        assert_eq!(outbox.waiting(Stream::Report).unwrap() as i64, MAX_REPORTS - DROPPED_AT_ONCE + 2);
        let rows = outbox.after(Stream::Report, Seq(MAX_REPORTS as u64), 1, 1 << 20).unwrap();
        let loss: Report = postcard::from_bytes(rows[0].bytes.as_ref().unwrap()).unwrap();
        assert!(matches!(loss.event, Event::Loss { records, .. } if records as i64 == DROPPED_AT_ONCE));
    }
}
