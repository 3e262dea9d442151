//! The rollout planner: from a specification and what is observed of the devices it says who is to be
//! assigned, who is to be reverted, and in which state the rollout is now. It acts on nothing; the
//! driver in cloud-sync applies the plan and plans again from what it then observes.

use std::collections::BTreeSet;

use farlight_wire::{DeviceId, Millis, Permille, ReleaseId, RolloutId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gate;

/// Most waves of a rollout.
pub const MAX_WAVES: usize = 20;
/// z of the one-sided 95 % bound that a share of failures must pass before it counts.
const Z: f64 = 1.645;

/// What a rollout is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutSpec {
    /// The rollout; also the seed of the order of devices.
    pub id: RolloutId,
    /// The release.
    pub release: ReleaseId,
    /// Share of the fleet that is covered after each wave, rising, the last one usually 1000 ‰.
    pub waves: Vec<Permille>,
    /// How long a finished wave is watched before the next one begins.
    pub soak: Millis,
    /// How long a device may take from its assignment to an end.
    pub deadline: Millis,
    /// Highest share of finished devices that may fail.
    pub max_failures: Permille,
    /// Fewest finished devices on which that share is judged before it is certain.
    pub min_sample: u32,
}

/// Why a specification is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No waves or too many.
    #[error("waves: use 1 to {MAX_WAVES}, not {0}")]
    Waves(usize),
    /// Waves that do not rise.
    #[error("waves: each must cover more than the one before; wave {0} does not")]
    NotRising(usize),
    /// No time for a device to finish.
    #[error("deadline: must be above 0")]
    Deadline,
}

impl RolloutSpec {
    /// Checks what types alone do not.
    ///
    /// # Errors
    /// [`SpecError`] naming the field.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(1..=MAX_WAVES).contains(&self.waves.len()) {
            return Err(SpecError::Waves(self.waves.len()));
        }
        let mut last = 0;
        for (wave, share) in self.waves.iter().enumerate() {
            if share.get() <= last {
                return Err(SpecError::NotRising(wave + 1));
            }
            last = share.get();
        }
        if self.deadline.0 == 0 { Err(SpecError::Deadline) } else { Ok(()) }
    }
}

/// Where a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Progress {
    /// Devices of the waves up to this one are assigned.
    Running {
        /// Index of the wave, from 0.
        wave: usize,
        /// When it began.
        since: Millis,
    },
    /// Nothing is assigned until it is resumed.
    Paused {
        /// The wave it will go on with.
        wave: usize,
        /// When that wave began.
        since: Millis,
    },
    /// Given up: nothing is assigned any more, what was updated is taken back.
    Aborted {
        /// The wave in which it ended.
        wave: usize,
        /// Why.
        reason: String,
    },
    /// Every wave passed.
    Completed,
}

impl Progress {
    /// The first moment of a rollout.
    pub fn start(now: Millis) -> Self {
        Self::Running { wave: 0, since: now }
    }

    /// Paused, if it can be.
    pub fn pause(&self) -> Option<Self> {
        match self {
            Self::Running { wave, since } => Some(Self::Paused { wave: *wave, since: *since }),
            Self::Paused { .. } => Some(self.clone()),
            Self::Aborted { .. } | Self::Completed => None,
        }
    }

    /// Running again, if it can be.
    pub fn resume(&self) -> Option<Self> {
        match self {
            Self::Paused { wave, since } => Some(Self::Running { wave: *wave, since: *since }),
            Self::Running { .. } => Some(self.clone()),
            Self::Aborted { .. } | Self::Completed => None,
        }
    }

    /// Aborted by a person, if it can be.
    pub fn abort(&self, reason: &str) -> Option<Self> {
        match self {
            Self::Running { wave, .. } | Self::Paused { wave, .. } => {
                Some(Self::Aborted { wave: *wave, reason: reason.to_owned() })
            }
            Self::Aborted { .. } => Some(self.clone()),
            Self::Completed => None,
        }
    }

    /// Whether it will still do something by itself or after a resume.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused { .. })
    }
}

/// A device as the driver observed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// The device.
    pub device: DeviceId,
    /// Where it stands in this rollout.
    pub standing: Standing,
}

/// Where a device stands in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not assigned.
    Waiting,
    /// Assigned, no end yet.
    Assigned {
        /// When it was assigned.
        at: Millis,
        /// Whether it was heard of since, in this rollout.
        heard: bool,
    },
    /// The only success.
    Confirmed {
        /// When.
        at: Millis,
    },
    /// It failed before the release was active, or took it back.
    Failed {
        /// When.
        at: Millis,
    },
    /// It began and did not finish in time: a failure.
    TimedOut {
        /// When.
        at: Millis,
    },
    /// It was never heard of since it was assigned: neither success nor failure.
    Unreached {
        /// When that was decided.
        at: Millis,
    },
    /// Taken back by this rollout's abort.
    Reverted,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Devices to assign the release to.
    pub assign: Vec<DeviceId>,
    /// Assigned devices whose time is over and that were heard of.
    pub time_out: Vec<DeviceId>,
    /// Assigned devices whose time is over and that were never heard of.
    pub unreached: Vec<DeviceId>,
    /// Devices to take back to what they ran before.
    pub revert: Vec<DeviceId>,
    /// The state after this.
    pub next: Progress,
    /// Why it is in that state, for people.
    pub reason: String,
}

/// A device's place in the order of a rollout, 0 to 999: the same for ever, and independent of the
/// order of any other rollout.
pub fn place(rollout: &RolloutId, device: &DeviceId) -> u16 {
    let mut hash = Sha256::new();
    hash.update(rollout.as_str());
    hash.update([0]);
    hash.update(device.as_str());
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    (u64::from_be_bytes(first) % 1000) as u16
}

/// The devices that the waves up to this share cover. In a small fleet a share may cover nobody, and
/// a wave without devices proves nothing: then the first device in order stands for it.
fn covered<'a>(spec: &RolloutSpec, share: Permille, devices: &'a [DeviceState]) -> BTreeSet<&'a DeviceId> {
    let inside: BTreeSet<_> = devices
        .iter()
        .map(|state| &state.device)
        .filter(|device| place(&spec.id, device) < share.get())
        .collect();
    if !inside.is_empty() {
        return inside;
    }
    // Whoever stood in before stays: a device that joins later must not widen the wave.
    let begun: BTreeSet<_> = devices
        .iter()
        .filter(|state| state.standing != Standing::Waiting)
        .map(|state| &state.device)
        .collect();
    if !begun.is_empty() {
        return begun;
    }
    let first =
        devices.iter().map(|state| &state.device).min_by_key(|device| (place(&spec.id, device), *device));
    first.into_iter().collect()
}

/// Counts of a set of devices.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Devices covered.
    pub covered: u32,
    /// Assigned and not finished.
    pub open: u32,
    /// Confirmed.
    pub confirmed: u32,
    /// Failed, rolled back or timed out.
    pub failed: u32,
    /// Never heard of.
    pub unreached: u32,
}

/// Plans from what is observed. Called again with nothing changed it plans nothing new.
pub fn plan(
    spec: &RolloutSpec,
    progress: &Progress,
    devices: &[DeviceState],
    gate: &gate::Verdict,
    now: Millis,
) -> Plan {
    let mut plan = Plan {
        assign: vec![],
        time_out: vec![],
        unreached: vec![],
        revert: vec![],
        next: progress.clone(),
        reason: String::new(),
    };
    match progress {
        Progress::Completed => plan.reason = "every wave passed".to_owned(),
        Progress::Aborted { reason, .. } => {
            plan.reason.clone_from(reason);
            plan.revert = taken(devices);
        }
        Progress::Paused { .. } => {
            overdue(spec, devices, now, &mut plan);
            plan.reason = "paused by an operator".to_owned();
        }
        Progress::Running { wave, since } => {
            overdue(spec, devices, now, &mut plan);
            running(spec, *wave, *since, devices, gate, now, &mut plan);
        }
    }
    plan
}

/// Everybody who has the release or may still get it.
fn taken(devices: &[DeviceState]) -> Vec<DeviceId> {
    devices
        .iter()
        .filter(|state| !matches!(state.standing, Standing::Waiting | Standing::Reverted))
        .map(|state| state.device.clone())
        .collect()
}

fn overdue(spec: &RolloutSpec, devices: &[DeviceState], now: Millis, plan: &mut Plan) {
    for state in devices {
        if let Standing::Assigned { at, heard } = state.standing
            && now.since(at) >= spec.deadline
        {
            let list = if heard { &mut plan.time_out } else { &mut plan.unreached };
            list.push(state.device.clone());
        }
    }
}

fn running(
    spec: &RolloutSpec,
    wave: usize,
    since: Millis,
    devices: &[DeviceState],
    gate: &gate::Verdict,
    now: Millis,
    plan: &mut Plan,
) {
    let Some(share) = spec.waves.get(wave).copied() else {
        plan.next = Progress::Completed;
        plan.reason = "every wave passed".to_owned();
        return;
    };
    let covered = covered(spec, share, devices);
    let mut abort = |reason: String| {
        plan.next = Progress::Aborted { wave, reason: reason.clone() };
        plan.reason = reason;
        plan.assign = vec![];
        plan.revert = taken(devices);
    };
    // Failures count wherever they are: a device that was confirmed in the first wave and rolled back
    // in the third is a failure of the release.
    let (all, ended) = tally(devices.iter());
    let (here, _) = tally(devices.iter().filter(|state| covered.contains(&state.device)));
    if let Some(reason) = too_many_failures(spec, &all, here.covered) {
        return abort(reason);
    }
    if let gate::Verdict::Fail { reason } = gate {
        return abort(format!("the gate failed: {reason}"));
    }
    plan.assign = devices
        .iter()
        .filter(|state| state.standing == Standing::Waiting && covered.contains(&state.device))
        .map(|state| state.device.clone())
        .collect();
    let number = wave + 1;
    let waiting = plan.assign.len() as u32 + here.open;
    plan.reason = if here.covered == 0 {
        "the fleet has no devices".to_owned()
    } else if waiting > 0 {
        format!("wave {number}: waiting for {waiting} of {} devices", here.covered)
    } else if here.confirmed == 0 || here.confirmed.saturating_mul(2) < here.covered {
        // No evidence never passes: half of a wave must have said that it is well.
        format!(
            "wave {number}: only {} of {} devices confirmed, at least half are needed",
            here.confirmed, here.covered
        )
    } else if now.since(ended.max(since)) < spec.soak {
        format!("wave {number}: every device finished, soaking for {} s", spec.soak.0 / 1000)
    } else if let gate::Verdict::Inconclusive { reason } = gate {
        format!("wave {number}: the gate is not conclusive yet: {reason}")
    } else if number == spec.waves.len() {
        plan.next = Progress::Completed;
        "every wave passed".to_owned()
    } else {
        plan.next = Progress::Running { wave: number, since: now };
        format!("wave {number} passed")
    };
}

/// Counts devices, and when the last of them ended.
pub fn tally<'a>(devices: impl Iterator<Item = &'a DeviceState>) -> (Tally, Millis) {
    let (mut tally, mut last) = (Tally::default(), Millis(0));
    for state in devices {
        tally.covered += 1;
        match state.standing {
            Standing::Waiting | Standing::Reverted => {}
            Standing::Assigned { .. } => tally.open += 1,
            Standing::Confirmed { at } => {
                tally.confirmed += 1;
                last = last.max(at);
            }
            Standing::Failed { at } | Standing::TimedOut { at } => {
                tally.failed += 1;
                last = last.max(at);
            }
            Standing::Unreached { at } => {
                tally.unreached += 1;
                last = last.max(at);
            }
        }
    }
    (tally, last)
}

/// Two rules: the share of failures will pass the limit whatever the rest of the wave does (so in a
/// small wave the first failure decides), or a sample of finished devices shows it with 95 % confidence.
fn too_many_failures(spec: &RolloutSpec, all: &Tally, covered: u32) -> Option<String> {
    let limit = u64::from(spec.max_failures.get());
    let finished = all.confirmed + all.failed;
    let certain = u64::from(all.failed) * 1000 > limit * u64::from(covered.max(finished));
    let shown = finished >= spec.min_sample.max(1)
        && wilson_lower(all.failed, finished) * 1000.0 > f64::from(spec.max_failures.get());
    (certain || shown)
        .then(|| format!("{} of {finished} finished devices failed, the limit is {limit} ‰", all.failed))
}

/// Lower end of Wilson's one-sided 95 % interval for a share.
fn wilson_lower(hits: u32, of: u32) -> f64 {
    if of == 0 {
        return 0.0;
    }
    let (n, p) = (f64::from(of), f64::from(hits) / f64::from(of));
    let (centre, spread) = (p + Z * Z / (2.0 * n), Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt());
    ((centre - spread) / (1.0 + Z * Z / n)).max(0.0)
}
