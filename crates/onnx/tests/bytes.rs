//! What any bytes do to the parser, and that models survive a round trip.

#![allow(clippy::unwrap_used, reason = "tests")]
use farlight_onnx::builder::{float, ints};
use farlight_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};
use farlight_onnx::{Dim, GraphBuilder, Limits, Model, OnnxError, check, tensor};
use proptest::prelude::*;
use prost::Message as _;

fn small() -> Model {
    GraphBuilder::new("small")
        .input("x", &[Dim::Free("N".into()), Dim::Fixed(2)])
        .f32("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .i64("axes", &[1], &[0])
        .node("Gemm", &["x", "w"], &["y"], &[float("alpha", 1.0)])
        .node("Transpose", &["y"], &["z"], &[ints("perm", &[1, 0])])
        .output("z", &[Dim::Fixed(3), Dim::Free("N".into())])
        .finish()
        .unwrap()
}

#[test]
fn a_model_survives_the_round_trip() {
    let bytes = small().to_bytes();
    let model = Model::parse(&bytes, &Limits::default()).unwrap();
    assert_eq!(model, small());
    assert_eq!(model.to_bytes(), bytes);
    assert_eq!(model.opset(), 17);
    assert_eq!(model.inputs().len(), 1);
    assert_eq!(model.inputs()[0].dims, Some(vec![Dim::Free("N".into()), Dim::Fixed(2)]));
    assert_eq!(tensor::to_f32(model.initialiser("w").unwrap()).unwrap()[5], 6.0);
    assert_eq!(tensor::to_i64(model.initialiser("axes").unwrap()).unwrap(), [0]);
}

#[test]
fn only_values_of_the_same_number_replace_an_initialiser() {
    let mut model = small();
    model.replace_f32("w", &[0.5; 6]).unwrap();
    assert_eq!(tensor::to_f32(model.initialiser("w").unwrap()).unwrap(), [0.5; 6]);
    assert!(matches!(model.replace_f32("w", &[0.5; 5]), Err(OnnxError::ShapeChanged { .. })));
    assert!(matches!(model.replace_f32("axes", &[0.5]), Err(OnnxError::Tensor { .. })));
    assert!(matches!(model.replace_f32("nope", &[]), Err(OnnxError::UnknownInitialiser(_))));
}

#[test]
fn limits_are_named_in_the_error() {
    let bytes = small().to_bytes();
    let least = Limits { bytes: 999, nodes: 2, tensors: 2, graphs: 1, name: 9, fields: 99 };
    check(&bytes, &least).unwrap();
    for (limits, error) in [
        (Limits { bytes: 10, ..least }, OnnxError::TooLarge { found: bytes.len(), limit: 10 }),
        (Limits { nodes: 1, ..least }, OnnxError::TooManyNodes { limit: 1 }),
        (Limits { tensors: 1, ..least }, OnnxError::TooManyTensors { limit: 1 }),
        (Limits { graphs: 0, ..least }, OnnxError::TooDeep { limit: 0 }),
        (Limits { name: 8, ..least }, OnnxError::LongName { found: 9, limit: 8 }),
        (Limits { fields: 9, ..least }, OnnxError::TooManyFields { limit: 9 }),
    ] {
        assert_eq!(check(&bytes, &limits), Err(error.clone()));
        assert_eq!(Model::parse(&bytes, &limits), Err(error.clone()));
        assert_eq!(error.code().as_str(), "model.over_limits");
    }
    let none = check(&[], &Limits::default()).unwrap_err();
    assert_eq!((none.code().as_str(), none), ("model.malformed", OnnxError::NoGraph));
    assert!(Model::parse(&bytes[..bytes.len() - 3], &Limits::default()).is_err());
}

#[test]
fn a_bomb_of_empty_nodes_is_refused_before_it_is_decoded() {
    // A graph of 4 million empty nodes: 8 MB in the file, about a gigabyte once decoded.
    let graph = [0x0a, 0x00].repeat(4_000_000);
    let mut bytes = vec![0x3a, 0x80, 0xa4, 0xe8, 0x03];
    bytes.extend(graph);
    assert_eq!(
        Model::parse(&bytes, &Limits::default()),
        Err(OnnxError::TooManyNodes { limit: Limits::default().nodes })
    );
}

/// A model whose one node has this attribute.
fn holding(attribute: AttributeProto) -> Vec<u8> {
    ModelProto { graph: Some(graph(attribute)), ..ModelProto::default() }.encode_to_vec()
}

fn graph(attribute: AttributeProto) -> GraphProto {
    let node = NodeProto { attribute: vec![attribute], ..NodeProto::default() };
    GraphProto { node: vec![node], ..GraphProto::default() }
}

fn branch(graph: GraphProto) -> AttributeProto {
    AttributeProto { r#type: Some(AttributeType::Graph as i32), g: Some(graph), ..AttributeProto::default() }
}

#[test]
fn graphs_nest_only_so_deep() {
    let nested = |levels: usize| (1..levels).fold(GraphProto::default(), |inner, _| graph(branch(inner)));
    let model = |levels| ModelProto { graph: Some(nested(levels)), ..ModelProto::default() }.encode_to_vec();
    let limit = Limits::default().graphs;
    check(&model(limit), &Limits::default()).unwrap();
    for levels in [limit + 1, 60] {
        assert_eq!(check(&model(levels), &Limits::default()), Err(OnnxError::TooDeep { limit }));
    }
}

#[test]
fn tensors_count_wherever_they_hide_and_never_lie_in_other_files() {
    let limits = Limits { tensors: 1, ..Limits::default() };
    let two = vec![TensorProto::default(); 2];
    let many = holding(AttributeProto { tensors: two, ..AttributeProto::default() });
    assert_eq!(check(&many, &limits), Err(OnnxError::TooManyTensors { limit: 1 }));
    let outside = TensorProto { data_location: Some(1), ..TensorProto::default() };
    let outside = holding(AttributeProto { t: Some(outside), ..AttributeProto::default() });
    assert_eq!(check(&outside, &Limits::default()), Err(OnnxError::External));
    // Texts in a tensor are messages of their own once decoded; numbers are not.
    let texts = TensorProto { string_data: vec![Vec::new(); 100], ..TensorProto::default() };
    let texts = holding(AttributeProto { t: Some(texts), ..AttributeProto::default() });
    let limits = Limits { fields: 50, ..Limits::default() };
    assert_eq!(check(&texts, &limits), Err(OnnxError::TooManyFields { limit: 50 }));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Model::parse(&bytes, &Limits::default());
    }

    #[test]
    fn no_damage_makes_it_panic(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = small().to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(mut model) = Model::parse(&bytes, &Limits::default()) {
            let (_, _, _) = (model.inputs(), model.outputs(), model.opset());
            for tensor in &model.graph().initializer {
                let (_, _) = (tensor::to_f32(tensor), tensor::to_i64(tensor));
            }
            let _ = model.replace_f32("w", &[0.0; 6]);
        }
    }
}
