//! Updates end to end: a release reaches a device, survives kill -9, and what is wrong is refused.
use std::time::Duration;

use farlight_test_support::{Device, DeviceOptions, Fleet, InferFailure, MODEL, until, workspace_root};

const WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_confirmed_and_answers() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let input = vec![0.1; 600];
    let early = Device::infer(&device.client(), MODEL, "a", &[6, 100], &input).await;
    assert!(matches!(early, Err(InferFailure::Refused(404, _))), "{early:?}");
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    let done = fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    assert_eq!(done["devices"][0]["state"], "confirmed", "{done}");
    let answer = Device::infer(&device.client(), MODEL, "a", &[6, 100], &input).await.unwrap();
    assert_eq!(answer.version, "1.0.0");
    // After SIGKILL and without any network it serves the same release.
    device.kill().unwrap();
    let mut cloud = fleet.cloud;
    cloud.kill().unwrap();
    device.start().await.unwrap();
    let again = Device::infer(&device.client(), MODEL, "a", &[6, 100], &input).await.unwrap();
    assert_eq!((again.label, again.version), (answer.label, answer.version));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retrained_model_comes_as_a_delta() {
    let fleet = Fleet::start().await.unwrap();
    let base = fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();

    let recipe = workspace_root().join("models").join(MODEL).join("release.toml");
    let (model, out) = (fleet.retrained_model().unwrap(), fleet.folder.path().join("1.1.0"));
    let extra = ["--base", base.to_str().unwrap()];
    let built = fleet.operator.build(&recipe, &model, "1.1.0", &out, &extra).await.unwrap();
    let saved = &built["deltas"][0];
    assert_eq!(saved["offered"], true, "{built}");
    let [delta, full] = ["delta_bytes", "full_bytes"].map(|key| saved[key].as_u64().unwrap());
    assert!(delta < full * 7 / 10, "{built}");
    fleet.operator.publish(&out).await.unwrap();
    // The whole file is not to be had: what arrives was made by the delta.
    let id = fleet.withhold_model(&out).unwrap();

    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    let done = fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    assert_eq!(done["devices"][0]["state"], "confirmed", "{done}");
    let log = std::fs::read_to_string(device.folder().join("agent.log")).unwrap();
    assert!(log.contains(&format!("blob {id} made by a delta")), "{log}");
    // It runs after a restart too: what was made is what was signed.
    device.kill().unwrap();
    device.start().await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_agent_at_any_moment_of_an_update_leaves_a_verified_model() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    fleet.publish("1.1.0").await.unwrap();
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    // Kills once in each step, or in a later one where it went on faster than it is looked at.
    let steps = ["Fetching", "Verifying", "SelfTest", "Activating", "Probation"];
    let log = device.folder().join("agent.log");
    for step in 0..steps.len() {
        let went_on = until("the next step is reached", WAIT, async || {
            let text = std::fs::read_to_string(&log)?;
            let says = |state: &str| text.contains(&format!("{MODEL}/1.1.0 state={state}"));
            // Three self-tests that were cut short are enough for the device.
            let gave_up = says("Failed");
            Ok((gave_up || steps[step..].iter().any(|state| says(state))).then_some(!gave_up))
        })
        .await
        .unwrap();
        if !went_on {
            break;
        }
        device.kill().unwrap();
        device.start().await.unwrap();
        let running = device.running(MODEL).await.unwrap();
        assert!(["1.0.0", "1.1.0"].contains(&running.as_deref().unwrap()), "{running:?}");
    }
    let ended = until("the rollout ends", WAIT, async || {
        let rollout = fleet.rollout(&rollout, &[&device]).await?;
        Ok((rollout["state"] != "running").then_some(rollout))
    })
    .await
    .unwrap();
    // Either it came through, or the trials were used up: then the previous release runs, reported.
    let running = device.running(MODEL).await.unwrap().unwrap();
    let state = ended["devices"][0]["state"].as_str().unwrap();
    match running.as_str() {
        "1.1.0" => assert_eq!(state, "confirmed", "{ended}"),
        _ => assert!(["rolled_back", "failed", "reverted"].contains(&state), "{ended}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_over_its_memory_budget_is_refused_before_it_runs() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    let model = workspace_root().join("models").join(MODEL);
    fleet.publish_from(&fleet.tight_recipe().unwrap(), &model.join("model.onnx"), "1.1.0").await.unwrap();
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    let ended = fleet.rollout_is(&rollout, "aborted", &[&device]).await.unwrap();
    assert_eq!(ended["devices"][0]["error_code"], "self_test.over_budget", "{ended}");
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_back_a_first_release_removes_it_from_the_device() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out_soaking("1.0.0", 600).await.unwrap();
    until("the device confirms it", WAIT, async || {
        let rollout = fleet.rollout(&rollout, &[&device]).await?;
        Ok((rollout["devices"][0]["state"] == "confirmed").then_some(()))
    })
    .await
    .unwrap();
    let api = fleet.operator.api().unwrap();
    api.post(&format!("/api/v1/rollouts/{rollout}/abort"), &serde_json::json!({})).await.unwrap();
    until("the device no longer serves it", WAIT, async || {
        Ok(device.running(MODEL).await?.is_none().then_some(()))
    })
    .await
    .unwrap();
    // Nor after a restart, from what it has on disk.
    device.kill().unwrap();
    device.start().await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap(), None);
}
