//! Inputs besides HTTP: a broker on the gateway (Mosquitto) and a replayed recording.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use farlight_test_support::{DeviceOptions, Fleet, MODEL, until};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(60);

struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts Mosquitto on a free port; `None` where it is not installed (the full test run installs it and
/// sets `FARLIGHT_REQUIRE_TOOLS`).
async fn mosquitto(folder: &std::path::Path) -> Option<(Broker, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.join("mosquitto.conf");
    std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
    let programs = ["mosquitto", "/usr/sbin/mosquitto"];
    let child = programs.iter().find_map(|program| {
        Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
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
    Some((broker, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_topic_is_answered() {
    let fleet = Fleet::start().await.unwrap();
    let Some((_broker, port)) = mosquitto(fleet.folder.path()).await else { return };
    fleet.publish("1.0.0").await.unwrap();
    let extra = format!(
        "[[source]]\nkind = \"mqtt\"\nmodel = \"{MODEL}\"\nport = {port}\ninput_topic = \"in\"\noutput_topic = \"out\"\n"
    );
    let device = fleet.device("gw-1", &DeviceOptions { extra, ..DeviceOptions::default() }).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();

    let (client, mut events) = AsyncClient::new(MqttOptions::new("test", "127.0.0.1", port), 16);
    client.subscribe("out", QoS::AtLeastOnce).await.unwrap();
    let numbers = vec!["0.5"; 600].join(",");
    let answers = async {
        let mut answers: Vec<Value> = Vec::new();
        while answers.len() < 3 {
            match events.poll().await.unwrap() {
                Event::Incoming(Incoming::SubAck(_)) => {
                    client
                        .publish(
                            "in",
                            QoS::AtLeastOnce,
                            false,
                            format!("{{\"id\":\"a\",\"data\":[{numbers}]}}"),
                        )
                        .await
                        .unwrap();
                    client
                        .publish("in", QoS::AtLeastOnce, false, "{\"id\":\"b\",\"data\":[1]}")
                        .await
                        .unwrap();
                    client.publish("in", QoS::AtLeastOnce, false, "nonsense").await.unwrap();
                }
                Event::Incoming(Incoming::Publish(publish)) => {
                    answers.push(serde_json::from_slice(&publish.payload).unwrap());
                }
                _ => {}
            }
        }
        answers
    };
    let answers = tokio::time::timeout(WAIT, answers).await.unwrap();
    assert_eq!(answers[0]["id"], "a");
    assert!(
        answers[0]["label"].is_string() && answers[0]["release"] == format!("{MODEL}/1.0.0"),
        "{answers:?}"
    );
    assert!(answers[1]["error"].as_str().unwrap().contains("600"), "{answers:?}");
    assert!(answers[2]["error"].as_str().unwrap().contains("not valid"), "{answers:?}");
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
        "[[source]]\nkind = \"replay\"\nmodel = \"{MODEL}\"\npath = {csv:?}\nrate_hz = 1000.0\nstride = 50\nrepeat = true\n"
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
