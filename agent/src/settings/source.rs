//! Settings of the sources: one struct a kind; `check` finds what is wrong with them. `docs/sources.md` has an example
//! of each, which a test reads.

mod check;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use farlight_wire::ModelName;
use serde::Deserialize;

pub(super) use check::problems;

/// An input besides HTTP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Messages of a local MQTT broker; answers go to another topic of it.
    Mqtt(Mqtt),
    /// Files put into a folder; answers lie beside them.
    Folder(Folder),
    /// A recorded sensor stream.
    Replay(Replay),
    /// Lines of standard input; answers go to standard output.
    Stdin(Stdin),
    /// Frames of a V4L2 camera.
    Camera(Camera),
}

/// Messages of a local MQTT broker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// The one model to ask.
    pub model: Option<ModelName>,
    /// Several models to ask, in place of `model`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// Broker host.
    #[serde(default = "local_host")]
    pub host: String,
    /// Broker port.
    #[serde(default = "local_port")]
    pub port: u16,
    /// User name at the broker.
    pub user: Option<String>,
    /// File with the password, whose last line break does not count.
    pub password_file: Option<PathBuf>,
    /// CA certificates (PEM) that the broker is trusted by; without it the connection is not encrypted.
    pub ca_file: Option<PathBuf>,
    /// Topic of the inputs, with `+` and `#`.
    pub input_topic: String,
    /// Topic of the answers; `{model}` and `{topic}` stand for the model and the topic of the input.
    pub output_topic: String,
    /// Form of a message.
    #[serde(default)]
    pub format: Format,
    /// Elements of a raw message.
    #[serde(default)]
    pub datatype: Datatype,
    /// Cuts samples into windows; without it each message is a whole input.
    pub window: Option<Windowing>,
}

/// Files put into a folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The one model to ask.
    pub model: Option<ModelName>,
    /// Several models to ask, in place of `model`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// The folder.
    pub path: PathBuf,
    /// What becomes of files that were answered or failed.
    #[serde(default)]
    pub keep: Keep,
    /// Largest file, bytes.
    #[serde(default = "max_file")]
    pub max_bytes: u64,
    /// A file that nobody was seen to close or rename is complete when it has not been written for so long,
    /// milliseconds.
    #[serde(default = "settle")]
    pub settle_ms: u64,
    /// Elements of a `.bin` file.
    #[serde(default)]
    pub datatype: Datatype,
}

/// A recorded sensor stream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The one model to ask.
    pub model: Option<ModelName>,
    /// Several models to ask, in place of `model`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// CSV file, one column a channel, one row a sample.
    pub path: PathBuf,
    /// Samples a second.
    pub rate_hz: Option<f64>,
    /// Column with the time of each sample in milliseconds, by its name in the first row; in place of `rate_hz`.
    pub time_column: Option<String>,
    /// How many times faster than it was recorded.
    #[serde(default = "one")]
    pub speed: f64,
    /// Whether to begin again at its end.
    #[serde(default)]
    pub repeat: bool,
    /// Cuts the samples into windows.
    #[serde(default)]
    pub window: Windowing,
    /// Where answers go; nowhere (but into telemetry) when absent.
    pub output: Option<Output>,
}

/// Lines of standard input.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stdin {
    /// The one model to ask.
    pub model: Option<ModelName>,
    /// Several models to ask, in place of `model`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// Whether the agent ends when the input has ended and all of it is answered.
    #[serde(default)]
    pub exit_at_end: bool,
    /// Cuts samples into windows; without it each line is a whole input.
    pub window: Option<Windowing>,
}

/// Frames of a V4L2 camera.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// The one model to ask.
    pub model: Option<ModelName>,
    /// Several models to ask, in place of `model`.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// The device.
    #[serde(default = "first_camera")]
    pub device: PathBuf,
    /// Width of a frame, pixels.
    pub width: u32,
    /// Height of a frame, pixels.
    pub height: u32,
    /// Frames a second.
    pub frames_per_second: u32,
    /// Pixels that the camera gives.
    #[serde(default)]
    pub pixels: Pixels,
    /// What the model sees.
    #[serde(default)]
    pub colour: Colour,
    /// Order of the tensor's axes.
    #[serde(default)]
    pub layout: Layout,
    /// Where answers go; nowhere (but into telemetry) when absent.
    pub output: Option<Output>,
}

/// A topic for the answers of a source that has none of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Broker host.
    #[serde(default = "local_host")]
    pub host: String,
    /// Broker port.
    #[serde(default = "local_port")]
    pub port: u16,
    /// User name at the broker.
    pub user: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// CA certificates (PEM) that the broker is trusted by.
    pub ca_file: Option<PathBuf>,
    /// Topic of the answers; `{model}` stands for the model.
    pub topic: String,
}

/// How samples are cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Windowing {
    /// Samples of a window; the last dimension of the model's input when absent.
    pub length: Option<usize>,
    /// Samples from one window to the next; `length` when absent, so that windows do not overlap.
    pub stride: Option<usize>,
    /// How late a sample may come behind the newest one, milliseconds.
    #[serde(default)]
    pub lateness_ms: u64,
    /// Longest time between two samples of a window, milliseconds; any when absent.
    pub max_gap_ms: Option<u64>,
    /// Samples a second, for samples that come without a time.
    pub rate_hz: Option<f64>,
}

/// Form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON.
    #[default]
    Json,
    /// Little-endian elements, row-major; with a window, samples one after the other.
    Raw,
}

/// Elements of raw bytes, by their names in the Open Inference Protocol; little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the protocol's names say it")]
pub enum Datatype {
    #[default]
    Fp32,
    Fp64,
    Fp16,
    Int8,
    Int16,
    Int32,
    Uint8,
    Uint16,
    Uint32,
}

/// What becomes of files that were answered or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// They are moved to `done/` or `failed/`.
    #[default]
    All,
    /// Answered ones are deleted, failed ones are moved to `failed/`.
    Failed,
    /// They are deleted.
    None,
}

/// Pixels that a camera gives, by their V4L2 names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pixels {
    /// Two pixels in four bytes, Y U Y V.
    #[default]
    Yuyv,
    /// A byte a pixel.
    Grey,
}

/// What a model sees of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    /// Three channels.
    #[default]
    Rgb,
    /// One channel.
    Grey,
}

/// Order of the axes of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[channels, height, width]`
    #[default]
    ChannelsFirst,
    /// `[height, width, channels]`
    ChannelsLast,
}

fn local_host() -> String {
    "127.0.0.1".to_owned()
}

fn local_port() -> u16 {
    1883
}

fn max_file() -> u64 {
    4 << 20
}

fn settle() -> u64 {
    2_000
}

fn one() -> f64 {
    1.0
}

fn first_camera() -> PathBuf {
    "/dev/video0".into()
}

impl Source {
    /// Its `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mqtt(_) => "mqtt",
            Self::Folder(_) => "folder",
            Self::Replay(_) => "replay",
            Self::Stdin(_) => "stdin",
            Self::Camera(_) => "camera",
        }
    }

    fn named(&self) -> (Option<&ModelName>, &[ModelName]) {
        match self {
            Self::Mqtt(Mqtt { model, models, .. })
            | Self::Folder(Folder { model, models, .. })
            | Self::Replay(Replay { model, models, .. })
            | Self::Stdin(Stdin { model, models, .. })
            | Self::Camera(Camera { model, models, .. }) => (model.as_ref(), models),
        }
    }

    /// The models that it asks.
    pub fn models(&self) -> Vec<String> {
        let (model, models) = self.named();
        model.into_iter().chain(models).map(ToString::to_string).collect()
    }
}

/// Where a broker is and how to log in.
#[derive(Debug, Clone, Copy)]
pub struct Broker<'a> {
    /// Host.
    pub host: &'a str,
    /// Port.
    pub port: u16,
    /// User name.
    pub user: Option<&'a str>,
    /// File with the password.
    pub password_file: Option<&'a Path>,
    /// CA certificates; no TLS without.
    pub ca_file: Option<&'a Path>,
}

impl<'a> From<&'a Mqtt> for Broker<'a> {
    fn from(of: &'a Mqtt) -> Self {
        let (user, password_file) = (of.user.as_deref(), of.password_file.as_deref());
        Self { host: &of.host, port: of.port, user, password_file, ca_file: of.ca_file.as_deref() }
    }
}

impl<'a> From<&'a Output> for Broker<'a> {
    fn from(of: &'a Output) -> Self {
        let (user, password_file) = (of.user.as_deref(), of.password_file.as_deref());
        Self { host: &of.host, port: of.port, user, password_file, ca_file: of.ca_file.as_deref() }
    }
}
