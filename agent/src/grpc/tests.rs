//! Messages that become requests and answers that become messages; what strangers send ends in a text.

use bytes::Bytes;
use farlight_inference::{Item, RunError, Tensor, Values};
use farlight_release::manifest::{Datatype, Manifest};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::{InferParameter, InferTensorContents, ModelInferRequest};
use super::*;
use crate::models::InferError;
use crate::protocol::Refusal;
use crate::protocol::answer::Given;
use crate::protocol::infer::Answer;
use crate::protocol::request::Asked;
use crate::protocol::request::sample::manifest;
use crate::queue::Refused;

/// Inputs `x` of FP32 `[2, 2]` and `n` of INT64 `[1]`.
fn two_inputs() -> Manifest {
    manifest(|document| {
        document["more_inputs"] = json!([
            {"name": "n", "datatype": "INT64", "shape": [1], "min": 0.0, "max": 9.0, "on_violation": "flag"}
        ]);
    })
}

/// One input `x` of a type and `[2]`.
fn one_input(datatype: Datatype) -> Manifest {
    manifest(|document| {
        document["input"]["datatype"] = json!(datatype.name());
        document["input"]["shape"] = json!([2]);
    })
}

fn tensor(
    name: &str,
    datatype: &str,
    shape: &[i64],
    contents: Option<InferTensorContents>,
) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        contents,
        ..Default::default()
    }
}

fn floats(values: &[f32]) -> Option<InferTensorContents> {
    Some(InferTensorContents { fp32_contents: values.to_vec(), ..Default::default() })
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn x(shape: &[i64], values: &[f32]) -> ModelInferRequest {
    ModelInferRequest { inputs: vec![tensor("x", "FP32", shape, floats(values))], ..Default::default() }
}

#[test]
fn the_generated_file_is_that_of_the_description() {
    let of = Sha256::digest(include_bytes!("../../proto/open_inference.proto"));
    let generated = include_str!("proto.rs");
    assert!(generated.contains(&hex::encode(of)), "run agent/proto/generate/run");
}

#[test]
fn typed_and_raw_contents_are_the_same_items() {
    let manifest = two_inputs();
    let n = InferTensorContents { int64_contents: vec![7, 8], ..Default::default() };
    let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, f32::INFINITY];
    let typed = ModelInferRequest {
        inputs: vec![
            tensor("n", "INT64", &[2, 1], Some(n)),
            tensor("x", "FP32", &[2, 2, 2], floats(&values)),
        ],
        ..Default::default()
    };
    let mut raw = typed.clone();
    raw.inputs.iter_mut().for_each(|input| input.contents = None);
    let bytes = |values: &Values| {
        let mut bytes = Vec::new();
        crate::protocol::binary::write(values, &mut bytes);
        Bytes::from(bytes)
    };
    raw.raw_input_contents = vec![bytes(&Values::Int64(vec![7, 8])), bytes(&Values::Fp32(values.to_vec()))];
    let (typed, raw) = (request::read(&manifest, typed).unwrap(), request::read(&manifest, raw).unwrap());
    assert_eq!(typed.items, raw.items);
    assert_eq!(
        typed.items[1],
        Item { main: Values::Fp32(values[4..].to_vec()), more: vec![Values::Int64(vec![8])] }
    );
    assert_eq!((typed.binary, raw.binary), (false, true));
}

#[test]
fn every_type_comes_back_in_the_field_that_it_was_sent_in() {
    for datatype in Datatype::ALL {
        let mut values = Values::zeros(datatype, 2);
        if let Values::Bytes(texts) = &mut values {
            *texts = vec!["ä".into(), Vec::new()];
        }
        let given = |binary| Given {
            name: "x".to_owned(),
            tensor: Tensor { shape: vec![1, 2], values: values.clone() },
            binary,
        };
        for binary in [false, true] {
            let answer =
                Answer { id: None, version: String::new(), stage: None, outputs: vec![given(binary)] };
            let answer = response::answer("m".to_owned(), answer);
            let output = &answer.outputs[0];
            // FP16 has no field of its own.
            let raw = binary || datatype == Datatype::Fp16;
            assert_eq!(
                (answer.raw_output_contents.len(), output.contents.is_none()),
                (usize::from(raw), raw)
            );
            let back = ModelInferRequest {
                inputs: vec![tensor("x", &output.datatype, &output.shape, output.contents.clone())],
                raw_input_contents: answer.raw_output_contents.clone(),
                ..Default::default()
            };
            let asked = request::read(&one_input(datatype), back).unwrap();
            assert_eq!(asked.items[0].main, values, "{datatype:?} {binary}");
        }
    }
}

#[test]
fn parameters_are_those_of_http() {
    let mut request = x(&[2, 2], &[1.0; 4]);
    request.id = "a".to_owned();
    request.parameters = [
        ("priority", ParameterChoice::Uint64Param(2)),
        ("timeout", ParameterChoice::Int64Param(1_500)),
        ("sequence_id", ParameterChoice::Int64Param(5)),
        ("sequence_start", ParameterChoice::BoolParam(true)),
    ]
    .map(|(name, choice)| (name.to_owned(), parameter(choice)))
    .into();
    request.outputs = vec![InferRequestedOutputTensor {
        name: "y".to_owned(),
        parameters: [("classification".to_owned(), parameter(ParameterChoice::Int64Param(3)))].into(),
    }];
    let asked = request::read(&manifest(|_| {}), request).unwrap();
    let stream = asked.stream.unwrap();
    assert_eq!((asked.id.as_deref(), asked.priority), (Some("a"), 2));
    assert_eq!(asked.timeout, Some(Duration::from_micros(1_500)));
    assert!(stream.id == "5" && stream.start && !stream.end);
    assert_eq!((asked.outputs[0].name.as_str(), asked.outputs[0].classification), ("y", Some(3)));
}

#[test]
fn what_is_wrong_is_named() {
    let read = |request| request::read(&manifest(|_| {}), request).unwrap_err();
    let with = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = x(&[1, 2, 2], &[1.0; 4]);
        change(&mut request);
        read(request)
    };
    let flag = || parameter(ParameterChoice::BoolParam(true));
    for (error, part) in [
        (with(&|r| r.inputs.clear()), "missing"),
        (with(&|r| r.inputs.push(r.inputs[0].clone())), "twice"),
        (with(&|r| r.inputs[0].name = "y".into()), "\"y\""),
        (with(&|r| r.inputs[0].datatype = "FP64".into()), "datatype FP64"),
        (with(&|r| r.inputs[0].shape = vec![-1, 2, 2]), "[-1, 2, 2]"),
        (with(&|r| r.inputs[0].shape = vec![i64::MAX, i64::MAX, 2]), "shape"),
        (with(&|r| r.inputs[0].shape = vec![i64::MAX, 2, 2]), "batch"),
        (with(&|r| r.inputs[0].shape = vec![0, 2, 2]), "batch of 0"),
        (with(&|r| r.inputs[0].shape = vec![2, 2, 2]), "4 elements"),
        (with(&|r| r.inputs[0].contents = None), "neither"),
        (with(&|r| r.raw_input_contents.push(Bytes::new())), "both"),
        (with(&|r| r.raw_input_contents = vec![Bytes::new(); 2]), "2 entries for 1 inputs"),
        (with(&|r| drop(r.parameters.insert("timeout".into(), flag()))), "timeout"),
        (with(&|r| drop(r.parameters.insert("sequence_id".into(), flag()))), "sequence_id"),
        (with(&|r| r.outputs = vec![InferRequestedOutputTensor::default(); 2]), "twice"),
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let wrong = with(&|r| {
        r.inputs[0].contents = Some(InferTensorContents { int_contents: vec![1; 4], ..Default::default() });
    });
    assert!(wrong.contains("fp32_contents") && wrong.contains("int_contents"), "{wrong}");
    let shared = with(&|r| {
        r.inputs[0].contents = None;
        r.inputs[0].parameters.insert("shared_memory_region".into(), flag());
    });
    assert!(shared.contains("shared memory"), "{shared}");
    let mut torn = x(&[1, 2, 2], &[]);
    torn.inputs[0].contents = None;
    torn.raw_input_contents = vec![Bytes::from_static(&[0; 15])];
    assert!(read(torn).contains("15 bytes"));
    let large = InferTensorContents { uint_contents: vec![1, 256], ..Default::default() };
    let large =
        ModelInferRequest { inputs: vec![tensor("x", "UINT8", &[2], Some(large))], ..Default::default() };
    assert!(request::read(&one_input(Datatype::Uint8), large).unwrap_err().contains("256 is no UINT8"));
}

#[test]
fn each_reason_has_a_code_and_what_passes_says_when() {
    let busy = |why| InferError::Busy { model: "m".into(), why, retry_after: Duration::from_millis(1_500) };
    for (error, code) in [
        (InferError::Unknown("m".into()), Code::NotFound),
        (InferError::Off("m".into()), Code::Unavailable),
        (InferError::Remote("away".into()), Code::Unavailable),
        (InferError::Stateless("m".into()), Code::InvalidArgument),
        (InferError::Run(RunError::Inputs("none".into())), Code::InvalidArgument),
        (busy(Refused::Full), Code::Unavailable),
        (busy(Refused::Hopeless), Code::Unavailable),
        (busy(Refused::Late), Code::DeadlineExceeded),
    ] {
        let text = error.to_string();
        let status = Status::from(Refusal::from(error));
        assert_eq!((status.code(), status.message()), (code, text.as_str()));
        assert_eq!(status.metadata().contains_key("retry-after"), code == Code::Unavailable);
    }
    let status = Status::from(Refusal::from(busy(Refused::Full)));
    assert_eq!(status.metadata().get("retry-after").unwrap(), "2");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1500");
}

#[test]
fn a_message_of_nothing_but_fields_is_refused_before_it_is_built() {
    let least = 1 << 18;
    // Inputs, an input's parameters, texts of an input.
    let parameters = [0x22, 0x00].repeat(least);
    let texts = [0x42, 0x00].repeat(least);
    let inside = |tag: u8, bytes: Vec<u8>| {
        let mut message = vec![tag];
        prost::encoding::encode_varint(bytes.len() as u64, &mut message);
        message.extend(bytes);
        message
    };
    for message in
        [[0x2a, 0x00].repeat(least), inside(0x2a, parameters), inside(0x2a, inside(0x2a, texts.clone()))]
    {
        let error = codec::read::<ModelInferRequest>(message.into()).unwrap_err();
        assert!(error.contains("fields"), "{error}");
    }
    // Torn at its end, it is no cheaper.
    let mut torn = inside(0x2a, inside(0x2a, [texts, vec![0x42, 0x7f]].concat()));
    torn.push(0x2a);
    assert!(codec::read::<ModelInferRequest>(torn.into()).unwrap_err().contains("fields"));
    // As many numbers are one field.
    let large = x(&[1, 2, 2], &vec![1.0; least]);
    assert_eq!(codec::read::<ModelInferRequest>(large.encode_to_vec().into()).unwrap(), large);
}

/// What a request holds after it was read: items of the manifest's shapes, within the limits.
fn is_whole(asked: &Asked) {
    assert!((1..=256).contains(&asked.items.len()));
    for item in &asked.items {
        assert_eq!((item.main.len(), item.more.len(), item.more[0].len()), (4, 1, 1));
    }
}

prop_compose! {
    fn any_contents()(
        bool_contents in vec(any::<bool>(), 0..3),
        int_contents in vec(any::<i32>(), 0..3),
        int64_contents in vec(any::<i64>(), 0..9),
        fp32_contents in vec(any::<f32>().prop_filter("equal to itself", |x| !x.is_nan()), 0..9),
        bytes_contents in vec(vec(any::<u8>(), 0..4).prop_map(Bytes::from), 0..3),
    ) -> InferTensorContents {
        InferTensorContents {
            bool_contents, int_contents, int64_contents, fp32_contents, bytes_contents, ..Default::default()
        }
    }
}

/// Sizes that are right, or anything.
fn any_shape() -> impl Strategy<Value = Vec<i64>> {
    prop_oneof![
        (0..4_i64).prop_map(|n| vec![n, 2, 2]),
        (0..4_i64).prop_map(|n| vec![n, 1]),
        vec(prop_oneof![any::<i64>(), -2..4_i64], 0..5),
    ]
}

fn any_parameters() -> impl Strategy<Value = std::collections::HashMap<String, InferParameter>> {
    let choice = prop_oneof![
        any::<bool>().prop_map(ParameterChoice::BoolParam),
        any::<i64>().prop_map(ParameterChoice::Int64Param),
        "[a-z0]{0,3}".prop_map(ParameterChoice::StringParam),
        Just(ParameterChoice::DoubleParam(0.5)),
        any::<u64>().prop_map(ParameterChoice::Uint64Param),
    ];
    let key = proptest::sample::select(vec![
        "priority",
        "timeout",
        "sequence_id",
        "sequence_start",
        "classification",
        "other",
    ]);
    let choice = proptest::option::of(choice);
    let one = (key.prop_map(str::to_owned), choice)
        .prop_map(|(key, parameter_choice)| (key, InferParameter { parameter_choice }));
    vec(one, 0..2).prop_map(|all| all.into_iter().collect())
}

prop_compose! {
    fn any_input()(
        name in prop_oneof![4 => Just("x"), 4 => Just("n"), 1 => Just("y")],
        datatype in prop_oneof![4 => Just("FP32"), 4 => Just("INT64"), 1 => Just("BYTES"), 1 => Just("?")],
        shape in any_shape(),
        parameters in any_parameters(),
        contents in proptest::option::of(any_contents()),
    ) -> InferInputTensor {
        InferInputTensor { name: name.to_owned(), datatype: datatype.to_owned(), shape, parameters, contents }
    }
}

prop_compose! {
    fn any_request()(
        inputs in vec(any_input(), 0..4),
        raw_input_contents in vec(vec(any::<u8>(), 0..40).prop_map(Bytes::from), 0..4),
        parameters in any_parameters(),
        outputs in vec(any_parameters(), 0..3),
    ) -> ModelInferRequest {
        let outputs = outputs.into_iter().map(|parameters| {
            InferRequestedOutputTensor { name: parameters.len().to_string(), parameters }
        });
        ModelInferRequest {
            inputs, raw_input_contents, parameters, outputs: outputs.collect(), ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn any_message_is_read_whole_or_refused(request in any_request()) {
        let bytes = Bytes::from(request.encode_to_vec());
        prop_assert_eq!(&codec::read::<ModelInferRequest>(bytes).unwrap(), &request);
        match request::read(&two_inputs(), request) {
            Ok(asked) => is_whole(&asked),
            Err(text) => prop_assert!(!text.is_empty()),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(request) = codec::read::<ModelInferRequest>(bytes.into())
            && let Ok(asked) = request::read(&two_inputs(), request)
        {
            is_whole(&asked);
        }
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(
        request in any_request(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        end in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = request.encode_to_vec();
        for (index, byte) in changes {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
        }
        bytes.truncate(end.index(bytes.len() + 1));
        if let Ok(request) = codec::read::<ModelInferRequest>(bytes.into())
            && let Ok(asked) = request::read(&two_inputs(), request)
        {
            is_whole(&asked);
        }
    }
}
