//! A release with several files of the same model: each device measures them, runs the fastest whose golden vectors
//! pass, and says so; its owner may name the one to run.
use std::time::Duration;

use farlight_test_support::{
    Device, DeviceOptions, Fleet, MODEL, changed_recipe, onnxruntime_library, until, workspace_root,
};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

/// What a device says of the model that it runs.
async fn model(device: &Device) -> Value {
    device.status().await.unwrap()["models"][0].clone()
}

/// Files of the release that runs which lie on the device, without manifest, golden vectors and notes.
fn files(device: &Device, release: &Value) -> usize {
    let folder = device.state_dir().join("models").join(MODEL);
    let folder = folder.join(release["manifest_sha256"].as_str().unwrap());
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.len() == 64).count() - 1
}

/// The choice that the cloud was told of.
async fn reported(fleet: &Fleet, device: &str) -> Value {
    let report = until("the choice is reported", WAIT, async || {
        let shown = fleet.operator.run(&["device", "show", device]).await?;
        let reports = shown["reports"].as_array().cloned().unwrap_or_default();
        Ok(reports.into_iter().find(|report| report["kind"] == "choice"))
    });
    report.await.unwrap()["event"]["Choice"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_engine_that_the_board_has_is_tried() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let fleet = Fleet::start().await.unwrap();
    let extra = format!("[inference.onnxruntime]\nlibrary = {library:?}\n");
    let options = DeviceOptions { extra, ..DeviceOptions::default() };
    let mut device = fleet.device("gw-1", &options).await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    fleet.runs(&device, MODEL, "1.0.0").await.unwrap();
    let choice = reported(&fleet, "gw-1").await;
    let tried = choice["tried"].as_array().unwrap();
    let engines: Vec<&str> = tried.iter().map(|tried| tried["engine"].as_str().unwrap()).collect();
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = format!("onnxruntime, {cores} threads");
    let expected = ["tract", "onnxruntime", &threads];
    assert_eq!(engines, expected[..if cores > 1 { 3 } else { 2 }]);
    assert!(tried.iter().all(|tried| tried["micros"].is_u64()), "{choice}");
    assert_eq!(model(&device).await["engine"], choice["engine"]);
    device.stop().await.unwrap();
    device.start().await.unwrap();
    assert_eq!(model(&device).await["engine"], choice["engine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fastest_file_that_passes_is_run_and_another_can_be_named() {
    let fleet = Fleet::start().await.unwrap();
    let mut measures = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let extra = "[inference]\nvariant = \"int8\"\n".to_owned();
    let pinned = fleet.device("gw-2", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    let several = "[[variant]]\nprecision = \"f16\"\n\n[[variant]]\nprecision = \"int8\"\n\n[golden]";
    let changes = [("[golden]", several), ("tolerance = 0.001", "tolerance = 0.2")];
    let recipe = changed_recipe(&fleet.folder.path().join("several"), &changes).unwrap();
    let onnx = workspace_root().join("models").join(MODEL).join("model.onnx");
    fleet.publish_from(&recipe, &onnx, "1.0.0").await.unwrap();
    fleet.runs(&measures, MODEL, "1.0.0").await.unwrap();
    until("the other device runs it", WAIT, async || {
        let model = model(&pinned).await;
        Ok((model["version"] == "1.0.0" && model["update"].is_null()).then_some(()))
    })
    .await
    .unwrap();

    let (one, other) = (model(&measures).await, model(&pinned).await);
    assert_eq!(files(&measures, &one), 3);
    assert_eq!((&other["precision"], files(&pinned, &other)), (&json!("int8"), 1));
    let choice = reported(&fleet, "gw-1").await;
    assert_eq!((&choice["precision"], &choice["engine"]), (&one["precision"], &json!("tract")), "{choice}");
    let tried = choice["tried"].as_array().unwrap();
    let fastest = tried.iter().min_by_key(|tried| tried["micros"].as_u64().unwrap()).unwrap();
    let chosen = tried.iter().find(|tried| tried["precision"] == choice["precision"]).unwrap();
    assert_eq!(tried.len(), 3);
    // Of two that take nearly the same, the one with more bits.
    assert!(
        chosen["micros"].as_u64().unwrap() as f64 * 0.95 <= fastest["micros"].as_u64().unwrap() as f64 + 1.0
    );
    // What was chosen is what runs after a start, too.
    measures.stop().await.unwrap();
    measures.start().await.unwrap();
    assert_eq!(model(&measures).await["precision"], choice["precision"]);
}
