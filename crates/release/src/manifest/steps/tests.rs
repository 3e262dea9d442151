//! Each rule of a step broken once, and hostile numbers.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::{PostStep, PreStep};

fn merged(step: &Value, change: &Value) -> Value {
    let mut step = step.clone();
    step.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    step
}

#[test]
fn each_broken_rule_of_a_step_names_its_field() {
    let scale = json!({"step": "scale", "factor": 1.0});
    let clip = json!({"step": "clip", "min": 0.0, "max": 1.0});
    let transpose = json!({"step": "transpose", "axes": [1, 0]});
    let reshape = json!({"step": "reshape", "shape": [6]});
    let resize = json!({"step": "resize", "axes": [0, 1], "size": [4, 4]});
    let crop = json!({"step": "crop", "axes": [0], "size": [1]});
    let pad = json!({"step": "pad", "axes": [0], "before": [1], "after": [1], "border": "reflect"});
    let frame = json!({"step": "frame", "axis": 1, "length": 2, "stride": 1});
    let stft = json!({"step": "stft", "n_fft": 2, "hop": 1});
    let mel = json!({"step": "log_mel", "sample_rate": 100, "n_fft": 2, "hop": 1, "n_mels": 2});
    let token = json!({"step": "tokenise", "unit": "word", "table": {"a": 1}, "length": 3});
    let cases: &[(&Value, Value, &str)] = &[
        (&scale, json!({"factor": 0.0}), "factor"),
        (&scale, json!({"offset": 1e39}), "offset"),
        (&clip, json!({"max": 0.0}), "max"),
        (&json!({"step": "cast", "datatype": "BYTES"}), json!({}), "datatype"),
        (&transpose, json!({"axes": [0, 0]}), "axes"),
        (&transpose, json!({"axes": [0]}), "axes"),
        (&reshape, json!({"shape": [7]}), "shape"),
        (&reshape, json!({"shape": []}), "shape"),
        (&reshape, json!({"shape": [u64::MAX, u64::MAX]}), "shape"),
        (&resize, json!({"axes": [0, 2]}), "axes"),
        (&resize, json!({"axes": [0, 0]}), "axes"),
        (&resize, json!({"size": [4]}), "size"),
        (&resize, json!({"size": [4, 0]}), "size"),
        (&resize, json!({"size": [65536, 65536]}), "size"),
        (&crop, json!({"size": [3]}), "size"),
        (&crop, json!({"offset": [2]}), "offset"),
        (&crop, json!({"offset": [0, 0]}), "offset"),
        (&pad, json!({"before": [2]}), "before"),
        (&pad, json!({"after": [65537]}), "after"),
        (&pad, json!({"value": -1e39}), "value"),
        (&frame, json!({"axis": 2}), "axis"),
        (&frame, json!({"length": 4}), "length"),
        (&frame, json!({"stride": 0}), "stride"),
        (&json!({"step": "window", "axis": 2}), json!({}), "axis"),
        (&json!({"step": "fft", "axis": 9}), json!({}), "axis"),
        (&stft, json!({"n_fft": 1}), "n_fft"),
        (&stft, json!({"n_fft": 4, "centre": "none"}), "n_fft"),
        (&stft, json!({"n_fft": 8, "centre": "reflect"}), "centre"),
        (&stft, json!({"hop": 0}), "hop"),
        (&stft, json!({"window": 3}), "window"),
        (&mel, json!({"sample_rate": 0}), "sample_rate"),
        (&mel, json!({"n_mels": 0}), "n_mels"),
        (&mel, json!({"f_max": 51.0}), "f_max"),
        (&mel, json!({"f_min": 50.0}), "f_min"),
        (&mel, json!({"floor": 0.0}), "floor"),
        (&mel, json!({"reference": 0.0}), "reference"),
        (&mel, json!({"top": 0.0}), "top"),
        (&json!({"step": "one_hot", "classes": 0}), json!({}), "classes"),
        (&token, json!({"table": {}}), "table"),
        (&token, json!({"unit": "byte"}), "table"),
        (&token, json!({"table": {"": 1}}), "table"),
        (&token, json!({"table": {"a": 16777217}}), "table"),
        (&token, json!({"pad": 16777217}), "pad"),
        (&token, json!({"length": 2, "begin": 1, "end": 1}), "length"),
    ];
    for (step, change, field) in cases {
        let good: PreStep = serde_json::from_value((*step).clone()).unwrap();
        if !change.as_object().unwrap().is_empty() {
            good.shape(&[2, 3]).unwrap_or_else(|e| panic!("{step}: {e}"));
        }
        let bad: PreStep = serde_json::from_value(merged(step, change)).unwrap();
        let problem = bad.shape(&[2, 3]).expect_err(&change.to_string());
        assert_eq!(problem.field, *field, "{step} {change}: {problem}");
    }
}

#[test]
fn each_broken_rule_of_a_postprocessing_step_names_its_field() {
    let nms = json!({"step": "nms", "boxes": "b", "scores": "s", "iou": 0.5, "score": 0.5, "max_boxes": 9});
    let split = json!({"step": "split", "axis": 0, "lengths": [1], "names": ["a"]});
    for (step, field) in [
        (json!({"step": "softmax", "axis": 8}), "axis"),
        (json!({"step": "sigmoid", "output": ""}), "output"),
        (json!({"step": "scale", "factor": 0.0}), "factor"),
        (json!({"step": "transpose", "axes": [1]}), "axes"),
        (json!({"step": "top_k", "k": 1001}), "k"),
        (json!({"step": "threshold", "at": 1e39}), "at"),
        (json!({"step": "label_map", "indices": []}), "indices"),
        (json!({"step": "keep", "outputs": []}), "outputs"),
        (json!({"step": "keep", "outputs": ["a", "a"]}), "outputs"),
        (merged(&split, &json!({"lengths": [0]})), "lengths"),
        (merged(&split, &json!({"names": []})), "names"),
        (merged(&nms, &json!({"scores": "b"})), "scores"),
        (merged(&nms, &json!({"iou": 1.5})), "iou"),
        (merged(&nms, &json!({"score": 1e39})), "score"),
        (merged(&nms, &json!({"max_boxes": 0})), "max_boxes"),
        (merged(&nms, &json!({"name": "\n"})), "name"),
        (json!({"step": "abstain", "threshold": 1.5}), "threshold"),
    ] {
        let bad: PostStep = serde_json::from_value(step.clone()).unwrap();
        assert_eq!(bad.check().expect_err(&step.to_string()).field, field, "{step}");
    }
    for good in [nms, split] {
        serde_json::from_value::<PostStep>(good).unwrap().check().unwrap();
    }
}

#[test]
fn steps_of_older_manifests_are_read_and_written_as_before() {
    for text in
        [r#"{"step":"scale","factor":0.5}"#, r#"{"step":"normalise","axis":0,"mean":[0.5],"std":[1.0]}"#]
    {
        let step: PreStep = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&step).unwrap(), text);
    }
    for text in [r#"{"step":"softmax"}"#, r#"{"step":"abstain","threshold":0.5}"#] {
        let step: PostStep = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&step).unwrap(), text);
    }
    for text in [
        r#"{"step":"softmax","novel":1}"#,
        r#"{"step":"novel"}"#,
        r#"{"step":"nms","boxes":"b","scores":"s","iou":0.5,"score":0.5,"max_boxes":9,"novel":1}"#,
    ] {
        assert!(serde_json::from_str::<PostStep>(text).is_err(), "{text}");
    }
    assert!(serde_json::from_str::<PreStep>(r#"{"step":"stft","n_fft":2,"hop":1,"novel":1}"#).is_err());
}

fn number() -> impl Strategy<Value = usize> {
    let edges =
        [0, 1, 2, 3, 7, 100, 65_535, 65_536, 65_537, 1 << 24, u32::MAX as usize, usize::MAX / 2, usize::MAX];
    select(edges.to_vec())
}

fn numbers() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(number(), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn hostile_numbers_never_panic_and_keep_the_limits(
        shape in numbers(),
        a in numbers(),
        b in numbers(),
        c in numbers(),
        n in number(),
        m in number(),
        axis in 0..4_usize,
    ) {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let pair = [n, m];
        let steps = [
            json!({"step": "normalise", "axis": n, "mean": [1.0], "std": [1.0]}),
            json!({"step": "transpose", "axes": a}),
            json!({"step": "reshape", "shape": a}),
            json!({"step": "resize", "axes": a, "size": b}),
            json!({"step": "resize", "axes": [0, 1], "size": pair}),
            json!({"step": "crop", "axes": a, "size": b, "offset": c}),
            json!({"step": "crop", "axes": [axis], "size": [n], "offset": [m]}),
            json!({"step": "pad", "axes": a, "before": b, "after": c}),
            json!({"step": "pad", "axes": [axis], "before": [n], "after": [m], "border": "reflect"}),
            json!({"step": "letterbox", "axes": [0, 1], "size": pair}),
            json!({"step": "frame", "axis": axis, "length": n, "stride": m}),
            json!({"step": "window", "axis": n}),
            json!({"step": "fft", "axis": axis}),
            json!({"step": "stft", "n_fft": n, "hop": m}),
            json!({"step": "stft", "n_fft": n, "hop": m, "centre": "reflect", "window": n}),
            json!({"step": "log_mel", "sample_rate": small(n), "n_fft": m, "hop": n, "n_mels": m}),
            json!({"step": "one_hot", "classes": n}),
            json!({"step": "tokenise", "unit": "byte", "length": n, "begin": small(m)}),
        ];
        for step in steps {
            let parsed: PreStep = serde_json::from_value(step.clone()).unwrap();
            if let Ok(result) = parsed.shape(&shape) {
                let elements = result.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis));
                prop_assert!(elements.is_some_and(|n| (1..=1 << 24).contains(&n)), "{step}");
            }
        }
    }
}
