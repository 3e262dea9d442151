//! Finding the programs and running them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};

/// The programs under test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `farlight-agent`.
    pub agent: PathBuf,
    /// `farlight-cloud`.
    pub cloud: PathBuf,
    /// `farlight`.
    pub operator: PathBuf,
}

/// The folder with the workspace's `Cargo.toml`.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().and_then(Path::parent).unwrap_or(here).to_path_buf()
}

/// The library of ONNX Runtime that `tests/interop/onnxruntime-library` fetched; `None` where it did not (the full test
/// run does, and sets `FARLIGHT_REQUIRE_TOOLS`), and where `ORT_DISABLE_TELEMETRY` is not 1: no test is to send reports.
///
/// # Errors
/// When it must be there and is not.
pub fn onnxruntime_library() -> anyhow::Result<Option<PathBuf>> {
    let quiet = std::env::var("ORT_DISABLE_TELEMETRY").is_ok_and(|value| value == "1");
    let own = std::env::current_exe().context("find own program")?;
    // target/‹profile›/ and target/‹profile›/deps/.
    let targets = own.ancestors().skip(2).take(2);
    let library =
        targets.map(|target| target.join("onnxruntime/libonnxruntime.so")).find(|path| path.is_file());
    let found = library.filter(|_| quiet);
    if found.is_none() && std::env::var_os("FARLIGHT_REQUIRE_TOOLS").is_some() {
        bail!("no ONNX Runtime: run tests/interop/onnxruntime-library, and set ORT_DISABLE_TELEMETRY=1");
    }
    Ok(found)
}

impl Programs {
    /// The programs beside the running one: `target/‹profile›/`, also from `target/‹profile›/deps/`. The agent is that of
    /// `FARLIGHT_AGENT` where it names one, such as the program that is shipped (`cross/build`).
    ///
    /// # Errors
    /// When one is not built.
    pub fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find own program")?;
        let mut folder = own.parent().context("own program has no folder")?;
        if folder.ends_with("deps") {
            folder = folder.parent().context("deps has no parent")?;
        }
        let built = |path: PathBuf| -> anyhow::Result<PathBuf> {
            if !path.is_file() {
                bail!("{} is not built; run: cargo build --workspace --bins", path.display());
            }
            Ok(path)
        };
        let agent = match std::env::var_os("FARLIGHT_AGENT") {
            // It is started in other folders.
            Some(path) => std::path::absolute(path)?,
            None => folder.join("farlight-agent"),
        };
        Ok(Self {
            agent: built(agent)?,
            cloud: built(folder.join("farlight-cloud"))?,
            operator: built(folder.join("farlight"))?,
        })
    }
}

/// A child process that is killed with its owner.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts a program without input; its log goes to `log`.
    pub(crate) fn start(what: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        Self::start_with(what, command, log, Stdio::null())
    }

    /// Starts a program with this input; its log goes to `log`.
    pub(crate) fn start_with(
        what: &str,
        command: &mut Command,
        log: &Path,
        input: Stdio,
    ) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {what}"))?;
        Ok(Self { child, what: what.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&mut self) -> anyhow::Result<std::process::ChildStdout> {
        self.child.stdout.take().with_context(|| format!("{} has no output left", self.what))
    }

    pub(crate) fn stdin(&mut self) -> anyhow::Result<std::process::ChildStdin> {
        self.child.stdin.take().with_context(|| format!("{} has no input left", self.what))
    }

    pub(crate) fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("look at {}", self.what))
    }

    /// SIGKILL: no chance to clean up.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.what))?;
        self.child.wait().with_context(|| format!("wait for {}", self.what))?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        self.ended().await.map(|_| ())
    }

    /// SIGSTOP: from here on it hangs.
    pub(crate) fn hang(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// What systemd does to a process whose watchdog is silent: SIGABRT, and SIGCONT so that also one that
    /// stands takes it. Waits for the end.
    pub(crate) async fn abort(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal("ABRT")?;
        self.signal("CONT")?;
        self.ended().await
    }

    /// One that has ended already is not reached: its end is seen in any case.
    fn signal(&self, name: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill").arg("-s").arg(name).arg(self.id().to_string()).status();
        sent.map(|_| ()).with_context(|| format!("send SIG{name}"))
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends", self.what);
        crate::until(&what, std::time::Duration::from_secs(20), async || self.exited()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
