//! Golden bytes of version 1: what these files hold must decode to these values for ever, and encode to
//! the same plain bytes. (Compressed bytes may change with zstd's version, so those are only decoded.)
#![allow(clippy::unwrap_used, reason = "tests")]

use farlight_wire::case::{CaseKind, CaseTensor, CaseV1, TensorEncoding};
use farlight_wire::desired::{Action, CommandV1, DesiredV1};
use farlight_wire::report::{
    Choice, ErrorReport, Event, Feedback, Inventory, Refusal, ReportV1, Running, Tried, Truth, UpdateReport,
    UpdateState,
};
use farlight_wire::telemetry::{ModelWindowV1, VitalsV1, WindowV1};
use farlight_wire::{Ack, Batch, Counts, Millis, Seq, Sketch, Stream, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, golden: &str) {
    let plain = postcard::to_allocvec(value).unwrap();
    let hex: String = plain.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden.replace(['\n', ' '], ""), "version 1 is frozen: make a version 2 beside it");
    let mut framed = vec![0x10];
    framed.extend_from_slice(&plain);
    assert_eq!(&decode::<T>(&framed).unwrap(), value);
    assert_eq!(&decode::<T>(&encode(value).unwrap()).unwrap(), value);
}

fn window() -> WindowV1 {
    let (mut latency, mut infer) = (Sketch::default(), Sketch::default());
    for n in 1..=20_u32 {
        latency.add(f64::from(n * 10));
        infer.add(f64::from(n));
    }
    WindowV1 {
        start: Millis(1_700_000_000_000),
        length: Millis(60_000),
        models: vec![ModelWindowV1 {
            release: "watch-gestures/1.2.3".parse().unwrap(),
            ok: 20,
            failed: 1,
            rejected: 2,
            contract_violations: 3,
            non_finite: 4,
            abstained: 5,
            cpu_us: 6_000,
            latency_us: latency,
            infer_us: infer,
            classes: Counts(vec![5, 5, 10]),
            scores: Counts(vec![0, 1, 19]),
            drift: vec![Counts(vec![3, 4, 5, 8, 0])],
        }],
        vitals: VitalsV1 {
            cpu_permille: 7,
            rss_kib: 18_000,
            free_memory_kib: 500_000,
            free_disk_kib: 2_000_000,
            uptime_s: 3_600,
            evicted: 1,
            dropped: 2,
        },
    }
}

#[test]
fn windows() {
    let batch = Batch { epoch: 42, acked: Seq(6), prev: Seq(6), records: vec![(Seq(7), window())] };
    check(&batch, include_str!("golden/window.hex"));
}

#[test]
fn cases() {
    let case = CaseV1 {
        at: Millis(1_700_000_000_000),
        release: "watch-gestures/1.2.3".parse().unwrap(),
        request_id: "gw-1-17".into(),
        kind: CaseKind::Margin,
        kept_permille: 1000,
        hardness_permille: 900,
        class: 3,
        score_permille: 401,
        input: CaseTensor {
            shape: vec![2, 2],
            encoding: TensorEncoding::F16,
            bytes: vec![0, 60, 0, 64, 1, 2, 3, 4],
        },
    };
    assert_eq!(case.input.expected_len(), Some(8));
    check(
        &Batch { epoch: 42, acked: Seq(0), prev: Seq(0), records: vec![(Seq(1), case)] },
        include_str!("golden/case.hex"),
    );
}

#[test]
fn reports() {
    let release: farlight_wire::ReleaseId = "m/1.0.0".parse().unwrap();
    let error = ErrorReport { code: "self_test.golden_mismatch".into(), message: "x".into() };
    let events = vec![
        Event::Hello(Inventory {
            agent_version: "0.1.0".into(),
            arch: "aarch64".into(),
            os: "Linux".into(),
            cores: 4,
            memory_kib: 1_000_000,
            labels: [("site".to_owned(), "north".to_owned())].into(),
            running: vec![Running {
                release: release.clone(),
                manifest_sha256: "ab".into(),
                confirmed: true,
            }],
            assignment: 9,
        }),
        Event::Update(UpdateReport {
            model: "m".parse().unwrap(),
            release: release.clone(),
            rollout: Some("r-1".parse().unwrap()),
            assignment: 9,
            state: UpdateState::RolledBack,
            error: Some(error.clone()),
            running: Some(release),
            elapsed: Millis(1_234),
        }),
        Event::Refused(Refusal { what: "assignment".into(), error }),
        Event::Loss { what: "telemetry.db".into(), records: 5 },
        Event::CommandResult { id: "c".into(), ok: true, detail: "done".into() },
    ];
    let records =
        events.into_iter().zip(1..).map(|(event, n)| (Seq(n), ReportV1 { at: Millis(n), event })).collect();
    check(&Batch { epoch: 42, acked: Seq(0), prev: Seq(0), records }, include_str!("golden/report.hex"));
}

#[test]
fn feedback() {
    let truths = [Truth::Is("PEN".into()), Truth::Right, Truth::Wrong];
    let feedback = |truth| Feedback { model: "m".parse().unwrap(), request_id: "gw-1-17".into(), truth };
    let report = |(n, truth)| (Seq(n), ReportV1 { at: Millis(n), event: Event::Feedback(feedback(truth)) });
    let records = (1..).zip(truths).map(report).collect();
    check(&Batch { epoch: 42, acked: Seq(0), prev: Seq(0), records }, include_str!("golden/feedback.hex"));
}

#[test]
fn choice() {
    let tried = |precision: &str, micros, why: &str| Tried {
        precision: precision.into(),
        engine: "tract".into(),
        micros,
        why: why.into(),
    };
    let choice = Choice {
        release: "m/1.0.0".parse().unwrap(),
        precision: "f16".into(),
        engine: "tract".into(),
        tried: vec![
            tried("fp32", Some(200), ""),
            tried("f16", Some(100), ""),
            tried("int8", None, "differs"),
        ],
    };
    let records = vec![(Seq(1), ReportV1 { at: Millis(1), event: Event::Choice(choice) })];
    check(&Batch { epoch: 42, acked: Seq(0), prev: Seq(0), records }, include_str!("golden/choice.hex"));
}

#[test]
fn down() {
    check(&DesiredV1 { assignment: b"{}".to_vec() }, include_str!("golden/desired.hex"));
    check(&CommandV1 { id: "c1".into(), action: Action::Flush }, include_str!("golden/command.hex"));
    check(&Ack { stream: Stream::Case, epoch: 42, upto: Seq(17) }, include_str!("golden/ack.hex"));
}

#[test]
fn a_window_is_small() {
    let batch = Batch { epoch: 42, acked: Seq(6), prev: Seq(6), records: vec![(Seq(7), window())] };
    let (plain, sent) = (postcard::to_allocvec(&batch).unwrap().len(), encode(&batch).unwrap().len());
    assert!(sent < plain * 3 / 4, "{sent} of {plain} bytes");
}

#[test]
fn what_is_not_a_payload_is_refused() {
    assert!(decode::<Ack>(&[]).is_err());
    assert!(decode::<Ack>(&[0x20, 0, 1, 1]).is_err(), "another version");
    assert!(decode::<Ack>(&[0x14, 0, 1, 1]).is_err(), "unknown flags");
    assert!(decode::<Ack>(&[0x10, 0, 1, 1, 0]).is_err(), "trailing bytes");
    assert!(decode::<Ack>(&[0x10, 9, 1, 1]).is_err(), "unknown variant");
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let mut framed = vec![0x11];
    framed.extend_from_slice(&bomb);
    assert!(decode::<Vec<u8>>(&framed).is_err(), "a compressed bomb");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let _ = decode::<Batch<WindowV1>>(&bytes);
        let _ = decode::<Batch<CaseV1>>(&bytes);
        let _ = decode::<Batch<ReportV1>>(&bytes);
        let _ = decode::<DesiredV1>(&bytes);
    }
}
