//! The inference service of a real agent: several inputs of every type, batches, overload, models out of memory and
//! back, streams with a state, and routes of signed configuration with a breaker.
use std::time::Duration;

use farlight_test_support::reqwest::StatusCode;
use farlight_test_support::{
    Device, DeviceOptions, Fleet, Graph, MODEL, changed_recipe, until, workspace_root,
};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);
/// The reference model under another name.
const LARGE: &str = "gestures-large";

/// `POST /v2/PATH`: the status, `Retry-After` and the document.
async fn post(device: &Device, path: &str, body: &Value) -> (u16, Option<u64>, Value) {
    let request = device.client().post(format!("http://agent/v2/{path}")).body(body.to_string());
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    (status, retry, response.json().await.unwrap())
}

async fn infer(device: &Device, model: &str, body: &Value) -> Value {
    let (status, _, document) = post(device, &format!("models/{model}/infer"), body).await;
    assert_eq!(status, 200, "{document}");
    document
}

/// A request of one FP32 input.
fn request(name: &str, shape: &[usize], data: &[f32]) -> Value {
    json!({ "inputs": [{ "name": name, "shape": shape, "datatype": "FP32", "data": data }] })
}

fn gesture() -> Value {
    request("x", &[1, 6, 100], &[0.1; 600])
}

async fn begun(options: &DeviceOptions) -> (Fleet, Device) {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.device("gw-1", options).await.unwrap();
    (fleet, device)
}

#[tokio::test(flavor = "multi_thread")]
async fn several_inputs_of_every_type_come_back_for_each_item_of_a_batch() {
    let (fleet, device) =
        begun(&DeviceOptions { http: "max_body_bytes = 65536".to_owned(), ..DeviceOptions::default() }).await;
    fleet.install(&device, &Graph::types().unwrap(), "1.0.0").await.unwrap();
    let metadata: Value =
        device.client().get("http://agent/v2/models/types").send().await.unwrap().json().await.unwrap();
    let mut inputs = Vec::new();
    for port in metadata["inputs"].as_array().unwrap() {
        let data = match port["datatype"].as_str().unwrap() {
            "BYTES" => json!([["", "ä"], ["b", "cd"]]),
            "BOOL" => json!([true, false, false, true]),
            "UINT64" => json!([[0, 1], [u64::MAX, 3]]),
            "INT64" => json!([0, 1, i64::MIN, 9_007_199_254_740_993_i64]),
            "FP32" => json!([[0.5, 1], [2, 3.25]]),
            _ => json!([[0, 1], [2, 3]]),
        };
        inputs.push(
            json!({ "name": port["name"], "shape": [2, 2], "datatype": port["datatype"], "data": data }),
        );
    }
    assert_eq!(inputs.len(), 13);
    let answer = infer(&device, "types", &json!({ "id": "a", "inputs": inputs })).await;
    assert_eq!(answer["id"], "a");
    for input in &inputs {
        let name = input["name"].as_str().unwrap().replacen('x', "y", 1);
        let output =
            answer["outputs"].as_array().unwrap().iter().find(|output| output["name"] == *name).unwrap();
        assert_eq!((&output["shape"], &output["datatype"]), (&json!([2, 2]), &input["datatype"]), "{output}");
        assert_eq!(flat(&output["data"]), flat(&input["data"]), "{name}");
    }
    // A name may be written in several ways, and goes with its version: each is answered, or refused, alike.
    let (asked, large) = (json!({ "inputs": inputs }), json!(" ".repeat(70_000)));
    let (mut answered, mut refused) = (Vec::new(), Vec::new());
    for name in ["types", "%74ypes", "types/versions/1.0.0"] {
        answered.push(infer(&device, name, &asked).await["outputs"].clone());
        refused.push(post(&device, &format!("models/{name}/infer"), &large).await);
    }
    assert!(answered.iter().all(|outputs| *outputs == answer["outputs"]), "{answered:?}");
    assert!(
        refused.iter().all(|(status, _, document)| *status == 413 && document["error"].is_string()),
        "{refused:?}"
    );
    let best =
        json!({ "inputs": inputs, "outputs": [{ "name": "y_fp32", "parameters": { "classification": 1 } }] });
    let answer = infer(&device, "types", &best).await;
    assert_eq!(answer["outputs"][0]["data"], json!(["1:1", "3.25:1"]), "{answer}");
    inputs.pop();
    let (status, _, refusal) = post(&device, "models/types/infer", &json!({ "inputs": inputs })).await;
    assert!(status == 400 && refusal["error"].as_str().unwrap().contains("missing"), "{refusal}");
}

/// Elements in order, numbers as the same kind of number.
fn flat(data: &Value) -> Vec<Value> {
    let nested = data.as_array().map(|items| items.iter().flat_map(flat).collect());
    let number = |value: &Value| value.as_f64().filter(|x| x.abs() < 1e6).map_or(value.clone(), |x| json!(x));
    nested.unwrap_or_else(|| vec![number(data)])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_queue_is_refused_at_once_and_models_leave_memory_and_return() {
    let options = DeviceOptions {
        http: "model_control = true".to_owned(),
        extra: "[inference]\nmodel.slow = { workers = 1, queue = 0, deadline_ms = 60000 }\n".to_owned(),
        ..DeviceOptions::default()
    };
    let (fleet, device) = begun(&options).await;
    fleet.install(&device, &Graph::slow().unwrap(), "1.0.0").await.unwrap();
    let one = request("x", &[1], &[1.0]);
    until("a request is refused", WAIT, async || {
        let ask = || post(&device, "models/slow/infer", &one);
        let answers = tokio::join!(ask(), ask(), ask(), ask());
        let answers = [answers.0, answers.1, answers.2, answers.3];
        for (status, retry, document) in &answers {
            match status {
                200 => assert!((document["outputs"][0]["data"][0].as_f64().unwrap() - 1.0).abs() < 0.01),
                503 => assert!(
                    retry.unwrap() >= 1 && document["error"].as_str().unwrap().contains("busy"),
                    "{document}"
                ),
                other => panic!("{other}: {document}"),
            }
        }
        assert!(answers.iter().any(|(status, ..)| *status == 200));
        Ok(answers.iter().any(|(status, ..)| *status == 503).then_some(()))
    })
    .await
    .unwrap();

    let state = async || post(&device, "repository/index", &json!({})).await.2[0]["state"].clone();
    assert_eq!(state().await, "READY");
    assert_eq!(post(&device, "repository/models/slow/unload", &json!({})).await.0, 200);
    assert_eq!(state().await, "UNAVAILABLE");
    assert_eq!(post(&device, "models/slow/infer", &one).await.0, 404);
    assert_eq!(post(&device, "repository/models/slow/load", &json!({})).await.0, 200);
    assert_eq!(state().await, "READY");
    // Who is answered and asks again at once finds the place that it had.
    for _ in 0..10 {
        infer(&device, "slow", &one).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_has_a_state_of_its_own() {
    let (fleet, device) = begun(&DeviceOptions::default()).await;
    fleet.install(&device, &Graph::counter().unwrap(), "1.0.0").await.unwrap();
    let sum = async |x: f32, parameters: Value| {
        let mut body = request("x", &[1], &[x]);
        body["parameters"] = parameters;
        infer(&device, "counter", &body).await["outputs"][0]["data"][0].as_f64().unwrap()
    };
    assert_eq!(sum(1.0, json!({ "sequence_id": 1, "sequence_start": true })).await, 1.0);
    assert_eq!(sum(10.0, json!({ "sequence_id": "other" })).await, 10.0);
    assert_eq!(sum(2.0, json!({ "sequence_id": 1 })).await, 3.0);
    assert_eq!(sum(20.0, json!({ "sequence_id": "other" })).await, 30.0);
    assert_eq!(sum(3.0, json!({ "sequence_id": 1, "sequence_end": true })).await, 6.0);
    assert_eq!(sum(5.0, json!({ "sequence_id": 1 })).await, 5.0, "it ended");
    assert_eq!(sum(1.0, json!({ "sequence_id": "other" })).await, 31.0);
    assert_eq!(sum(7.0, json!({ "sequence_id": "other", "sequence_start": true })).await, 7.0);
    assert_eq!(sum(4.0, json!({})).await, 4.0, "a call of no stream stands alone");
    // A new life of the agent begins every stream anew.
    let mut device = device;
    device.stop().await.unwrap();
    device.start().await.unwrap();
    let mut body = request("x", &[1], &[2.0]);
    body["parameters"] = json!({ "sequence_id": "other" });
    assert_eq!(infer(&device, "counter", &body).await["outputs"][0]["data"][0], 2.0);
}

/// How often the breaker of a route's remote stage opened.
async fn opened(device: &Device) -> anyhow::Result<u64> {
    let text = device.client().get("http://agent/metrics").send().await?.text().await?;
    let line =
        text.lines().find(|line| line.contains("route_breaker_opened") && line.contains("stage=\"remote\""));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_route_goes_from_small_to_large_leaves_out_what_is_down_and_ends_with_a_rule() {
    let options = DeviceOptions { extra: "[router]\nremote = true\n".to_owned(), ..DeviceOptions::default() };
    let (fleet, device) = begun(&options).await;
    let mut service =
        fleet.device("gw-2", &DeviceOptions { tcp: true, ..DeviceOptions::default() }).await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let renamed =
        changed_recipe(&fleet.folder.path().join("large"), &[("\"watch-gestures\"", "\"gestures-large\"")]);
    let model = workspace_root().join("models").join(MODEL).join("model.onnx");
    fleet.publish_from(&renamed.unwrap(), &model, "2.0.0").await.unwrap();
    fleet.runs(&device, MODEL, "1.0.0").await.unwrap();
    fleet.runs(&device, LARGE, "2.0.0").await.unwrap();
    until("the service runs", WAIT, async || {
        Ok((service.running(MODEL).await?.as_deref() == Some("1.0.0")).then_some(()))
    })
    .await
    .unwrap();

    let remote = format!("http://{}/v2/models/{MODEL}", service.address);
    let routes = format!(
        "[routes.quick]\nstages = [{{ ask = {{ model = {MODEL:?} }} }}, {{ ask = {{ model = {LARGE:?} }} }}]\n\
         cache = {{ ttl_ms = 3600000, entries = 16 }}\n\
         [routes.cautious]\n\
         stages = [{{ ask = {{ model = {MODEL:?} }}, accept_score = 1.0 }}, {{ ask = {{ model = {LARGE:?} }} }}]\n\
         [routes.away]\nstages = [{{ ask = {{ remote = {remote:?} }} }}, {{ ask = {{ model = {LARGE:?} }} }}]\n\
         breaker = {{ calls = 5, open_ms = 500 }}\n"
    );
    fleet.publish_config("1.0.0", &routes).await.unwrap();
    fleet.follows(&[&device, &service], "1.0.0").await.unwrap();
    let stage = async |route: &str| infer(&device, route, &gesture()).await["parameters"]["stage"].clone();
    assert_eq!(stage("quick").await, MODEL);
    assert_eq!(stage("quick").await, format!("cache of {MODEL}"));
    assert_eq!(stage("cautious").await, LARGE);
    assert_eq!(infer(&device, MODEL, &gesture()).await["parameters"], Value::Null);

    // Another service, which goes and comes back. There is an answer all the time.
    assert_eq!(stage("away").await, "remote");
    service.stop().await.unwrap();
    until("the breaker opens", WAIT, async || {
        assert_eq!(stage("away").await, LARGE);
        Ok((opened(&device).await? > 0).then_some(()))
    })
    .await
    .unwrap();
    service.start().await.unwrap();
    until("the service is asked again", WAIT, async || Ok((stage("away").await == "remote").then_some(())))
        .await
        .unwrap();

    // The large model is switched off: the small one's answer counts, and where there is none, the rule's.
    let off = format!(
        "{routes}[routes.ruled]\nstages = [{{ ask = {{ model = {LARGE:?} }} }}]\n\
         fallback = {{ rule = \"constant\", value = 2.0 }}\n[models.{LARGE}]\ndisabled = true\n"
    );
    fleet.publish_config("1.1.0", &off).await.unwrap();
    fleet.follows(&[&device, &service], "1.1.0").await.unwrap();
    assert_eq!(stage("cautious").await, MODEL);
    let ruled = infer(&device, "ruled", &gesture()).await;
    assert_eq!(ruled["parameters"]["stage"], "fallback", "{ruled}");
    assert_eq!(ruled["outputs"][1]["data"], json!(["FEL"]), "{ruled}");
    // What is wrong with the request is no reason for a rule.
    let short = request("x", &[1, 6, 99], &[0.1; 594]);
    assert_eq!(post(&device, "models/ruled/infer", &short).await.0, StatusCode::BAD_REQUEST.as_u16());
    // Clients take no model out of memory unless the device's owner lets them.
    assert_eq!(post(&device, &format!("repository/models/{MODEL}/unload"), &json!({})).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_labels_the_cases_of_its_requests_whichever_comes_first() {
    let (fleet, mut device) = begun(&DeviceOptions::default()).await;
    let all = [("control_permille = 20", "control_permille = 1000")];
    let recipe = changed_recipe(&fleet.folder.path().join("recipe"), &all).unwrap();
    let model = workspace_root().join("models").join(MODEL).join("model.onnx");
    fleet.publish_from(&recipe, &model, "1.0.0").await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();

    let path = format!("models/{MODEL}/feedback");
    let ask = async |device: &Device, id: &str, value: f32| {
        let mut body = request("x", &[1, 6, 100], &[value; 600]);
        body["id"] = json!(id);
        infer(device, MODEL, &body).await;
    };
    // Before the request, and wrong about a request that nobody made.
    let early =
        json!({ "feedback": [{ "id": "early", "label": "ROW" }, { "id": "none", "correct": false }] });
    assert_eq!(post(&device, &path, &early).await.0, 202);
    for (id, value) in [("early", 0.1), ("late", 0.3), ("changed", 0.5)] {
        ask(&device, id, value).await;
    }
    for (id, label) in [("late", "PEN"), ("changed", "PEN"), ("changed", "IR")] {
        assert_eq!(post(&device, &path, &json!({ "id": id, "label": label })).await.0, 202);
    }
    // What was answered is on disk.
    device.kill().unwrap();
    device.start().await.unwrap();

    let api = fleet.operator.api().unwrap();
    for (id, label) in [("early", "ROW"), ("late", "PEN"), ("changed", "IR")] {
        // A case that was not on disk when the agent was killed is asked for again.
        ask(&device, id, 0.7).await;
        until(&format!("the case of {id} is labelled"), WAIT, async || {
            let cases = api.get(&format!("/api/v1/cases?request_id={id}")).await?;
            Ok(cases.as_array().into_iter().flatten().any(|case| case["label"] == label).then_some(()))
        })
        .await
        .unwrap();
    }
    let said = api.get("/api/v1/feedback?request_id=none").await.unwrap();
    assert_eq!((&said[0]["verdict"], &said[0]["device"]), (&json!("wrong"), &json!("gw-1")));

    for (body, part) in [
        (json!({ "id": "late", "label": "SIT" }), "no label"),
        (json!({ "id": "late" }), "say one of"),
        (json!({ "id": "late", "label": "PEN", "correct": true }), "say one of"),
        (json!({ "id": "", "correct": true }), "1 to 128"),
        (json!({ "feedback": [] }), "1 to 256"),
        (json!([]), "neither"),
    ] {
        let (status, _, document) = post(&device, &path, &body).await;
        assert!(status == 400 && document["error"].as_str().unwrap().contains(part), "{document}");
    }
}
