//! What any bytes do to the parser, and that models survive a round trip.

#![allow(clippy::unwrap_used, reason = "tests")]
use farlight_onnx::builder::{float, ints};
use farlight_onnx::{Dim, GraphBuilder, Limits, Model, OnnxError, tensor};
use proptest::prelude::*;

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
    let with = |bytes_limit, nodes, fields| Limits { bytes: bytes_limit, nodes, fields };
    assert!(matches!(Model::parse(&bytes, &with(10, 9, 999)), Err(OnnxError::TooLarge { limit: 10, .. })));
    assert!(matches!(
        Model::parse(&bytes, &with(9999, 1, 999)),
        Err(OnnxError::TooManyNodes { found: 2, .. })
    ));
    assert!(matches!(Model::parse(&bytes, &with(9999, 9, 9)), Err(OnnxError::TooManyFields { limit: 9 })));
    assert!(matches!(Model::parse(&[], &Limits::default()), Err(OnnxError::NoGraph)));
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
        Err(OnnxError::TooManyFields { limit: Limits::default().fields })
    );
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
