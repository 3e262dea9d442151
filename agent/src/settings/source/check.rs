//! The checks of the sources' settings: every value that is out of range, with its key.

use std::path::Path;

use rumqttc::{valid_filter, valid_topic};

use super::{Broker, Camera, Colour, Datatype, Format, Mqtt, Output, Pixels, Replay, Source, Windowing};

/// Most models that one source asks: each has a queue of its own.
const MAX_MODELS: usize = 16;
/// Longest lateness and gap, milliseconds: an hour.
const MAX_WAIT_MS: u64 = 3_600_000;
/// Most samples of a window.
const MAX_LENGTH: usize = farlight_device::stream::MAX_VALUES;
/// Most pixels along one side of a frame.
const MAX_SIDE: u32 = 4_096;

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
        let one_way = model.is_some() == models.is_empty();
        self.check(one_way, "models", || "name one with model, or several with models".into());
        let twice =
            models.iter().enumerate().any(|(i, name)| models.iter().take(i).any(|other| other == name));
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
pub(in crate::settings) fn problems(sources: &[Source], found: &mut Vec<String>) {
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
