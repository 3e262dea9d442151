//! kill -9 at random moments: a real agent of a real cloud goes from release to release, good and bad ones,
//! a delta and configurations in turn, and is killed again and again. After each kill its files, and after each start the agent
//! itself, are held to the rules. This proves less than the replay (the kernel lives on, so nothing that
//! was written is lost), but on the whole agent with its network.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use farlight_agent::slots::Slots;
use farlight_agent::trust::Trust;
use farlight_device::pointer::{Pointer, TRIALS};
use farlight_release::config;
use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::look::{self, Trusted};
use crate::scenario::{publish_bad, publish_delta, publish_patient};
use crate::trace::Tree;

/// What is rolled out in turn. 1.1.0 has a delta against 1.0.0; 1.2.0 never passes its probation, and with it
/// 1.1.0 leaves the device, so that the next round fetches it again.
const RELEASES: [(&str, &str); 5] =
    [(MODEL, "1.1.0"), (config::NAME, "1.0.0"), (MODEL, "1.0.0"), (MODEL, "1.2.0"), (config::NAME, "1.1.0")];
/// Longest life of an agent before it is killed, milliseconds: about as long as an update takes.
const LONGEST_LIFE: u64 = 1_200;
/// One life in so many is ended before the agent may have come up.
const EARLY: u32 = 4;
/// Longest wait for the end.
const END: Duration = Duration::from_secs(120);

/// What the last look at the files found.
#[derive(Default)]
struct Last {
    pointers: BTreeMap<String, u64>,
    trust: Trusted,
    /// Starts seen of the release on trial: its digest and how many.
    trial: Option<(String, u32)>,
}

/// Kills the agent `count` times. Prints what it does and whether every rule held; that is also the value.
///
/// # Errors
/// When cloud or agent cannot be started.
pub async fn run(count: u32, seed: u64, say: &impl Fn(&str)) -> anyhow::Result<bool> {
    let mut random = StdRng::seed_from_u64(seed);
    let fleet = Fleet::start().await?;
    let base = publish_patient(&fleet, "1.0.0").await?;
    publish_delta(&fleet, "1.1.0", &base).await?;
    for version in ["1.0.0", "1.1.0"] {
        fleet.publish_config(version, &format!("[flags]\nlimit = {}\n", &version[..3])).await?;
    }
    publish_bad(&fleet, "1.2.0").await?;
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await?;
    let rollout = fleet.roll_out("1.0.0").await?;
    fleet.rollout_is(&rollout, "completed", &[&device]).await?;
    device.kill()?;

    let mut last = Last::default();
    let mut rollouts = Rollouts::default();
    let mut violations = 0;
    let began = Instant::now();
    for number in 1..=count {
        rollouts.go_on(&fleet).await?;
        let is_early = random.random_range(0..EARLY) == 0;
        let life = Duration::from_millis(random.random_range(0..LONGEST_LIFE));
        let lived = live(&mut device, life, is_early, &mut last).await;
        device.kill()?;
        if let Err(error) = lived.and_then(|()| look(&device, &mut last)) {
            violations += 1;
            say(&format!("  seed {seed} kill {number}: {error:#}"));
            say(&format!("    again: tests/power-cut/run --kills {count} --seed {seed}"));
        }
    }
    // Left alone, it comes to rest on a confirmed release.
    device.start().await?;
    until("the device comes to rest", END, async || {
        ask(&device).await;
        let status = device.status().await?;
        let is_idle = status["updates"].as_object().is_some_and(serde_json::Map::is_empty);
        Ok((is_idle && status["models"].as_array().is_some_and(|models| !models.is_empty())).then_some(()))
    })
    .await?;
    device.stop().await?;
    say(&format!(
        "kills: {count} in {} s, {} rollouts ended ({}), {violations} violations, seed {seed}",
        began.elapsed().as_secs(),
        rollouts.ended.values().sum::<u32>(),
        rollouts.told(),
    ));
    Ok(violations == 0)
}

/// The rollouts, one after another.
#[derive(Default)]
struct Rollouts {
    begun: usize,
    current: Option<String>,
    ended: BTreeMap<String, u32>,
}

impl Rollouts {
    /// Begins the next one when the last has ended.
    async fn go_on(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        if let Some(id) = &self.current {
            let state = fleet.rollout(id, &[]).await?["state"].as_str().unwrap_or_default().to_owned();
            if !["completed", "aborted"].contains(&state.as_str()) {
                return Ok(());
            }
            *self.ended.entry(state).or_default() += 1;
        }
        let (model, version) = RELEASES[self.begun % RELEASES.len()];
        self.begun += 1;
        // What a kill or its own fault ended before is tried again.
        let settings = json!({ "deadline_seconds": 30, "retry_failed": true });
        self.current = Some(fleet.roll_out_with(&format!("{model}/{version}"), &settings).await?);
        Ok(())
    }

    fn told(&self) -> String {
        let each: Vec<String> = self.ended.iter().map(|(state, count)| format!("{count} {state}")).collect();
        each.join(", ")
    }
}

async fn ask(device: &Device) {
    // On its way up or down it does not answer: nothing is concluded from that here.
    let _ = Device::infer(&device.client(), MODEL, "asked", &[6, 100], &[0.1; 600]).await;
}

/// Starts the agent and lets it live for a while under traffic.
async fn live(device: &mut Device, life: Duration, is_early: bool, last: &mut Last) -> anyhow::Result<()> {
    let before = pointer(device)?;
    device.launch()?;
    if is_early {
        // Up to the moment of the kill nothing else may end it.
        let ended = tokio::time::timeout(life / 4, device.ended()).await;
        ensure!(ended.is_err(), "the agent ended by itself: {ended:?}");
        return Ok(());
    }
    device.answers().await?;
    let status = device.status_of_command().await?;
    let models = status["models"].as_array().context("no models in the status")?;
    let model = models.iter().find(|model| model["model"] == MODEL).context("no release answers")?;
    let digest = model["manifest_sha256"].as_str().context("no digest in the status")?;
    let pointer = pointer(device)?;
    let named = pointer.active.iter().chain(&pointer.previous).any(|slot| slot.digest == digest);
    ensure!(named, "what answers is not what the pointer names: {model} and {pointer:?}");
    count_trial(&before, digest, last)?;
    let asking = async {
        loop {
            ask(device).await;
        }
    };
    let _: Result<(), _> = tokio::time::timeout(life, asking).await;
    Ok(())
}

fn pointer(device: &Device) -> anyhow::Result<Pointer> {
    let pointers = look::pointers_on_disk(&device.state_dir())?;
    pointers.get(MODEL).cloned().flatten().context("the pointer is gone or damaged")
}

/// Counts a start that found `before` and runs `digest`, if that is on trial.
fn count_trial(before: &Pointer, digest: &str, last: &mut Last) -> anyhow::Result<()> {
    let is_on_trial =
        before.trials.is_some() && before.active.as_ref().is_some_and(|slot| slot.digest == digest);
    last.trial = match last.trial.take() {
        _ if !is_on_trial => None,
        // A fresh activation begins to count again.
        Some((of, starts)) if of == digest && before.trials != Some(TRIALS) => Some((of, starts + 1)),
        _ => Some((digest.to_owned(), 1)),
    };
    if let Some((digest, starts)) = &last.trial {
        ensure!(*starts <= u32::from(TRIALS), "start {starts} on {digest:.8}, which is on trial");
    }
    Ok(())
}

/// Looks at the files of a killed agent.
fn look(device: &Device, last: &mut Last) -> anyhow::Result<()> {
    let state = device.state_dir();
    ensure!(pointer(device)?.active.is_some(), "no release is active");
    let slots = Slots::new(&state);
    for (model, pointer) in look::pointers_on_disk(&state)? {
        let pointer = pointer.with_context(|| format!("the pointer of {model} is damaged"))?;
        let before = last.pointers.insert(model.clone(), pointer.sequence).unwrap_or_default();
        let now = pointer.sequence;
        ensure!(now >= before, "the pointer of {model} went from {before} back to {now}");
        for slot in pointer.active.iter().chain(&pointer.previous) {
            slots.open(slot).with_context(|| format!("{} is not whole", slot.release))?;
        }
    }
    for model in last.pointers.keys() {
        ensure!(state.join("models").join(model).join("active").exists(), "the pointer of {model} is gone");
    }
    let trusted = look::trusted(&Tree::read(&state)?).context("the trust store is gone or damaged")?;
    ensure!(trusted.behind(&last.trust).is_empty(), "{:?} went back", trusted.behind(&last.trust));
    last.trust = trusted;
    Trust::open(&state).context("the trust store does not open")?;
    Ok(())
}
