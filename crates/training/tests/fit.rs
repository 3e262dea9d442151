//! Training as a caller sees it: it learns, repeats to the bit, changes only weights, and stops when told.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::ControlFlow;

use farlight_onnx::{Limits, Model};
use farlight_training::data::{Part, images};
use farlight_training::fit::top;
use farlight_training::{Examples, FitError, Network, Samples, Settings, fit, predict};

const CLASSES: usize = 10;

fn digits(part: Part, count: usize) -> Samples {
    let array = include_bytes!("../../../models/digits/data/images.npy");
    let labels = include_bytes!("../../../models/digits/data/labels.npy");
    let mut samples = images::parse(array, labels, part).unwrap();
    samples.x.iter_mut().flatten().for_each(|value| *value /= 16.0);
    samples.select(&(0..count).collect::<Vec<_>>())
}

fn network() -> Model {
    Network::Conv2d { size: [8, 8], classes: CLASSES, widths: [8, 16] }.build(3).unwrap()
}

fn settings(epochs: u32) -> Settings {
    Settings { epochs, learning_rate: 5e-3, ..Settings::default() }
}

fn train(model: &Model, settings: &Settings) -> Result<farlight_training::Fitted, FitError> {
    let labelled = |part, count| Examples::labelled(digits(part, count), CLASSES, 1.0);
    fit(model, &labelled(Part::Train, 600), &labelled(Part::Evaluate, 200), CLASSES, settings, &mut |_| {
        ControlFlow::Continue(())
    })
}

#[test]
fn it_learns_and_repeats_to_the_bit_and_only_weights_change() {
    let base = network();
    let first = train(&base, &settings(20)).unwrap();
    let last = &first.history[first.best_epoch as usize];
    assert!(last.validation.accuracy > 0.9, "{last:?}");
    let bytes = first.model.to_bytes();
    assert_eq!(train(&base, &settings(20)).unwrap().model.to_bytes(), bytes);
    assert_ne!(train(&base, &Settings { seed: 2, ..settings(20) }).unwrap().model.to_bytes(), bytes);

    let test = digits(Part::Evaluate, 200);
    let read_back = Model::parse(&bytes, &Limits::default()).unwrap();
    let answers = predict(&read_back, &test.shape, &test.x, CLASSES).unwrap();
    let right = answers.iter().zip(&test.y).filter(|(p, y)| top(p) == **y as usize).count();
    assert_eq!(right as f32 / 200.0, first.validation.accuracy);
    assert!(answers.iter().all(|p| (p.iter().sum::<f32>() - 1.0).abs() < 1e-5));

    let mut same = read_back;
    for tensor in base.graph().initializer.clone() {
        let values = farlight_onnx::tensor::to_f32(&tensor).unwrap();
        same.replace_f32(tensor.name(), &values).unwrap();
    }
    assert_eq!(same.to_bytes(), base.to_bytes(), "nothing but initialisers differs");
}

#[test]
fn frozen_weights_stay() {
    let base = network();
    let trained = train(&base, &Settings { freeze: vec!["conv*".into()], ..settings(2) }).unwrap().model;
    for name in ["conv1.weight", "conv2.bias"] {
        assert_eq!(trained.initialiser(name), base.initialiser(name));
    }
    assert_ne!(trained.initialiser("head.weight"), base.initialiser("head.weight"));
}

#[test]
fn it_stops_when_told_and_early_when_nothing_improves() {
    let examples = Examples::labelled(digits(Part::Train, 64), CLASSES, 1.0);
    let mut heard = 0;
    let stopped = fit(&network(), &examples, &examples, CLASSES, &settings(50), &mut |epoch| {
        heard += 1;
        if epoch.epoch == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((stopped.unwrap_err(), heard), (FitError::Cancelled, 3));
    // A learning rate that changes nothing never improves on the start.
    let idle = Settings { learning_rate: 1e-30, patience: 2, weight_decay: 0.0, ..settings(50) };
    let early = train(&network(), &idle).unwrap();
    assert_eq!((early.best_epoch, early.history.len()), (0, 3));
}

#[test]
fn wrong_data_and_settings_are_named() {
    let good = Examples::labelled(digits(Part::Train, 8), CLASSES, 1.0);
    let go = |set: &Examples, settings: &Settings| {
        fit(&network(), set, set, CLASSES, settings, &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    let mut set = good.clone();
    set.x[3][5] = f32::NAN;
    assert!(go(&set, &settings(1)).to_string().contains("example 3"));
    set.x[3].pop();
    assert!(go(&set, &settings(1)).to_string().contains("63 values"));
    let mut samples = digits(Part::Train, 8);
    samples.y[2] = 10;
    let unknown = Examples::labelled(samples, CLASSES, 1.0);
    assert!(go(&unknown, &settings(1)).to_string().contains("not a distribution over 10"));
    assert_eq!(go(&Examples::default(), &settings(1)), FitError::Empty("train"));
    let wrong = Settings { epochs: 0, learning_rate: f32::NAN, ..Settings::default() };
    let message = go(&good, &wrong).to_string();
    assert!(message.contains("epochs") && message.contains("learning_rate"), "{message}");
    let nine = Examples::labelled(digits(Part::Train, 8), 20, 1.0);
    let wrong = fit(&network(), &nine, &nine, 20, &settings(1), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(wrong, Err(FitError::Output { classes: 20, .. })));
}

#[test]
fn a_change_keeps_as_many_digits_as_asked_for() {
    let base = network();
    let all = train(&base, &Settings { change_bits: 0, ..settings(10) }).unwrap();
    assert_eq!(all.validation, all.history[all.best_epoch as usize].validation);
    let values = |model: &Model| -> Vec<Vec<f32>> {
        model.graph().initializer.iter().filter_map(|t| farlight_onnx::tensor::to_f32(t).ok()).collect()
    };
    let distinct = |model: &Model| {
        let changes = values(&base).into_iter().flatten().zip(values(model).into_iter().flatten());
        let changes = changes.map(|(base, trained)| (f64::from(trained) - f64::from(base)).to_bits());
        changes.collect::<std::collections::BTreeSet<_>>().len()
    };
    let snapped = train(&base, &Settings { change_bits: 4, ..settings(10) }).unwrap();
    assert_eq!(snapped.history, all.history, "only the end is snapped");
    assert!(distinct(&snapped.model) < distinct(&all.model) / 2);
    assert!((snapped.validation.loss - all.validation.loss).abs() < 0.02 * all.validation.loss);
}
