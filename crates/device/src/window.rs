//! The current window: counters of every release that served since it was opened. Observations add up;
//! closing it gives the wire's window and each release's health for the update machine.

use farlight_wire::telemetry::{ModelWindowV1, VitalsV1, WindowV1};
use farlight_wire::{Counts, Millis, ReleaseId, Sketch};

use crate::health::Health;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// The engine or pipeline failed.
    Failed,
    /// The data contract refused it.
    Refused,
    /// The queue was full or the deadline passed.
    Rejected,
}

/// Counters of one release in the current window.
#[derive(Debug, Clone, Default)]
struct Tally {
    ok: u64,
    failed: u64,
    rejected: u64,
    contract_violations: u64,
    non_finite: u64,
    abstained: u64,
    cpu_us: u64,
    latency_us: Sketch,
    infer_us: Sketch,
    classes: Counts,
    scores: Counts,
    drift: Vec<Counts>,
}

/// What an answered request adds besides its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Best class, if one was answered.
    pub class: Option<usize>,
    /// Score bin of the reference profile.
    pub score_bin: usize,
    /// Whether any output was not finite.
    pub non_finite: bool,
    /// Whether the answer was withheld.
    pub abstained: bool,
    /// Time in the engine, µs.
    pub infer_us: u64,
}

/// Sizes of a release's count vectors.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Classes.
    pub classes: usize,
    /// Score bins.
    pub scores: usize,
    /// Bins of each feature, including the one for missing values.
    pub features: Vec<usize>,
}

/// One request, as the inference path saw it.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The release that was asked.
    pub release: &'a ReleaseId,
    /// Sizes of its count vectors.
    pub shape: &'a Shape,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the input broke the data contract.
    pub violated: bool,
    /// Whole time in the agent, µs.
    pub latency_us: u64,
    /// The answer, if there was one.
    pub answer: Option<Answer>,
    /// (feature, bin) of the input against the reference profile.
    pub bins: &'a [(usize, usize)],
}

/// The current window.
#[derive(Debug, Clone)]
pub struct Builder {
    start: Millis,
    /// A gateway runs a few releases: a list is searched faster than a map.
    models: Vec<(ReleaseId, Tally)>,
}

impl Builder {
    /// Opens a window at `start`.
    pub fn open(start: Millis) -> Self {
        Self { start, models: Vec::new() }
    }

    /// When it was opened.
    pub fn start(&self) -> Millis {
        self.start
    }

    fn tally(&mut self, release: &ReleaseId, shape: &Shape) -> &mut Tally {
        let known = self.models.iter().position(|(id, _)| id == release);
        let index = known.unwrap_or_else(|| {
            let tally = Tally {
                classes: Counts::zeros(shape.classes),
                scores: Counts::zeros(shape.scores),
                drift: shape.features.iter().map(|bins| Counts::zeros(*bins)).collect(),
                ..Tally::default()
            };
            self.models.push((release.clone(), tally));
            self.models.len() - 1
        });
        &mut self.models[index].1
    }

    /// Adds one request.
    pub fn observe(&mut self, seen: &Observation<'_>) {
        let tally = self.tally(seen.release, seen.shape);
        tally.contract_violations += u64::from(seen.violated);
        match seen.outcome {
            Outcome::Ok => tally.ok += 1,
            Outcome::Failed => tally.failed += 1,
            Outcome::Rejected => tally.rejected += 1,
            Outcome::Refused => {}
        }
        if let Some(answer) = seen.answer {
            tally.cpu_us += answer.infer_us;
            tally.latency_us.add(seen.latency_us as f64);
            tally.infer_us.add(answer.infer_us as f64);
            tally.non_finite += u64::from(answer.non_finite);
            tally.abstained += u64::from(answer.abstained);
            tally.scores.add(answer.score_bin);
            if let Some(class) = answer.class {
                tally.classes.add(class);
            }
        }
        for (feature, bin) in seen.bins {
            if let Some(counts) = tally.drift.get_mut(*feature) {
                counts.add(*bin);
            }
        }
    }

    /// Closes the window and opens the next one at `now`. Gives the wire's window and each release's
    /// health.
    pub fn close(&mut self, now: Millis, vitals: VitalsV1) -> (WindowV1, Vec<(ReleaseId, Health)>) {
        let closed = std::mem::replace(self, Self::open(now));
        let mut health = Vec::with_capacity(closed.models.len());
        let mut models = Vec::with_capacity(closed.models.len());
        for (release, tally) in closed.models {
            health.push((
                release.clone(),
                Health {
                    ok: tally.ok,
                    failed: tally.failed,
                    non_finite: tally.non_finite,
                    abstained: tally.abstained,
                    classes: tally.classes.clone(),
                    latency_us: tally.latency_us.clone(),
                },
            ));
            models.push(ModelWindowV1 {
                release,
                ok: tally.ok,
                failed: tally.failed,
                rejected: tally.rejected,
                contract_violations: tally.contract_violations,
                non_finite: tally.non_finite,
                abstained: tally.abstained,
                cpu_us: tally.cpu_us,
                latency_us: tally.latency_us,
                infer_us: tally.infer_us,
                classes: tally.classes,
                scores: tally.scores,
                drift: tally.drift,
            });
        }
        let window = WindowV1 { start: closed.start, length: now.since(closed.start), models, vitals };
        (window, health)
    }
}
