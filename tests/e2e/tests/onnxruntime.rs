//! A real agent with the board's ONNX Runtime: releases are tested and served with it, single models otherwise, and by
//! tract with a reason where it is not there.
use std::path::Path;
use std::time::Duration;

use farlight_test_support::{
    Device, DeviceOptions, Fleet, Graph, onnxruntime_library, until, workspace_root,
};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

fn options(library: &Path, more: &str) -> DeviceOptions {
    let extra = format!(
        "[inference]\nengine = \"onnxruntime\"\nmax_batch = 4\n{more}\n[inference.onnxruntime]\nlibrary = {library:?}\n"
    );
    DeviceOptions { extra, ..DeviceOptions::default() }
}

async fn get(device: &Device, path: &str) -> Value {
    device.client().get(format!("http://agent/{path}")).send().await.unwrap().json().await.unwrap()
}

async fn infer(device: &Device, model: &str, body: &Value) -> Value {
    let request = device.client().post(format!("http://agent/v2/models/{model}/infer"));
    let response = request.body(body.to_string()).send().await.unwrap();
    let (status, document) = (response.status().as_u16(), response.json().await.unwrap());
    assert_eq!(status, 200, "{document}");
    document
}

/// Installs one of the repository's two models.
async fn install(fleet: &Fleet, device: &Device, model: &str) {
    let folder = workspace_root().join("models").join(model);
    fleet.publish_from(&folder.join("release.toml"), &folder.join("model.onnx"), "1.0.0").await.unwrap();
    fleet.runs(device, model, "1.0.0").await.unwrap();
}

/// What the status says of a model.
async fn state(device: &Device, model: &str) -> Value {
    let models = device.status().await.unwrap()["models"].as_array().cloned().unwrap_or_default();
    models.into_iter().find(|entry| entry["model"] == model).unwrap()
}

fn log(device: &Device) -> String {
    std::fs::read_to_string(device.folder().join("agent.log")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_are_tested_and_served_with_the_library_that_is_configured() {
    let Some(library) = onnxruntime_library().unwrap() else { return };
    let fleet = Fleet::start().await.unwrap();
    let options = options(&library, "model.counter = { engine = \"tract\" }");
    let mut device = fleet.device("gw-1", &options).await.unwrap();
    for model in ["digits", "watch-gestures"] {
        install(&fleet, &device, model).await;
        let state = state(&device, model).await;
        assert_eq!((&state["engine"], &state["provider"]), (&json!("onnxruntime"), &json!("cpu")), "{state}");
        assert_eq!(state["refused"], json!([]));
    }
    // The library reports to nobody, whatever the environment that the agent was started in.
    let process = device.last_process().unwrap();
    let environment = std::fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
    assert!(environment.split('\0').any(|variable| variable == "ORT_DISABLE_TELEMETRY=1"));

    let log = log(&device);
    let tested: Vec<&str> = log.lines().filter(|line| line.contains("self-test passed")).collect();
    // Each with one thread, and with all cores where there are several.
    let ways = if std::thread::available_parallelism().unwrap().get() > 1 { 2 } else { 1 };
    assert_eq!(tested.len(), 2 * ways);
    assert!(tested.iter().all(|line| line.contains("onnxruntime")), "{tested:?}");

    let metadata = get(&device, "v2/models/digits").await;
    assert_eq!(metadata["platform"], "onnx_onnxruntime");
    let config = get(&device, "v2/models/digits/config").await;
    assert_eq!(config["backend"], "onnxruntime");
    assert_eq!(config["parameters"]["engine_provider"]["string_value"], "cpu");
    // Together and alone, also at once.
    let image = vec![0.25_f32; 64];
    let ask = |items: usize| {
        let shape = [items, 1, 8, 8];
        let input = json!({ "name": "x", "datatype": "FP32", "shape": shape, "data": image.repeat(items) });
        json!({ "inputs": [input], "outputs": [{ "name": "label" }] })
    };
    let alone = infer(&device, "digits", &ask(1)).await["outputs"][0]["data"][0].clone();
    assert_eq!(infer(&device, "digits", &ask(3)).await["outputs"][0]["data"], json!([alone, alone, alone]));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let request = device.client().post("http://agent/v2/models/digits/infer").body(ask(1).to_string());
        asked.spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    }
    while let Some(answer) = asked.join_next().await {
        assert_eq!(answer.unwrap()["outputs"][0]["data"], json!([alone]));
    }

    let types = Graph::types().unwrap();
    fleet.install(&device, &types, "1.0.0").await.unwrap();
    assert_eq!(state(&device, "types").await["engine"], "onnxruntime");
    let asked = types_request();
    let answer = infer(&device, "types", &asked).await;
    for input in asked["inputs"].as_array().unwrap() {
        let name = input["name"].as_str().unwrap().replacen('x', "y", 1);
        let outputs = answer["outputs"].as_array().unwrap();
        let output = outputs.iter().find(|output| output["name"] == name.as_str()).unwrap();
        assert_eq!((&output["datatype"], &output["data"]), (&input["datatype"], &input["data"]), "{name}");
    }
    fleet.install(&device, &Graph::counter().unwrap(), "1.0.0").await.unwrap();
    assert_eq!(state(&device, "counter").await["engine"], "tract");

    // Again after a restart, before which nothing is tested.
    device.stop().await.unwrap();
    device.start().await.unwrap();
    until("digits run again", WAIT, async || Ok(device.running("digits").await?.map(|_| ()))).await.unwrap();
    assert_eq!(state(&device, "digits").await["engine"], "onnxruntime");
}

/// One item of each element type.
fn types_request() -> Value {
    let types = [
        ("FP32", json!([0.5, 2.0])),
        ("UINT8", json!([0, 255])),
        ("INT8", json!([-128, 127])),
        ("UINT16", json!([0, 65_535])),
        ("INT16", json!([-32_768, 32_767])),
        ("INT32", json!([i32::MIN, i32::MAX])),
        ("INT64", json!([i64::MIN, i64::MAX])),
        ("BYTES", json!(["ä", ""])),
        ("BOOL", json!([true, false])),
        ("FP16", json!([0.5, 2.0])),
        ("FP64", json!([0.1, 1e300])),
        ("UINT32", json!([0, u32::MAX])),
        ("UINT64", json!([0, u64::MAX])),
    ];
    let input = |(datatype, data): (&str, Value)| json!({ "name": format!("x_{}", datatype.to_lowercase()), "datatype": datatype, "shape": [1, 2], "data": data });
    json!({ "inputs": types.into_iter().map(input).collect::<Vec<_>>() })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_library_tract_serves_and_the_status_says_why() {
    let fleet = Fleet::start().await.unwrap();
    let library = Path::new("/nowhere/libonnxruntime.so");
    let device = fleet.device("gw-1", &options(library, "")).await.unwrap();
    install(&fleet, &device, "digits").await;
    let state = state(&device, "digits").await;
    assert_eq!((&state["engine"], &state["provider"]), (&json!("tract"), &Value::Null));
    let reason = state["refused"][0].as_str().unwrap().to_owned();
    assert!(reason.contains("/nowhere/libonnxruntime.so"), "{reason}");
    let config = get(&device, "v2/models/digits/config").await;
    assert_eq!(config["parameters"]["engine_refused"]["string_value"], reason.as_str());
    assert_eq!(get(&device, "v2/models/digits").await["platform"], "onnx_tract");
    let (_, printed) = device.cli(&["status"]).await.unwrap();
    assert!(printed.contains("runs with tract: ONNX Runtime cannot be used"), "{printed}");
    assert_eq!(log(&device).matches("not as configured: ONNX Runtime cannot be used").count(), 1);
    Device::infer(&device.client(), "digits", "a", &[1, 8, 8], &[0.5; 64]).await.unwrap();
}
