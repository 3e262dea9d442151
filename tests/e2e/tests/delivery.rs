//! What people do with delivery, end to end: hold it, shadow it, take it back, insist, look at what happened.
use std::time::Duration;

use farlight_test_support::reqwest::Method;
use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, until, workspace_root};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

/// A fleet of one device that runs 1.0.0, and 1.1.0 published.
async fn begun() -> (Fleet, Device) {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    fleet.publish("1.1.0").await.unwrap();
    (fleet, device)
}

/// The reports of a kind that the cloud has of the device.
async fn reports(fleet: &Fleet, kind: &str) -> Vec<Value> {
    let shown = fleet.operator.run(&["device", "show", "gw-1"]).await.unwrap();
    let all = shown["reports"].as_array().unwrap();
    all.iter().filter(|report| report["kind"] == kind).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_waits_for_the_application_and_for_the_operator() {
    let (fleet, device) = begun().await;
    assert_eq!(device.lock(Method::PUT, "press").await.unwrap(), 200);
    assert_eq!(device.lock(Method::PUT, "other").await.unwrap(), 409);
    assert_eq!(device.lock(Method::DELETE, "other").await.unwrap(), 409);
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    let staged = until("the release waits", WAIT, async || {
        let status = device.status().await?;
        let update = &status["updates"][MODEL];
        Ok((update["state"] == "staged").then(|| update["waits_for"].to_string()))
    })
    .await
    .unwrap();
    assert!(staged.contains("press"), "{staged}");
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
    // A pause by the operator holds it as well once the lock is back.
    let paused = fleet.operator.run(&["device", "pause", "gw-1", "--hours", "1"]).await.unwrap();
    assert_eq!(paused["ok"], true, "{paused}");
    assert_eq!(device.lock(Method::DELETE, "press").await.unwrap(), 200);
    let status = device.status().await.unwrap();
    assert!(status["updates_wait_for"].as_str().unwrap().contains("paused"), "{status}");
    assert_eq!(status["updates"][MODEL]["state"], "staged", "{status}");
    fleet.operator.run(&["device", "resume", "gw-1"]).await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_sees_live_inputs_and_decides_nothing() {
    let (fleet, device) = begun().await;
    let shadow = json!({ "shadow": { "seconds": 1, "min_requests": 20, "cpu_permille": 1000,
        "agreement_permille": 900 } });
    let rollout = fleet.roll_out_with(&format!("{MODEL}/1.1.0"), &shadow).await.unwrap();
    let input = vec![0.1; 600];
    until("the release is in the shadow", WAIT, async || {
        let answer = Device::infer(&device.client(), MODEL, "a", &[6, 100], &input).await;
        anyhow::ensure!(answer.is_ok_and(|answer| answer.version == "1.0.0"), "another release answered");
        Ok((device.status().await?["updates"][MODEL]["state"] == "shadow").then_some(()))
    })
    .await
    .unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    // The same weights: every answer agrees.
    let report = &reports(&fleet, "shadow").await[0]["event"]["Shadow"];
    assert_eq!((&report["failed"], &report["agreed"]), (&json!(0), &report["ok"]), "{report}");
    assert!(report["ok"].as_u64().unwrap() >= 20, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_back_when_told_and_says_what_ran_when() {
    let (fleet, device) = begun().await;
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    let back = fleet.operator.run(&["device", "rollback", "gw-1", MODEL, "--probation", "1"]).await.unwrap();
    assert_eq!(back["release"], format!("{MODEL}/1.0.0"), "{back}");
    until("the device is back and confirmed", WAIT, async || {
        let shown = fleet.operator.run(&["device", "show", "gw-1"]).await?;
        let running = &shown["running"][0];
        let back = running["release"] == format!("{MODEL}/1.0.0") && running["confirmed"] == true;
        Ok((back && running["digest"].as_str().is_some_and(|digest| digest.len() == 64)).then_some(()))
    })
    .await
    .unwrap();
    let (ok, text) = device.cli(&["history", "--json"]).await.unwrap();
    assert!(ok, "{text}");
    let history: Vec<Value> = serde_json::from_str(&text).unwrap();
    let confirmed: Vec<&str> = history
        .iter()
        .filter(|row| row["state"] == "confirmed")
        .map(|row| row["release"].as_str().unwrap())
        .collect();
    let of = |version: &str| format!("{MODEL}/{version}");
    assert_eq!(confirmed, [of("1.0.0"), of("1.1.0"), of("1.0.0")], "{text}");
    let (ok, text) = device.cli(&["history", "--model", MODEL, "--limit", "3"]).await.unwrap();
    assert!(ok && text.lines().count() == 3 && text.contains("confirmed"), "{text}");
    let diagnostics = fleet.operator.run(&["device", "diagnostics", "gw-1"]).await.unwrap();
    assert_eq!(diagnostics["pointers"][0]["active"]["release"], of("1.0.0"), "{diagnostics}");
    assert!(!diagnostics["log"].as_array().unwrap().is_empty(), "{diagnostics}");
    assert!(!diagnostics.to_string().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_failed_is_not_tried_again_until_an_operator_insists() {
    let (fleet, device) = begun().await;
    let model = workspace_root().join("models").join(MODEL).join("model.onnx");
    fleet.publish_from(&fleet.tight_recipe().unwrap(), &model, "1.2.0").await.unwrap();
    let code = async |settings: Value| {
        // The one before is over once the device is back where it was.
        let rollout = until("the rollout begins", WAIT, async || {
            match fleet.roll_out_with(&format!("{MODEL}/1.2.0"), &settings).await {
                Err(error) if error.to_string().contains("rollout.conflict") => Ok(None),
                begun => begun.map(Some),
            }
        })
        .await
        .unwrap();
        let ended = fleet.rollout_is(&rollout, "aborted", &[&device]).await.unwrap();
        ended["devices"][0]["error_code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code(json!({})).await, "self_test.over_budget");
    assert_eq!(code(json!({})).await, "update.known_bad");
    assert_eq!(code(json!({ "retry_failed": true })).await, "self_test.over_budget");
    assert_eq!(code(json!({})).await, "update.known_bad");
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
    let (ok, text) = device.cli(&["errors", "update.known_bad"]).await.unwrap();
    assert!(ok && text.contains("--retry-failed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_release_that_rots_on_disk_leaves_the_one_before() {
    let (fleet, mut device) = begun().await;
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    device.kill().unwrap();
    // Without the cloud: what is left on the device has to do.
    let mut cloud = fleet.cloud;
    cloud.kill().unwrap();
    let models = device.folder().join("state/models").join(MODEL);
    let pointer = device.pointer(MODEL).unwrap();
    let slot = models.join(pointer["active"]["digest"].as_str().unwrap());
    let largest = std::fs::read_dir(slot).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    device.start().await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
    let (_, text) = device.cli(&["history", "--limit", "3"]).await.unwrap();
    assert!(text.contains("rolled_back") && text.contains("verify.mismatch"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_rolled_out_and_taken_back_like_a_model() {
    let (fleet, device) = begun().await;
    fleet.publish_config("1.0.0", "[flags]\nnew-screen = true\nlimit = 2.5\n").await.unwrap();
    let rollout = fleet.roll_out_with("config/1.0.0", &json!({})).await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    assert_eq!(device.status().await.unwrap()["config"], "config/1.0.0");
    let flags: Value =
        device.client().get("http://agent/farlight/flags").send().await.unwrap().json().await.unwrap();
    assert_eq!(flags, json!({ "new-screen": true, "limit": 2.5 }));
    // One that withholds every answer is taken back by the device itself.
    fleet.publish_config("1.1.0", &format!("[models.{MODEL}]\nabstain_below = 1.0\n")).await.unwrap();
    let rollout = fleet.roll_out_with("config/1.1.0", &json!({ "min_requests": 1000 })).await.unwrap();
    let ended = fleet.rollout_is(&rollout, "aborted", &[&device]).await.unwrap();
    assert_eq!(ended["devices"][0]["error_code"], "probation.abstains", "{ended}");
    let status = device.status().await.unwrap();
    assert_eq!(status["config"], "config/1.0.0", "{status}");
    // The kill switch of one model: a clear refusal, and the model stays loaded.
    fleet.publish_config("1.2.0", &format!("[models.{MODEL}]\ndisabled = true\n")).await.unwrap();
    fleet
        .operator
        .run(&["rollout", "create", "config/1.2.0", "--probation", "1", "--min-requests", "0"])
        .await
        .unwrap();
    until("requests are refused", WAIT, async || {
        let answer = Device::infer(&device.client(), MODEL, "a", &[6, 100], &[0.1; 600]).await;
        let refused = matches!(&answer, Err(farlight_test_support::InferFailure::Refused(503, text)) if text.contains("switched off"));
        Ok(refused.then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_follow_the_keys_of_a_cloud_that_was_broken_into() {
    let (fleet, device) = begun().await;
    let obeyed = async || -> anyhow::Result<Option<u64>> {
        Ok(fleet.operator.run(&["device", "show", "gw-1"]).await?["assignment"].as_u64())
    };
    let before = obeyed().await.unwrap();
    let keys = fleet.operator.keys.display().to_string();
    fleet.operator.run(&["keys", "rotate", "online", "--keys", &keys]).await.unwrap();
    // What it is to run is signed again by the new key, without a rollout.
    until("the device obeys the new key", WAIT, async || Ok((obeyed().await? > before).then_some(())))
        .await
        .unwrap();
    let rollout = fleet.roll_out("1.1.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_network_installs_from_a_stick() {
    let (fleet, mut device) = begun().await;
    let stick = fleet.folder.path().join("stick");
    let release = format!("{MODEL}/1.1.0");
    let out = stick.display().to_string();
    let made = fleet.operator.run(&["release", "export", &release, "--out", &out]).await.unwrap();
    assert!(made["expires"].as_u64().is_some(), "{made}");
    let mut cloud = fleet.cloud;
    cloud.kill().unwrap();
    let (ok, text) = device.cli(&["install", &out, "--probation", "1"]).await.unwrap();
    assert!(ok && text.contains(&format!("{release} confirmed")), "{text}");
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
    // What the cloud said before does not undo it, also after a restart.
    device.kill().unwrap();
    device.start().await.unwrap();
    cloud.restart().await.unwrap();
    until("the device is connected again", WAIT, async || {
        Ok((device.status().await?["connected"] == true).then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
    // A changed file on the stick is refused with its code, and the hint says what to do.
    let (ok, text) = device.cli(&["install", "/nowhere"]).await.unwrap();
    assert!(!ok && text.contains("farlight release export"), "{text}");
}
