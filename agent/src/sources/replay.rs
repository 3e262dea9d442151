//! A recorded sensor stream from a CSV file, read sample by sample in its own time and cut into windows.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use super::feed::{Feed, Full, QUEUE, Samples};
use super::form::{Sample, event_time};
use super::{Base, mqtt};
use crate::settings::source::Replay;

/// Longest pause between two samples: a recording with a wrong clock goes on.
const MAX_PAUSE: Duration = Duration::from_secs(3_600);

/// Replays until the end (or for ever).
pub(super) async fn run(base: Base, settings: Replay) -> anyhow::Result<()> {
    let sink = mqtt::output(&base, settings.output.clone()).await;
    let (mut feed, tasks) = Feed::start(&base, &sink, Full::DropOldest, QUEUE, Some(settings.window));
    base.models_present().await;
    let name = settings.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut pass = 1_u64;
    loop {
        let stream = format!("{name}#{pass}");
        replay(&mut feed, &stream, &settings).await?;
        feed.finish(&stream).await;
        if !settings.repeat {
            break;
        }
        pass += 1;
    }
    feed.close();
    for task in tasks {
        // A task that failed has said so.
        let _ = task.await;
    }
    tracing::info!(path = %settings.path.display(), "the recording has ended");
    Ok(())
}

/// One pass.
async fn replay(feed: &mut Feed, stream: &str, settings: &Replay) -> anyhow::Result<()> {
    let mut recording = Recording::open(&settings.path, settings.time_column.as_deref())?;
    let began = Instant::now();
    let (mut first, mut last, mut number) = (None, began, 0_u64);
    while let Some((t, values)) = recording.next()? {
        let t = match (t, settings.rate_hz) {
            (None, Some(rate)) => number as f64 * 1_000.0 / rate,
            (Some(t), _) => t,
            (None, None) => bail!("neither rate_hz nor time_column is set"),
        };
        event_time(t).map_err(|error| anyhow::anyhow!("{}: {error}", settings.path.display()))?;
        number += 1;
        let since = (t - *first.get_or_insert(t)).max(0.0) / settings.speed;
        let due = Duration::try_from_secs_f64(since / 1e3).ok().and_then(|since| began.checked_add(since));
        let due = due.unwrap_or(last).min(last.max(Instant::now()) + MAX_PAUSE);
        last = last.max(due);
        tokio::time::sleep_until(due).await;
        feed.samples(stream, &Samples::Each(vec![Sample { t: Some(t), values }])).await;
    }
    if number == 0 {
        bail!("{} has no samples", settings.path.display());
    }
    Ok(())
}

/// A file that is read row by row.
struct Recording {
    rows: csv::StringRecordsIntoIter<std::fs::File>,
    /// Index of the column with the time.
    time: Option<usize>,
    /// A first row that was looked at and is a sample.
    first: Option<csv::StringRecord>,
}

impl Recording {
    /// Opens a file. A first row that is not numbers names the columns; it must when a time column is asked for.
    fn open(path: &Path, time_column: Option<&str>) -> anyhow::Result<Self> {
        let reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_path(path);
        let reader = reader.with_context(|| format!("read {}", path.display()))?;
        let mut rows = reader.into_records();
        let first = rows.next().transpose().with_context(|| format!("read {}", path.display()))?;
        let named = |row: &csv::StringRecord| row.iter().any(|field| field.parse::<f64>().is_err());
        let time = match (time_column, &first) {
            (None, _) => None,
            (Some(name), Some(row)) => Some(
                row.iter()
                    .position(|field| field == name)
                    .with_context(|| format!("{} has no column {name}", path.display()))?,
            ),
            (Some(_), None) => bail!("{} has no samples", path.display()),
        };
        let first = first.filter(|row| time.is_none() && !named(row));
        Ok(Self { rows, time, first })
    }

    /// The next sample, with its time in milliseconds where there is a column for it.
    fn next(&mut self) -> anyhow::Result<Option<(Option<f64>, Vec<f32>)>> {
        let row = match self.first.take() {
            Some(row) => row,
            None => match self.rows.next().transpose().context("read the recording")? {
                Some(row) => row,
                None => return Ok(None),
            },
        };
        let line = row.position().map_or(0, csv::Position::line);
        let (mut t, mut values) = (None, Vec::with_capacity(row.len()));
        for (index, field) in row.iter().enumerate() {
            let wrong = || format!("line {line}: {field:?} is not a number");
            if Some(index) == self.time {
                t = Some(field.parse().with_context(wrong)?);
            } else {
                values.push(field.parse().with_context(wrong)?);
            }
        }
        Ok(Some((t, values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path, time: Option<&str>) -> anyhow::Result<Vec<(Option<f64>, Vec<f32>)>> {
        let mut recording = Recording::open(path, time)?;
        std::iter::from_fn(|| recording.next().transpose()).collect()
    }

    #[test]
    fn reads_numbers_with_or_without_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let two = [(None, vec![1.0, 2.0]), (None, vec![3.0, 4.0])];
        std::fs::write(&path, "ax,ay\n1,2\n3, 4\n").unwrap();
        assert_eq!(read(&path, None).unwrap(), two);
        std::fs::write(&path, "1,2\n3,4\n").unwrap();
        assert_eq!(read(&path, None).unwrap(), two);
        std::fs::write(&path, "1,2\n3,x\n").unwrap();
        assert!(format!("{:#}", read(&path, None).unwrap_err()).contains("line 2"));
        std::fs::write(&path, "").unwrap();
        assert!(read(&path, None).unwrap().is_empty());
        assert!(read(&path, Some("t")).is_err());
    }

    #[test]
    fn the_time_has_a_column_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, "ax,t,ay\n1,1700000000000.5,2\n3,1700000000010,4\n").unwrap();
        let rows = read(&path, Some("t")).unwrap();
        assert_eq!(rows[0], (Some(1_700_000_000_000.5), vec![1.0, 2.0]));
        assert!(read(&path, Some("time")).unwrap_err().to_string().contains("no column time"));
    }
}
