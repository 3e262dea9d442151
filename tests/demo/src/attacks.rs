//! The second half: a bad release, a tampered one, and a repository that is rolled back. The last two are
//! done to the cloud's own files, as someone who took over the server or the CDN could.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use farlight_test_support::until;
use serde_json::Value;

use crate::scenario::{MODEL, Stage, count, demo_recipe};

const STEP: Duration = Duration::from_secs(120);
/// Canary wave: 100 ‰ of the fleet.
const CANARY: [u16; 2] = [100, 1000];

/// A release whose normalisation is wrong, built so that its golden vectors agree with it.
pub(crate) async fn bad_release(stage: &mut Stage, candidate: &Path) -> anyhow::Result<()> {
    stage.view.step(
        "a bad release passes the gate (the demo injects it: normalisation is wrong) and goes to the canary",
    );
    let recipe = demo_recipe(&stage.model_folder, &stage.folder.join("bad-recipe"), |recipe| {
        let pre = recipe.get_mut("pre").and_then(toml::Value::as_array_mut).context("no [[pre]]")?;
        let step = pre.first_mut().and_then(toml::Value::as_table_mut).context("no step")?;
        let std = step.get_mut("std").and_then(toml::Value::as_array_mut).context("no std")?;
        // As if the unit were milli-g: every input looks the same.
        std.iter_mut().for_each(|value| *value = toml::Value::Float(value.as_float().unwrap_or(1.0) * 1e4));
        if let Some(gate) = recipe.get_mut("gate").and_then(toml::Value::as_table_mut) {
            gate.insert("min_accuracy".into(), toml::Value::Float(0.0));
        }
        Ok(())
    })?;
    let out = stage.folder.join("1.2.0");
    stage.operator.build(&recipe, candidate, "1.2.0", &out, &[]).await?;
    stage.operator.publish(&out).await?;
    let id = stage.roll_out("1.2.0", &CANARY, 0).await?;
    let devices = stage.devices.len();
    let rollout = stage.rollout_ends(&id, "aborted", devices).await?;
    until("the canary runs 1.1.0 again", STEP, async || all_run(stage, "1.1.0").await).await?;

    let (exposed, longest) = stage.traffic.look(|log| {
        let bad = log.served.iter().filter(|served| served.version == "1.2.0");
        let exposed: BTreeSet<usize> = bad.clone().map(|served| served.device).collect();
        let spans = exposed.iter().map(|device| {
            let mut times = bad.clone().filter(|served| served.device == *device).map(|served| served.at);
            let first = times.next();
            times.next_back().zip(first).map_or(Duration::ZERO, |(last, first)| last - first)
        });
        (exposed.len(), spans.max().unwrap_or_default())
    });
    stage.numbers.bad_release_devices_exposed = exposed;
    // Beyond the first wave nothing is a canary any more.
    let canary = if rollout["wave"] == 0 { rollout["devices"].as_array().map_or(0, Vec::len) } else { 0 };
    stage.numbers.bad_release_canary_devices = canary;
    stage.numbers.bad_release_rolled_back_ms = longest.as_millis() as u64;
    let code = first_error(&rollout);
    let rolled_back =
        rollout["devices"].as_array().into_iter().flatten().any(|d| d["error_code"] == code.as_str());
    if !rolled_back || !code.starts_with("probation.") {
        bail!("the canary did not fail probation: {rollout}");
    }
    stage.view.done(&format!(
        "{exposed} canary device took it, failed probation ({code}) and went back by itself after {} ms; the rollout aborted",
        longest.as_millis()
    ));
    Ok(())
}

fn first_error(rollout: &Value) -> String {
    rollout["devices"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|device| device["error_code"].as_str())
        .find(|code| !code.is_empty())
        .unwrap_or_default()
        .to_owned()
}

async fn all_run(stage: &Stage, version: &str) -> anyhow::Result<Option<()>> {
    for device in &stage.devices {
        if device.running(MODEL).await?.as_deref() != Some(version) {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

/// One byte of a published model is changed in the cloud's storage.
pub(crate) async fn tampered_release(stage: &mut Stage, candidate: &Path) -> anyhow::Result<()> {
    stage.view.step("someone changes one byte of a published release in the cloud's storage");
    let out = stage.folder.join("1.3.0");
    // Another file than 1.1.0's, so that devices have to fetch it.
    let mut model = std::fs::read(candidate)?;
    model.extend_from_slice(&padding());
    let changed = stage.folder.join("candidate-1.3.0.onnx");
    std::fs::write(&changed, model)?;
    stage.operator.build(&stage.recipe, &changed, "1.3.0", &out, &[]).await?;
    stage.operator.publish(&out).await?;
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("manifest.json"))?)?;
    let blob = manifest["variants"][0]["blob"]["id"].as_str().context("no blob")?;
    let path = stage.cloud.folder().join("repo/blobs").join(blob);
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes)?;
    let id = stage.roll_out("1.3.0", &CANARY, 0).await?;
    let devices = stage.devices.len();
    let rollout = stage.rollout_ends(&id, "aborted", devices).await?;
    let code = first_error(&rollout);
    let untouched = all_run(stage, "1.1.0").await?.is_some();
    stage.numbers.tampered_refused =
        code == "fetch.chunk_mismatch" && untouched && count(&rollout, "confirmed") == 0;
    stage.view.done(&format!("devices refused it ({code}) and run 1.1.0"));
    Ok(())
}

/// An unknown protobuf field that readers skip: field 2047, length-delimited, 4 bytes.
fn padding() -> [u8; 7] {
    [0xfa, 0x7f, 4, b'd', b'e', b'm', b'o']
}

/// Keeps the repository's metadata as it is before 1.1.0, for the replay.
pub(crate) fn keep_old_metadata(stage: &Stage) -> anyhow::Result<()> {
    let old = stage.cloud.folder().join("repo/metadata/timestamp.json");
    std::fs::copy(old, stage.folder.join("old-timestamp.json"))?;
    Ok(())
}

/// The repository is rolled back to what it was before 1.1.0.
pub(crate) async fn replayed_metadata(stage: &mut Stage, candidate: &Path) -> anyhow::Result<()> {
    stage.view.step("someone rolls the release repository back to its state before 1.1.0");
    let out = stage.folder.join("1.4.0");
    stage.operator.build(&stage.recipe, candidate, "1.4.0", &out, &[]).await?;
    stage.operator.publish(&out).await?;
    let path = stage.cloud.folder().join("repo/metadata/timestamp.json");
    std::fs::copy(stage.folder.join("old-timestamp.json"), &path)?;
    let api = stage.operator.api()?;
    let began = Instant::now();
    let id = stage.roll_out("1.4.0", &CANARY, 0).await?;
    let code = until("a device refuses the old metadata", STEP, async || {
        for device in &stage.devices {
            let detail = api.get(&format!("/api/v1/devices/{}", device.id)).await?;
            let reports = detail["reports"].as_array().cloned().unwrap_or_default();
            let refused = reports.iter().find(|r| r["code"].as_str().is_some_and(|c| c.starts_with("tuf.")));
            if let Some(report) = refused {
                return Ok(report["code"].as_str().map(str::to_owned));
            }
        }
        Ok(None)
    })
    .await?;
    let untouched = all_run(stage, "1.1.0").await?.is_some();
    stage.numbers.replayed_refused = code == "tuf.rollback_timestamp" && untouched;
    let state = stage.rollout(&id).await?["state"].clone();
    if state == "running" {
        api.post(&format!("/api/v1/rollouts/{id}/abort"), &serde_json::json!({})).await?;
    }
    stage
        .view
        .done(&format!("devices refused it within {} s ({code}) and run 1.1.0", began.elapsed().as_secs()));
    Ok(())
}
