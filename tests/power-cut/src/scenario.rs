//! What is recorded: a real agent of a real cloud lives through something worth a power cut. A scenario
//! is what happens before the recording and what happens in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use farlight_device::pointer::TRIALS;
use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, changed_recipe, until, workspace_root};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::disk::Disk;
use crate::trace::{Act, Node, Trace, Tree, is_digest};
use crate::{record, strace};

/// Longest wait for one step.
const STEP: Duration = Duration::from_secs(60);
/// A probation or soak that does not end by itself while it is recorded, seconds.
const ENDLESS: u64 = 600;
/// A recipe's time budget, and one that also a busy machine keeps while every call is recorded.
const PATIENT: (&str, &str) = ("p95_us = 20000", "p95_us = 2000000");
/// Longest string that strace prints whole: more than any write; a longer one would be refused when read.
const STRING: &str = "16777216";

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Enrolment, the first release, its removal.
    Install,
    /// 1.0.0 → 1.1.0, confirmed.
    Update,
    /// 1.0.0 → a retrained 1.1.0, whose model is made of the old one by a delta; confirmed.
    Delta,
    /// Configuration 1.0.0 → 1.1.0, confirmed.
    Config,
    /// 1.0.0 → a bad 1.2.0, which fails its probation and is taken back.
    Rollback,
    /// 1.0.0 → 1.1.0, killed in its probation until its trials are used up.
    CrashLoop,
    /// Leftovers of earlier cuts, 1.1.0 → 1.2.0, by which 1.0.0 is no longer needed, and back by an aborted
    /// rollout: everything that no pointer names is collected.
    Collect,
}

/// A recording in a folder.
#[derive(Debug)]
pub struct Recording {
    /// What was recorded.
    pub scenario: Scenario,
    /// The recording.
    pub trace: Trace,
}

/// What is kept beside the log.
#[derive(Serialize, Deserialize)]
struct About {
    scenario: Scenario,
    state_dir: PathBuf,
}

impl Scenario {
    /// All scenarios.
    pub const ALL: [Self; 7] = [
        Self::Install,
        Self::Update,
        Self::Delta,
        Self::Config,
        Self::Rollback,
        Self::CrashLoop,
        Self::Collect,
    ];

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it takes a model from the device on purpose.
    pub fn may_remove(self) -> bool {
        self == Self::Install
    }

    /// What happens before the recording; the device is then stopped.
    async fn prepare(self, fleet: &Fleet) -> anyhow::Result<Device> {
        let base = publish_patient(fleet, "1.0.0").await?;
        if self == Self::Install {
            return fleet.unenrolled("gw-1", &DeviceOptions::default()).await;
        }
        let mut device = fleet.device("gw-1", &DeviceOptions::default()).await?;
        completed(fleet, &format!("{MODEL}/1.0.0"), &device).await?;
        match self {
            Self::Rollback => publish_bad(fleet, "1.2.0").await?,
            Self::Delta => {
                let bundle = publish_delta(fleet, "1.1.0", &base).await?;
                fleet.withhold_model(&bundle)?;
            }
            Self::Config => {
                fleet.publish_config("1.0.0", "[flags]\nlimit = 1.0\n").await?;
                completed(fleet, "config/1.0.0", &device).await?;
                fleet.publish_config("1.1.0", "[flags]\nlimit = 2.0\n").await?;
            }
            Self::Install | Self::Update | Self::CrashLoop => {
                publish_patient(fleet, "1.1.0").await?;
            }
            Self::Collect => {
                publish_patient(fleet, "1.1.0").await?;
                completed(fleet, &format!("{MODEL}/1.1.0"), &device).await?;
                publish_patient(fleet, "1.2.0").await?;
            }
        }
        device.stop().await?;
        if self == Self::Collect {
            leave_over(&device.state_dir())?;
        }
        Ok(device)
    }

    /// What is recorded.
    async fn play(self, fleet: &Fleet, device: &mut Device, recorder: &Recorder) -> anyhow::Result<()> {
        device.start().await?;
        match self {
            Self::Install => {
                let rollout = fleet.roll_out_soaking("1.0.0", ENDLESS).await?;
                confirmed(fleet, &rollout, device).await?;
                abort(fleet, &rollout).await?;
                until("the release is removed", STEP, async || {
                    Ok(device.running(MODEL).await?.is_none().then_some(()))
                })
                .await?;
            }
            Self::Update | Self::Delta => completed(fleet, &format!("{MODEL}/1.1.0"), device).await?,
            Self::Config => completed(fleet, "config/1.1.0", device).await?,
            Self::Rollback => {
                let rollout = fleet.roll_out("1.2.0").await?;
                fleet.rollout_is(&rollout, "aborted", &[&*device]).await?;
                runs(device, "1.0.0").await?;
            }
            Self::CrashLoop => {
                fleet
                    .roll_out_with(
                        &format!("{MODEL}/1.1.0"),
                        &json!({ "probation_seconds": ENDLESS, "deadline_seconds": 2 * ENDLESS }),
                    )
                    .await?;
                runs(device, "1.1.0").await?;
                for _ in 0..=TRIALS {
                    device.kill()?;
                    recorder.ended(device).await?;
                    device.start().await?;
                }
                runs(device, "1.0.0").await?;
            }
            Self::Collect => {
                let rollout = fleet.roll_out_soaking("1.2.0", ENDLESS).await?;
                confirmed(fleet, &rollout, device).await?;
                abort(fleet, &rollout).await?;
                runs(device, "1.1.0").await?;
                until("it is confirmed", STEP, async || {
                    // Without requests no probation passes.
                    let _ = Device::infer(&device.client(), MODEL, "asked", &[6, 100], &[0.1; 600]).await;
                    Ok(device.status().await?["updates"]
                        .as_object()
                        .is_some_and(|u| u.is_empty())
                        .then_some(()))
                })
                .await?;
            }
        }
        device.stop().await?;
        recorder.ended(device).await
    }
}

/// Rolls a release out to the device and waits until it is confirmed everywhere.
async fn completed(fleet: &Fleet, release: &str, device: &Device) -> anyhow::Result<()> {
    let rollout = fleet.roll_out_with(release, &json!({})).await?;
    fleet.rollout_is(&rollout, "completed", &[device]).await?;
    Ok(())
}

async fn runs(device: &Device, version: &str) -> anyhow::Result<()> {
    until(&format!("{version} runs"), STEP, async || {
        Ok((device.running(MODEL).await?.as_deref() == Some(version)).then_some(()))
    })
    .await
}

async fn confirmed(fleet: &Fleet, rollout: &str, device: &Device) -> anyhow::Result<()> {
    until("the device confirms it", STEP, async || {
        let rollout = fleet.rollout(rollout, &[device]).await?;
        Ok((rollout["devices"][0]["state"] == "confirmed").then_some(()))
    })
    .await
}

async fn abort(fleet: &Fleet, rollout: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/rollouts/{rollout}/abort");
    fleet.operator.api()?.post(&path, &json!({})).await?;
    Ok(())
}

/// Publishes a release that withholds nearly every answer, which no probation lets pass.
///
/// # Errors
/// When it cannot be built or published.
pub async fn publish_bad(fleet: &Fleet, version: &str) -> anyhow::Result<()> {
    let shy = [
        ("min_accuracy = 0.80", "min_accuracy = 0.0"),
        ("step = \"softmax\"", "step = \"softmax\"\n\n[[post]]\nstep = \"abstain\"\nthreshold = 0.999999"),
    ];
    let recipe = recipe(fleet, version, &shy)?;
    fleet.publish_from(&recipe, &model(), version).await?;
    Ok(())
}

/// Publishes a release that passes its self-test also where the machine is busy and every call is recorded;
/// the bundle's folder.
///
/// # Errors
/// When it cannot be built or published.
pub async fn publish_patient(fleet: &Fleet, version: &str) -> anyhow::Result<PathBuf> {
    let recipe = recipe(fleet, version, &[])?;
    fleet.publish_from(&recipe, &model(), version).await
}

/// Publishes a retrained release that has a delta against `base`, a bundle's folder; its own bundle's folder.
///
/// # Errors
/// When it cannot be built or published, or the delta is not offered.
pub async fn publish_delta(fleet: &Fleet, version: &str, base: &Path) -> anyhow::Result<PathBuf> {
    let (recipe, model) = (recipe(fleet, version, &[])?, fleet.retrained_model()?);
    let base = base.to_str().context("the bundle's path is not text")?;
    let out = fleet.folder.path().join(version);
    let built = fleet.operator.build(&recipe, &model, version, &out, &["--base", base]).await?;
    ensure!(built["deltas"][0]["offered"] == true, "no delta is offered: {built}");
    fleet.operator.publish(&out).await?;
    Ok(out)
}

fn model() -> PathBuf {
    workspace_root().join("models").join(MODEL).join("model.onnx")
}

/// The reference model's recipe for a busy machine, with changes.
fn recipe(fleet: &Fleet, version: &str, changes: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    changed_recipe(&fleet.folder.path().join(format!("recipe-{version}")), &[&[PATIENT], changes].concat())
}

/// What cuts in an earlier life may have left: a release half fetched and one half deleted.
fn leave_over(state: &Path) -> anyhow::Result<()> {
    let folder = state.join("models").join(MODEL);
    for name in [format!("{}.part", "0".repeat(64)), format!(".trash-{}", "1".repeat(64))] {
        std::fs::create_dir(folder.join(&name))?;
        std::fs::write(folder.join(&name).join("2".repeat(64)), [3; 5000])?;
    }
    std::fs::write(folder.join("active.new"), "half a poin")?;
    Ok(())
}

/// The system call recorder of one device.
struct Recorder {
    log: PathBuf,
}

impl Recorder {
    /// What the agent is started under.
    fn command(&self) -> anyhow::Result<Vec<String>> {
        let log = self.log.to_str().context("the log's path is not text")?.to_owned();
        let (trace, raw) = (format!("trace={}", strace::CALLS), format!("raw={}", strace::RAW_CALLS));
        // -D: the agent stays our child; -xx: everything that could confuse is hex; -A: all lives in one log.
        let words = ["strace", "-D", "-f", "--seccomp-bpf", "-q", "-xx", "-y", "-A", "-s", STRING];
        let rest = ["-o", &log, "-e", &trace, "-e", &raw];
        Ok(words.iter().chain(&rest).map(|&word| word.to_owned()).collect())
    }

    /// Waits until the log of an ended agent is whole.
    async fn ended(&self, device: &Device) -> anyhow::Result<()> {
        let process = device.last_process().context("the device never ran")?;
        let process = process.to_string();
        let is_end = |line: &str| {
            line.split_once(' ')
                .is_some_and(|(thread, rest)| thread == process && rest.trim_start().starts_with("+++"))
        };
        until("the log is whole", STEP, async || {
            let log = std::fs::read_to_string(&self.log)?;
            Ok(log.lines().any(is_end).then_some(()))
        })
        .await
    }
}

/// Whether system calls can be recorded here.
pub fn can_record() -> bool {
    let mut tried = std::process::Command::new("strace");
    tried.args(["-f", "--seccomp-bpf", "-o", "/dev/null", "true"]);
    tried.output().is_ok_and(|output| output.status.success())
}

/// Records a scenario into an empty folder.
///
/// # Errors
/// When the scenario does not go as it should, or the recording is not what the disk says.
pub async fn record(scenario: Scenario, folder: &Path) -> anyhow::Result<Recording> {
    if !can_record() {
        bail!("strace does not work here; install the Debian package strace");
    }
    std::fs::create_dir_all(folder)?;
    let fleet = Fleet::start().await?;
    let mut device = scenario.prepare(&fleet).await?;
    let state_dir = device.state_dir();
    std::fs::create_dir_all(&state_dir)?;
    let before = folder.join("before");
    std::fs::create_dir_all(&before)?;
    Tree::read(&state_dir)?.write(&before)?;
    let recorder = Recorder { log: folder.join("log") };
    device.run_under(recorder.command()?);
    scenario.play(&fleet, &mut device, &recorder).await?;
    let about = serde_json::to_string(&About { scenario, state_dir: state_dir.clone() })?;
    std::fs::write(folder.join("about.json"), about)?;
    let recording = load(folder)?;
    let mut disk = Disk::new(&recording.trace);
    recording.trace.events.iter().for_each(|event| {
        disk.follow(event);
    });
    let differences = disk.visible().differences(&Tree::read(&state_dir)?);
    ensure!(differences.is_empty(), "the recording missed something: {differences:?} differ from the disk");
    if scenario == Scenario::Delta {
        made_by_delta(&recording.trace).context("the recording shows no file made by a delta")?;
    }
    Ok(recording)
}

/// The file that was made by a delta: the agent fetched a delta, opened it, and the next file of a release that
/// it made, in the same folder, holds what came of it.
pub fn made_by_delta(trace: &Trace) -> Option<Node> {
    let (part, delta) = trace.events.iter().find_map(|event| match &event.act {
        Act::Create { folder, name, node, is_folder: false } if name == "delta" => Some((*folder, *node)),
        _ => None,
    })?;
    // The fetch opens it, too; applying it comes last.
    let opened = trace.events.iter().rposition(|event| event.act == Act::Open { node: delta })?;
    trace.events[opened..].iter().find_map(|event| match &event.act {
        Act::Create { folder, name, node, is_folder: false } if *folder == part && is_digest(name) => {
            Some(*node)
        }
        _ => None,
    })
}

/// Loads a recording.
///
/// # Errors
/// When the folder holds none.
pub fn load(folder: &Path) -> anyhow::Result<Recording> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let about: About = serde_json::from_str(&read("about.json")?).context("understand about.json")?;
    let before = Tree::read(&folder.join("before"))?;
    let trace = record::read(&read("log")?, &about.state_dir, &before)?;
    Ok(Recording { scenario: about.scenario, trace })
}
