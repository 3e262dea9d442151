//! The shadow of a running release: a thread that runs the candidate on a share of the live inputs, within a
//! CPU budget, and decides nothing. What it finds goes to the update machine. Without a shadow the inference
//! path pays one atomic load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use farlight_device::shadow::{Policy, Shadowed};
use farlight_inference::{Item, Prediction};

use crate::models::Loaded;

/// Inputs that may wait for the candidate; more are skipped and counted.
const QUEUE: usize = 32;
/// How often its findings are told.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Where the inference path offers inputs.
pub struct Mirror {
    share_permille: u16,
    sender: SyncSender<Sample>,
    skipped: Arc<AtomicU64>,
}

/// One input with what the running release answered.
struct Sample {
    item: Item,
    top: usize,
    score: f32,
}

impl Mirror {
    /// Starts the shadow of `candidate`. `tell` gets what it found since the last time; the thread ends with
    /// the mirror.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        candidate: Arc<Loaded>,
        policy: Policy,
        tell: impl Fn(Shadowed) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let skipped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&skipped);
        let run = move || run(&candidate, policy, &receiver, &counted, tell);
        std::thread::Builder::new().name("shadow".into()).spawn(run)?;
        Ok(Self { share_permille: policy.share_permille, sender, skipped })
    }

    /// Offers an answered input; never waits.
    pub fn offer(&self, item: &Item, prediction: &Prediction) {
        if rand::random_range(0..1000) >= self.share_permille {
            return;
        }
        let sample = Sample { item: item.clone(), top: prediction.top, score: prediction.score };
        if self.sender.try_send(sample).is_err() {
            self.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn run(
    candidate: &Loaded,
    policy: Policy,
    receiver: &Receiver<Sample>,
    skipped: &AtomicU64,
    tell: impl Fn(Shadowed),
) {
    let mut worker = match candidate.worker() {
        Ok(worker) => worker,
        Err(error) => {
            tracing::error!(%error, "the shadow has no worker");
            return;
        }
    };
    let (began, mut busy) = (Instant::now(), Duration::ZERO);
    let (mut found, mut told) = (Shadowed::default(), Instant::now());
    loop {
        let sample = match receiver.recv_timeout(TELL_EVERY) {
            Ok(sample) => Some(sample),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Some(sample) = sample {
            // The first second is free, so that a budget of a few thousandths is not used up by one input.
            let allowed =
                (began.elapsed() + Duration::from_secs(1)).mul_f64(f64::from(policy.cpu_permille) / 1000.0);
            if busy > allowed {
                found.skipped += 1;
            } else {
                let started = Instant::now();
                let answer = worker.answer(&sample.item, candidate.state().as_mut(), || {});
                busy += started.elapsed();
                match answer {
                    Ok(answer) => {
                        found.ok += 1;
                        found.agreed += u64::from(answer.top == sample.top);
                        found.non_finite += u64::from(answer.non_finite);
                        let delta = f64::from((answer.score - sample.score).abs()) * 1000.0;
                        found.score_delta.add(delta);
                        found.infer_us.add(started.elapsed().as_micros() as f64);
                    }
                    Err(_) => found.failed += 1,
                }
            }
        }
        if told.elapsed() >= TELL_EVERY {
            found.skipped += skipped.swap(0, Ordering::Relaxed);
            tell(std::mem::take(&mut found));
            told = Instant::now();
        }
    }
}
