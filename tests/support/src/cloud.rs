//! A cloud as a real process, and an operator with the real command line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::process::{Process, Programs};

/// A running `farlight-cloud`.
#[derive(Debug)]
pub struct Cloud {
    programs: Programs,
    folder: PathBuf,
    process: Process,
    /// Address of the API, `https://127.0.0.1:PORT`.
    pub api: String,
    /// Address of the broker.
    pub mqtt: String,
    /// Address of the console.
    pub console: String,
}

/// Someone with the operator's profile and the offline keys.
#[derive(Debug, Clone)]
pub struct Operator {
    program: PathBuf,
    profile: PathBuf,
    /// Folder of the offline keys.
    pub keys: PathBuf,
}

impl Cloud {
    /// Starts a cloud on free ports with its data in `folder`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(programs: &Programs, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (process, ready) = launch(programs, folder, "127.0.0.1:0", "127.0.0.1:0").await?;
        let text = |key: &str| -> anyhow::Result<String> {
            Ok(ready[key].as_str().with_context(|| format!("no {key} in {ready}"))?.to_owned())
        };
        let (api, mqtt, console) = (text("api")?, text("mqtt")?, text("console")?);
        Ok(Self { programs: programs.clone(), folder: folder.to_path_buf(), process, api, mqtt, console })
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Stops it with SIGTERM and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.stop().await
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let listen = self.api.trim_start_matches("https://").to_owned();
        self.process = launch(&self.programs, &self.folder, &listen, &self.mqtt).await?.0;
        Ok(())
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Processor time and memory are read by process id.
    pub fn operator(&self, keys: &Path) -> Operator {
        Operator {
            program: self.programs.operator.clone(),
            profile: self.folder.join("operator.json"),
            keys: keys.to_path_buf(),
        }
    }
}

async fn launch(
    programs: &Programs,
    folder: &Path,
    listen: &str,
    mqtt: &str,
) -> anyhow::Result<(Process, Value)> {
    let mut command = Command::new(&programs.cloud);
    command.arg("serve").arg("--data").arg(folder).args(["--listen", listen, "--mqtt", mqtt]);
    command.env("RUST_LOG", "info");
    let mut process = Process::start("farlight-cloud", &mut command, &folder.join("cloud.log"))?;
    let stdout = process.stdout()?;
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let line =
        tokio::time::timeout(Duration::from_secs(30), line).await.context("the cloud is not ready")???;
    let ready = serde_json::from_str(&line)
        .with_context(|| format!("the cloud said {line:?}; see {}", folder.join("cloud.log").display()))?;
    Ok((process, ready))
}

impl Operator {
    /// Runs `farlight --json …` and gives what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is part of the error.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = tokio::process::Command::new(&self.program)
            .arg("--profile")
            .arg(&self.profile)
            .arg("--json")
            .args(args)
            .output()
            .await
            .context("start farlight")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("farlight {}: {}: {}{}", args.join(" "), output.status, text.trim(), errors.trim());
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("farlight {} printed {text:?}", args.join(" ")))
    }

    /// Makes offline keys and begins the release repository.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn begin_repository(&self) -> anyhow::Result<()> {
        let keys = self.keys.display().to_string();
        self.run(&["keys", "generate", &keys]).await?;
        self.run(&["repo", "init", "--keys", &keys]).await?;
        Ok(())
    }

    /// Builds a release from a recipe; returns the bundle's folder.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn build(
        &self,
        recipe: &Path,
        model: &Path,
        version: &str,
        out: &Path,
        extra: &[&str],
    ) -> anyhow::Result<Value> {
        let (recipe, model, out) =
            (recipe.display().to_string(), model.display().to_string(), out.display().to_string());
        let mut args = vec![
            "release",
            "build",
            "--recipe",
            &recipe,
            "--model",
            &model,
            "--version",
            version,
            "--out",
            &out,
        ];
        args.extend(extra);
        self.run(&args).await
    }

    /// Signs a bundle with the offline keys and publishes it.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish(&self, bundle: &Path) -> anyhow::Result<()> {
        let (bundle, keys) = (bundle.display().to_string(), self.keys.display().to_string());
        self.run(&["release", "sign", &bundle, "--keys", &keys]).await?;
        self.run(&["release", "publish", &bundle]).await?;
        Ok(())
    }

    /// An HTTP client and token for the API.
    ///
    /// # Errors
    /// When the profile is not readable.
    pub fn api(&self) -> anyhow::Result<Api> {
        let profile: Value = serde_json::from_slice(&std::fs::read(&self.profile)?)?;
        let text = |key: &str| -> anyhow::Result<&str> {
            profile[key].as_str().with_context(|| format!("no {key} in the profile"))
        };
        let ca = reqwest::Certificate::from_pem(text("ca_pem")?.as_bytes())?;
        let http = reqwest::Client::builder().tls_certs_only([ca]).no_proxy().build()?;
        Ok(Api { http, base: text("cloud")?.to_owned(), token: text("token")?.to_owned() })
    }
}

/// The cloud's API with the operator's token.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    /// `GET path`.
    ///
    /// # Errors
    /// When it is not answered with success and JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await?;
        answer("GET", path, response).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// When it is not answered with success and JSON.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        answer("POST", path, request.json(body).send().await?).await
    }
}

async fn answer(method: &str, path: &str, response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("{method} {path}: {status}: {text}");
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{method} {path} answered {text:?}"))
}
