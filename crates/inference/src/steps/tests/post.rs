//! Postprocessing of several outputs, and what is refused of it.

use serde_json::{Value, json};

use crate::steps::nms::overlap;
use crate::steps::{Array, NamedArray, Post, StepError};

fn plan(steps: Value, outputs: &[(&str, &[usize])]) -> Result<Post, StepError> {
    let outputs: Vec<(String, Vec<usize>)> =
        outputs.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    Post::plan(&serde_json::from_value::<Vec<_>>(steps).unwrap(), &outputs)
}

fn named(name: &str, shape: &[usize], values: &[f32]) -> NamedArray {
    NamedArray { name: name.to_owned(), array: Array { shape: shape.to_vec(), values: values.to_vec() } }
}

#[test]
fn one_output_of_a_detector_becomes_boxes() {
    // Three boxes of two classes as columns, as YOLO has them: the second overlaps the first.
    let steps = json!([
        {"step": "transpose", "axes": [0, 2, 1]},
        {"step": "split", "axis": 2, "lengths": [4, 2], "names": ["boxes", "scores"]},
        {"step": "nms", "boxes": "boxes", "scores": "scores", "format": "centre", "iou": 0.5, "score": 0.25, "max_boxes": 8},
    ]);
    let plan = plan(steps, &[("output0", &[1, 6, 3])]).unwrap();
    assert_eq!(plan.outputs(), [("detections".to_owned(), vec![8, 6])]);
    let columns = [5.0, 5.5, 20.0, 5.0, 5.0, 5.0, 4.0, 4.0, 2.0, 4.0, 4.0, 2.0, 0.9, 0.8, 0.1, 0.0, 0.1, 0.3];
    let mut outputs = vec![named("output0", &[1, 6, 3], &columns)];
    assert_eq!(plan.run(&mut outputs), Ok(None));
    let rows = [3.0, 3.0, 7.0, 7.0, 0.9, 0.0, 19.0, 4.0, 21.0, 6.0, 0.3, 1.0];
    assert_eq!(outputs, [named("detections", &[2, 6], &rows)]);
}

#[test]
fn nothing_is_found_where_nothing_scores() {
    let step = json!({"step": "nms", "boxes": "b", "scores": "s", "iou": 0.5, "score": 0.5, "max_boxes": 3});
    let plan = plan(json!([step]), &[("b", &[2, 4]), ("s", &[2, 1])]).unwrap();
    let mut outputs = vec![named("b", &[2, 4], &[f32::NAN; 8]), named("s", &[2, 1], &[0.9, f32::NAN])];
    plan.run(&mut outputs).unwrap();
    assert_eq!(outputs, [named("detections", &[0, 6], &[])]);
}

#[test]
fn overlaps_are_shares_of_the_union() {
    assert_eq!(overlap(&[0.0, 0.0, 2.0, 2.0], &[1.0, 0.0, 3.0, 2.0]), 2.0 / 6.0);
    assert_eq!(overlap(&[0.0, 0.0, 1.0, 1.0], &[1.0, 0.0, 2.0, 1.0]), 0.0);
    assert_eq!(overlap(&[0.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0]), 0.0);
}

#[test]
fn steps_work_on_the_output_they_name() {
    let steps = json!([
        {"step": "label_map", "indices": [2, 0]},
        {"step": "scale", "factor": 10.0, "output": "aside"},
        {"step": "keep", "outputs": ["aside", "logits"]},
        {"step": "softmax", "output": "logits"},
        {"step": "abstain", "threshold": 0.75},
    ]);
    let plan = plan(steps, &[("logits", &[3]), ("more", &[1]), ("aside", &[1])]).unwrap();
    assert_eq!(plan.outputs(), [("aside".to_owned(), vec![1]), ("logits".to_owned(), vec![2])]);
    let mut outputs = vec![
        named("logits", &[3], &[0.0, 9.0, 0.0]),
        named("more", &[1], &[1.0]),
        named("aside", &[1], &[2.0]),
    ];
    assert_eq!(plan.run(&mut outputs), Ok(Some(0.75)));
    assert_eq!(outputs, [named("aside", &[1], &[20.0]), named("logits", &[2], &[0.5, 0.5])]);
}

#[test]
fn equal_scores_keep_their_order() {
    let plan = plan(json!([{"step": "top_k", "k": 2}]), &[("x", &[2, 3])]).unwrap();
    let mut outputs = vec![named("x", &[2, 3], &[1.0, 1.0, 1.0, 0.0, 2.0, 2.0])];
    plan.run(&mut outputs).unwrap();
    let values = named("x", &[2, 2], &[1.0, 1.0, 2.0, 2.0]);
    assert_eq!(outputs, [values, named("x_indices", &[2, 2], &[0.0, 1.0, 1.0, 2.0])]);
}

#[test]
fn misfits_name_the_step_and_the_field() {
    let outputs: &[(&str, &[usize])] = &[("x", &[2, 3]), ("y", &[4])];
    let nms = json!({"step": "nms", "boxes": "x", "scores": "y", "iou": 0.5, "score": 0.5, "max_boxes": 3});
    for (steps, step, field) in [
        (json!([{"step": "softmax", "axis": 2}]), 0, "axis"),
        (json!([{"step": "sigmoid", "output": "z"}]), 0, "output"),
        (json!([{"step": "sigmoid"}, {"step": "top_k", "k": 4}]), 1, "k"),
        (json!([{"step": "top_k", "k": 0}]), 0, "k"),
        (json!([{"step": "top_k", "k": 1}, {"step": "top_k", "k": 1}]), 1, "output"),
        (json!([{"step": "transpose", "axes": [0]}]), 0, "axes"),
        (json!([{"step": "label_map", "indices": [3]}]), 0, "indices"),
        (json!([{"step": "split", "axis": 1, "lengths": [1, 1], "names": ["a", "b"]}]), 0, "lengths"),
        (json!([{"step": "split", "axis": 1, "lengths": [1, 2], "names": ["a", "y"]}]), 0, "names"),
        (json!([{"step": "keep", "outputs": ["x"]}, {"step": "sigmoid", "output": "y"}]), 1, "output"),
        (json!([nms]), 0, "scores"),
        (json!([{"step": "abstain", "threshold": 2.0}]), 0, "threshold"),
    ] {
        match plan(steps.clone(), outputs) {
            Err(StepError::Step { step: at, problem }) => {
                assert_eq!((at, problem.field), (step, field), "{steps}")
            }
            other => panic!("{steps}: {other:?}"),
        }
    }
    let plan = plan(json!([{"step": "top_k", "k": 3}]), outputs).unwrap();
    assert!(plan.run(&mut vec![named("x", &[2], &[0.0; 2])]).is_err());
    assert!(plan.run(&mut vec![named("x", &[2, 3], &[0.0; 2])]).is_err());
    assert!(plan.run(&mut Vec::new()).is_err());
}
