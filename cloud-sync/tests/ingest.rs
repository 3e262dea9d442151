//! Records from a device over real TLS and the real broker into a real database: repeated, skipped,
//! cut off, with the service killed at any moment. Nothing acknowledged is lost, nothing counts twice.

use std::time::Duration;

use crate::support::{
    CloudProcess, DEADLINE, Operator, TestCloud, begin_repository, data_folder, eventually,
};
use farlight_wire::limits::MAX_PAYLOAD;
use farlight_wire::telemetry::{ModelWindowV1, VitalsV1};
use farlight_wire::{Batch, Counts, Millis, Seq, Sketch, Stream, Window, encode, topics};
use rumqttc::{Event, Packet, QoS, SubscribeReasonCode};

fn window(number: u64) -> Window {
    let mut latency = Sketch::default();
    latency.add(100.0 + number as f64);
    Window {
        start: Millis(number * 1000),
        length: Millis(1000),
        models: vec![ModelWindowV1 {
            release: "watch-gestures/1.0.0".parse().unwrap(),
            ok: 10,
            failed: 0,
            rejected: 0,
            contract_violations: 0,
            non_finite: 0,
            abstained: 0,
            cpu_us: 5,
            latency_us: latency.clone(),
            infer_us: latency,
            classes: Counts(vec![5, 5]),
            scores: Counts(vec![10]),
            drift: vec![],
        }],
        vitals: VitalsV1::default(),
    }
}

fn batch(acked: u64, from: u64, to: u64) -> Batch<Window> {
    Batch {
        epoch: 7,
        acked: Seq(acked),
        prev: Seq(from - 1),
        records: (from..=to).map(|n| (Seq(n), window(n))).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_are_dropped_and_gaps_are_resent() {
    let cloud = TestCloud::start().await;
    let device = cloud.operator.device("gw-1").await;
    let mut connection = device.connect().await;
    connection.send(Stream::Telemetry, &batch(0, 1, 3));
    connection.acked(3).await;
    // Repeated, partly and wholly.
    connection.send(Stream::Telemetry, &batch(0, 2, 5));
    connection.acked(5).await;
    connection.send(Stream::Telemetry, &batch(5, 4, 5));
    assert_eq!(connection.ack().await.unwrap().upto, Seq(5));
    // 6 is missing: nothing stored, and the acknowledgement says where to go on.
    connection.send(Stream::Telemetry, &batch(5, 7, 9));
    assert_eq!(connection.ack().await.unwrap().upto, Seq(5));
    connection.send(Stream::Telemetry, &batch(5, 6, 9));
    connection.acked(9).await;
    assert_eq!(cloud.operator.stats(Stream::Telemetry).await, (9, 4, 1));
    let shown = cloud.operator.get("/api/v1/devices/gw-1").await;
    assert_eq!(shown["windows"][0]["ok"], 10);
    assert_eq!(shown["online"], true);
    // The connection breaks without a goodbye: the will says so.
    drop(connection);
    eventually("the device to be offline", async || {
        (cloud.operator.get("/api/v1/devices/gw-1").await["online"] == false).then_some(())
    })
    .await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_acknowledgement_and_a_restart_lose_and_double_nothing() {
    let cloud = TestCloud::start().await;
    let device = cloud.operator.device("gw-1").await;
    let mut connection = device.connect().await;
    connection.send(Stream::Telemetry, &batch(0, 1, 50));
    connection.poll_for(Duration::from_millis(50)).await;
    // Committed; the device goes away without having heard of it.
    eventually("the records", async || {
        connection.poll_for(Duration::from_millis(10)).await;
        (cloud.operator.stats(Stream::Telemetry).await.0 == 50).then_some(())
    })
    .await;
    drop(connection);
    let data = cloud.stop().await;
    let cloud = TestCloud::on(data).await;
    let mut device = device;
    device.mqtt = cloud.service.as_ref().unwrap().app.addresses.mqtt.port();
    let mut connection = device.connect().await;
    connection.send(Stream::Telemetry, &batch(0, 1, 60));
    connection.acked(60).await;
    assert_eq!(cloud.operator.stats(Stream::Telemetry).await, (60, 50, 0));
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_moment_loses_and_doubles_nothing() {
    const RECORDS: u64 = 1500;
    let data = data_folder();
    let mut cloud = CloudProcess::start(data.path(), "127.0.0.1:0", "127.0.0.1:0");
    let (api, mqtt) = (cloud.address("api"), cloud.address("mqtt"));
    begin_repository(data.path()).await;
    let device = Operator::of(data.path()).device("gw-1").await;
    let (mut acked, mut kills) = (0, 0_u64);
    let end = tokio::time::Instant::now() + DEADLINE * 4;
    while acked < RECORDS {
        assert!(tokio::time::Instant::now() < end, "only {acked} of {RECORDS} acknowledged");
        let Ok(mut connection) = device.try_connect().await else { continue };
        // The next kill comes after a few batches, at a moment that differs from life to life.
        let life = Duration::from_millis(30 + (kills * 37) % 200);
        let _ = tokio::time::timeout(life, async {
            while acked < RECORDS {
                for start in (acked + 1..=RECORDS).step_by(10).take(8) {
                    connection.send(Stream::Telemetry, &batch(acked, start, (start + 9).min(RECORDS)));
                }
                let target = (acked + 80).min(RECORDS);
                while acked < target {
                    let Ok(ack) = connection.ack().await else { return };
                    acked = acked.max(ack.upto.0);
                }
            }
        })
        .await;
        if kills < 8 {
            drop(cloud);
            kills += 1;
            cloud = CloudProcess::start(data.path(), &api, &mqtt);
        }
    }
    assert_eq!(kills, 8);
    let operator = Operator::of(data.path());
    let (stored, _, _) = operator.stats(Stream::Telemetry).await;
    assert_eq!(stored, RECORDS);
    let shown = operator.get("/api/v1/devices/gw-1").await;
    assert_eq!(shown["windows"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_kept_to_its_own_topics_and_name() {
    let cloud = TestCloud::start().await;
    let (one, two) = (cloud.operator.device("gw-1").await, cloud.operator.device("gw-2").await);
    // A client id that is not the certificate's name.
    let (_client, mut events) = rumqttc::AsyncClient::new(one.options("gw-2"), 10);
    let refused = loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => break false,
            Ok(_) => {}
            Err(_) => break true,
        }
    };
    assert!(refused);
    // Another device's topics.
    let mut connection = one.connect().await;
    connection
        .client
        .try_publish(
            topics::up(&two.id, Stream::Telemetry),
            QoS::AtLeastOnce,
            false,
            encode(&batch(0, 1, 3)).unwrap(),
        )
        .unwrap();
    for filter in ["#".to_owned(), "fl/1/d/+/down/+".to_owned(), topics::down_filter(&two.id)] {
        connection.client.try_subscribe(filter.clone(), QoS::AtLeastOnce).unwrap();
        let granted = connection
            .until(|event| match event {
                Event::Incoming(Packet::SubAck(ack)) => {
                    Some(ack.return_codes[0] != SubscribeReasonCode::Failure)
                }
                _ => None,
            })
            .await;
        assert!(!granted.unwrap(), "{filter}");
    }
    // Its own still work, also with the largest payload; what is no batch is refused.
    connection
        .client
        .try_publish(topics::up(&one.id, Stream::Case), QoS::AtLeastOnce, false, vec![0x10; MAX_PAYLOAD])
        .unwrap();
    connection.send(Stream::Telemetry, &batch(0, 1, 3));
    connection.acked(3).await;
    let stats = cloud.operator.get("/api/v1/stats?device=gw-2").await;
    assert_eq!(stats["streams"]["tel"]["stored"], 0);
    // Without a certificate of ours there is no connection.
    let mut stranger = two.clone();
    let key = rcgen::KeyPair::generate().unwrap();
    stranger.certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().pem();
    stranger.key = key.serialize_pem();
    assert!(stranger.try_connect().await.is_err());
    // Revoked: the connection ends and no new one is taken.
    assert_eq!(cloud.operator.delete("/api/v1/devices/gw-1").await.0, 200);
    assert!(connection.until(|_| None::<()>).await.is_err());
    assert!(one.try_connect().await.is_err());
    cloud.stop().await;
}
