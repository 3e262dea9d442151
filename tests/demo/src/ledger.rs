//! The final account: every record that a device ever numbered against what the cloud stored. Read from
//! the databases themselves, after everything has been sent.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};

/// Records by (device, stream).
type Counts = HashMap<(String, &'static str), u64>;

/// What was counted.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Account {
    /// Records that devices numbered.
    pub(crate) written: u64,
    /// Records that the cloud stored.
    pub(crate) stored: u64,
    /// Written and not stored.
    pub(crate) lost: u64,
    /// Stored more than once.
    pub(crate) duplicated: u64,
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("open {}", path.display()))
}

/// Records a device numbered in each stream, whether or not they were deleted since.
fn written(device: &str, state_dir: &Path, counts: &mut Counts) -> anyhow::Result<()> {
    for (file, tables) in [("telemetry.db", &["telemetry", "cases"][..]), ("state.db", &["reports"][..])] {
        let db = open(&state_dir.join(file))?;
        for table in tables {
            let stream = match *table {
                "telemetry" => "tel",
                "cases" => "case",
                _ => "rep",
            };
            let last: Option<i64> = db
                .query_row("SELECT max(seq) FROM sqlite_sequence WHERE name = ?1", [table], |row| row.get(0))
                .with_context(|| format!("read numbers of {device}"))?;
            counts.insert((device.to_owned(), stream), last.unwrap_or(0) as u64);
        }
    }
    Ok(())
}

/// Compares what devices wrote with what the cloud stored. `devices` are names with state directories.
///
/// # Errors
/// When a database cannot be read.
pub(crate) fn account(cloud: &Path, devices: &[(String, std::path::PathBuf)]) -> anyhow::Result<Account> {
    let mut counts = Counts::new();
    for (device, state_dir) in devices {
        written(device, state_dir, &mut counts)?;
    }
    let db = open(&cloud.join("cloud.db"))?;
    let mut account = Account::default();
    for ((device, stream), written) in counts {
        let table = match stream {
            "tel" => "windows",
            "case" => "cases",
            _ => "reports",
        };
        let sql =
            format!("SELECT count(*), count(DISTINCT epoch || ':' || seq) FROM {table} WHERE device = ?1");
        let (stored, distinct): (i64, i64) = db
            .query_row(&sql, [&device], |row| Ok((row.get(0)?, row.get(1)?)))
            .with_context(|| format!("count {table} of {device}"))?;
        account.written += written;
        account.stored += stored as u64;
        account.lost += written.saturating_sub(distinct as u64);
        account.duplicated += (stored - distinct) as u64 + (distinct as u64).saturating_sub(written);
    }
    Ok(account)
}
