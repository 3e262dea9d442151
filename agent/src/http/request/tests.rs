//! Requests as clients send them, and what is wrong with others.

use std::time::Duration;

use farlight_inference::{Item, Values};
use serde_json::json;

use super::*;
use crate::protocol::request::sample::manifest;

fn asked(json: &str) -> Result<Asked, String> {
    parse(&manifest(|_| {}), json.as_bytes(), None)
}

#[test]
fn nested_and_flat_numbers_are_the_same() {
    for data in ["[[[1,2],[3,4]]]", "[1,2,3,4]", "[[1,2],[3,4.0]]"] {
        let json =
            format!(r#"{{"inputs":[{{"name":"x","shape":[1,2,2],"datatype":"FP32","data":{data}}}]}}"#);
        assert_eq!(asked(&json).unwrap().items, [Item::from(vec![1.0, 2.0, 3.0, 4.0])]);
    }
    let two =
        r#"{"id":"a","inputs":[{"name":"x","shape":[2,2,2],"datatype":"FP32","data":[1,2,3,4,5,6,7,null]}]}"#;
    let two = asked(two).unwrap();
    assert_eq!(two.items.len(), 2);
    let Values::Fp32(second) = &two.items[1].main else { panic!() };
    assert!(second[..3] == [5.0, 6.0, 7.0] && second[3].is_nan());
    assert_eq!(two.id.as_deref(), Some("a"));
}

#[test]
fn binary_tensors_follow_the_json() {
    let manifest = manifest(|_| {});
    let json = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}"#;
    let mut body = json.as_bytes().to_vec();
    body.extend([1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()));
    let asked = parse(&manifest, &body, Some(json.len())).unwrap();
    assert!(asked.binary && asked.items == [Item::from(vec![1.0, 2.0, 3.0, 4.0])]);
    assert!(parse(&manifest, &body[..body.len() - 1], Some(json.len())).is_err());
    body.push(0);
    assert!(parse(&manifest, &body, Some(json.len())).unwrap_err().contains("left"));
    assert!(parse(&manifest, &body, Some(9_999)).is_err());
    let raw: Vec<u8> = [1.0_f32; 8].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(parse(&manifest, &raw, Some(0)).unwrap().items.len(), 2);
    assert!(parse(&manifest, &raw[..20], Some(0)).unwrap_err().contains("5 elements"));
}

#[test]
fn several_inputs_come_in_any_order_and_are_taken_apart_together() {
    let manifest = manifest(|document| {
        document["more_inputs"] = json!([
            {"name": "n", "datatype": "INT64", "shape": [1], "min": 0.0, "max": 9.0, "on_violation": "flag"}
        ]);
    });
    let json = r#"{"inputs":[{"name":"n","shape":[2,1],"datatype":"INT64","data":[7,8]},
        {"name":"x","shape":[2,2,2],"datatype":"FP32","parameters":{"binary_data_size":32}}],
        "parameters":{"priority":2,"timeout":1500,"sequence_id":5,"sequence_start":true}}"#;
    let mut body = json.as_bytes().to_vec();
    body.extend((0..8_u16).flat_map(|v| f32::from(v).to_le_bytes()));
    let asked = parse(&manifest, &body, Some(json.len())).unwrap();
    assert_eq!(
        asked.items[1],
        Item { main: Values::Fp32(vec![4.0, 5.0, 6.0, 7.0]), more: vec![Values::Int64(vec![8])] }
    );
    assert_eq!((asked.priority, asked.timeout), (2, Some(Duration::from_micros(1500))));
    let stream = asked.stream.unwrap();
    assert!(stream.id == "5" && stream.start && !stream.end);
    assert!(parse(&manifest, &[0; 32], Some(0)).unwrap_err().contains('2'));
    let uneven = json.replace("[2,1]", "[1]").replace("[7,8]", "[7]");
    let mut body = uneven.as_bytes().to_vec();
    body.extend([0; 32]);
    assert!(parse(&manifest, &body, Some(uneven.len())).unwrap_err().contains("items"));
}

#[test]
fn a_model_without_a_batch_takes_its_own_shape() {
    let manifest = manifest(|document| document["batch_axis"] = json!("none"));
    let json = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}]}"#;
    assert_eq!(parse(&manifest, json.as_bytes(), None).unwrap().items.len(), 1);
    let batched = json.replace("[2,2]", "[1,2,2]");
    assert!(parse(&manifest, batched.as_bytes(), None).unwrap_err().contains("expected [2, 2]"));
}

#[test]
fn what_is_wrong_is_named() {
    let good = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}],"parameters":{P},"outputs":[O]}"#;
    let with = |p: &str, o: &str| good.replace("{P}", &format!("{{{p}}}")).replace('O', o);
    assert!(asked(&with("", "")).is_ok());
    let cases = [
        ("{".to_owned(), "not valid"),
        (r#"["a",{},[]]"#.to_owned(), "an object"),
        (r#"{"inputs":[["x",[2,2],"FP32",{},[1,2,3,4]]]}"#.to_owned(), "an object"),
        (r#"{"inputs":[]}"#.to_owned(), "missing"),
        (r#"{"inputs":[{"name":"y","shape":[4],"datatype":"FP32","data":[]}]}"#.to_owned(), "\"y\""),
        (r#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[1]}]}"#.to_owned(), "shape"),
        (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"INT8","data":[1]}]}"#.to_owned(), "datatype"),
        (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"FP32","data":[1]}]}"#.to_owned(), "elements"),
        (r#"{"inputs":[{"name":"x","shape":[0,2,2],"datatype":"FP32","data":[]}]}"#.to_owned(), "batch of 0"),
        (
            r#"{"inputs":[{"name":"x","shape":[18446744073709551615,2,2],"datatype":"FP32","data":[]}]}"#
                .to_owned(),
            "batch",
        ),
        (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"FP32"}]}"#.to_owned(), "neither"),
        (r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":["a"]}]}"#.to_owned(), "numbers"),
        (with(r#""priority":-1"#, ""), "priority"),
        (with(r#""timeout":"soon""#, ""), "timeout"),
        (with(r#""sequence_id":[]"#, ""), "sequence_id"),
        (with(r#""binary_data_output":1"#, ""), "binary_data_output"),
        (with("", r#"{"name":"y","parameters":{"classification":"2"}}"#), "classification"),
    ];
    for (json, part) in cases {
        let error = asked(&json).unwrap_err();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn texts_are_utf8_however_they_are_sent() {
    let manifest = manifest(|document| {
        document["input"] = json!({"name": "x", "datatype": "BYTES", "shape": [1], "min": 0.0, "max": 1.0, "on_violation": "flag"});
    });
    let sent = |text: &[u8]| [&(text.len() as u32).to_le_bytes()[..], text].concat();
    assert_eq!(parse(&manifest, &sent("ä".as_bytes()), Some(0)).unwrap().items.len(), 1);
    let error = parse(&manifest, &sent(&[255, 254]), Some(0)).unwrap_err();
    assert!(error.contains("element 0 is no text"), "{error}");
    let json =
        r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}"#;
    let body = [json.as_bytes(), &sent(&[255, 254])].concat();
    assert!(parse(&manifest, &body, Some(json.len())).unwrap_err().contains("no text"));
}

#[test]
fn an_output_is_asked_for_once() {
    let json = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}],"outputs":[{"name":"y"},{"name":"y"}]}"#;
    assert!(asked(json).unwrap_err().contains("twice"));
}
