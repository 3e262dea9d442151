//! Rollouts from the API to devices that answer like agents, over the real broker and database; drift
//! and cases from what the devices send.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Connection, Operator, TestCloud, TestDevice, eventually, publish};
use farlight_wire::case::{CaseKind, CaseTensor, TensorEncoding};
use farlight_wire::report::{ErrorReport, Event, Inventory, Running, UpdateReport, UpdateState};
use farlight_wire::telemetry::{ModelWindowV1, VitalsV1};
use farlight_wire::{
    Batch, Case, Counts, Desired, Millis, ReleaseId, Report, Seq, Sketch, Stream, Window, decode,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// What an agent makes of a release.
type Behaviour = fn(&str) -> UpdateState;

/// A device that obeys its assignments.
struct Agent {
    connection: Connection,
    behaviour: Behaviour,
    running: Option<ReleaseId>,
    ever: Arc<Mutex<Vec<String>>>,
    sequence: u64,
    sent: BTreeMap<Stream, u64>,
}

impl Agent {
    async fn start(device: &TestDevice, behaviour: Behaviour, ever: Arc<Mutex<Vec<String>>>) -> Self {
        let connection = device.connect().await;
        let mut agent =
            Self { connection, behaviour, running: None, ever, sequence: 0, sent: BTreeMap::new() };
        let running: Vec<Running> = vec![];
        agent.report(Event::Hello(Inventory {
            agent_version: "0.1.0".to_owned(),
            arch: "x86_64".to_owned(),
            os: "test".to_owned(),
            cores: 2,
            memory_kib: 1,
            labels: BTreeMap::new(),
            running,
            assignment: 0,
        }));
        agent
    }

    fn send<T: serde::Serialize>(&mut self, stream: Stream, record: T) {
        let number = self.sent.entry(stream).or_default();
        let batch = Batch {
            epoch: 9,
            acked: Seq(*number),
            prev: Seq(*number),
            records: vec![(Seq(*number + 1), record)],
        };
        *number += 1;
        self.connection.send(stream, &batch);
    }

    fn report(&mut self, event: Event) {
        self.send(Stream::Report, Report { at: Millis(1), event });
    }

    fn window(&mut self, drift: Vec<u32>) {
        let Some(release) = self.running.clone() else { return };
        let mut latency = Sketch::default();
        latency.add(500.0);
        let ok = drift.iter().map(|count| u64::from(*count)).sum();
        self.send(
            Stream::Telemetry,
            Window {
                start: Millis(1),
                length: Millis(1000),
                models: vec![ModelWindowV1 {
                    release,
                    ok,
                    failed: 0,
                    rejected: 0,
                    contract_violations: 0,
                    non_finite: 0,
                    abstained: 0,
                    cpu_us: 1,
                    latency_us: latency.clone(),
                    infer_us: latency,
                    classes: Counts(vec![1, 1]),
                    scores: Counts(vec![1, 1]),
                    drift: vec![Counts(drift)],
                }],
                vitals: VitalsV1::default(),
            },
        );
    }

    /// Obeys one desired state.
    async fn obey(&mut self) {
        let payload = self.connection.want().await;
        let desired: Desired = decode(&payload).unwrap();
        let document: Value = serde_json::from_slice(&desired.assignment).unwrap();
        let signed = &document["signed"];
        let sequence = signed["sequence"].as_u64().unwrap();
        if sequence <= self.sequence {
            return;
        }
        self.sequence = sequence;
        let models = signed["models"].as_array().unwrap().clone();
        let Some(model) = models.first() else {
            self.running = None;
            return;
        };
        let release: ReleaseId = model["release"].as_str().unwrap().parse().unwrap();
        if self.running.as_ref() == Some(&release) {
            return;
        }
        let rollout = model["rollout"].as_str().map(|id| id.parse().unwrap());
        let state = (self.behaviour)(&release.version.to_string());
        self.ever.lock().await.push(release.to_string());
        if state == UpdateState::Confirmed {
            self.running = Some(release.clone());
        }
        let error = (state != UpdateState::Confirmed).then(|| ErrorReport {
            code: "probation.degenerate".to_owned(),
            message: "one class only".to_owned(),
        });
        for state in [UpdateState::Probation, state] {
            self.report(Event::Update(UpdateReport {
                model: release.model.clone(),
                release: release.clone(),
                rollout: rollout.clone(),
                assignment: sequence,
                state,
                error: error.clone(),
                running: self.running.clone(),
                elapsed: Millis(5),
            }));
        }
        self.window(vec![50, 50, 50, 50, 0]);
    }
}

async fn roll_out(operator: &Operator, release: &str) -> String {
    let (status, created) = operator
        .post(
            "/api/v1/rollouts",
            json!({"release": release, "fleet": "main", "waves": [{"permille": 100}, {"permille": 500}, {"permille": 1000}],
                   "soak_seconds": 0, "probation_seconds": 1, "min_requests": 20}),
        )
        .await;
    assert_eq!(status, 200, "{created}");
    created["id"].as_str().unwrap().to_owned()
}

async fn ended(operator: &Operator, id: &str, state: &str) -> Value {
    eventually(state, async || {
        let rollout = operator.get(&format!("/api/v1/rollouts/{id}")).await;
        (rollout["state"] == state).then_some(rollout)
    })
    .await
}

async fn fleet(
    cloud: &TestCloud,
    size: usize,
    behaviour: Behaviour,
) -> (Vec<tokio::task::JoinHandle<()>>, Vec<Arc<Mutex<Vec<String>>>>) {
    let (mut tasks, mut evers) = (vec![], vec![]);
    for number in 0..size {
        let device = cloud.operator.device(&format!("gw-{number:02}")).await;
        let ever = Arc::new(Mutex::new(vec![]));
        let mut agent = Agent::start(&device, behaviour, Arc::clone(&ever)).await;
        evers.push(ever);
        tasks.push(tokio::spawn(async move {
            loop {
                agent.obey().await;
            }
        }));
    }
    (tasks, evers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_release_reaches_all_and_a_bad_one_only_the_canaries() {
    let cloud = TestCloud::start().await;
    let operator = &cloud.operator;
    let (good, bad) = (publish(&cloud, "1.0.0").await, publish(&cloud, "1.1.0").await);
    let behaviour: Behaviour =
        |version| if version == "1.1.0" { UpdateState::RolledBack } else { UpdateState::Confirmed };
    let (tasks, evers) = fleet(&cloud, 12, behaviour).await;

    let first = roll_out(operator, &good).await;
    let (status, refused) = operator
        .post(
            "/api/v1/rollouts",
            json!({"release": bad, "fleet": "main", "waves": [{"permille": 1000}],
            "soak_seconds": 0, "probation_seconds": 1, "min_requests": 1}),
        )
        .await;
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("rollout.conflict")));
    let rollout = ended(operator, &first, "completed").await;
    assert_eq!(rollout["tally"]["confirmed"], 12, "{rollout}");

    let second = roll_out(operator, &bad).await;
    let rollout = ended(operator, &second, "aborted").await;
    let exposed = rollout["devices"].as_array().unwrap().len();
    eventually("everybody to run the good release and to want it", async || {
        let devices = operator.get("/api/v1/devices").await;
        devices.as_array().unwrap().iter().all(|d| d["running"][0]["release"] == good.as_str()).then_some(())
    })
    .await;
    let rollout = operator.get(&format!("/api/v1/rollouts/{second}")).await;
    assert!(rollout["devices"].as_array().unwrap().iter().all(|d| d["state"] == "reverted"), "{rollout}");
    assert!(rollout["devices"][0]["error_code"] == "probation.degenerate", "{rollout}");
    let mut ran_bad = 0;
    for ever in &evers {
        ran_bad += usize::from(ever.lock().await.contains(&bad));
    }
    assert!(ran_bad <= exposed && exposed <= 4, "{ran_bad} of {exposed}");
    assert_eq!(operator.post(&format!("/api/v1/rollouts/{second}/resume"), json!({})).await.0, 409);

    // A device that joins now gets what the fleet runs.
    let late = operator.device("late").await;
    let mut agent = Agent::start(&late, |_| UpdateState::Confirmed, Arc::default()).await;
    agent.obey().await;
    assert_eq!(agent.running.map(|r| r.to_string()), Some(good));
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_survives_restarts_and_waits_while_paused() {
    let cloud = TestCloud::start().await;
    let release = publish(&cloud, "1.0.0").await;
    let devices = [cloud.operator.device("gw-1").await, cloud.operator.device("gw-2").await];
    let id = roll_out(&cloud.operator, &release).await;
    assert_eq!(cloud.operator.post(&format!("/api/v1/rollouts/{id}/pause"), json!({})).await.0, 200);
    assert_eq!(cloud.operator.post(&format!("/api/v1/rollouts/{id}/pause"), json!({})).await.0, 200);
    let data = cloud.stop().await;
    let cloud = TestCloud::on(data).await;
    let rollout = cloud.operator.get(&format!("/api/v1/rollouts/{id}")).await;
    assert_eq!(rollout["state"], "paused");
    assert_eq!(cloud.operator.post(&format!("/api/v1/rollouts/{id}/resume"), json!({})).await.0, 200);
    let mut tasks = vec![];
    for device in devices {
        let mut device = device;
        device.mqtt = cloud.service.as_ref().unwrap().app.addresses.mqtt.port();
        let mut agent = Agent::start(&device, |_| UpdateState::Confirmed, Arc::default()).await;
        tasks.push(tokio::spawn(async move {
            loop {
                agent.obey().await;
            }
        }));
    }
    ended(&cloud.operator, &id, "completed").await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_seen_and_cases_are_labelled() {
    let cloud = TestCloud::start().await;
    let operator = &cloud.operator;
    let release = publish(&cloud, "1.0.0").await;
    let device = operator.device("gw-1").await;
    let mut agent = Agent::start(&device, |_| UpdateState::Confirmed, Arc::default()).await;
    let id = roll_out(operator, &release).await;
    agent.obey().await;
    agent.connection.poll_for(Duration::from_millis(100)).await;
    let mut agent = agent;
    let verdict = async |agent: &mut Agent, expected: &str| {
        eventually(expected, async || {
            agent.connection.poll_for(Duration::from_millis(50)).await;
            let drift = operator.get("/api/v1/drift?model=watch-gestures").await;
            (drift[0]["verdict"] == expected).then_some(drift)
        })
        .await
    };
    verdict(&mut agent, "inconclusive").await;
    agent.window(vec![100, 100, 100, 100, 0]);
    verdict(&mut agent, "stable").await;
    for _ in 0..5 {
        agent.window(vec![0, 0, 50, 350, 0]);
    }
    let drift = verdict(&mut agent, "drift").await;
    assert!(drift[0]["features"][0]["drifted"] == true, "{drift}");
    eventually("the change of verdict to be kept", async || {
        let drift = operator.get("/api/v1/drift").await;
        (drift[0]["history"][0]["verdict"] == "drift").then_some(())
    })
    .await;
    for (number, bytes) in [(1, 8), (2, 8), (3, 7)] {
        agent.send(
            Stream::Case,
            Case {
                at: Millis(5),
                release: release.parse().unwrap(),
                request_id: format!("req-{number}"),
                kind: CaseKind::Margin,
                kept_permille: 500,
                hardness_permille: 900,
                class: 1,
                score_permille: 510,
                input: CaseTensor {
                    shape: vec![1, 4],
                    encoding: TensorEncoding::F16,
                    bytes: vec![0x3c; bytes],
                },
            },
        );
    }
    let cases = eventually("two good cases", async || {
        agent.connection.poll_for(Duration::from_millis(50)).await;
        let cases = operator.get("/api/v1/cases?model=watch-gestures&unlabelled=true&limit=10").await;
        (cases.as_array().unwrap().len() == 2).then_some(cases)
    })
    .await;
    assert_eq!(cases[0]["class_label"], "ABD");
    let case = cases[0]["id"].as_str().unwrap();
    let wrong = operator.post(&format!("/api/v1/cases/{case}/label"), json!({"label": "NOPE"})).await;
    assert_eq!((wrong.0, wrong.1["error"]["code"].as_str()), (400, Some("case.label")));
    let right = operator.post("/api/v1/labels", json!({"labels": [{"id": case, "label": "PEN"}]})).await;
    assert_eq!(right.0, 200, "{right:?}");
    let shown = operator.get(&format!("/api/v1/cases/{case}")).await;
    assert_eq!((shown["label"].as_str(), shown["input"].as_array().unwrap().len()), (Some("PEN"), 4));
    let store = &cloud.service.as_ref().unwrap().app.store;
    let labelled =
        farlight_cloud::cases::labelled_cases(store, &"watch-gestures".parse().unwrap()).await.unwrap();
    assert_eq!((labelled.len(), labelled[0].label, labelled[0].weight), (1, 0, 2.0));
    let stats = operator.get("/api/v1/stats").await;
    assert_eq!((stats["cases"].as_u64(), stats["labelled"].as_u64()), (Some(2), Some(1)));
    assert_eq!(operator.post(&format!("/api/v1/rollouts/{id}/abort"), json!({})).await.0 / 100 % 2, 0);
    cloud.stop().await;
}
