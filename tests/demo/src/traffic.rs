//! The applications on the gateways: each asks its agent for a prediction at a steady rate, knows the
//! truth of what it sent, and notes who answered what and when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farlight_test_support::{Device, InferFailure};
use tokio::sync::watch;

use crate::data::{Arm, Gestures};

/// Requests a second of each application.
pub(crate) const RATE: u64 = 25;
const MODEL: &str = "watch-gestures";

/// Which arm the watch is worn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worn {
    /// As in training.
    Right,
    /// The drift.
    Left,
}

/// One answered request.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// Number of the device.
    pub(crate) device: usize,
    /// When it was answered.
    pub(crate) at: Instant,
    /// Which arm.
    pub(crate) worn: Worn,
    /// Whether it was of the half that only evaluates.
    pub(crate) evaluation: bool,
    /// Whether the answer was right.
    pub(crate) right: bool,
    /// The version that answered.
    pub(crate) version: String,
}

/// Everything that happened.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Answers in order.
    pub(crate) served: Vec<Served>,
    /// Requests that a running agent did not answer, after its first answer.
    pub(crate) failed: Vec<(usize, String)>,
    /// Truth of what may be labelled: request id → class.
    pub(crate) truth: HashMap<String, u32>,
}

/// Switches of one application.
#[derive(Debug)]
pub(crate) struct Switches {
    left: AtomicBool,
    /// The agent is killed on purpose: silence is not its failure.
    excused: AtomicBool,
}

/// All applications.
pub(crate) struct Traffic {
    log: Arc<Mutex<Log>>,
    switches: Vec<Arc<Switches>>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    /// Starts one application a device.
    pub(crate) fn start(devices: &[Device], gestures: &Arc<Gestures>) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let stop = watch::Sender::new(false);
        let switches: Vec<Arc<Switches>> = devices
            .iter()
            .map(|_| Arc::new(Switches { left: AtomicBool::new(false), excused: AtomicBool::new(false) }))
            .collect();
        let tasks = devices
            .iter()
            .enumerate()
            .map(|(number, device)| {
                let application = Application {
                    number,
                    name: device.id.clone(),
                    client: device.client(),
                    gestures: Arc::clone(gestures),
                    switches: Arc::clone(&switches[number]),
                    log: Arc::clone(&log),
                };
                tokio::spawn(application.run(stop.subscribe()))
            })
            .collect();
        Self { log, switches, stop, tasks }
    }

    /// What happened so far.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the watch of a device on the other arm.
    pub(crate) fn wear(&self, device: usize, worn: Worn) {
        self.switches[device].left.store(worn == Worn::Left, Ordering::Relaxed);
    }

    /// Says that a device is about to be killed, or is back.
    pub(crate) fn excuse(&self, device: usize, excused: bool) {
        self.switches[device].excused.store(excused, Ordering::Relaxed);
    }

    /// Share of right answers on evaluation windows of one arm since `from`, with how many there were.
    pub(crate) fn accuracy(&self, worn: Worn, from: Instant) -> (f64, usize) {
        self.look(|log| {
            let of: Vec<&Served> =
                log.served.iter().filter(|s| s.at >= from && s.worn == worn && s.evaluation).collect();
            let right = of.iter().filter(|s| s.right).count();
            (right as f64 / of.len().max(1) as f64, of.len())
        })
    }

    /// Stops all applications.
    pub(crate) async fn stop(&mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }
}

struct Application {
    number: usize,
    name: String,
    client: reqwest::Client,
    gestures: Arc<Gestures>,
    switches: Arc<Switches>,
    log: Arc<Mutex<Log>>,
}

impl Application {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(Duration::from_millis(1000 / RATE));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u64;
        let mut has_answered = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            count += 1;
            let left = self.switches.left.load(Ordering::Relaxed);
            let excused = self.switches.excused.load(Ordering::Relaxed);
            let (worn, arm) =
                if left { (Worn::Left, &self.gestures.left) } else { (Worn::Right, &self.gestures.right) };
            // Every other request is of the half that only evaluates.
            let evaluation = count.is_multiple_of(2);
            let (input, class) = pick(arm, evaluation, rand::random());
            let id = format!("{}-{count}{}", self.name, if evaluation { "e" } else { "f" });
            if !evaluation {
                self.log.lock().unwrap_or_else(PoisonError::into_inner).truth.insert(id.clone(), class);
            }
            let answer = Device::infer(&self.client, MODEL, &id, &[6, crate::data::WINDOW], input).await;
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(answer) => {
                    has_answered = true;
                    let right = self.gestures.labels.get(class as usize) == Some(&answer.label);
                    let (device, at, version) = (self.number, Instant::now(), answer.version);
                    log.served.push(Served { device, at, worn, evaluation, right, version });
                }
                Err(failure) => {
                    let still = self.switches.excused.load(Ordering::Relaxed);
                    if has_answered && !excused && !still {
                        let text = match failure {
                            InferFailure::Unreachable(text) => text,
                            InferFailure::Refused(status, text) => format!("{status} {text}"),
                        };
                        log.failed.push((self.number, text));
                    }
                }
            }
        }
    }
}

fn pick(arm: &Arm, evaluation: bool, random: u32) -> (&[f32], u32) {
    let samples = if evaluation { &arm.evaluation } else { &arm.field };
    let index = random as usize % samples.len();
    (&samples.x[index], samples.y[index])
}
