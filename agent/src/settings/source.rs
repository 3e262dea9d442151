//! Settings of the sources: one struct a kind, and the checks of each. `docs/sources.md` has an example of each,
//! which a test reads.

use std::path::{Path, PathBuf};

use farlight_wire::ModelName;
use rumqttc::{valid_filter, valid_topic};
use serde::Deserialize;

/// Most models that one source asks: each has a queue of its own.
const MAX_MODELS: usize = 16;
/// Longest lateness and gap, milliseconds: an hour.
const MAX_WAIT_MS: u64 = 3_600_000;
/// Most samples of a window.
const MAX_LENGTH: usize = farlight_device::stream::MAX_VALUES;
/// Most pixels along one side of a frame.
const MAX_SIDE: u32 = 4_096;

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

/// Problems of one source, each with its key below `source[index]`.
struct Problems<'a> {
    index: usize,
    found: &'a mut Vec<String>,
}

impl Problems<'_> {
    fn check(&mut self, ok: bool, key: &str, text: impl FnOnce() -> String) {
        if !ok {
            self.found.push(format!("source[{}].{key}: {}", self.index, text()));
        }
    }

    fn range(&mut self, key: &str, value: u64, low: u64, high: u64) {
        self.check((low..=high).contains(&value), key, || format!("{value} is not within {low} to {high}"));
    }

    fn rate(&mut self, key: &str, value: f64) {
        let ok = value > 0.0 && value <= 1e6;
        self.check(ok, key, || format!("{value} is not above 0 and at most 1000000"));
    }

    fn absolute(&mut self, key: &str, path: &Path) {
        self.check(path.is_absolute(), key, || format!("{} is not an absolute path", path.display()));
    }

    fn broker(&mut self, at: &str, broker: &Broker<'_>) {
        self.check(!broker.host.is_empty(), &format!("{at}host"), || "must not be empty".into());
        self.range(&format!("{at}port"), broker.port.into(), 1, 65_535);
        let lonely = broker.password_file.is_some() && broker.user.is_none();
        self.check(!lonely, &format!("{at}user"), || "must be set with password_file".into());
        for (key, path) in [("password_file", broker.password_file), ("ca_file", broker.ca_file)] {
            if let Some(path) = path {
                self.absolute(&format!("{at}{key}"), path);
            }
        }
    }

    fn models(&mut self, source: &Source) {
        let (model, models) = source.named();
        let one_way = model.is_some() != !models.is_empty();
        self.check(one_way, "models", || "name one with model, or several with models".into());
        let twice = models.iter().enumerate().any(|(i, name)| models[..i].contains(name));
        self.check(!twice, "models", || "a model is named twice".into());
        self.check(models.len() <= MAX_MODELS, "models", || format!("more than {MAX_MODELS} models"));
    }

    fn window(&mut self, window: &Windowing) {
        if let Some(length) = window.length {
            self.range("window.length", length as u64, 1, MAX_LENGTH as u64);
        }
        if let Some(stride) = window.stride {
            self.range("window.stride", stride as u64, 1, MAX_LENGTH as u64);
        }
        self.range("window.lateness_ms", window.lateness_ms, 0, MAX_WAIT_MS);
        if let Some(gap) = window.max_gap_ms {
            self.range("window.max_gap_ms", gap, 1, MAX_WAIT_MS);
        }
        if let Some(rate) = window.rate_hz {
            self.rate("window.rate_hz", rate);
        }
    }

    fn mqtt(&mut self, mqtt: &Mqtt, models: &[String]) {
        self.broker("", &Broker::from(mqtt));
        let (input, output) = (&mqtt.input_topic, &mqtt.output_topic);
        self.check(valid_filter(input), "input_topic", || format!("{input:?} is not a topic filter"));
        let mut circle = false;
        for model in models {
            // Any topic of the filter stands for `{topic}`; the filter stands for all of them.
            let answered = output.replace("{model}", model).replace("{topic}", input);
            circle |= overlap(&answered, input);
        }
        let plain = output.replace("{model}", "").replace("{topic}", "");
        let ok = !output.is_empty() && valid_topic(&plain);
        self.check(ok, "output_topic", || format!("{output:?} is not a topic"));
        self.check(!circle, "output_topic", || "input_topic covers it: answers would be asked again".into());
        if let Some(window) = &mqtt.window {
            self.window(window);
            let raw = mqtt.format == Format::Raw;
            self.check(!raw || window.rate_hz.is_some(), "window.rate_hz", || {
                "must be set: raw samples have no time".into()
            });
        }
        let ok = mqtt.format == Format::Raw || mqtt.datatype == Datatype::default();
        self.check(ok, "datatype", || "is for format = \"raw\"".into());
    }

    fn replay(&mut self, replay: &Replay) {
        self.absolute("path", &replay.path);
        let one_way = replay.rate_hz.is_some() != replay.time_column.is_some();
        self.check(one_way, "rate_hz", || "set it or time_column".into());
        if let Some(rate) = replay.rate_hz {
            self.rate("rate_hz", rate);
        }
        let ok = replay.speed > 0.0 && replay.speed <= 1_000.0;
        self.check(ok, "speed", || format!("{} is not above 0 and at most 1000", replay.speed));
        let ok = replay.window.rate_hz.is_none();
        self.check(ok, "window.rate_hz", || "a replay has rate_hz or time_column".into());
        self.window(&replay.window);
        self.output(replay.output.as_ref());
    }

    fn camera(&mut self, camera: &Camera) {
        self.check(cfg!(feature = "camera"), "kind", || "this agent was built without cameras".into());
        self.absolute("device", &camera.device);
        self.range("width", camera.width.into(), 2, MAX_SIDE.into());
        self.range("height", camera.height.into(), 1, MAX_SIDE.into());
        self.range("frames_per_second", camera.frames_per_second.into(), 1, 240);
        self.check(camera.width.is_multiple_of(2), "width", || "must be even".into());
        let ok = camera.pixels == Pixels::Yuyv || camera.colour == Colour::Grey;
        self.check(ok, "colour", || "a grey camera has no colours: set colour = \"grey\"".into());
        self.output(camera.output.as_ref());
    }

    fn output(&mut self, output: Option<&Output>) {
        let Some(output) = output else { return };
        self.broker("output.", &Broker::from(output));
        let topic = &output.topic;
        let ok = !topic.is_empty() && valid_topic(topic) && !topic.contains("{topic}");
        self.check(ok, "output.topic", || format!("{topic:?} is not a topic"));
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

/// Whether some topic is covered by both filters. Wildcards are whole levels (MQTT 3.1.1, section 4.7.1).
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        return match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => true,
            (Some(x), Some(y)) if x == "+" || y == "+" || x == y => continue,
            _ => false,
        };
    }
}

/// Every value that is out of range, with its key.
pub(super) fn problems(sources: &[Source], found: &mut Vec<String>) {
    for (index, source) in sources.iter().enumerate() {
        let mut problems = Problems { index, found };
        problems.models(source);
        match source {
            Source::Mqtt(mqtt) => problems.mqtt(mqtt, &source.models()),
            Source::Replay(replay) => problems.replay(replay),
            Source::Camera(camera) => problems.camera(camera),
            Source::Stdin(stdin) => {
                stdin.window.iter().for_each(|window| problems.window(window));
                let first = sources.iter().position(|other| matches!(other, Source::Stdin(_)));
                problems.check(first == Some(index), "kind", || "there is one standard input".into());
            }
            Source::Folder(folder) => {
                problems.absolute("path", &folder.path);
                problems.range("max_bytes", folder.max_bytes, 1, 1 << 30);
                problems.range("settle_ms", folder.settle_ms, 10, 600_000);
                let same = |other: &Source| matches!(other, Source::Folder(f) if f.path == folder.path);
                let first = sources.iter().position(same);
                problems.check(first == Some(index), "path", || "another source watches it".into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
