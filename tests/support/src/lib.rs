//! Real processes for tests and the demo: a cloud, devices and a network that can be cut. Everything lives
//! in a folder of its own and ends with the value that started it.

mod cloud;
mod device;
mod fleet;
mod process;
mod proxy;

use std::time::{Duration, Instant};

pub use cloud::{Cloud, Operator};
pub use device::{Answer, Device, DeviceOptions, InferFailure};
pub use fleet::{Fleet, MODEL};
pub use process::{Programs, workspace_root};
pub use proxy::Proxy;
pub use reqwest;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until `condition` gives a value.
///
/// # Errors
/// When it did not within `limit`; the last thing it said is part of the error.
pub async fn until<T, F>(what: &str, limit: Duration, mut condition: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> anyhow::Result<Option<T>>,
{
    let end = Instant::now() + limit;
    let mut last = None;
    loop {
        match condition().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if Instant::now() >= end {
            let last = last.map(|error| format!("; last error: {error:#}")).unwrap_or_default();
            anyhow::bail!("{what}: not within {} s{last}", limit.as_secs());
        }
        // Looking at a condition of other processes: there is no event to wait for.
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Installs the one TLS provider; call it first.
pub fn init() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
