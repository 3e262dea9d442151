//! A device: a real `farlight-agent` with its own folder, asked through its Unix socket as an application
//! on the gateway would.

use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cloud::Operator;
use crate::process::{Process, Programs};
use crate::proxy::Proxy;

/// What differs from the defaults.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Length of a window, seconds.
    pub window_seconds: u64,
    /// Whether raw inputs may be kept.
    pub cases: bool,
    /// Whether the service also listens on a free TCP port.
    pub tcp: bool,
    /// Whether it listens for gRPC on a free TCP port.
    pub grpc: bool,
    /// More lines for `[http]`.
    pub http: String,
    /// More lines for the configuration, after its other tables.
    pub extra: String,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            window_seconds: 1,
            cases: true,
            tcp: false,
            grpc: false,
            http: String::new(),
            extra: String::new(),
        }
    }
}

/// A device.
#[derive(Debug)]
pub struct Device {
    program: PathBuf,
    /// Its name.
    pub id: String,
    folder: PathBuf,
    /// `127.0.0.1:PORT` of the service; empty without TCP.
    pub address: String,
    /// `127.0.0.1:PORT` of its gRPC form; empty without.
    pub grpc_address: String,
    http: reqwest::Client,
    under: Vec<String>,
    process: Option<Process>,
    last_process: Option<u32>,
}

/// An answer to an inference.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The label.
    pub label: String,
    /// The version that answered.
    pub version: String,
}

/// Why an inference was not answered.
#[derive(Debug)]
pub enum InferFailure {
    /// The agent is not there.
    Unreachable(String),
    /// The agent answered with an error.
    Refused(u16, String),
}

/// A port that was free a moment ago.
fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Device {
    /// Enrols a device with the operator's help and writes its configuration; it does not run yet.
    ///
    /// # Errors
    /// When enrolment fails.
    pub async fn enrol(
        programs: &Programs,
        operator: &Operator,
        id: &str,
        folder: &Path,
        options: &DeviceOptions,
    ) -> anyhow::Result<Self> {
        let device = Self::unenrolled(programs, operator, id, folder, options).await?;
        let enrolment = folder.join("enrolment.json");
        let output =
            device.command().arg("enrol").arg(&enrolment).output().context("start farlight-agent")?;
        if !output.status.success() {
            bail!("enrol {id}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(device)
    }

    /// A device with an enrolment file, which it uses at its first start.
    ///
    /// # Errors
    /// When the operator cannot make the file.
    pub async fn unenrolled(
        programs: &Programs,
        operator: &Operator,
        id: &str,
        folder: &Path,
        options: &DeviceOptions,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let enrolment = folder.join("enrolment.json");
        let out = enrolment.display().to_string();
        operator.run(&["device", "enrol", id, "--out", &out]).await?;
        let free = |wanted: bool| if wanted { free_address() } else { Ok(String::new()) };
        let (address, grpc_address) = (free(options.tcp)?, free(options.grpc)?);
        let config = format!(
            "[device]\nstate_dir = {:?}\nenrolment = {:?}\n[http]\nlisten = {:?}\ngrpc_listen = {:?}\nsocket = {:?}\n{}\n[telemetry]\nwindow_seconds = {}\n[cases]\nenabled = {}\n{}",
            folder.join("state"),
            enrolment,
            address,
            grpc_address,
            folder.join("agent.sock"),
            options.http,
            options.window_seconds,
            options.cases,
            options.extra,
        );
        std::fs::write(folder.join("agent.toml"), config)?;
        Ok(Self {
            program: programs.agent.clone(),
            id: id.to_owned(),
            http: reqwest::Client::builder()
                .unix_socket(folder.join("agent.sock"))
                .timeout(Duration::from_secs(20))
                .build()?,
            folder: folder.to_path_buf(),
            address,
            grpc_address,
            under: Vec::new(),
            process: None,
            last_process: None,
        })
    }

    fn command(&self) -> Command {
        self.configured(Command::new(&self.program))
    }

    fn configured(&self, mut command: Command) -> Command {
        command.arg("--config").arg(self.folder.join("agent.toml")).env("RUST_LOG", "info");
        // The agent sees to that by itself.
        command.env_remove("ORT_DISABLE_TELEMETRY");
        command
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it keeps everything.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Starts the agent under another program from now on, such as a recorder of system calls. It must
    /// leave the agent in the process that it was started in.
    pub fn run_under(&mut self, program_and_arguments: Vec<String>) {
        self.under = program_and_arguments;
    }

    /// Process id of the agent, also after its end; `None` before its first start.
    pub fn last_process(&self) -> Option<u32> {
        self.last_process
    }

    /// Sends its traffic through proxies from now on (before it runs): a network that can be cut.
    ///
    /// # Errors
    /// When its identity cannot be changed.
    pub fn go_through(&self, mqtt: &Proxy, https: &Proxy) -> anyhow::Result<()> {
        let path = self.state_dir().join("identity.json");
        let mut identity: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        identity["mqtt"] = json!({ "host": "127.0.0.1", "port": mqtt.port() });
        identity["repository"] = json!(format!("https://127.0.0.1:{}/repo/", https.port()));
        std::fs::write(&path, serde_json::to_vec(&identity)?)?;
        Ok(())
    }

    /// Starts the agent without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        self.launch_with(Stdio::null()).map(|_| ())
    }

    /// Starts the agent with its standard input and output in the hands of the caller.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_piped(&mut self) -> anyhow::Result<(ChildStdin, ChildStdout)> {
        let process = self.launch_with(Stdio::piped())?;
        Ok((process.stdin()?, process.stdout()?))
    }

    fn launch_with(&mut self, input: Stdio) -> anyhow::Result<&mut Process> {
        let mut command = match self.under.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.program);
                self.configured(command)
            }
            None => self.command(),
        };
        command.arg("run");
        let log = self.folder.join("agent.log");
        let process = Process::start_with(&self.id, &mut command, &log, input)?;
        self.last_process = Some(process.id());
        Ok(self.process.insert(process))
    }

    /// Starts the agent and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.answers().await
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn answers(&mut self) -> anyhow::Result<()> {
        let log = self.folder.join("agent.log");
        let what = format!("{} answers (see {})", self.id, log.display());
        crate::until(&what, Duration::from_secs(30), async || {
            if let Some(process) = &mut self.process
                && let Some(status) = process.exited()?
            {
                bail!("it ended with {status}");
            }
            Ok(self.http.get("http://agent/v2/health/live").send().await.ok().map(|_| ()))
        })
        .await
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// SIGTERM, and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// Makes the agent hang: it is there and does nothing any more.
    ///
    /// # Errors
    /// When it does not run.
    pub fn hang(&self) -> anyhow::Result<()> {
        self.process.as_ref().context("the agent does not run")?.hang()
    }

    /// Ends the agent as systemd's watchdog does; how it ended.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn abort(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.abort().await
    }

    /// Waits until the agent ends by itself; how it ended.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn ended(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.process.as_mut().context("the agent does not run")?.ended().await
    }

    /// The pointer of a model on disk, also while the agent is dead.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pointer(&self, model: &str) -> anyhow::Result<Value> {
        let text = std::fs::read_to_string(self.state_dir().join("models").join(model).join("active"))?;
        Ok(serde_json::from_str(text.lines().next().context("the pointer is empty")?)?)
    }

    /// What the agent says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> anyhow::Result<Value> {
        Ok(self.http.get("http://agent/farlight/status").send().await?.json().await?)
    }

    /// Runs one command of the agent's own command line; what it printed, and whether it succeeded.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn cli(&self, args: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = tokio::process::Command::from(self.command());
        let output = command.args(args).output().await.context("start farlight-agent")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Takes the update lock (`PUT`) or gives it back (`DELETE`); the status of the answer.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn lock(&self, method: reqwest::Method, holder: &str) -> anyhow::Result<u16> {
        let body = json!({ "holder": holder, "seconds": 60 }).to_string();
        let request = self.http.request(method, "http://agent/farlight/lock").body(body);
        Ok(request.send().await?.status().as_u16())
    }

    /// What `farlight-agent status --json` prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub async fn status_of_command(&self) -> anyhow::Result<Value> {
        let mut command = tokio::process::Command::from(self.command());
        let output = command.args(["status", "--json"]).output().await.context("start farlight-agent")?;
        if !output.status.success() {
            bail!("status: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("understand the status")
    }

    /// The version that runs, if any.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn running(&self, model: &str) -> anyhow::Result<Option<String>> {
        let status = self.status().await?;
        let models = status["models"].as_array().cloned().unwrap_or_default();
        let found = models.iter().find(|m| m["model"] == model);
        Ok(found.and_then(|m| m["version"].as_str()).map(str::to_owned))
    }

    /// A client for asking from another task.
    pub fn client(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// Asks a model through the binary protocol.
    ///
    /// # Errors
    /// [`InferFailure`].
    pub async fn infer(
        client: &reqwest::Client,
        model: &str,
        id: &str,
        shape: &[usize],
        input: &[f32],
    ) -> Result<Answer, InferFailure> {
        let shape: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        let header = json!({
            "id": id,
            "inputs": [{ "name": "x", "shape": shape, "datatype": "FP32",
                "parameters": { "binary_data_size": input.len() * 4 } }],
            "outputs": [{ "name": "label" }],
        })
        .to_string();
        let mut body = header.clone().into_bytes();
        body.extend(input.iter().flat_map(|value| value.to_le_bytes()));
        let response = client
            .post(format!("http://agent/v2/models/{model}/infer"))
            .header("Inference-Header-Content-Length", header.len())
            .body(body)
            .send()
            .await
            .map_err(|error| InferFailure::Unreachable(error.to_string()))?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| InferFailure::Unreachable(error.to_string()))?;
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        match (status, document["outputs"][0]["data"][0].as_str(), document["model_version"].as_str()) {
            (200, Some(label), Some(version)) => Ok(Answer { label: label.into(), version: version.into() }),
            _ => Err(InferFailure::Refused(status, text)),
        }
    }
}
