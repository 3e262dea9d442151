//! The sample and the document show every key, and every wrong key is named.

use super::*;
use crate::settings::{SAMPLE, Settings};

const DOCUMENT: &str = include_str!("../../../../docs/sources.md");

fn parse(text: &str) -> Settings {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The problems of settings, other than that cameras are not built in.
fn wrong(settings: &Settings) -> Vec<String> {
    let mut problems = settings.problems();
    problems.retain(|problem| !problem.contains("without cameras"));
    problems
}

fn sample() -> Vec<Source> {
    let lines = SAMPLE.lines().filter_map(|line| line.strip_prefix("#= "));
    let text: Vec<&str> = lines.skip_while(|line| *line != "[[source]]").collect();
    let settings = parse(&text.join("\n"));
    assert_eq!(wrong(&settings), Vec::<String>::new());
    settings.source
}

/// Taken apart without `..`, so that a new key has to be shown in the sample.
#[test]
fn the_sample_names_every_key() {
    let sources = sample();
    let kinds: Vec<&str> = sources.iter().map(Source::kind).collect();
    assert_eq!(kinds, ["mqtt", "folder", "replay", "stdin", "camera"]);
    let mut windows = Vec::new();
    for source in sources {
        let shown: Vec<bool> = match source {
            Source::Mqtt(Mqtt { model, models, user, password_file, ca_file, window, .. }) => {
                windows.extend(window);
                vec![
                    model.is_some() || !models.is_empty(),
                    user.is_some(),
                    password_file.is_some(),
                    ca_file.is_some(),
                ]
            }
            Source::Folder(Folder { model, models, .. }) => vec![model.is_none(), models.len() == 2],
            Source::Replay(Replay { rate_hz, time_column, output, window, .. }) => {
                windows.push(window);
                let Some(Output { user, password_file, ca_file, .. }) = output else { panic!("no output") };
                vec![
                    rate_hz.is_none(),
                    time_column.is_some(),
                    user.is_some() && password_file.is_some(),
                    ca_file.is_some(),
                ]
            }
            Source::Stdin(Stdin { window, .. }) => {
                windows.extend(window);
                vec![]
            }
            Source::Camera(Camera { output, .. }) => vec![output.is_some()],
        };
        assert!(!shown.contains(&false), "{shown:?}");
    }
    let all = |window: &Windowing| {
        let Windowing { length, stride, lateness_ms, max_gap_ms, rate_hz } = window;
        (length.is_some(), stride.is_some(), *lateness_ms > 0, max_gap_ms.is_some(), rate_hz.is_some())
    };
    assert!(windows.iter().any(|window| all(window) == (true, true, true, true, true)), "{windows:?}");
    // What has a default does not show in the structs: it must be in the text.
    for key in [
        "host",
        "port",
        "input_topic",
        "output_topic",
        "format",
        "datatype",
        "path",
        "keep",
        "max_bytes",
        "settle_ms",
        "rate_hz",
        "time_column",
        "speed",
        "repeat",
        "exit_at_end",
        "device",
        "width",
        "height",
        "frames_per_second",
        "pixels",
        "colour",
        "layout",
        "topic",
        "model",
        "models",
        "length",
        "stride",
        "lateness_ms",
        "max_gap_ms",
    ] {
        assert!(SAMPLE.contains(&format!("{key} = ")), "{key} is not in the sample");
    }
}

#[test]
fn every_example_of_the_document_is_valid() {
    let blocks: Vec<&str> =
        DOCUMENT.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let mut kinds: Vec<&str> = Vec::new();
    for block in blocks {
        let settings = parse(block);
        assert_eq!(wrong(&settings), Vec::<String>::new(), "{block}");
        kinds.extend(settings.source.iter().map(Source::kind));
    }
    for kind in ["mqtt", "folder", "replay", "stdin", "camera"] {
        assert!(kinds.contains(&kind), "{kind} has no example");
    }
}

#[test]
fn every_wrong_key_is_named() {
    let bad = r#"
        [[source]]
        kind = "mqtt"
        model = "a"
        models = ["b"]
        host = ""
        port = 0
        password_file = "secret"
        input_topic = "in/#/x"
        output_topic = "out/+"
        datatype = "INT8"
        window = { length = 0, stride = 0, lateness_ms = 99999999, max_gap_ms = 0, rate_hz = -1.0 }
        [[source]]
        kind = "folder"
        models = ["a", "a"]
        path = "in"
        max_bytes = 0
        settle_ms = 0
        [[source]]
        kind = "replay"
        path = "a.csv"
        speed = 0.0
        [source.window]
        rate_hz = 5.0
        [source.output]
        topic = "x/{topic}"
        [[source]]
        kind = "stdin"
        model = "a"
        [[source]]
        kind = "stdin"
        model = "a"
        [[source]]
        kind = "camera"
        model = "a"
        width = 3
        height = 0
        frames_per_second = 0
        pixels = "grey"
    "#;
    let text = parse(bad).problems().join("\n");
    for key in [
        "source[0].models",
        "source[0].host",
        "source[0].port",
        "source[0].user",
        "source[0].password_file",
        "source[0].input_topic",
        "source[0].output_topic",
        "source[0].datatype",
        "source[0].window.length",
        "source[0].window.stride",
        "source[0].window.lateness_ms",
        "source[0].window.max_gap_ms",
        "source[0].window.rate_hz",
        "source[1].models",
        "source[1].path",
        "source[1].max_bytes",
        "source[1].settle_ms",
        "source[2].models",
        "source[2].path",
        "source[2].rate_hz",
        "source[2].speed",
        "source[2].window.rate_hz",
        "source[2].output.topic",
        "source[4].kind",
        "source[5].width",
        "source[5].height",
        "source[5].frames_per_second",
        "source[5].colour",
    ] {
        assert!(text.contains(&format!("{key}: ")), "{key} is not among:\n{text}");
    }
    assert!(!text.contains("source[3]"), "{text}");
}

#[test]
fn names_that_are_no_models_and_unknown_keys_are_refused() {
    let parse = |key: &str| {
        let text = format!("[[source]]\nkind = \"stdin\"\n{key}\n");
        toml::from_str::<Settings>(&text).unwrap_err().to_string()
    };
    assert!(parse("model = \"../etc\"").contains("../etc"));
    assert!(parse("modle = \"a\"").contains("modle"));
    assert!(parse("model = \"a\"\n[source.window]\nlenght = 1").contains("lenght"));
}

#[test]
fn answers_are_not_asked_again() {
    for (input, output, circle) in [
        ("a/+", "a/out", true),
        ("a/+", "a/{model}", true),
        ("#", "out", true),
        ("a/#", "{topic}/out", true),
        ("a/b", "{topic}", true),
        ("a/+", "{topic}/out", false),
        ("a/+", "out/{topic}", false),
        ("in", "out", false),
    ] {
        let text = format!(
            "[[source]]\nkind = \"mqtt\"\nmodel = \"m\"\ninput_topic = \"{input}\"\noutput_topic = \"{output}\"\n"
        );
        assert_eq!(!parse(&text).problems().is_empty(), circle, "{input} {output}");
    }
}
