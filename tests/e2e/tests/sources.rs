//! Inputs besides HTTP: a broker on the gateway (Mosquitto), a recording, a watched folder and standard input.
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, until, workspace_root};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

const WAIT: Duration = Duration::from_secs(60);

struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts Mosquitto on a free port; `None` where it is not installed (the full test run installs it and
/// sets `FARLIGHT_REQUIRE_TOOLS`).
async fn mosquitto(folder: &Path) -> Option<(Broker, u16)> {
    let port = free_port();
    let config = folder.join("mosquitto.conf");
    std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
    Some((mosquitto_with(&config, port).await?, port))
}

/// Starts Mosquitto with a configuration that listens on `port`.
async fn mosquitto_with(config: &Path, port: u16) -> Option<Broker> {
    let programs = ["mosquitto", "/usr/sbin/mosquitto"];
    let child = programs.iter().find_map(|program| {
        Command::new(program).arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
    });
    let Some(child) = child else {
        assert!(std::env::var_os("FARLIGHT_REQUIRE_TOOLS").is_none(), "mosquitto is not installed");
        return None;
    };
    let broker = Broker(child);
    until("mosquitto listens", WAIT, async || {
        Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(|_| ()))
    })
    .await
    .unwrap();
    Some(broker)
}

/// Installs the reference model.
async fn install_watch(fleet: &Fleet, device: &Device) {
    fleet.publish("1.0.0").await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[device]).await.unwrap();
}

/// Installs the model of digits.
async fn install_digits(fleet: &Fleet, device: &Device) {
    let digits = workspace_root().join("models/digits");
    let (recipe, model) = (digits.join("release.toml"), digits.join("model.onnx"));
    fleet.publish_from(&recipe, &model, "2.0.0").await.unwrap();
    let rollout = fleet.roll_out_with("digits/2.0.0", &json!({})).await.unwrap();
    until("digits are rolled out", WAIT, async || {
        // Without requests no gate passes; before the release is there they are refused.
        let _ = Device::infer(&device.client(), "digits", "asked", &[1, 8, 8], &[1.0; 64]).await;
        Ok((fleet.rollout(&rollout, &[]).await?["state"] == "completed").then_some(()))
    })
    .await
    .unwrap();
}

/// Waits for a source whose counters are as wanted.
async fn source_is(device: &Device, index: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, WAIT, async || {
        let source = device.status().await?["sources"][index].clone();
        anyhow::ensure!(wanted(&source), "{source}");
        Ok(Some(source))
    })
    .await
    .unwrap()
}

/// A client of the broker.
struct Client {
    client: AsyncClient,
    heard: mpsc::UnboundedReceiver<(String, Value)>,
}

impl Client {
    /// Subscribes to `filter`.
    async fn new(port: u16, filter: &str) -> Self {
        let (client, mut events) = AsyncClient::new(MqttOptions::new("test", "127.0.0.1", port), 64);
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let (sender, heard) = mpsc::unbounded_channel();
        let (subscribed, wait) = oneshot::channel();
        tokio::spawn(async move {
            let mut subscribed = Some(subscribed);
            while let Ok(event) = events.poll().await {
                match event {
                    Event::Incoming(Incoming::SubAck(_)) => {
                        let _ = subscribed.take().map(|subscribed| subscribed.send(()));
                    }
                    Event::Incoming(Incoming::Publish(publish)) => {
                        let answer = serde_json::from_slice(&publish.payload).unwrap();
                        let _ = sender.send((publish.topic, answer));
                    }
                    _ => {}
                }
            }
        });
        tokio::time::timeout(WAIT, wait).await.unwrap().unwrap();
        Self { client, heard }
    }

    async fn send(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }

    /// Sends what is no input until the source hears it.
    async fn reaches(&self, device: &Device, index: usize, topic: &str) {
        let received = async || anyhow::Ok(device.status().await?["sources"][index]["received"].as_u64());
        let before = received().await.unwrap();
        until("the source listens", WAIT, async || {
            self.send(topic, "probe").await;
            Ok((received().await? > before).then_some(()))
        })
        .await
        .unwrap();
    }

    /// The next answer that is none to a probe.
    async fn answer(&mut self) -> (String, Value) {
        let next = async {
            loop {
                let (topic, answer) = self.heard.recv().await.unwrap();
                if !answer["error"].as_str().is_some_and(|error| error.contains("not valid")) {
                    return (topic, answer);
                }
            }
        };
        tokio::time::timeout(WAIT, next).await.unwrap()
    }
}

/// One row a sample of six channels.
fn sample(n: usize) -> Vec<f32> {
    (0..6).map(|channel| (n as f32 / 9.0 + channel as f32).sin()).collect()
}

/// The window of samples from `start`, channels first.
fn window(start: usize) -> Vec<f32> {
    (0..6).flat_map(|channel| (start..start + 100).map(move |n| sample(n)[channel])).collect()
}

async fn label(device: &Device, model: &str, shape: &[usize], input: &[f32]) -> String {
    Device::infer(&device.client(), model, "same", shape, input).await.unwrap().label
}

#[tokio::test(flavor = "multi_thread")]
async fn local_topics_are_answered() {
    let fleet = Fleet::start().await.unwrap();
    let Some((_broker, port)) = mosquitto(fleet.folder.path()).await else { return };
    let extra = format!(
        r#"
        [[source]]
        kind = "mqtt"
        models = ["{MODEL}", "digits"]
        port = {port}
        input_topic = "json/+"
        output_topic = "out/{{model}}/{{topic}}"
        [[source]]
        kind = "mqtt"
        model = "digits"
        port = {port}
        input_topic = "raw"
        output_topic = "out/raw"
        format = "raw"
        datatype = "UINT8"
        [[source]]
        kind = "mqtt"
        model = "{MODEL}"
        port = {port}
        input_topic = "samples/#"
        output_topic = "out/{{topic}}"
        [source.window]
        stride = 50
        lateness_ms = 200
        "#
    );
    let device = fleet.device("gw-1", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    install_watch(&fleet, &device).await;
    install_digits(&fleet, &device).await;
    let mut client = Client::new(port, "out/#").await;

    // Every input goes to every model, and each says what it thinks of it.
    client.reaches(&device, 0, "json/x").await;
    let numbers = vec![3.0_f32; 64];
    client.send("json/a", json!({ "id": "a", "data": numbers }).to_string()).await;
    let mut answers = [client.answer().await, client.answer().await];
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    let [(first, digits), (second, watch)] = answers;
    assert_eq!((first.as_str(), second.as_str()), ("out/digits/json/a", "out/watch-gestures/json/a"));
    assert_eq!(digits["label"], label(&device, "digits", &[1, 8, 8], &numbers).await);
    assert!(digits["id"] == "a" && digits["release"] == "digits/2.0.0", "{digits}");
    assert!(watch["error"].as_str().unwrap().contains("600") && watch["model"] == MODEL, "{watch}");

    // A raw message of another length is an error of its own, so it serves as the probe.
    client.reaches(&device, 1, "raw").await;
    let bytes: Vec<u8> = (0..64).map(|n| n % 17).collect();
    client.send("raw", bytes.clone()).await;
    let (_, raw) = loop {
        let (topic, answer) = client.answer().await;
        if answer.get("error").is_none() {
            break (topic, answer);
        }
    };
    let numbers: Vec<f32> = bytes.iter().map(|byte| f32::from(*byte)).collect();
    assert_eq!(raw["label"], label(&device, "digits", &[1, 8, 8], &numbers).await, "{raw}");

    // Samples out of order within the lateness make the windows that they would in order.
    client.reaches(&device, 2, "samples/x").await;
    let mut order: Vec<usize> = (0..200).collect();
    order.chunks_mut(10).for_each(<[usize]>::reverse);
    for batch in order.chunks(25) {
        let of = |n: &usize| json!({ "t": 20 * n, "values": sample(*n) });
        client.send("samples/watch", json!(batch.iter().map(of).collect::<Vec<_>>()).to_string()).await;
    }
    for start in [0, 50] {
        let (topic, answer) = client.answer().await;
        assert_eq!(topic, "out/samples/watch");
        let (from, to) = (20 * start, 20 * (start + 99));
        assert_eq!(answer["window"], json!({ "start_ms": from as f64, "end_ms": to as f64 }), "{answer}");
        assert_eq!(answer["label"], label(&device, MODEL, &[6, 100], &window(start)).await);
    }
    client.send("samples/watch", json!({ "t": 5, "values": sample(0) }).to_string()).await;
    let source = source_is(&device, 2, "the late sample is counted", |source| source["late"] == 1).await;
    assert!(source["answered"] == 2 && source["kind"] == "mqtt", "{source}");

    // More than the models keep up with: what is not answered is dropped and counted.
    for _ in 0..2_000 {
        client.send("json/flood", json!({ "data": numbers }).to_string()).await;
    }
    source_is(&device, 0, "every input is accounted for", |source| {
        let count = |key: &str| source[key].as_u64().unwrap();
        let ended = count("answered") + count("failed") + count("dropped");
        count("received") > 1_000 && ended == 2 * count("received")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_replayed_and_counted() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let csv = fleet.folder.path().join("recording.csv");
    let rows: String =
        (0..400).map(|n| format!("{0},{0},{0},{0},{0},{0}\n", (n as f32 / 9.0).sin())).collect();
    std::fs::write(&csv, format!("ax,ay,az,wx,wy,wz\n{rows}")).unwrap();
    let extra = format!(
        "[[source]]\nkind = \"replay\"\nmodel = \"{MODEL}\"\npath = {csv:?}\nrate_hz = 1000.0\nrepeat = true\n[source.window]\nstride = 50\n"
    );
    let device = fleet.device("gw-1", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    let api = fleet.operator.api().unwrap();
    until("the cloud has windows with answers", WAIT, async || {
        let device = api.get("/api/v1/devices/gw-1").await?;
        Ok(device["windows"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|w| w["ok"].as_u64() > Some(5))
            .then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_has_its_own_time() {
    let fleet = Fleet::start().await.unwrap();
    let Some((_broker, port)) = mosquitto(fleet.folder.path()).await else { return };
    let csv = fleet.folder.path().join("timed.csv");
    let row = |n: usize| sample(n).iter().map(|value| format!(",{value}")).collect::<String>();
    // A pause after 150 samples, which no window spans.
    let time = |n: usize| 1_700_000_000_000_u64 + 10 * n as u64 + if n < 150 { 0 } else { 500 };
    let rows: String = (0..300).map(|n| format!("{}{}\n", time(n), row(n))).collect();
    std::fs::write(&csv, format!("t,ax,ay,az,wx,wy,wz\n{rows}")).unwrap();
    let extra = format!(
        r#"
        [[source]]
        kind = "replay"
        model = "{MODEL}"
        path = {csv:?}
        time_column = "t"
        speed = 20.0
        [source.window]
        stride = 50
        max_gap_ms = 100
        [source.output]
        port = {port}
        topic = "out/{{model}}"
        "#
    );
    let mut client = Client::new(port, "out/#").await;
    let device = fleet.device("gw-1", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    install_watch(&fleet, &device).await;
    for start in [0, 50, 150, 200] {
        let (topic, answer) = client.answer().await;
        assert_eq!(topic, format!("out/{MODEL}"));
        let expected = json!({ "start_ms": time(start) as f64, "end_ms": time(start + 99) as f64 });
        assert_eq!(answer["window"], expected, "{answer}");
        assert_eq!(answer["label"], label(&device, MODEL, &[6, 100], &window(start)).await);
    }
    source_is(&device, 0, "all is answered", |source| source["answered"] == 4 && source["received"] == 300)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_answered_once_whatever_happens() {
    let fleet = Fleet::start().await.unwrap();
    let inbox = fleet.folder.path().join("inbox");
    std::fs::create_dir(&inbox).unwrap();
    // Nothing can be moved to what is no folder: the agent gets as far as between answering and moving.
    std::fs::write(inbox.join("done"), "").unwrap();
    let extra = format!("[[source]]\nkind = \"folder\"\nmodel = \"{MODEL}\"\npath = {inbox:?}\n");
    let options = DeviceOptions { extra, ..DeviceOptions::default() };
    let mut device = fleet.device("gw-1", &options).await.unwrap();
    install_watch(&fleet, &device).await;
    let put = |name: &str, content: &[u8]| {
        std::fs::write(inbox.join(".new"), content).unwrap();
        std::fs::rename(inbox.join(".new"), inbox.join(name)).unwrap();
    };
    let answer = |name: &str| inbox.join(format!("{name}.{MODEL}.json"));
    put("a.json", json!({ "id": "a", "data": vec![0.5; 600] }).to_string().as_bytes());
    source_is(&device, 0, "the file is answered", |source| source["answered"] == 1).await;
    let before = (std::fs::metadata(answer("a.json")).unwrap(), std::fs::read(answer("a.json")).unwrap());
    device.kill().unwrap();
    assert!(inbox.join("a.json").exists());

    std::fs::remove_file(inbox.join("done")).unwrap();
    device.start().await.unwrap();
    until("the file is moved", WAIT, async || Ok(inbox.join("done/a.json").exists().then_some(())))
        .await
        .unwrap();
    let after = (std::fs::metadata(answer("a.json")).unwrap(), std::fs::read(answer("a.json")).unwrap());
    assert_eq!((before.0.ino(), before.1), (after.0.ino(), after.1));
    let source = device.status().await.unwrap()["sources"][0].clone();
    assert!(source["answered"] == 0 && source["received"] == 0, "{source}");

    // Files of other forms, one that is no input, and another with the name of the first.
    let numbers = vec!["0.25"; 600].join(",");
    put("b.csv", numbers.as_bytes());
    put("c.bin", &0.5_f32.to_le_bytes().repeat(600));
    put("d.json", b"{");
    put("note.txt", b"for people");
    put("a.json", json!({ "id": "second", "data": vec![0.25; 600] }).to_string().as_bytes());
    let done = |source: &Value| source["answered"] == 3 && source["failed"] == 1;
    source_is(&device, 0, "the other files are answered", done).await;
    for path in ["done/a.json", "done/a.json.1", "done/b.csv", "done/c.bin", "failed/d.json", "note.txt"] {
        until(path, WAIT, async || Ok(inbox.join(path).exists().then_some(()))).await.unwrap();
    }
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(answer(name)).unwrap()).unwrap() };
    assert_eq!(read("a.json")["id"], "second");
    assert_eq!(read("b.csv")["id"], "b.csv");
    assert_eq!(read("b.csv")["label"], label(&device, MODEL, &[6, 100], &[0.25; 600]).await);
    assert!(read("d.json")["error"].is_string() && read("c.bin")["label"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_by_lines_until_the_end() {
    let fleet = Fleet::start().await.unwrap();
    let extra = format!("[[source]]\nkind = \"stdin\"\nmodel = \"{MODEL}\"\nexit_at_end = true\n");
    let options = DeviceOptions { extra, ..DeviceOptions::default() };
    let folder = fleet.folder.path().join("gw-1");
    let mut device =
        Device::enrol(&fleet.programs, &fleet.operator, "gw-1", &folder, &options).await.unwrap();
    let (mut input, mut output) = device.launch_piped().unwrap();
    device.answers().await.unwrap();
    // What is written before the model is there waits in the pipe; afterwards much more than all queues hold.
    writeln!(input, "{}", json!({ "id": "early", "data": vec![0.5; 600] })).unwrap();
    install_watch(&fleet, &device).await;
    let writing = tokio::task::spawn_blocking(move || {
        writeln!(input, "\nnonsense").unwrap();
        for n in 0..1_000 {
            writeln!(input, "{}", json!({ "id": format!("{n}"), "data": vec![0.5; 600] })).unwrap();
        }
    });
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let text = tokio::time::timeout(WAIT, reading).await.unwrap().unwrap().unwrap();
    writing.await.unwrap();
    assert!(device.ended().await.unwrap().success());
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 1_002);
    assert!(answers[0]["id"] == "early" && answers[0]["label"].is_string(), "{}", answers[0]);
    assert!(answers[1]["error"].as_str().unwrap().contains("not valid"), "{}", answers[1]);
    for (n, answer) in answers.iter().skip(2).enumerate() {
        assert!(answer["id"] == format!("{n}") && answer["label"].is_string(), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_may_ask_for_a_login_over_tls_and_may_go_away() {
    let fleet = Fleet::start().await.unwrap();
    let folder = fleet.folder.path();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("broker.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("broker.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("password"), "let me in\n").unwrap();
    let passwords = folder.join("passwords");
    let mut hash = Command::new("mosquitto_passwd");
    let hashed = hash.arg("-b").arg("-c").arg(&passwords).args(["gateway", "let me in"]).status();
    if hashed.is_err() {
        assert!(std::env::var_os("FARLIGHT_REQUIRE_TOOLS").is_none(), "mosquitto_passwd is not installed");
        return;
    }
    let (plain, secure) = (free_port(), free_port());
    let config = folder.join("mosquitto.conf");
    let text = format!(
        "user root\nper_listener_settings true\nlistener {plain} 127.0.0.1\nallow_anonymous true\n\
         listener {secure} 127.0.0.1\nallow_anonymous false\npassword_file {}\ncertfile {}\nkeyfile {}\n",
        passwords.display(),
        folder.join("broker.pem").display(),
        folder.join("broker.key").display(),
    );
    std::fs::write(&config, text).unwrap();
    let Some(broker) = mosquitto_with(&config, plain).await else { return };
    let extra = format!(
        "[[source]]\nkind = \"mqtt\"\nmodel = \"{MODEL}\"\nhost = \"localhost\"\nport = {secure}\nuser = \"gateway\"\n\
         password_file = {:?}\nca_file = {:?}\ninput_topic = \"in\"\noutput_topic = \"out\"\n",
        folder.join("password"),
        folder.join("broker.pem"),
    );
    let device = fleet.device("gw-1", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    let ask = async || {
        let mut client = Client::new(plain, "out").await;
        client.reaches(&device, 0, "in").await;
        client.send("in", json!({ "id": "a", "data": [1.0] }).to_string()).await;
        let (_, answer) = client.answer().await;
        assert!(answer["id"] == "a" && answer["error"].as_str().unwrap().contains("not loaded"), "{answer}");
    };
    ask().await;
    drop(broker);
    let _broker = mosquitto_with(&config, plain).await.unwrap();
    ask().await;
}
