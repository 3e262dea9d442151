//! The reference models in the repository are what their cards say, and trainer and fleet engine agree
//! on every answer.

use std::path::{Path, PathBuf};

use farlight_cloud::cli::release::recipe::Recipe;
use farlight_cloud::learning::recipe::{MODEL, RECIPE, RELEASE, Source, TrainingRecipe};
use farlight_cloud::learning::score;
use farlight_inference::Pipeline;
use farlight_onnx::{Limits, Model};
use farlight_release::blob;
use farlight_release::manifest::Manifest;
use farlight_training::predict;
use farlight_wire::ReleaseId;

struct Reference {
    folder: PathBuf,
    recipe: TrainingRecipe,
    manifest: Manifest,
    onnx: Vec<u8>,
}

fn reference(name: &str) -> Reference {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
    let onnx = std::fs::read(folder.join(MODEL)).unwrap();
    let release = Recipe::load(&folder.join(RELEASE)).unwrap();
    let id = ReleaseId::new(release.model.clone(), semver::Version::new(1, 0, 0));
    let manifest = release.draft(id, blob::describe(&onnx));
    Reference { recipe: TrainingRecipe::read(&folder.join(RECIPE)).unwrap(), folder, manifest, onnx }
}

impl Reference {
    fn accuracy(&self, source: &Source) -> f64 {
        let samples = source.read(&self.folder).unwrap();
        score::answers(&self.manifest, &self.onnx, &samples.x).unwrap().accuracy(&samples.y)
    }
}

#[test]
fn the_cards_say_what_the_engine_measures() {
    let watch = reference("watch-gestures");
    assert!((watch.accuracy(&watch.recipe.data.holdout) - 0.973).abs() < 0.002);
    for (set, accuracy) in watch.recipe.data.report.iter().zip([0.268, 0.831, 0.311]) {
        assert!((watch.accuracy(&set.source) - accuracy).abs() < 0.002, "{}", set.name);
    }
    let digits = reference("digits");
    assert!((digits.accuracy(&digits.recipe.data.holdout) - 0.972).abs() < 0.002);
}

#[test]
fn trainer_and_engine_give_the_same_probabilities() {
    for name in ["watch-gestures", "digits"] {
        let reference = reference(name);
        let raw = reference.recipe.data.holdout.read(&reference.folder).unwrap();
        let model = Model::parse(&reference.onnx, &Limits::default()).unwrap();
        let prepared = score::prepare(&reference.manifest, &reference.onnx, raw.clone()).unwrap();
        let classes = reference.manifest.labels.len();
        let ours = predict(&model, &prepared.shape, &prepared.x, classes).unwrap();
        let mut worker = Pipeline::load(&reference.manifest, &reference.onnx).unwrap().worker().unwrap();
        let mut largest = 0.0f32;
        for (raw, ours) in raw.x.iter().zip(&ours) {
            let theirs = worker.run(raw).unwrap().outputs;
            largest = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
        }
        assert!(largest < 1e-4, "{name}: {largest}");
    }
}

#[test]
fn the_examples_of_the_inference_page_are_read() {
    use farlight_release::config::{self, ConfigManifest};
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/inference.md");
    let text = std::fs::read_to_string(page).unwrap();
    let mut found = (0, 0);
    for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let mut table: toml::Table = toml::from_str(block).unwrap();
        if let Some(states) = table.remove("states") {
            let states: Vec<farlight_release::manifest::StateSpec> = states.try_into().unwrap();
            found.0 += states.len();
        } else {
            let runtime: config::Runtime = table.try_into().unwrap();
            found.1 += runtime.routes.len();
            let release = "config/1.0.0".parse().unwrap();
            let requires = Default::default();
            ConfigManifest { format: config::FORMAT, release, runtime, requires }.check().unwrap();
        }
    }
    assert_eq!(found, (1, 1));
}
