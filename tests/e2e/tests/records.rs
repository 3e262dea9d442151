//! Records end to end: nothing acknowledged is lost, nothing is counted twice.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, until};
use rusqlite::{Connection, OpenFlags};

const WAIT: Duration = Duration::from_secs(60);

fn query(path: &Path, sql: &str) -> Vec<(String, i64)> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(WAIT).unwrap();
    let mut select = db.prepare(sql).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_agent_and_cloud_again_and_again_loses_nothing() {
    let mut fleet = Fleet::start().await.unwrap();
    fleet.publish("1.0.0").await.unwrap();
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await.unwrap();
    let rollout = fleet.roll_out("1.0.0").await.unwrap();
    fleet.rollout_is(&rollout, "completed", &[&device]).await.unwrap();
    let mut count = 0;
    for round in 0..4 {
        for _ in 0..60 {
            count += 1;
            let input: Vec<f32> = (0..600).map(|n| ((n * count) as f32).sin()).collect();
            Device::infer(&device.client(), MODEL, &format!("r-{count}"), &[6, 100], &input).await.unwrap();
        }
        match round {
            0 => {
                device.kill().unwrap();
                device.start().await.unwrap();
            }
            1 => {
                fleet.cloud.kill().unwrap();
                fleet.cloud.restart().await.unwrap();
            }
            2 => {
                fleet.cloud.kill().unwrap();
                device.kill().unwrap();
                device.start().await.unwrap();
                fleet.cloud.restart().await.unwrap();
            }
            _ => {}
        }
        until("it serves again", WAIT, async || Ok(device.running(MODEL).await?)).await.unwrap();
    }
    device.stop().await.unwrap();
    let state = device.folder().join("state");
    let numbered: BTreeMap<String, i64> =
        query(&state.join("telemetry.db"), "SELECT name, seq FROM sqlite_sequence").into_iter().collect();
    device.start().await.unwrap();
    let cloud = fleet.cloud.folder().join("cloud.db");
    for (device_table, cloud_table) in [("telemetry", "windows"), ("cases", "cases")] {
        let expected = numbered.get(device_table).copied().unwrap_or(0);
        assert!(expected > 0, "{device_table}: {numbered:?}");
        until(&format!("all {expected} {cloud_table} are stored"), WAIT, async || {
            let sql =
                format!("SELECT device, count(*) FROM {cloud_table} WHERE seq <= {expected} GROUP BY device");
            Ok(query(&cloud, &sql).iter().any(|(_, stored)| *stored == expected).then_some(()))
        })
        .await
        .unwrap();
        let sql = format!(
            "SELECT 'twice', count(*) FROM (SELECT 1 FROM {cloud_table} GROUP BY device, epoch, seq HAVING count(*) > 1)"
        );
        assert_eq!(query(&cloud, &sql)[0].1, 0);
    }
}
