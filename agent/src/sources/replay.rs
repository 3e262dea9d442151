//! A recorded sensor stream from a CSV file, cut into overlapping windows and replayed in its own time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::watch;

use super::ask;
use crate::models::Models;

/// Most samples read from one file: an hour at 50 Hz fits twenty times.
const MAX_SAMPLES: usize = 4_000_000;

/// One recording.
pub(super) struct Replay {
    pub(super) model: String,
    pub(super) path: PathBuf,
    pub(super) rate_hz: f64,
    pub(super) stride: usize,
    pub(super) repeat: bool,
}

impl Replay {
    /// Replays until its end (or for ever), or shutdown.
    pub(super) async fn run(
        self,
        models: &Models,
        mut shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let samples = read(&self.path)?;
        let mut window = tokio::time::interval(Duration::from_secs_f64(self.stride as f64 / self.rate_hz));
        let (mut start, mut number) = (0, 0_u64);
        loop {
            tokio::select! {
                _ = window.tick() => {}
                _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
            }
            // No model yet: time passes all the same.
            let Ok(loaded) = models.find(&self.model, None) else { continue };
            let [channels, length] = loaded.manifest.input.shape.as_slice() else {
                bail!("model {} does not take [channels, samples]", self.model);
            };
            let (channels, length) = (*channels, *length);
            if samples[0].len() != channels {
                bail!(
                    "{} has {} columns, model {} takes {channels}",
                    self.path.display(),
                    samples[0].len(),
                    self.model
                );
            }
            if start + length > samples.len() {
                if !self.repeat || length > samples.len() {
                    return Ok(());
                }
                start = 0;
            }
            let rows = &samples[start..start + length];
            let raw = (0..channels).flat_map(|channel| rows.iter().map(move |row| row[channel])).collect();
            number += 1;
            if let Err(error) = ask(models, &self.model, &format!("replay-{number}"), raw).await {
                tracing::warn!(model = self.model, %error, "replayed window not answered");
            }
            start += self.stride;
        }
    }
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_path(path)
        .with_context(|| format!("read {}", path.display()))?;
    let mut samples = Vec::new();
    for (number, row) in reader.deserialize::<Vec<f32>>().enumerate() {
        match row {
            Ok(row) if !row.is_empty() => samples.push(row),
            Ok(_) => {}
            // A first row that is not numbers names the columns.
            Err(_) if number == 0 => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        if samples.len() > MAX_SAMPLES {
            bail!("{} has more than {MAX_SAMPLES} rows", path.display());
        }
    }
    if samples.is_empty() {
        bail!("{} has no samples", path.display());
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_with_or_without_a_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, "ax,ay\n1,2\n3, 4\n").unwrap();
        assert_eq!(read(&path).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        std::fs::write(&path, "1,2\n3,x\n").unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).is_err());
    }
}
