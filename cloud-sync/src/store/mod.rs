//! The database: SQLite in a file by default, PostgreSQL by URL, one dialect for both (`$1`
//! placeholders, `ON CONFLICT`, BIGINT/TEXT/DOUBLE PRECISION/BYTEA). Migrations are the SQL files
//! beside this one. Parts keep their own statements; this module opens, migrates and writes in turn.

mod audit;

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Connection, Executor, SqlSafeStr, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

pub use audit::{AuditEntry, audit, audit_entries};

/// Connections to the database: readers do not wait for the writer, and more would only queue on
/// the same cores.
const MAX_CONNECTIONS: u32 = 8;
/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The migrations in order. A file that was released never changes; a new one is appended.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "base", include_str!("migrations/0001_base.sql")),
    (2, "releases", include_str!("migrations/0002_releases.sql")),
    (3, "learning", include_str!("migrations/0003_learning.sql")),
    (4, "delivery", include_str!("migrations/0004_delivery.sql")),
    (5, "feedback", include_str!("migrations/0005_feedback.sql")),
];

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened.
    #[error("open database {url}: {source}")]
    Open {
        /// The URL, without a password.
        url: String,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// Its tables cannot be made or brought up to date.
    #[error("migrate database: {0}; it may have been written by a newer farlight-cloud")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("{operation}: {source}")]
    Statement {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// A value in the database is not what it must be.
    #[error("{what} in the database is damaged: {why}")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// Why.
        why: String,
    },
}

/// Names the operation of a failed statement.
pub trait During<T> {
    /// Turns the driver's error into ours.
    ///
    /// # Errors
    /// [`StoreError::Statement`] with this operation.
    fn during(self, operation: &'static str) -> Result<T, StoreError>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Statement { operation, source })
    }
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    /// SQLite has one writer at a time; a fair queue here is kinder than its busy polling.
    turn: Option<Arc<Mutex<()>>>,
}

/// A transaction that writes. Dropped without [`Write::commit`] it rolls back.
pub struct Write {
    transaction: Transaction<'static, Any>,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Store {
    /// Opens and migrates the database.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Migrate`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let sqlite = url.starts_with("sqlite:");
        let open = |source| StoreError::Open { url: without_password(url), source };
        // The pool tries again until its time is over; what is no database is said at once.
        let mut first = AnyConnection::connect(url).await.map_err(open)?;
        let probe = if sqlite { "SELECT COUNT(*) FROM sqlite_master" } else { "SELECT 1" };
        first.execute(probe).await.map_err(open)?;
        first.close().await.map_err(open)?;
        let pool = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        // FULL: a commit that was acknowledged to a device survives a power cut.
                        let busy = BUSY_TIMEOUT.as_millis();
                        let pragmas = format!(
                            "PRAGMA busy_timeout={busy}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                        );
                        connection.execute(AssertSqlSafe(pragmas)).await?;
                    }
                    Ok(())
                })
            })
            .connect(url)
            .await
            .map_err(open)?;
        migrator(sqlite).run(&pool).await.map_err(StoreError::Migrate)?;
        Ok(Self { pool, turn: sqlite.then(Arc::default) })
    }

    /// For statements that only read.
    pub fn reader(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// [`StoreError::Statement`] when no connection can be had.
    pub async fn write(&self) -> Result<Write, StoreError> {
        let turn = match &self.turn {
            Some(turn) => Some(Arc::clone(turn).lock_owned().await),
            None => None,
        };
        // IMMEDIATE: a SQLite transaction that reads first and writes later could otherwise be
        // refused halfway.
        let begin = if turn.is_some() { "BEGIN IMMEDIATE" } else { "BEGIN" };
        let transaction = self.pool.begin_with(begin).await.during("begin a transaction")?;
        Ok(Write { transaction, _turn: turn })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl Write {
    /// The connection to run statements on.
    pub fn connection(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }

    /// Makes everything of this transaction durable.
    ///
    /// # Errors
    /// [`StoreError::Statement`]; nothing was written then.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await.during("commit")
    }
}

fn migrator(sqlite: bool) -> Migrator {
    let migration = |(version, name, sql): &(i64, &'static str, &'static str)| {
        let sql = if sqlite { sql.replace("BYTEA", "BLOB") } else { (*sql).to_owned() };
        let sql = AssertSqlSafe(sql).into_sql_str();
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(start), Some(end)) if start + 3 < end => format!("{}…{}", &url[..start + 3], &url[end..]),
        _ => url.to_owned(),
    }
}

/// A number for a BIGINT column. Counters never come near 2^63; what does is clamped.
pub fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number from a BIGINT column that is never negative.
pub fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
