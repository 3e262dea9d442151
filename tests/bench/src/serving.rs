//! A real agent with installed releases, for the benchmarks of serving: what it runs, where it listens, and what the
//! kernel counts of its process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use farlight_onnx::builder::ints;
use farlight_onnx::{Dim, GraphBuilder};
use farlight_test_support::{Device, DeviceOptions, Fleet, until, until_looked, workspace_root};
use farlight_training::random::Random;

use crate::client::{Connection, Endpoint};

/// Longest wait for the connection to the cloud.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time is let pass in parts: who waits for the end of a process gives up after 20 s.
const PART: Duration = Duration::from_secs(10);
/// Rows and columns of the made model's matrices: 64 × 256 × 256 is long for a request and fits a core's cache.
const ROWS: usize = 64;
const WIDTH: usize = 256;
/// What is changed in the recipe of digits for a made model, which has learned nothing.
const UNTRAINED: [(&str, &str); 2] =
    [("min_accuracy = 0.90", "min_accuracy = 0.0"), ("p95_us = 20000", "p95_us = 500000")];

/// How long each of several measurements takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Span {
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// A tenth of the time
    #[arg(long)]
    short: bool,
}

impl Span {
    /// For one of them.
    pub(crate) fn each(&self) -> Duration {
        Duration::from_secs_f64(if self.short { self.seconds / 10.0 } else { self.seconds })
    }
}

/// A model that is asked.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// Its name.
    pub(crate) name: &'static str,
    /// Shape of the input without the batch.
    pub(crate) shape: &'static [usize],
    /// The graph.
    pub(crate) onnx: Vec<u8>,
    recipe: &'static str,
    changes: &'static [(&'static str, &'static str)],
}

impl Subject {
    /// One of the repository's two models.
    pub(crate) fn reference(name: &'static str) -> anyhow::Result<Self> {
        let shape: &'static [usize] = if name == "digits" { &[1, 8, 8] } else { &[6, 100] };
        let path = workspace_root().join("models").join(name).join("model.onnx");
        let onnx = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { name, shape, onnx, recipe: name, changes: &[] })
    }

    /// A model of so many matrix products, each of 8.4 million operations, under the name of digits.
    pub(crate) fn made(layers: usize) -> anyhow::Result<Self> {
        let mut random = Random::new(1);
        let mut normal = |count: usize, deviation: f32| -> Vec<f32> {
            (0..count).map(|_| random.normal() * deviation).collect()
        };
        let rows = Dim::Fixed(1);
        let mut graph = GraphBuilder::new("made")
            .input("x", &[rows.clone(), Dim::Fixed(1), Dim::Fixed(8), Dim::Fixed(8)])
            .i64("rows", &[2], &[ROWS as i64, 1])
            .node("Reshape", &["x", "rows"], &["h"], &[])
            .f32("wide", &[1, WIDTH], &normal(WIDTH, 1.0))
            .node("MatMul", &["h", "wide"], &["h0"], &[]);
        for layer in 0..layers {
            let (weights, sum, from, to) =
                (format!("w{layer}"), format!("s{layer}"), format!("h{layer}"), format!("h{}", layer + 1));
            graph = graph
                .f32(&weights, &[WIDTH, WIDTH], &normal(WIDTH * WIDTH, 0.06))
                .node("MatMul", &[&from, &weights], &[&sum], &[])
                .node("Relu", &[&sum], &[&to], &[]);
        }
        let onnx = graph
            .f32("narrow", &[WIDTH, 10], &normal(WIDTH * 10, 0.06))
            .node("ReduceMean", &[&format!("h{layers}")], &["mean"], &[ints("axes", &[0])])
            .node("MatMul", &["mean", "narrow"], &["scores"], &[])
            .output("scores", &[rows, Dim::Fixed(10)])
            .finish()?
            .to_bytes();
        Ok(Self { name: "digits", shape: &[1, 8, 8], onnx, recipe: "digits", changes: &UNTRAINED })
    }

    /// An input within the data contract of each of them.
    pub(crate) fn input(&self) -> Vec<f32> {
        (0..self.shape.iter().product()).map(|i| 0.5 + 0.4 * (i as f32 * 0.7).sin()).collect()
    }
}

/// What a request is answered with on a connection of its own; `None` where nothing answers.
pub(crate) fn status(endpoint: &Endpoint, request: &[u8]) -> Option<u16> {
    Connection::open(endpoint).ok()?.ask(request).ok()
}

/// A cloud and an agent that is enrolled there.
pub(crate) struct Serving {
    runtime: tokio::runtime::Runtime,
    fleet: Fleet,
    /// The agent.
    pub(crate) device: Device,
    releases: u32,
}

impl Serving {
    /// Starts both; `extra` is more of the agent's configuration. No model is installed.
    pub(crate) fn start(extra: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // As the agent comes: windows of a minute, no inputs kept.
        let options = DeviceOptions {
            window_seconds: 60,
            cases: false,
            tcp: true,
            extra: extra.to_owned(),
            ..DeviceOptions::default()
        };
        let (fleet, device) = runtime.block_on(async {
            let fleet = Fleet::start().await?;
            let device = fleet.device("bench", &options).await?;
            anyhow::Ok((fleet, device))
        })?;
        Ok(Self { runtime, fleet, device, releases: 0 })
    }

    /// The same with these models.
    pub(crate) fn with(extra: &str, subjects: &[&Subject]) -> anyhow::Result<Self> {
        let mut serving = Self::start(extra)?;
        for subject in subjects {
            serving.install(subject)?;
        }
        Ok(serving)
    }

    /// Builds, signs and publishes a release, and installs it.
    pub(crate) fn install(&mut self, subject: &Subject) -> anyhow::Result<()> {
        let version = self.version();
        let folder = self.fleet.folder.path().join(format!("model-{version}"));
        std::fs::create_dir(&folder)?;
        let model = workspace_root().join("models").join(subject.recipe);
        std::os::unix::fs::symlink(model.join("data"), folder.join("data"))?;
        let mut recipe = std::fs::read_to_string(model.join("release.toml"))?;
        for (from, to) in subject.changes {
            anyhow::ensure!(recipe.contains(from), "the recipe of {} has no {from}", subject.recipe);
            recipe = recipe.replace(from, to);
        }
        std::fs::write(folder.join("release.toml"), recipe)?;
        std::fs::write(folder.join("model.onnx"), &subject.onnx)?;
        self.runtime.block_on(self.fleet.publish_from(
            &folder.join("release.toml"),
            &folder.join("model.onnx"),
            &version,
        ))?;
        self.install_bundle(&format!("{}/{version}", subject.name))
    }

    /// Puts settings in force as a configuration release.
    pub(crate) fn configure(&mut self, settings: &str) -> anyhow::Result<()> {
        let version = self.version();
        self.runtime.block_on(self.fleet.publish_config(&version, settings))?;
        self.install_bundle(&format!("config/{version}"))
    }

    fn version(&mut self) -> String {
        self.releases += 1;
        format!("1.0.{}", self.releases)
    }

    /// Installs a published release on the device itself, and waits until it is confirmed. The gates of a rollout
    /// want windows of requests, which nobody sends yet.
    fn install_bundle(&self, release: &str) -> anyhow::Result<()> {
        let bundle = self.fleet.folder.path().join(release.replace('/', "-"));
        let bundle = bundle.to_string_lossy();
        self.runtime.block_on(async {
            self.fleet.operator.run(&["release", "export", release, "--out", &bundle]).await?;
            let (ok, text) = self.device.cli(&["install", &bundle, "--probation", "1"]).await?;
            anyhow::ensure!(ok, "install {release}: {text}");
            Ok(())
        })
    }

    /// Stops the agent and starts it again, and waits until it is connected.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        let Self { runtime, device, .. } = self;
        runtime.block_on(async {
            device.stop().await?;
            device.start().await?;
            until("the agent is connected", PATIENCE, async || {
                Ok((device.status().await?["connected"] == true).then_some(()))
            })
            .await
        })
    }

    /// Waits until a request is answered with 200, looking so often.
    pub(crate) fn answers(
        &self,
        what: &str,
        every: Duration,
        limit: Duration,
        request: &[u8],
    ) -> anyhow::Result<()> {
        let endpoint = self.unix();
        let asked = async || Ok((status(&endpoint, request) == Some(200)).then_some(()));
        self.runtime.block_on(until_looked(&format!("{what} answers"), every, limit, asked))
    }

    /// Lets time pass in which the agent must not end.
    pub(crate) fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let Self { runtime, device, .. } = self;
        let mut left = time;
        while !left.is_zero() {
            let part = left.min(PART);
            if let Ok(ended) = runtime.block_on(async { tokio::time::timeout(part, device.ended()).await }) {
                anyhow::bail!("the agent ended by itself: {}", ended?);
            }
            left -= part;
        }
        Ok(())
    }

    /// Stops the agent.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.runtime.block_on(self.device.stop())
    }

    /// The agent's program.
    pub(crate) fn program(&self) -> &Path {
        &self.fleet.programs.agent
    }

    /// Its Unix socket.
    pub(crate) fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.device.folder().join("agent.sock"))
    }

    /// Its TCP port.
    pub(crate) fn tcp(&self) -> Endpoint {
        Endpoint::Tcp(self.device.address.clone())
    }

    fn process(&self) -> anyhow::Result<PathBuf> {
        let id = self.device.last_process().context("the agent was never started")?;
        Ok(PathBuf::from(format!("/proc/{id}")))
    }

    /// One of the sizes of the agent's process, MiB: `VmRSS`, `VmHWM` (the most so far) or `RssAnon`.
    pub(crate) fn memory(&self, what: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(self.process()?.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kib: f64 = line.with_context(|| format!("no {what}"))?.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Processor time that all threads of the agent took so far.
    pub(crate) fn processor(&self) -> anyhow::Result<Duration> {
        Ok(self.processor_of_threads()?.into_values().sum())
    }

    /// The same by the names of its threads: `infer` runs long models, `serve` answers and runs quick ones.
    pub(crate) fn processor_of_threads(&self) -> anyhow::Result<BTreeMap<String, Duration>> {
        let mut names = BTreeMap::new();
        for task in std::fs::read_dir(self.process()?.join("task"))? {
            let task = task?.path();
            // A thread that ended meanwhile is left out.
            let read = |file| std::fs::read_to_string(task.join(file));
            let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
            let nanos = text.split_whitespace().next().context("schedstat is empty")?.parse()?;
            *names.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanos);
        }
        Ok(names)
    }
}
