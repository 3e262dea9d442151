//! Frames of a V4L2 camera. The newest frame counts: one that waits for its model is replaced by the next.

use std::time::Duration;

use anyhow::Context;
use farlight_device::backoff::Backoff;
use farlight_wire::Millis;

use super::feed::{Feed, Full};
use super::pixels::Picture;
use super::{Base, mqtt};
use crate::settings::source::{Camera, Pixels};

/// Frames that may wait for each model.
const QUEUE: usize = 1;
/// Buffers shared with the driver.
const BUFFERS: u32 = 4;
/// First and longest wait before the camera is tried again.
const RETRY: (Millis, Millis) = (Millis(500), Millis(30_000));

/// Answers frames until shutdown.
pub(super) async fn run(base: Base, settings: Camera) -> anyhow::Result<()> {
    let sink = mqtt::output(&base, settings.output.clone()).await;
    let (feed, _tasks) = Feed::start(&base, &sink, Full::DropOldest, QUEUE, None);
    base.models_present().await;
    let runtime = tokio::runtime::Handle::current();
    // A thread of its own, which nobody waits for: the wait for a frame cannot be called off.
    std::thread::spawn(move || {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut number = 0_u64;
        while !*base.shutdown.borrow() {
            let ended = record(&base, &settings, |frame| {
                backoff.reset();
                number += 1;
                runtime.block_on(feed.input(&format!("frame-{number}"), "", frame));
            });
            if let Err(error) = ended {
                tracing::warn!(device = %settings.device.display(), "camera lost: {error:#}");
            }
            std::thread::sleep(Duration::from_millis(backoff.next(rand::random()).0));
        }
    });
    Ok(())
}

/// Hands over frames until shutdown.
fn record(
    base: &Base,
    settings: &Camera,
    mut frame: impl FnMut(Result<Vec<f32>, String>),
) -> anyhow::Result<()> {
    let device = settings.device.to_str().context("the name of the device is not text")?;
    let picture = Picture {
        width: settings.width as usize,
        height: settings.height as usize,
        pixels: settings.pixels,
        colour: settings.colour,
        layout: settings.layout,
    };
    let mut camera = rscam::new(device).context("open the camera")?;
    let config = rscam::Config {
        interval: (1, settings.frames_per_second),
        resolution: (settings.width, settings.height),
        format: match settings.pixels {
            Pixels::Yuyv => b"YUYV",
            Pixels::Grey => b"GREY",
        },
        nbuffers: BUFFERS,
        ..rscam::Config::default()
    };
    camera.start(&config).context("start the camera")?;
    while !*base.shutdown.borrow() {
        let captured = camera.capture().context("wait for a frame")?;
        frame(picture.tensor(&captured));
    }
    Ok(())
}
