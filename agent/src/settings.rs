//! Settings: the file (TOML, unknown keys refused) → merged with defaults → checked, all problems at
//! once, each with its key. `config doc` prints `agent.sample.toml`, which a test holds to the structs.

mod inference;
pub mod source;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use farlight_device::schedule::Window;
use serde::Deserialize;

pub use inference::{Inference, Model, OnnxRuntime};

use self::source::Source;
use crate::clock::Zone;

/// The commented sample, which is also the manual.
pub const SAMPLE: &str = include_str!("../agent.sample.toml");

/// Everything the agent can be told.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The device itself.
    pub device: Device,
    /// The inference service.
    pub http: Http,
    /// Queues and workers.
    pub inference: Inference,
    /// What routes of configuration releases may do here.
    pub router: Router,
    /// Windows and their store.
    pub telemetry: Telemetry,
    /// Capture of raw inputs.
    pub cases: Cases,
    /// Updates.
    pub update: Update,
    /// Inputs besides HTTP.
    pub source: Vec<Source>,
}

/// The device itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// Where everything is kept.
    pub state_dir: PathBuf,
    /// The file from `farlight device enrol`, used once.
    pub enrolment: Option<PathBuf>,
    /// Labels for selectors.
    pub labels: BTreeMap<String, String>,
    /// Unix socket for the device's administrator; beside the state when empty.
    pub admin_socket: PathBuf,
}

impl Device {
    /// Where the administrator's socket is.
    pub fn admin_socket(&self) -> PathBuf {
        match self.admin_socket.as_os_str().is_empty() {
            true => self.state_dir.join("admin.sock"),
            false => self.admin_socket.clone(),
        }
    }
}

/// The inference service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// TCP address; none when empty.
    pub listen: String,
    /// Unix socket; none when empty.
    pub socket: PathBuf,
    /// TCP address of the gRPC form; none when empty.
    pub grpc_listen: String,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Whether clients may take models out of memory and bring them back.
    pub model_control: bool,
    /// A request that takes longer is logged, milliseconds; 0 for none.
    pub slow_ms: u64,
    /// Whether metrics are there under the names of NVIDIA Triton, too.
    pub triton_metrics: bool,
}

/// What routes of configuration releases may do here.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Router {
    /// Whether inputs may be sent to other services.
    pub remote: bool,
    /// CA certificates (PEM) that those are trusted by; the cloud's own when none.
    pub remote_ca: Option<PathBuf>,
}

/// Windows and their store.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Length of a window, seconds.
    pub window_seconds: u64,
    /// Ceiling of the store, bytes.
    pub store_max_bytes: u64,
}

/// Capture of raw inputs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cases {
    /// Whether raw inputs may be kept and sent at all.
    pub enabled: bool,
    /// Bytes a day, an upper bound on what a release asks for.
    pub max_bytes_per_day: u64,
}

/// Updates.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// How often release metadata is looked at without being asked, seconds.
    pub metadata_seconds: u64,
    /// Ceiling of a download, bytes a second; 0 means none.
    pub max_bytes_per_second: u64,
    /// Longest self-test, seconds.
    pub self_test_seconds: u64,
    /// Mirrors of the release repository: addresses, or absolute paths of folders.
    pub mirrors: Vec<String>,
    /// CA certificates (PEM) that HTTPS mirrors are trusted by; the cloud's own when none.
    pub mirrors_ca: Option<PathBuf>,
    /// A source that sends next to nothing for so long is given up, seconds.
    pub stall_seconds: u64,
    /// When downloads may run; always when empty.
    pub download_windows: Vec<Window>,
    /// When releases may be activated; always when empty.
    pub activation_windows: Vec<Window>,
    /// IANA name of the windows' time zone; the system's when empty.
    pub time_zone: String,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/farlight".into(),
            enrolment: None,
            labels: BTreeMap::new(),
            admin_socket: PathBuf::new(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8800".into(),
            socket: PathBuf::new(),
            grpc_listen: String::new(),
            max_body_bytes: 16 * 1024 * 1024,
            model_control: false,
            slow_ms: 1_000,
            triton_metrics: false,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { window_seconds: 60, store_max_bytes: 64 * 1024 * 1024 }
    }
}

impl Default for Cases {
    fn default() -> Self {
        Self { enabled: false, max_bytes_per_day: 4 * 1024 * 1024 }
    }
}

impl Default for Update {
    fn default() -> Self {
        Self {
            metadata_seconds: 3_600,
            max_bytes_per_second: 0,
            self_test_seconds: 120,
            mirrors: Vec::new(),
            mirrors_ca: None,
            stall_seconds: 60,
            download_windows: Vec::new(),
            activation_windows: Vec::new(),
            time_zone: String::new(),
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("read configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or a key is unknown or of the wrong type.
    #[error("parse configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Values are out of range; all of them, one a line.
    #[error("configuration {path}:\n  {}", problems.join("\n  "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Key and problem.
        problems: Vec<String>,
    },
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`SettingsError`] naming the file, and every wrong key.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let at = || path.to_path_buf();
        let text =
            std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: at(), source })?;
        let settings: Self = toml::from_str(&text)
            .map_err(|source| SettingsError::Parse { path: at(), source: Box::new(source) })?;
        let problems = settings.problems();
        if problems.is_empty() { Ok(settings) } else { Err(SettingsError::Invalid { path: at(), problems }) }
    }

    /// Every value that is out of range, with its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, text: String| {
            if !ok {
                problems.push(text);
            }
        };
        check(
            self.device.state_dir.is_absolute(),
            format!("device.state_dir: {} is not an absolute path", self.device.state_dir.display()),
        );
        check(
            !self.http.listen.is_empty() || !self.http.socket.as_os_str().is_empty(),
            "http: set listen, socket or both".into(),
        );
        check(
            self.http.listen.is_empty() || self.http.listen.parse::<SocketAddr>().is_ok(),
            format!("http.listen: {:?} is not ADDRESS:PORT, for example 127.0.0.1:8800", self.http.listen),
        );
        check(
            self.http.grpc_listen.is_empty() || self.http.grpc_listen.parse::<SocketAddr>().is_ok(),
            format!(
                "http.grpc_listen: {:?} is not ADDRESS:PORT, for example 127.0.0.1:9000",
                self.http.grpc_listen
            ),
        );
        check(
            self.http.grpc_listen.is_empty() || cfg!(feature = "grpc"),
            "http.grpc_listen: this agent was built without gRPC".into(),
        );
        self.inference.check(&mut check);
        let mut range = |key: &str, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                problems.push(format!("{key}: {value} is not within {low} to {high}"));
            }
        };
        range("http.max_body_bytes", self.http.max_body_bytes as u64, 1_024, 1 << 30);
        range("http.slow_ms", self.http.slow_ms, 0, 600_000);
        self.inference.ranges(&mut range);
        range("telemetry.window_seconds", self.telemetry.window_seconds, 1, 86_400);
        range("telemetry.store_max_bytes", self.telemetry.store_max_bytes, 1 << 20, 1 << 40);
        range("cases.max_bytes_per_day", self.cases.max_bytes_per_day, 0, 1 << 40);
        range("update.metadata_seconds", self.update.metadata_seconds, 1, 31 * 86_400);
        range("update.self_test_seconds", self.update.self_test_seconds, 1, 86_400);
        range("update.stall_seconds", self.update.stall_seconds, 1, 3_600);
        if let Err(error) = Zone::named(&self.update.time_zone) {
            problems.push(format!("update.time_zone: {error}"));
        }
        for (index, mirror) in self.update.mirrors.iter().enumerate() {
            if !mirror.starts_with('/') && !mirror.starts_with("http://") && !mirror.starts_with("https://") {
                problems.push(format!(
                    "update.mirrors[{index}]: {mirror:?} is neither an http(s) address nor an absolute path"
                ));
            }
        }
        source::problems(&self.source, &mut problems);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_defaults_and_names_every_key() {
        let uncommented: String = SAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix("#= ").or((!line.starts_with('#')).then_some(line)))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut settings: Settings = toml::from_str(&uncommented).unwrap();
        // The sources have a test of their own.
        settings.source.clear();
        settings.device.enrolment = None;
        settings.device.labels.clear();
        settings.device.admin_socket = PathBuf::new();
        assert_eq!(settings.inference.wake_latency_us.take(), Some(0));
        let update = &mut settings.update;
        assert_eq!((update.mirrors.len(), update.download_windows.len()), (2, 1));
        (update.mirrors, update.mirrors_ca, update.time_zone) = (Vec::new(), None, String::new());
        (update.download_windows, update.activation_windows) = (Vec::new(), Vec::new());
        settings.http.socket = PathBuf::new();
        assert_eq!(settings.inference.model["camera"].workers, Some(1));
        settings.inference.model.clear();
        let engine = &mut settings.inference.onnxruntime;
        assert_eq!(engine.providers.len(), 2);
        *engine = OnnxRuntime::default();
        assert_eq!(settings.inference.cores, [2, 3]);
        settings.inference.cores.clear();
        settings.router.remote_ca = None;
        assert_eq!(settings, Settings::default());
        for key in [
            "state_dir",
            "enrolment",
            "labels",
            "listen",
            "socket",
            "grpc_listen",
            "max_body_bytes",
            "engine",
            "library",
            "providers",
            "threads",
            "session_options",
            "workers",
            "queue",
            "deadline_ms",
            "max_batch",
            "batch_window_ms",
            "max_streams",
            "stream_idle_seconds",
            "cores",
            "wake_latency_us",
            "model_control",
            "slow_ms",
            "triton_metrics",
            "remote",
            "remote_ca",
            "window_seconds",
            "store_max_bytes",
            "enabled",
            "max_bytes_per_day",
            "metadata_seconds",
            "max_bytes_per_second",
            "self_test_seconds",
            "admin_socket",
            "mirrors",
            "mirrors_ca",
            "stall_seconds",
            "download_windows",
            "activation_windows",
            "time_zone",
        ] {
            assert!(uncommented.contains(&format!("{key} =")), "{key} is not in the sample");
        }
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "[http]\nlisten = \"nope\"\ngrpc_listen = \"9000\"\n[telemetry]\nwindow_seconds = 0\n[inference]\nengine = \"onnxruntime\"\n[update]\ntime_zone = \"Mars/Olympus\"\nmirrors = [\"ftp://x\"]\n").unwrap();
        let text = Settings::read(&path).unwrap_err().to_string();
        for key in [
            "http.listen",
            "http.grpc_listen",
            "inference.engine",
            "telemetry.window_seconds",
            "update.time_zone",
            "update.mirrors[0]",
        ] {
            assert!(text.contains(key), "{key}: {text}");
        }
        std::fs::write(&path, "[update]\nactivation_windows = [\"whenever\"]\n").unwrap();
        let text = Settings::read(&path).unwrap_err().to_string();
        assert!(text.contains("whenever") && text.contains("22:00-04:00"), "{text}");
        std::fs::write(&path, "[http]\nlissten = 1\n").unwrap();
        assert!(Settings::read(&path).unwrap_err().to_string().contains("lissten"));
        assert!(Settings::read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
