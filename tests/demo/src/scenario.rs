//! The story, step by step. Each step waits on what really happened and adds its numbers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use farlight_test_support::{Cloud, Device, DeviceOptions, Operator, Programs, Proxy, until, workspace_root};
use serde_json::{Value, json};

use crate::data::Gestures;
use crate::report::Numbers;
use crate::traffic::{Traffic, Worn};
use crate::view::View;
use crate::{Args, attacks, ledger};

/// The model.
pub(crate) const MODEL: &str = "watch-gestures";
/// Window of metrics on the devices, seconds (60 in the field).
const WINDOW_SECONDS: u64 = 2;
/// Most labels that may be given.
const MAX_LABELS: usize = 300;
/// Answers on evaluation windows of one arm that a measurement takes.
const MEASURED: usize = 900;
/// Longest wait for one step.
const STEP: Duration = Duration::from_secs(120);

/// Everything that runs.
pub(crate) struct Stage {
    /// The cloud.
    pub(crate) cloud: Cloud,
    /// The operator.
    pub(crate) operator: Operator,
    /// The devices.
    pub(crate) devices: Vec<Device>,
    /// Their applications.
    pub(crate) traffic: Traffic,
    /// Where everything lies.
    pub(crate) folder: PathBuf,
    /// The model's folder in the workspace.
    pub(crate) model_folder: PathBuf,
    /// The recipe with the demo's sampling rates.
    pub(crate) recipe: PathBuf,
    /// The terminal.
    pub(crate) view: View,
    /// The result so far.
    pub(crate) numbers: Numbers,
}

/// Runs the demo; whether every step held.
///
/// # Errors
/// When a step cannot be carried out.
pub(crate) async fn run(args: &Args) -> anyhow::Result<bool> {
    build_programs()?;
    let started = Instant::now();
    let mut view = View::new();
    view.line("The demo shortens time: windows of 2 s (60 in the field), probation of 4 s, soak of 2 s, more samples kept.");
    view.line("It plays the labeller, too: the truth of each recording comes from the data set.");
    let temporary = tempfile::Builder::new().prefix("farlight-demo-").tempdir()?;
    let folder = temporary.path().to_path_buf();
    let kept = args.keep.then(|| temporary.keep());
    if let Some(path) = &kept {
        view.line(&format!("data and logs: {}", path.display()));
    }
    let programs = Programs::find()?;
    let model_folder = workspace_root().join("models").join(MODEL);
    let gestures = Arc::new(Gestures::load(&model_folder)?);

    view.step("starting a cloud, making offline keys, publishing 1.0.0");
    let cloud = Cloud::start(&programs, &folder.join("cloud")).await?;
    let operator = cloud.operator(&folder.join("keys"));
    operator.begin_repository().await?;
    let recipe = demo_recipe(&model_folder, &folder.join("recipe"), |_| Ok(()))?;
    let base = model_folder.join("model.onnx");
    operator.build(&recipe, &base, "1.0.0", &folder.join("1.0.0"), &[]).await?;
    operator.publish(&folder.join("1.0.0")).await?;
    view.done(&format!(
        "cloud runs; console {}; 1.0.0 is built, signed offline and published",
        cloud.console
    ));
    view.line(&format!("  console token: see {}", folder.join("cloud/operator.json").display()));

    view.step("enrolling devices");
    let (devices, network) = enrol(&programs, &cloud, &operator, &folder, usize::from(args.devices)).await?;
    let traffic = Traffic::start(&devices, &gestures);
    view.done(&format!(
        "{} devices enrolled with certificates of their own; applications ask {} times a second each",
        devices.len(),
        crate::traffic::RATE
    ));

    let mut stage = Stage {
        cloud,
        operator,
        devices,
        traffic,
        folder,
        model_folder,
        recipe,
        view,
        numbers: Numbers::default(),
    };
    stage.numbers.devices = stage.devices.len();
    let outcome = play(&mut stage, &network, args.short).await;
    if outcome.is_err() {
        let kept = stage.folder.clone();
        stage.view.line(&format!("failed; logs were in {}", kept.display()));
        for device in &stage.devices {
            let log = std::fs::read_to_string(device.folder().join("agent.log")).unwrap_or_default();
            if let Some(last) = log.lines().rfind(|line| line.contains("ERROR") || line.contains("WARN")) {
                stage.view.line(&format!("  {}: {last}", device.id));
            }
        }
    }
    outcome?;
    stage.numbers.wall_s = started.elapsed().as_secs_f64();
    let holds = stage.numbers.print(args.short)?;
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&stage.numbers)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(holds)
}

async fn play(stage: &mut Stage, network: &Network, short: bool) -> anyhow::Result<()> {
    first_rollout(stage).await?;
    measure_before(stage).await?;
    let switched = drift(stage, network).await?;
    let candidate = retrain(stage, switched).await?;
    second_rollout(stage, &candidate).await?;
    measure_after(stage).await?;
    if !short {
        attacks::bad_release(stage, &candidate).await?;
        attacks::tampered_release(stage, &candidate).await?;
        attacks::replayed_metadata(stage, &candidate).await?;
    }
    settle(stage).await
}

/// Builds the programs when run by cargo, so that the one command is enough.
fn build_programs() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut command = std::process::Command::new(cargo);
    // `cargo run` describes this package in the environment, and build scripts (ring's) that watch those
    // variables would be run again, with everything above them, now and at the next plain build.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command.current_dir(workspace_root()).args(["build", "--workspace", "--bins", "--quiet"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().context("build the programs")?;
    if status.success() { Ok(()) } else { bail!("building the programs failed: {status}") }
}

/// A copy of the model's release recipe with the demo's sampling rates and one more change.
pub(crate) fn demo_recipe(
    model_folder: &Path,
    out: &Path,
    change: impl FnOnce(&mut toml::Table) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(out)?;
    let text = std::fs::read_to_string(model_folder.join("release.toml"))?;
    let mut recipe: toml::Table = text.parse().context("read release.toml")?;
    let sampling = recipe.get_mut("sampling").and_then(toml::Value::as_table_mut).context("no [sampling]")?;
    sampling.insert("hard_permille".into(), 150.into());
    sampling.insert("control_permille".into(), 80.into());
    change(&mut recipe)?;
    let path = out.join("release.toml");
    std::fs::write(&path, toml::to_string(&recipe)?)?;
    // Paths of the data in the recipe are relative to it.
    let link = out.join("data");
    if !link.exists() {
        std::os::unix::fs::symlink(model_folder.join("data"), link)?;
    }
    Ok(path)
}

/// The network of the device that will be cut off.
struct Network {
    device: usize,
    mqtt: Proxy,
    https: Proxy,
}

async fn enrol(
    programs: &Programs,
    cloud: &Cloud,
    operator: &Operator,
    folder: &Path,
    count: usize,
) -> anyhow::Result<(Vec<Device>, Network)> {
    let options = DeviceOptions { window_seconds: WINDOW_SECONDS, ..DeviceOptions::default() };
    let network = Network {
        device: count - 1,
        mqtt: Proxy::start(&cloud.mqtt).await?,
        https: Proxy::start(cloud.api.trim_start_matches("https://")).await?,
    };
    let mut devices = Vec::with_capacity(count);
    for number in 0..count {
        let id = format!("gw-{:02}", number + 1);
        let mut device = Device::enrol(programs, operator, &id, &folder.join(&id), &options).await?;
        if number == network.device {
            device.go_through(&network.mqtt, &network.https)?;
        }
        device.start().await?;
        devices.push(device);
    }
    Ok((devices, network))
}

impl Stage {
    /// Creates a rollout and returns its id.
    pub(crate) async fn roll_out(
        &self,
        version: &str,
        waves: &[u16],
        max_failures: u16,
    ) -> anyhow::Result<String> {
        let waves: Vec<Value> = waves.iter().map(|permille| json!({ "permille": permille })).collect();
        let body = json!({
            "release": format!("{MODEL}/{version}"), "fleet": "default", "waves": waves,
            "soak_seconds": 2, "probation_seconds": 4, "min_requests": 20,
            "max_failures_permille": max_failures, "deadline_seconds": 90,
        });
        let created = self.operator.api()?.post("/api/v1/rollouts", &body).await?;
        Ok(created["id"].as_str().context("no id")?.to_owned())
    }

    /// Accuracy on one arm since `from`, once there are enough answers, with how many there were.
    pub(crate) async fn measure(&self, worn: Worn, from: Instant) -> anyhow::Result<(f64, usize)> {
        until("enough answers to measure", STEP, async || {
            let measured = self.traffic.accuracy(worn, from);
            Ok((measured.1 >= MEASURED).then_some(measured))
        })
        .await
    }

    /// A rollout with its devices.
    pub(crate) async fn rollout(&self, id: &str) -> anyhow::Result<Value> {
        self.operator.api()?.get(&format!("/api/v1/rollouts/{id}")).await
    }

    /// Waits until a rollout is in `state`, showing how it goes.
    pub(crate) async fn rollout_ends(
        &mut self,
        id: &str,
        state: &str,
        devices: usize,
    ) -> anyhow::Result<Value> {
        until(&format!("rollout {id} is {state}"), STEP, async || {
            let rollout = self.rollout(id).await?;
            let now = rollout["state"].as_str().unwrap_or_default();
            let confirmed = count(&rollout, "confirmed");
            self.view.now(&format!("wave {}: {confirmed} of {devices} confirmed", rollout["wave"]));
            if now != state && ["completed", "aborted"].contains(&now) {
                bail!("it is {now}: {}", rollout["reason"]);
            }
            Ok((now == state).then_some(rollout))
        })
        .await
    }
}

/// Devices of a rollout in a state.
pub(crate) fn count(rollout: &Value, state: &str) -> usize {
    rollout["devices"].as_array().into_iter().flatten().filter(|d| d["state"] == state).count()
}

async fn first_rollout(stage: &mut Stage) -> anyhow::Result<()> {
    stage.view.step("rolling 1.0.0 out in waves");
    let api = stage.operator.api()?;
    until("every device is online", STEP, async || {
        let devices = api.get("/api/v1/devices").await?;
        let online = devices.as_array().into_iter().flatten().filter(|d| d["online"] == true).count();
        Ok((online == stage.devices.len()).then_some(()))
    })
    .await?;
    let id = stage.roll_out("1.0.0", &[100, 500, 1000], 100).await?;
    let devices = stage.devices.len();
    let rollout = stage.rollout_ends(&id, "completed", devices).await?;
    stage.view.done(&format!("1.0.0 is confirmed by {} of {devices} devices", count(&rollout, "confirmed")));
    Ok(())
}

async fn measure_before(stage: &mut Stage) -> anyhow::Result<()> {
    stage.view.step("predictions stream; measuring on the right arm");
    let (accuracy, inputs) = stage.measure(Worn::Right, Instant::now()).await?;
    stage.numbers.accuracy_before = accuracy;
    stage.view.done(&format!("right arm: {:.1} % of {inputs} answers are right", accuracy * 100.0));
    Ok(())
}

async fn drift(stage: &mut Stage, network: &Network) -> anyhow::Result<u64> {
    stage.view.step("half the devices move to the left arm; one device is cut off");
    let half = stage.devices.len() / 2;
    let from = Instant::now();
    let switched = unix_ms();
    (0..half).for_each(|device| stage.traffic.wear(device, Worn::Left));
    network.mqtt.cut();
    network.https.cut();
    let api = stage.operator.api()?;
    let path = format!("/api/v1/drift?model={MODEL}");
    let verdict = until("drift is detected", STEP, async || {
        let drift = api.get(&path).await?;
        let releases = drift.as_array().cloned().unwrap_or_else(|| vec![drift.clone()]);
        Ok(releases.into_iter().find(|release| release["verdict"] == "drift"))
    })
    .await?;
    let seen = from.elapsed();
    stage.numbers.drift_detected_after_windows =
        seen.as_millis().div_ceil(u128::from(WINDOW_SECONDS) * 1000) as u64;
    // Long enough, too, for the cut device to have something to catch up.
    let (accuracy, inputs) = stage.measure(Worn::Left, from).await?;
    stage.numbers.accuracy_drifted = accuracy;
    network.mqtt.mend();
    network.https.mend();
    let cut = stage.devices[network.device].id.clone();
    stage.view.done(&format!(
        "left arm: {:.1} % of {inputs} answers are right; drift seen after {} windows: {}",
        accuracy * 100.0,
        stage.numbers.drift_detected_after_windows,
        verdict["reason"].as_str().unwrap_or_default(),
    ));
    stage
        .view
        .line(&format!("  {cut} was cut off for {} s and sends what it kept", from.elapsed().as_secs()));
    Ok(switched)
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Labels cases that may be labelled and came after `switched` until there are enough, then trains; the candidate's file.
async fn retrain(stage: &mut Stage, switched: u64) -> anyhow::Result<PathBuf> {
    stage.view.step("hard cases arrive; labelling them");
    let api = stage.operator.api()?;
    let mut labelled = 0;
    until("enough cases are labelled", STEP, async || {
        let cases = api.get(&format!("/api/v1/cases?model={MODEL}&unlabelled=true&limit=1000")).await?;
        let cases = cases.as_array().or(cases["cases"].as_array()).cloned().unwrap_or_default();
        let labels: Vec<Value> = stage.traffic.look(|log| {
            cases
                .iter()
                .filter(|case| is_from_left(stage, case) && case["at"].as_u64() >= Some(switched))
                .filter_map(|case| {
                    // Only the half of each recording that may be labelled is in the truth.
                    let class = log.truth.get(case["request_id"].as_str()?)?;
                    Some(json!({ "id": case["id"], "label": LABELS[*class as usize] }))
                })
                .take(MAX_LABELS - labelled)
                .collect()
        });
        if !labels.is_empty() {
            api.post("/api/v1/labels", &json!({ "labels": labels })).await?;
            labelled += labels.len();
        }
        stage.view.now(&format!("{labelled} of {MAX_LABELS} labels given"));
        Ok((labelled >= MAX_LABELS).then_some(()))
    })
    .await?;
    stage.numbers.labels_used = labelled;
    stage
        .view
        .done(&format!("{labelled} cases labelled (the demo plays the labeller, from the data set's truth)"));

    stage.view.step("retraining the deployed graph on them, with old data replayed");
    let began = Instant::now();
    let recipe = stage.model_folder.display().to_string();
    stage.operator.run(&["dataset", "import", MODEL, &recipe]).await?;
    let base = format!("{MODEL}/1.0.0");
    let job = stage.operator.run(&["train", "start", &base, "--dataset", MODEL]).await?;
    let job = job["id"].as_str().context("no id of the job")?.to_owned();
    let done = until("training ends", STEP, async || {
        let job = stage.operator.run(&["train", "status", &job]).await?;
        let state = job["state"].as_str().unwrap_or_default().to_owned();
        stage.view.now(&format!("training: {state}"));
        if ["failed", "cancelled", "rejected"].contains(&state.as_str()) {
            bail!("training {state}: {job}");
        }
        Ok((state == "passed").then_some(job))
    })
    .await?;
    let out = stage.folder.join("candidate.onnx");
    let out_text = out.display().to_string();
    stage.operator.run(&["train", "fetch", &job, "--out", &out_text]).await?;
    stage.view.done(&format!(
        "trained and judged in {} s; the gate passed: {}",
        began.elapsed().as_secs(),
        done["gate"]["summary"]
            .as_str()
            .unwrap_or("candidate is better on the field and not worse on old data"),
    ));
    Ok(out)
}

const LABELS: [&str; 7] = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"];

fn is_from_left(stage: &Stage, case: &Value) -> bool {
    let half = stage.devices.len() / 2;
    stage.devices[..half].iter().any(|device| case["device"] == device.id.as_str())
}

async fn second_rollout(stage: &mut Stage, candidate: &Path) -> anyhow::Result<()> {
    stage.view.step("building, signing and rolling out 1.1.0; one device is killed in the middle");
    let out = stage.folder.join("1.1.0");
    let parent = format!("{MODEL}/1.0.0");
    stage.operator.build(&stage.recipe, candidate, "1.1.0", &out, &["--parent", &parent]).await?;
    attacks::keep_old_metadata(stage)?;
    stage.operator.publish(&out).await?;
    let waves = [100, 500, 1000];
    let id = stage.roll_out("1.1.0", &waves, 100).await?;
    stage.numbers.rollout_waves = waves.len();
    let victim = 0;
    until("the device to be killed updates", STEP, async || {
        let status = stage.devices[victim].status().await?;
        let update = &status["updates"][MODEL];
        Ok((update["release"] == format!("{MODEL}/1.1.0")).then_some(()))
    })
    .await?;
    stage.traffic.excuse(victim, true);
    stage.devices[victim].kill()?;
    stage.devices[victim].start().await?;
    until("the killed device serves again", STEP, async || Ok(stage.devices[victim].running(MODEL).await?))
        .await?;
    stage.traffic.excuse(victim, false);
    let killed = stage.devices[victim].id.clone();
    let devices = stage.devices.len();
    let rollout = stage.rollout_ends(&id, "completed", devices).await?;
    stage.view.done(&format!(
        "1.1.0 is confirmed by {} of {devices} devices in {} waves; {killed} was killed with SIGKILL mid-update and came back",
        count(&rollout, "confirmed"),
        waves.len()
    ));
    Ok(())
}

async fn measure_after(stage: &mut Stage) -> anyhow::Result<()> {
    stage.view.step("measuring both arms again");
    let from = Instant::now();
    let (left, left_inputs) = stage.measure(Worn::Left, from).await?;
    let (right, right_inputs) = stage.measure(Worn::Right, from).await?;
    stage.numbers.accuracy_after = left;
    stage.numbers.accuracy_old_after = right;
    stage.view.done(&format!(
        "left arm: {:.1} % of {left_inputs} answers are right; right arm: {:.1} % of {right_inputs}",
        left * 100.0,
        right * 100.0
    ));
    Ok(())
}

/// Stops the applications, lets every device send what it has, and compares the books.
async fn settle(stage: &mut Stage) -> anyhow::Result<()> {
    stage.view.step("comparing every record that devices numbered with what the cloud stored");
    stage.traffic.stop().await;
    for device in &stage.devices {
        until(&format!("{} has sent everything", device.id), STEP, async || {
            let status = device.status().await?;
            // Windows close all the time: cases and reports must be gone, windows all but the newest.
            let waiting = |stream: &str| status["waiting"][stream].as_u64().unwrap_or(u64::MAX);
            Ok((waiting("case") == 0 && waiting("rep") == 0 && waiting("tel") <= 1).then_some(()))
        })
        .await?;
    }
    let stats = stage.operator.api()?.get("/api/v1/stats").await?;
    for device in &mut stage.devices {
        device.stop().await?;
    }
    // What the last windows left behind on the way down is sent at the next start.
    for device in &mut stage.devices {
        device.start().await?;
    }
    let devices: Vec<(String, PathBuf)> =
        stage.devices.iter().map(|d| (d.id.clone(), d.folder().join("state"))).collect();
    let cloud = stage.cloud.folder().to_path_buf();
    let account = until("the books agree", Duration::from_secs(30), async || {
        let account = ledger::account(&cloud, &devices)?;
        Ok((account.lost == 0).then_some(account))
    })
    .await;
    let account = match account {
        Ok(account) => account,
        Err(_) => ledger::account(&cloud, &devices)?,
    };
    stage.numbers.records_lost = account.lost;
    stage.numbers.records_duplicated = account.duplicated;
    stage.numbers.records_stored = account.stored;
    let (inferences, failed, first) = stage.traffic.look(|log| {
        let first = log.served.first().map(|served| served.at);
        (log.served.len(), log.failed.clone(), first)
    });
    stage.numbers.inferences = inferences;
    stage.numbers.failed_inferences_during_swap = failed.len();
    if let Some((device, text)) = failed.first() {
        stage.view.line(&format!("  first failed request, device {device}: {text}"));
    }
    let bytes = |stream: &str| stats["streams"][stream]["bytes"].as_u64();
    stage.numbers.case_bytes_uploaded = bytes("case").context("no case bytes in stats")?;
    let telemetry = bytes("tel").context("no telemetry bytes in stats")? as f64;
    let windows = stats["streams"]["tel"]["stored"].as_u64().unwrap_or(0).max(1) as f64;
    let hours = first.map_or(1.0, |first| first.elapsed().as_secs_f64() / 3600.0);
    stage.numbers.telemetry_bytes_per_window = telemetry / windows;
    stage.numbers.telemetry_bytes_per_device_hour = telemetry / stage.devices.len() as f64 / hours;
    stage.view.done(&format!(
        "{} records numbered, {} stored, {} lost, {} twice",
        account.written, account.stored, account.lost, account.duplicated
    ));
    for device in &mut stage.devices {
        device.stop().await?;
    }
    stage.cloud.stop().await
}
