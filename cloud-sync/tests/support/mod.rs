//! A cloud in a temporary folder and a device that speaks the real protocol over real TLS, for the
//! tests of this package.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farlight_cloud::service::Service;
use farlight_cloud::settings::{ServeArgs, Settings};
use farlight_wire::{Ack, Batch, DeviceId, Seq, Stream, decode, encode, topics};
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, QoS, TlsConfiguration, Transport,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks until the answer is some value.
pub async fn eventually<T, F: AsyncFnMut() -> Option<T>>(what: &str, mut ask: F) -> T {
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An operator's HTTP client.
pub struct Operator {
    http: reqwest::Client,
    pub url: String,
    token: String,
}

impl Operator {
    pub fn of(data: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let profile: Value =
            serde_json::from_slice(&std::fs::read(data.join("operator.json")).unwrap()).unwrap();
        let text = |key: &str| profile[key].as_str().unwrap().to_owned();
        let ca = reqwest::Certificate::from_pem(text("ca_pem").as_bytes()).unwrap();
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self { http, url: text("cloud"), token: text("token") }
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(reqwest::Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(reqwest::Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.send(reqwest::Method::DELETE, path, None).await
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn without_token(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What a browser with this cookie gets: status, cookie that was set, body. It does not follow.
    pub async fn browse(&self, path: &str, cookie: &str, form: Option<&str>) -> (u16, String, String) {
        let url = format!("{}{path}", self.url);
        let request = match form {
            Some(form) => self
                .http
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.to_owned()),
            None => self.http.get(url),
        };
        let answer = request.header("cookie", cookie).send().await.unwrap();
        let header = |name: &str| {
            answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (status, set) = (answer.status().as_u16(), header("set-cookie"));
        (status, set, answer.text().await.unwrap())
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Stored, duplicates and gaps of a stream.
    pub async fn stats(&self, stream: Stream) -> (u64, u64, u64) {
        let stats = self.get("/api/v1/stats").await;
        let found = &stats["streams"][stream.topic()];
        let number = |key: &str| found[key].as_u64().unwrap();
        (number("stored"), number("duplicates"), number("gaps"))
    }

    /// Invites and enrols a device.
    pub async fn device(&self, id: &str) -> TestDevice {
        let (status, invitation) = self.post("/api/v1/devices", json!({"device": id, "fleet": "main"})).await;
        assert_eq!(status, 200, "{invitation}");
        let key = rcgen::KeyPair::generate().unwrap();
        // The subject is a lie; the cloud must not care.
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "somebody-else");
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let body = json!({"token": invitation["token"], "csr_pem": csr});
        let (status, enrolled) = self.post("/api/v1/enrol", body).await;
        assert_eq!(status, 200, "{enrolled}");
        TestDevice {
            id: DeviceId::new(id).unwrap(),
            certificate: enrolled["certificate_pem"].as_str().unwrap().to_owned(),
            ca: enrolled["ca_pem"].as_str().unwrap().to_owned(),
            key: key.serialize_pem(),
            mqtt: enrolled["mqtt"]["port"].as_u64().unwrap() as u16,
        }
    }
}

/// A cloud in this process.
pub struct TestCloud {
    pub data: tempfile::TempDir,
    pub service: Option<Service>,
    shutdown: CancellationToken,
    pub operator: Operator,
}

pub fn settings(data: &Path) -> Settings {
    let any = "127.0.0.1:0".parse().unwrap();
    Settings::from_args(ServeArgs {
        data: data.to_owned(),
        listen: any,
        mqtt: any,
        host: vec![],
        database: None,
        retention_days: 90,
        drift_windows: 30,
    })
    .unwrap()
}

pub fn data_folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Begins the release repository with the real command line.
pub async fn begin_repository(data: &Path) {
    let keys = data.join("offline");
    for args in [&["keys", "generate"][..], &["repo", "init", "--keys"][..]] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_farlight"))
            .arg("--profile")
            .arg(data.join("operator.json"))
            .args(args)
            .arg(&keys)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl TestCloud {
    pub async fn start() -> Self {
        Self::on(data_folder()).await
    }

    pub async fn on(data: tempfile::TempDir) -> Self {
        let shutdown = CancellationToken::new();
        let service = Service::start(settings(data.path()), shutdown.clone()).await.map_err(|e| e.1).unwrap();
        let operator = Operator::of(data.path());
        if !data.path().join("offline").exists() {
            begin_repository(data.path()).await;
        }
        Self { data, service: Some(service), shutdown, operator }
    }

    pub async fn stop(mut self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.service.take().unwrap().end().await;
        self.data
    }
}

/// An enrolled device.
#[derive(Clone)]
pub struct TestDevice {
    pub id: DeviceId,
    pub certificate: String,
    pub key: String,
    pub ca: String,
    pub mqtt: u16,
}

/// A connection of a device.
pub struct Connection {
    pub client: AsyncClient,
    events: EventLoop,
    device: DeviceId,
}

impl TestDevice {
    pub fn options(&self, client_id: &str) -> MqttOptions {
        let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pem(&self.ca)).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![pem(&self.certificate)], key)
            .unwrap();
        let mut options = MqttOptions::new(client_id, "127.0.0.1", self.mqtt);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
        options.set_max_packet_size(256 * 1024, 256 * 1024);
        options.set_clean_session(true);
        options.set_last_will(LastWill::new(topics::presence(&self.id), "0", QoS::AtLeastOnce, true));
        options
    }

    pub async fn connect(&self) -> Connection {
        self.try_connect().await.unwrap()
    }

    pub async fn try_connect(&self) -> Result<Connection, rumqttc::ConnectionError> {
        let (client, events) = AsyncClient::new(self.options(self.id.as_str()), 256);
        let mut connection = Connection { client, events, device: self.id.clone() };
        connection.until(|event| matches!(event, Event::Incoming(Packet::ConnAck(_))).then_some(())).await?;
        connection.client.try_subscribe(topics::down_filter(&self.id), QoS::AtLeastOnce).unwrap();
        connection.until(|event| matches!(event, Event::Incoming(Packet::SubAck(_))).then_some(())).await?;
        connection.client.try_publish(topics::presence(&self.id), QoS::AtLeastOnce, true, "1").unwrap();
        Ok(connection)
    }
}

impl Connection {
    /// Polls until an event is what is looked for.
    pub async fn until<T>(
        &mut self,
        mut look: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, rumqttc::ConnectionError> {
        let search = async {
            loop {
                let event = self.events.poll().await?;
                if let Some(found) = look(&event) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(DEADLINE, search).await.unwrap()
    }

    /// Polls for a while, whatever comes.
    pub async fn poll_for(&mut self, time: Duration) {
        let _ = tokio::time::timeout(time, async { while self.events.poll().await.is_ok() {} }).await;
    }

    pub fn send<T: Serialize>(&self, stream: Stream, batch: &Batch<T>) {
        let topic = topics::up(&self.device, stream);
        self.client.try_publish(topic, QoS::AtLeastOnce, false, encode(batch).unwrap()).unwrap();
    }

    /// The next acknowledgement.
    pub async fn ack(&mut self) -> Result<Ack, rumqttc::ConnectionError> {
        let topic = topics::ack(&self.device);
        self.until(|event| match event {
            Event::Incoming(Packet::Publish(message)) if message.topic == topic => {
                Some(decode::<Ack>(&message.payload).unwrap())
            }
            _ => None,
        })
        .await
    }

    /// The next desired state.
    pub async fn want(&mut self) -> Vec<u8> {
        let topic = topics::want(&self.device);
        self.until(|event| match event {
            Event::Incoming(Packet::Publish(message)) if message.topic == topic => {
                Some(message.payload.to_vec())
            }
            _ => None,
        })
        .await
        .unwrap()
    }

    /// Waits for an acknowledgement up to this number.
    pub async fn acked(&mut self, upto: u64) {
        while self.ack().await.unwrap().upto < Seq(upto) {}
    }
}

/// A service in a process of its own, to be killed.
pub struct CloudProcess {
    pub child: std::process::Child,
    pub ready: Value,
}

impl CloudProcess {
    pub fn start(data: &Path, listen: &str, mqtt: &str) -> Self {
        use std::io::BufRead;
        let mut child = std::process::Command::new(PathBuf::from(env!("CARGO_BIN_EXE_farlight-cloud")))
            .args(["serve", "--listen", listen, "--mqtt", mqtt, "--data"])
            .arg(data)
            .env("RUST_LOG", "error")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("no ready line: {line:?}: {e}"));
        Self { child, ready }
    }

    pub fn address(&self, key: &str) -> String {
        self.ready[key].as_str().unwrap().trim_start_matches("https://").to_owned()
    }
}

impl Drop for CloudProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Publishes a release whose model has no node: enough for everything the cloud does.
pub async fn publish(cloud: &TestCloud, version: &str) -> String {
    use farlight_release::manifest::Manifest;
    use farlight_release::tuf::{Targets, signer};
    let registry = &cloud.service.as_ref().unwrap().app.registry;
    let release = format!("watch-gestures/{version}");
    let blob = |bytes: &[u8]| {
        let blob = farlight_release::blob::describe(bytes);
        std::fs::write(registry.folder().join("blobs").join(&blob.id), bytes).unwrap();
        blob
    };
    // An ONNX graph that has nothing but a name.
    let name = u8::try_from(version.len()).unwrap();
    let model = [&[0x3a, name + 2, 0x12, name], version.as_bytes()].concat();
    let feature = json!({"name": "ax mean", "statistic": "mean", "channel": 0, "edges": [0.0, 1.0, 2.0],
        "counts": [250, 250, 250, 250, 0]});
    let manifest = json!({
        "format": 1, "release": release, "task": "classification",
        "input": {"name": "x", "datatype": "FP32", "shape": [1, 4], "min": -10.0, "max": 10.0, "on_violation": "flag"},
        "pre": [], "post": [{"step": "softmax"}], "labels": ["PEN", "ABD"],
        "variants": [{"precision": "fp32", "format": "onnx", "blob": blob(&model)}],
        "golden": blob(b"golden"), "golden_tolerance": 0.001,
        "profile": {"features": [feature], "score_edges": [0.5], "score_counts": [1, 9], "class_counts": [5, 5]},
        "budgets": {"memory_kib": 1000, "p95_us": 1000},
        "sampling": {"hard_permille": 50, "control_permille": 10, "bytes_per_day": 100000},
        "requires": {}, "lineage": {}
    });
    let manifest: Manifest = serde_json::from_value(manifest).unwrap();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let key = std::fs::read_dir(cloud.data.path().join("offline"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("targets"))
        .unwrap();
    let key = farlight_release::key::KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    let metadata = registry.folder().join("metadata");
    let newest = (1..).take_while(|n| metadata.join(format!("{n}.targets.json")).exists()).last().unwrap();
    let bytes = std::fs::read(metadata.join(format!("{newest}.targets.json"))).unwrap();
    let envelope: Value = serde_json::from_slice(&bytes).unwrap();
    let mut targets: Targets = serde_json::from_value(envelope["signed"].clone()).unwrap();
    targets.version += 1;
    targets.add(format!("{release}.json"), &manifest);
    let targets = signer::sign(&targets, &[&key]).unwrap();
    let change = farlight_cloud::registry::Change {
        targets: Some(targets),
        release: Some(manifest),
        ..Default::default()
    };
    registry.publish(change, "test").await.unwrap();
    release
}
