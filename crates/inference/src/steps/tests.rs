//! The steps against values that numpy, SciPy, librosa, OpenCV and Pillow made: `tests/reference/steps.py`
//! wrote `tests/reference.json`.

mod documents;
mod post;
mod properties;

use std::collections::BTreeMap;

use farlight_release::manifest::{PostStep, PreStep};
use serde::Deserialize;
use serde_json::json;

use super::{Array, NamedArray, Post, Pre, Scratch, StepError};

#[derive(Deserialize)]
struct Reference {
    inputs: BTreeMap<String, Known>,
    cases: Vec<Case>,
    answers: Vec<Answer>,
}

#[derive(Clone, Deserialize)]
struct Known {
    shape: Vec<usize>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    input: String,
    steps: Vec<PreStep>,
    expected: Known,
}

#[derive(Deserialize)]
struct Answer {
    name: String,
    outputs: Vec<String>,
    steps: Vec<PostStep>,
    expected: BTreeMap<String, Known>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("tests/reference.json")).unwrap()
}

/// Equal within 1e-4 of the largest expected value, or of 1.
fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1.0_f32, |largest, v| largest.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-4 * largest, "{name}[{i}]: {found}, expected {expected}");
    }
}

fn pre(steps: serde_json::Value, shape: &[usize]) -> Result<Pre, StepError> {
    Pre::plan(&serde_json::from_value::<Vec<PreStep>>(steps).unwrap(), shape)
}

#[test]
fn preprocessing_equals_other_libraries() {
    let Reference { inputs, cases, .. } = reference();
    // One scratch for all: what an earlier plan left in it must not show.
    let mut scratch = Scratch::default();
    for case in &cases {
        let input = &inputs[&case.input];
        let plan = Pre::plan(&case.steps, &input.shape).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(plan.output_shape(), case.expected.shape, "{}", case.name);
        let first = plan.run(&mut scratch, &input.values).unwrap();
        assert_close(&case.name, first, &case.expected.values);
        let place = first.as_ptr();
        let second = plan.run(&mut scratch, &input.values).unwrap();
        assert_close(&case.name, second, &case.expected.values);
        assert_eq!(second.as_ptr(), place, "{}: the buffers of the first run are used again", case.name);
    }
    assert!(cases.len() > 60);
}

#[test]
fn postprocessing_equals_other_libraries() {
    let Reference { inputs, answers, .. } = reference();
    for answer in &answers {
        let shapes: Vec<(String, Vec<usize>)> =
            answer.outputs.iter().map(|name| (name.clone(), inputs[name].shape.clone())).collect();
        let plan = Post::plan(&answer.steps, &shapes).unwrap_or_else(|e| panic!("{}: {e}", answer.name));
        let named = |name: &String| {
            let Known { shape, values } = inputs[name].clone();
            NamedArray { name: name.clone(), array: Array { shape, values } }
        };
        let mut outputs: Vec<NamedArray> = answer.outputs.iter().map(named).collect();
        plan.run(&mut outputs).unwrap();
        let found: Vec<&String> = outputs.iter().map(|output| &output.name).collect();
        assert_eq!(found, answer.expected.keys().collect::<Vec<_>>(), "{}", answer.name);
        for output in &outputs {
            let expected = &answer.expected[&output.name];
            assert_eq!(output.array.shape, expected.shape, "{}", answer.name);
            assert_close(&answer.name, &output.array.values, &expected.values);
        }
    }
}

#[test]
fn without_steps_the_input_itself_comes_back() {
    let mut scratch = Scratch::default();
    let input = [1.0, 2.0, 3.0, 4.0];
    for steps in
        [json!([]), json!([{"step": "reshape", "shape": [2, 2]}, {"step": "cast", "datatype": "FP32"}])]
    {
        let plan = pre(steps, &[4]).unwrap();
        assert!(std::ptr::eq(plan.run(&mut scratch, &input).unwrap(), &input[..]));
    }
    let wrong = pre(json!([]), &[3]).unwrap().run(&mut scratch, &input).map(<[f32]>::to_vec);
    assert_eq!(wrong, Err(StepError::Length { got: 4, expected: 3 }));
}

#[test]
fn neighbouring_element_steps_are_one_stage() {
    let steps = json!([
        {"step": "scale", "factor": 2.0},
        {"step": "window", "axis": 0},
        {"step": "reshape", "shape": [2, 3]},
        {"step": "normalise", "axis": 1, "mean": [0.0, 0.0, 1.0], "std": [1.0, 2.0, 1.0]},
        {"step": "clip", "min": -1.0, "max": 1.0},
        {"step": "cast", "datatype": "UINT8"},
    ]);
    assert!(format!("{:?}", pre(steps, &[6]).unwrap()).contains("stages: 1,"));
}

#[test]
fn normalise_uses_the_channel_of_its_axis() {
    // Long and short runs, over several tiles.
    for shape in [[3, 5000], [5000, 3], [70, 90]] {
        for axis in [0, 1] {
            let channels: usize = shape[axis];
            let mean: Vec<f32> = (0..channels).map(|c| c as f32).collect();
            let std: Vec<f32> = (0..channels).map(|c| 1.0 + c as f32 / 16.0).collect();
            let plan = Pre::plan(&[PreStep::Normalise { axis, mean, std }], &shape).unwrap();
            let input: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i % 1009) as f32).collect();
            let mut scratch = Scratch::default();
            for (i, value) in plan.run(&mut scratch, &input).unwrap().iter().enumerate() {
                let c = if axis == 0 { i / shape[1] } else { i % shape[1] } as f32;
                assert_eq!(*value, (input[i] - c) / (1.0 + c / 16.0), "{shape:?} {axis} {i}");
            }
        }
    }
}

#[test]
fn misfits_name_the_step_and_the_field() {
    for (steps, expected) in [
        (
            json!([{"step": "scale", "factor": 1.0}, {"step": "fft", "axis": 1}]),
            "step 1: field `axis` must be an axis",
        ),
        (json!([{"step": "resize", "axes": [0], "size": [0]}]), "step 0: field `size` must be from 1"),
    ] {
        let error = pre(steps, &[8]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn tokens_are_what_the_table_says() {
    let table = json!({"un": 1, "i": 2, "uni": 3, "fy": 4, "é": 5, "hello": 6, "you": 7});
    let base =
        json!({"step": "tokenise", "unit": "piece", "table": table, "length": 6, "pad": 9, "unknown": 8});
    let cases: &[(&str, serde_json::Value, [f32; 6])] = &[
        // The longest that matches, not the first: "uni", not "un" and "i".
        ("unify", json!({}), [3.0, 4.0, 9.0, 9.0, 9.0, 9.0]),
        // A character of several bytes is one unknown; upper case is another letter.
        ("aéöU", json!({}), [8.0, 5.0, 8.0, 8.0, 9.0, 9.0]),
        ("UNIfy", json!({"lowercase": true}), [3.0, 4.0, 9.0, 9.0, 9.0, 9.0]),
        ("xix", json!({"unknown": null}), [2.0, 9.0, 9.0, 9.0, 9.0, 9.0]),
        ("iiiiiiii", json!({}), [2.0; 6]),
        ("iiiiiiii", json!({"begin": 10, "end": 11}), [10.0, 2.0, 2.0, 2.0, 2.0, 11.0]),
        ("i", json!({"begin": 10, "end": 11}), [10.0, 2.0, 11.0, 9.0, 9.0, 9.0]),
        ("", json!({"begin": 10, "end": 11}), [10.0, 11.0, 9.0, 9.0, 9.0, 9.0]),
        (" hello  you\nsir ", json!({"unit": "word"}), [6.0, 7.0, 8.0, 9.0, 9.0, 9.0]),
        ("é!", json!({"unit": "byte", "table": {}}), [195.0, 169.0, 33.0, 9.0, 9.0, 9.0]),
    ];
    for (text, change, expected) in cases {
        let mut step = base.clone();
        step.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let mut input = vec![0.0; 20];
        input.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = f32::from(byte));
        let plan = pre(json!([step]), &[20]).unwrap();
        assert_eq!(plan.run(&mut Scratch::default(), &input).unwrap(), expected, "{text:?} {change}");
    }
}
