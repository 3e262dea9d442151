//! Real processes for tests and the demo: a cloud, devices and a network that can be cut. Everything lives
//! in a folder of its own and ends with the value that started it.

mod cloud;
mod device;
mod fleet;
mod graphs;
mod process;
mod proxy;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cloud::{Cloud, Operator};
pub use device::{Answer, Device, DeviceOptions, InferFailure};
pub use fleet::{Fleet, MODEL};
pub use graphs::Graph;
pub use process::{Programs, onnxruntime_library, workspace_root};
pub use proxy::Proxy;
pub use reqwest;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until `condition` gives a value. It is called off in the middle when the time is over.
///
/// # Errors
/// When it did not within `limit`; the last thing it said is part of the error.
pub async fn until<T, F>(what: &str, limit: Duration, condition: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> anyhow::Result<Option<T>>,
{
    until_looked(what, LOOK_EVERY, limit, condition).await
}

/// As [`until`], looking so often.
///
/// # Errors
/// When the condition does not hold within the limit; with the last error it gave.
pub async fn until_looked<T, F>(
    what: &str,
    every: Duration,
    limit: Duration,
    mut condition: F,
) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> anyhow::Result<Option<T>>,
{
    let mut last = None;
    // What other processes do is looked at: there is no event to wait for.
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let found = tokio::time::timeout(limit, async {
        loop {
            looks.tick().await;
            match condition().await {
                Ok(Some(value)) => return value,
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
        }
    });
    match found.await {
        Ok(value) => Ok(value),
        Err(_) => {
            let last = last.map(|error| format!("; last error: {error:#}")).unwrap_or_default();
            anyhow::bail!("{what}: not within {} s{last}", limit.as_secs());
        }
    }
}

/// Writes the reference model's recipe with changes of its text (each from, to) and what it refers to into a new
/// folder; the recipe's path.
///
/// # Errors
/// When it does not hold what is to be changed, or cannot be written.
pub fn changed_recipe(folder: &Path, changes: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let model = workspace_root().join("models").join(MODEL);
    let mut recipe = std::fs::read_to_string(model.join("release.toml"))?;
    for (from, to) in changes {
        anyhow::ensure!(recipe.contains(from), "the recipe has another form: no {from}");
        recipe = recipe.replace(from, to);
    }
    std::fs::create_dir(folder)?;
    std::os::unix::fs::symlink(model.join("data"), folder.join("data"))?;
    let path = folder.join("release.toml");
    std::fs::write(&path, recipe)?;
    Ok(path)
}

/// Installs the one TLS provider; call it first.
pub fn init() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
