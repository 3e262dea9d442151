//! Every fixture against the agent's own update driver: refused with its code, reported, and what ran runs on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use farlight_agent::clock::{self, Zone};
use farlight_agent::fetch::Repository;
use farlight_agent::journal::Journal;
use farlight_agent::models::{Ask, Models};
use farlight_agent::recorder::{self, Plan};
use farlight_agent::runtime::Runtime;
use farlight_agent::slots::Slots;
use farlight_agent::source::Source;
use farlight_agent::status::Status;
use farlight_agent::store::{Outbox, Store};
use farlight_agent::transfer::Limits;
use farlight_agent::trust::Trust;
use farlight_agent::update::{Driver, Input, Local, Parts};
use farlight_agent::vitals::Vitals;
use farlight_attacks::attacks;
use farlight_attacks::fixture::{Attack, Delivery, Fixture, HONEST, read_tree};
use farlight_device::health::Policy;
use farlight_device::pointer::Pointer;
use farlight_test_support::{Programs, until, workspace_root};
use farlight_wire::codes::Code;
use farlight_wire::report::{Event, UpdateState};
use farlight_wire::{Millis, Report, Seq, Stream};
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};

const WAIT: Duration = Duration::from_secs(60);

fn folder() -> PathBuf {
    workspace_root().join("models/fixtures")
}

fn fixtures() -> Vec<Fixture> {
    let mut all: Vec<Fixture> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with(HONEST))
        .map(|path| Fixture::read(&path).unwrap())
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[test]
fn the_fixtures_and_their_table_are_what_the_program_makes() {
    let (made, files) = attacks::all().unwrap();
    let there = read_tree(&folder()).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let wanted: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(path, bytes)| (text(path), bytes.clone())).collect();
    let differs = wanted.keys().chain(there.keys()).find(|path| wanted.get(*path) != there.get(*path));
    assert_eq!(differs, None, "differs; run: cargo run --release --bin attack-fixtures");
    assert_eq!(fixtures(), made);
    let document = std::fs::read_to_string(workspace_root().join("docs/attacks.md")).unwrap();
    assert_eq!(document, attacks::document().unwrap());
}

#[test]
fn no_two_attacks_share_a_code() {
    let mut seen = BTreeMap::new();
    for Fixture { name, attack, .. } in fixtures() {
        assert!(Code::parse(&attack.code).is_some(), "{} is no code", attack.code);
        let other = seen.insert(attack.code.clone(), name.clone());
        assert_eq!(other, None, "{name} shares {}", attack.code);
    }
}

/// The attacker's server.
#[derive(Clone, Default)]
struct Served {
    files: Arc<std::sync::Mutex<BTreeMap<String, Vec<u8>>>>,
    attack: Arc<std::sync::Mutex<Option<Attack>>>,
}

async fn serve(State(served): State<Served>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let attack = served.attack.lock().unwrap().clone();
    let is = |wanted: Option<&String>| wanted.is_some_and(|wanted| *wanted == path);
    if is(attack.as_ref().and_then(|attack| attack.endless.as_ref())) {
        // What is honest comes first: the device must notice that it does not end.
        let honest = served.files.lock().unwrap().get(&path).cloned().unwrap_or_default();
        let spaces = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]));
        return Body::from_stream(stream::iter([Ok(honest)]).chain(spaces)).into_response();
    }
    let Some(bytes) = served.files.lock().unwrap().get(&path).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if is(attack.as_ref().and_then(|attack| attack.slow.as_ref())) {
        let drops = (bytes.into_iter(), tokio::time::interval(Duration::from_millis(200)));
        let drops = stream::unfold(drops, |(mut bytes, mut tick)| async move {
            tick.tick().await;
            bytes.next().map(|byte| (Ok::<_, std::io::Error>(vec![byte]), (bytes, tick)))
        });
        return Body::from_stream(drops).into_response();
    }
    bytes.into_response()
}

/// A device: the agent's update driver with real stores, fed as the broker connection would feed it.
struct Device {
    folder: tempfile::TempDir,
    served: Served,
    inbox: mpsc::Sender<Input>,
    models: Arc<Models>,
    reports: Outbox,
    stop: watch::Sender<bool>,
}

impl Device {
    /// One that gives a self-test so long.
    async fn start(self_test: Duration) -> Self {
        farlight_test_support::init();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let honest = fixtures_of_honest();
        let served = Served::default();
        *served.files.lock().unwrap() = honest.clone();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(serve).with_state(served.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });

        Trust::create(at, &honest["metadata/1.root.json"]).unwrap();
        let (committed, _) = watch::channel(0);
        let (reported, _) = watch::channel(0);
        let (healths_sender, healths) = mpsc::channel(64);
        let runtime = Runtime::default();
        let store = Store::open(at, clock::now()).unwrap().store;
        let plan = Plan {
            window: Duration::from_secs(1),
            store_max_bytes: 1 << 24,
            cases: false,
            case_bytes_per_day: 0,
        };
        let recording = recorder::start(
            store,
            plan,
            Vitals::new(at.to_path_buf()),
            runtime.clone(),
            healths_sender,
            committed,
        )
        .unwrap();
        let plan = farlight_agent::settings::Inference::default().plan(1);
        let models =
            Arc::new(Models::new(plan, Default::default(), recording.recorder.clone(), runtime.clone()));
        let limits = Limits {
            max_bytes_per_second: 0,
            stall: Duration::from_secs(1),
            windows: Vec::new(),
            zone: Zone::named("UTC").unwrap(),
        };
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let identity = serde_json::json!({ "device": "gw-1", "fleet": "default", "repository": base,
            "mqtt": { "host": "127.0.0.1", "port": 1 }, "certificate_pem": "", "key_pem": "", "ca_pem": "" });
        let parts = Parts {
            identity: serde_json::from_value(identity).unwrap(),
            labels: BTreeMap::new(),
            models: Arc::clone(&models),
            runtime,
            slots: Slots::new(at),
            choose: Duration::ZERO,
            trust: Some(Trust::open(at).unwrap()),
            repository: Repository::new(Source::Http { client, base }, Vec::new(), limits),
            journal: Journal::open(at, clock::now()).unwrap().0,
            status: Arc::new(Status::new("gw-1", "default")),
            program: Programs::find().unwrap().agent,
            self_test,
            metadata_every: Duration::from_secs(3_600),
            activation_windows: Vec::new(),
            zone: Zone::named("UTC").unwrap(),
            reported,
        };
        let (inbox, receiver) = mpsc::channel(64);
        let driver = Driver::boot(parts, inbox.clone()).await;
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(driver.run(receiver, healths, stopped));
        let reports = Outbox::open(&at.join("state.db")).unwrap();
        let device = Self { folder, served, inbox, models, reports, stop };
        let assignment = std::fs::read(self::folder().join(HONEST).join("assignment.json")).unwrap();
        device.inbox.send(Input::Desired(assignment)).await.unwrap();
        device
            .reported(
                "1.0.0 is confirmed",
                |event| matches!(event, Event::Update(step) if step.state == UpdateState::Confirmed),
            )
            .await;
        device
    }

    /// Waits for a report.
    async fn reported(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let found = until(what, WAIT, async || {
            let rows = self.reports.after(Stream::Report, Seq(0), 1_000, 1 << 24)?;
            let events = rows.iter().filter_map(|row| row.bytes.as_deref());
            let events = events.filter_map(|bytes| Some(postcard_report(bytes)?.event));
            Ok(events.into_iter().find(|event| wanted(event)))
        })
        .await;
        match found {
            Ok(event) => event,
            Err(error) => {
                let rows = self.reports.after(Stream::Report, Seq(0), 1_000, 1 << 24).unwrap();
                let all: Vec<_> =
                    rows.iter().filter_map(|row| postcard_report(row.bytes.as_deref()?)).collect();
                panic!("{error:#}; reported was {all:#?}");
            }
        }
    }

    async fn meet(&self, fixture: &Fixture) {
        {
            let mut files = self.served.files.lock().unwrap();
            files.extend(fixture.files.clone());
            // What an attack leaves out is not there: files are added only.
        }
        *self.served.attack.lock().unwrap() = Some(fixture.attack.clone());
        match fixture.attack.delivery {
            Delivery::Metadata => {
                let command = farlight_wire::Command {
                    id: "c-1".into(),
                    action: farlight_wire::desired::Action::Refresh,
                };
                self.inbox.send(Input::Command(command)).await.unwrap();
            }
            Delivery::Assignment => {
                self.inbox.send(Input::Desired(fixture.assignment.clone().unwrap())).await.unwrap();
            }
            Delivery::Bundle => self.plug_in(fixture).await,
        }
    }

    /// What no attack may change.
    async fn state(&self) -> RunState {
        let loaded = self.models.find("m", None).unwrap();
        let slots = Slots::new(self.folder.path());
        let answer = self.models.infer(Arc::clone(&loaded), vec![0.5; 6].into(), &Ask::now("a")).await;
        RunState {
            release: loaded.slot.release.to_string(),
            files: read_tree(&slots.folder(&loaded.slot)).unwrap(),
            pointer: slots.pointer(&"m".parse().unwrap()).unwrap().unwrap(),
            outputs: answer.unwrap().prediction.outputs,
            loaded: Arc::as_ptr(&loaded) as usize,
        }
    }

    /// A stick with the honest repository, and what the attacker did to it.
    async fn plug_in(&self, fixture: &Fixture) {
        let stick = self.folder.path().join("stick");
        let files = self.served.files.lock().unwrap().clone();
        for (path, bytes) in &files {
            write(&stick.join(path), bytes);
        }
        if let Some((path, target)) = &fixture.attack.link {
            let path = stick.join(path);
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(target, path).unwrap();
        }
        // The network is not there when somebody comes with a stick.
        self.served.files.lock().unwrap().clear();
        let (reply, _) = oneshot::channel();
        let policy = Policy { duration: Millis(0), min_requests: 0 };
        let install = Local::Install { bundle: stick, only: None, policy, reply };
        self.inbox.send(Input::Local(install)).await.unwrap();
    }
}

/// The running model, in memory and on disk, and an answer by it.
#[derive(Debug, PartialEq)]
struct RunState {
    release: String,
    files: BTreeMap<String, Vec<u8>>,
    pointer: Pointer,
    outputs: Vec<f32>,
    loaded: usize,
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn postcard_report(bytes: &[u8]) -> Option<Report> {
    postcard::from_bytes(bytes).ok()
}

fn fixtures_of_honest() -> BTreeMap<String, Vec<u8>> {
    read_tree(&folder().join(HONEST).join("repo")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_refused_with_its_code_and_changes_nothing() {
    let fixtures = fixtures();
    assert!(fixtures.len() > 30);
    let mut otherwise = Vec::new();
    for fixture in &fixtures {
        // What is to end by the clock ends soon; nothing else ends by it, however busy this machine is.
        let by_clock = fixture.attack.code == Code::SelfTestTimeout.as_str();
        let device = Device::start(if by_clock { Duration::from_secs(2) } else { WAIT }).await;
        let before = device.state().await;
        assert_eq!(before.release, "m/1.0.0");
        device.meet(fixture).await;
        let error = |event: &Event| match event {
            Event::Refused(refusal) => Some(refusal.error.clone()),
            Event::Update(step) if step.state == UpdateState::Failed => step.error.clone(),
            _ => None,
        };
        // What waits in the outbox is what the cloud is told; it stays there until the cloud has it.
        let refused =
            device.reported(&format!("{} is refused", fixture.name), |event| error(event).is_some()).await;
        let error = error(&refused).unwrap();
        if error.code != fixture.attack.code || error.message.is_empty() {
            otherwise.push(format!("{}: {refused:?}", fixture.name));
        }
        assert_eq!(device.state().await, before, "{}", fixture.name);
        let _ = device.stop.send(true);
    }
    assert!(otherwise.is_empty(), "refused with another code than the fixture says: {otherwise:#?}");
}
