//! A hang is a crash: an agent that no longer tells its watchdog that it turns is ended as systemd ends it, and
//! each life that ends so uses up one trial of the release on probation.
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, until, workspace_root};
use serde_json::{Value, json};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

const WAIT: Duration = Duration::from_secs(60);
/// The watchdog's limit here; the unit's is longer.
const LIMIT: Duration = Duration::from_secs(1);
/// The signal that systemd ends a hanging service with.
const SIGABRT: i32 = 6;
/// A probation that does not end by itself, seconds.
const ENDLESS: u64 = 600;

/// systemd's part: the socket of `sd_notify(3)` and the limit of `WatchdogSec=`.
struct Watchdog(mpsc::UnboundedReceiver<String>);

impl Watchdog {
    /// Binds the socket and lets the agent be told of it, as systemd tells its services.
    fn over(device: &mut Device) -> Self {
        let path = device.folder().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        let environment =
            [format!("NOTIFY_SOCKET={}", path.display()), format!("WATCHDOG_USEC={}", LIMIT.as_micros())];
        device.run_under(["env".to_owned()].into_iter().chain(environment).collect());
        let (sender, said) = mpsc::unbounded_channel();
        // Always read, as systemd does: an agent that finds the queue full would wait.
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok(length) = socket.recv(&mut buffer).await {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self(said)
    }

    async fn hears(&mut self, what: &str) {
        let heard = async { while !self.0.recv().await.unwrap().contains(what) {} };
        tokio::time::timeout(WAIT, heard).await.unwrap();
    }

    /// Waits until the agent has said nothing for the limit; what it said before it hung is still heard.
    async fn fires(&mut self) {
        let silence = async { while tokio::time::timeout(LIMIT, self.0.recv()).await.is_ok() {} };
        tokio::time::timeout(WAIT, silence).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_that_the_watchdog_ends_uses_up_a_trial() {
    let fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    device.stop().await.unwrap();
    let mut watchdog = Watchdog::over(&mut device);
    device.start().await.unwrap();

    fleet.publish("1.1.0").await.unwrap();
    let endless = json!({ "probation_seconds": ENDLESS, "deadline_seconds": 2 * ENDLESS });
    fleet.roll_out_with(&format!("{MODEL}/1.1.0"), &endless).await.unwrap();
    until("1.1.0 is on trial", WAIT, async || {
        Ok((device.running(MODEL).await?.as_deref() == Some("1.1.0")).then_some(()))
    })
    .await
    .unwrap();
    // From here on the device is alone.
    let mut cloud = fleet.cloud;
    cloud.kill().unwrap();

    let trials = device.pointer(MODEL).unwrap()["trials"].as_u64().unwrap();
    for left in (0..trials).rev() {
        hang(&mut watchdog, &mut device).await;
        device.start().await.unwrap();
        assert_eq!(device.pointer(MODEL).unwrap()["trials"], left);
        assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.1.0"));
    }
    hang(&mut watchdog, &mut device).await;
    device.start().await.unwrap();
    assert_eq!(device.running(MODEL).await.unwrap().as_deref(), Some("1.0.0"));
    assert_eq!(device.pointer(MODEL).unwrap()["trials"], Value::Null);
    let (_, text) = device.cli(&["history", "--limit", "3"]).await.unwrap();
    assert!(text.contains("rolled_back") && text.contains("probation.crash_loop"), "{text}");
}

/// The agent turns, hangs, and is ended when the watchdog fires.
async fn hang(watchdog: &mut Watchdog, device: &mut Device) {
    watchdog.hears("WATCHDOG=1").await;
    device.hang().unwrap();
    watchdog.fires().await;
    assert_eq!(device.abort().await.unwrap().signal(), Some(SIGABRT));
}

#[test]
fn the_unit_has_a_watchdog_and_starts_what_it_ended_again() {
    let unit = std::fs::read_to_string(
        workspace_root().join("systemd/usr/lib/systemd/system/farlight-agent.service"),
    );
    let unit = unit.unwrap();
    let has = |line: &str| unit.lines().any(|one| one == line);
    assert!(unit.lines().any(|line| line.starts_with("WatchdogSec=")) && has("Restart=always"), "{unit}");
    assert!(has("Type=notify"), "{unit}");
}
