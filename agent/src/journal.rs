//! `state.db`: reports that wait for the cloud, attempts, and what failed here. What runs is not in it:
//! the pointer files say that, and this database may be lost without harm to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_device::health::Health;
use farlight_wire::report::Event;
use farlight_wire::{Millis, ModelName, ReleaseId, Report, RolloutId, Seq, Stream};
use rusqlite::{Connection, OptionalExtension, params};

use crate::store::{self, StoreError};

const SCHEMA: i64 = 2;
const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE reports (seq INTEGER PRIMARY KEY AUTOINCREMENT, value INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT;
CREATE TABLE attempts (release TEXT NOT NULL, rollout TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (release, rollout)) STRICT;
CREATE TABLE bad (release TEXT PRIMARY KEY, rollout TEXT) STRICT;
CREATE TABLE baselines (model TEXT PRIMARY KEY, health BLOB NOT NULL) STRICT;
";
/// Most reports kept while offline: the oldest go first, and the loss is itself reported.
const MAX_REPORTS: i64 = 10_000;
/// Reports that go at once, so that their loss is one report among many.
const DROPPED_AT_ONCE: i64 = 1_000;

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

    fn sqlite(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sqlite { action, path, source }
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
            transaction.commit()
        };
        run().map_err(self.sqlite("report to"))
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
    pub fn attempts(&self, release: &ReleaseId, rollout: Option<&RolloutId>) -> Result<u32, StoreError> {
        self.db
            .query_row(
                "SELECT count FROM attempts WHERE release = ?1 AND rollout = ?2",
                params![release.to_string(), rollout.map_or("", RolloutId::as_str)],
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
    pub fn count_attempt(&self, release: &ReleaseId, rollout: Option<&RolloutId>) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO attempts (release, rollout, count) VALUES (?1, ?2, 1)
                 ON CONFLICT (release, rollout) DO UPDATE SET count = count + 1",
                params![release.to_string(), rollout.map_or("", RolloutId::as_str)],
            )
            .map(|_| ())
            .map_err(self.sqlite("count in"))
    }

    /// Forgets that a release failed here: it was confirmed since.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn forget_bad(&self, release: &ReleaseId) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM bad WHERE release = ?1", [release.to_string()])
            .map(|_| ())
            .map_err(self.sqlite("forget in"))
    }

    /// Forgets the attempts of a release that came to an end.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn clear_attempts(&self, release: &ReleaseId) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM attempts WHERE release = ?1", [release.to_string()])
            .map(|_| ())
            .map_err(self.sqlite("count in"))
    }

    /// Remembers that a release failed here for a rollout.
    ///
    /// # Errors
    /// When SQLite cannot commit.
    pub fn remember_bad(&self, release: &ReleaseId, rollout: Option<&RolloutId>) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO bad (release, rollout) VALUES (?1, ?2)
                 ON CONFLICT (release) DO UPDATE SET rollout = excluded.rollout",
                params![release.to_string(), rollout.map(RolloutId::as_str)],
            )
            .map(|_| ())
            .map_err(self.sqlite("remember in"))
    }

    /// What failed here.
    ///
    /// # Errors
    /// When SQLite fails.
    pub fn bad(&self) -> Result<BTreeMap<ReleaseId, Option<RolloutId>>, StoreError> {
        let read = || {
            let mut select = self.db.prepare("SELECT release, rollout FROM bad")?;
            let rows = select
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)))?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        let rows = read().map_err(self.sqlite("read"))?;
        Ok(rows
            .into_iter()
            .filter_map(|(release, rollout)| {
                Some((release.parse().ok()?, rollout.and_then(|text| text.parse().ok())))
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let release: ReleaseId = "m/1.0.0".parse().unwrap();
        let rollout: RolloutId = "r1".parse().unwrap();
        {
            let (journal, _) = Journal::open(dir.path(), Millis(1)).unwrap();
            journal.count_attempt(&release, Some(&rollout)).unwrap();
            journal.count_attempt(&release, Some(&rollout)).unwrap();
            journal.remember_bad(&release, Some(&rollout)).unwrap();
            let event = Event::Loss { what: "x".into(), records: 1 };
            journal.report(&Report { at: Millis(1), event }).unwrap();
        }
        let (journal, quarantined) = Journal::open(dir.path(), Millis(1)).unwrap();
        assert!(quarantined.is_none());
        assert_eq!(journal.attempts(&release, Some(&rollout)).unwrap(), 2);
        assert_eq!(journal.attempts(&release, None).unwrap(), 0);
        assert_eq!(journal.bad().unwrap()[&release], Some(rollout));
        let outbox = store::Outbox::open(&dir.path().join("state.db")).unwrap();
        assert_eq!(outbox.waiting(Stream::Report).unwrap(), 1);
        journal.forget_bad(&release).unwrap();
        assert!(journal.bad().unwrap().is_empty());
        journal.clear_attempts(&release).unwrap();
        journal.acknowledge(Seq(1)).unwrap();
        assert_eq!(outbox.waiting(Stream::Report).unwrap(), 0);
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
