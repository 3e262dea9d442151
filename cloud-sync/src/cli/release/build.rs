//! `release build`: loads the model with the fleet's own engine, measures it on the evaluation data,
//! makes reference profile and golden vectors from what that engine answers, and writes the bundle.

use std::path::{Path, PathBuf};
use std::time::Instant;

use farlight_inference::simplify::unsupported;
use farlight_inference::{Item, LoadError, Pipeline, State, Values, golden, profile};
use farlight_release::blob;
use farlight_release::manifest::{Lineage, Precision, Task, Variant};
use farlight_training::data::Samples;
use farlight_wire::ReleaseId;
use farlight_wire::codes::Code;
use serde::Serialize;

use super::bundle::Bundle;
use super::delta::{self, Saved};
use super::recipe::Recipe;
use crate::cli::context::Context;
use crate::cli::error::{CliError, Exit};
use crate::cli::files;

/// Arguments of `release build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The recipe, TOML
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The model, ONNX
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The release's version
    #[arg(long, value_name = "V")]
    version: semver::Version,
    /// Folder of the evaluation data; the recipe's own by default
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The release it was trained from
    #[arg(long, value_name = "RELEASE")]
    parent: Option<ReleaseId>,
    /// The training job it came from
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Digest of the dataset snapshot it was trained on
    #[arg(long, value_name = "SHA256")]
    dataset: Option<String>,
    /// Bundle folder or ONNX file of an older release, to make a delta from; may be given again
    #[arg(long, value_name = "BUNDLE_OR_MODEL")]
    base: Vec<PathBuf>,
    /// Folder to write the bundle to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What was built.
#[derive(Debug, Serialize)]
struct Summary {
    release: ReleaseId,
    bundle: PathBuf,
    manifest_sha256: String,
    model_bytes: u64,
    samples: usize,
    accuracy: Option<f64>,
    p95_us: u64,
    golden_vectors: usize,
    drift_features: usize,
    deltas: Vec<Saved>,
    variants: Vec<Made>,
}

/// Another file of the same model.
#[derive(Debug, Serialize)]
struct Made {
    precision: String,
    bytes: u64,
}

impl Made {
    fn of(variant: &Variant) -> Self {
        Self { precision: variant.precision.clone(), bytes: variant.blob.length }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let recipe = Recipe::load(&args.recipe)?;
    let release = ReleaseId::new(recipe.model.clone(), args.version.clone());
    if release.model.as_str() == farlight_release::config::NAME {
        return Err(CliError::usage(
            "a model cannot be named `config`: that is what configuration releases are named",
        ));
    }
    if args.parent.as_ref().is_some_and(|parent| parent.model != release.model || *parent == release) {
        return Err(CliError::usage("--parent must be another release of the same model"));
    }
    let onnx = recipe.graph.fix(files::read(&args.model)?)?;
    runnable(args, &onnx)?;
    let folder = args.data.as_deref().or(args.recipe.parent()).unwrap_or(Path::new("."));
    let samples = recipe.samples(folder)?;
    let model = blob::describe(&onnx);
    // The recipe's own mistakes first: they are cheaper to find than the engine's.
    let draft = recipe.draft(release.clone(), model.clone());
    draft.check().map_err(|e| recipe_error(args, &e.to_string()))?;
    let pipeline = Pipeline::load(&draft, &onnx).map_err(|e| load_error(args, &e))?;
    let mut worker = pipeline.worker().map_err(|e| load_error(args, &e))?;

    let streams = recipe.golden_inputs(samples.as_ref());
    let measured = measure(&pipeline, samples.as_ref(), &streams)?;
    let accuracy = (recipe.task == Task::Classification).then_some(measured.accuracy);
    if accuracy.is_some_and(|accuracy| accuracy < recipe.gate.min_accuracy) {
        let (found, needed) = (measured.accuracy, recipe.gate.min_accuracy);
        let message = format!("accuracy {found:.4} on {} samples is below {needed}", measured.samples);
        return Err(CliError::delivery(Exit::Failure, Code::ReleaseGate, message));
    }
    let profile = match &samples {
        Some(samples) => {
            let channels = &recipe.input.channels;
            profile::build(&mut worker, &samples.x, channels).map_err(|e| run_error(&e))?
        }
        None => draft.profile,
    };
    let vectors = golden::build(&pipeline, &streams).map_err(|e| run_error(&e))?;
    let golden_bytes = golden::encode(&vectors).map_err(|e| run_error(&e))?;
    let features = profile.features.len();
    let mut lineage = Lineage {
        dataset: args.dataset.clone(),
        parent: args.parent.clone(),
        job: args.job.clone(),
        ..Lineage::default()
    };
    lineage.metrics.extend(accuracy.map(|accuracy| ("accuracy".to_owned(), accuracy)));
    lineage.metrics.insert("samples".to_owned(), measured.samples as f64);
    let (made, saved) = delta::make(&args.base, &onnx)?;
    let deltas = made.iter().map(|made| made.delta.clone()).collect();
    let golden = blob::describe(&golden_bytes);
    let others = others(&recipe, args, &onnx, &vectors)?;
    let mut variants = vec![Variant::onnx(Precision::Fp32, model, deltas)];
    variants.extend(others.iter().map(|(variant, _)| variant.clone()));
    let manifest = recipe.manifest(release.clone(), variants, golden, profile, lineage);
    manifest.check().map_err(|e| recipe_error(args, &e.to_string()))?;
    let bundle = Bundle::at(&args.out);
    let mut blobs = vec![&onnx[..], &golden_bytes];
    blobs.extend(made.iter().map(|made| &made.bytes[..]));
    blobs.extend(others.iter().map(|(_, bytes)| &bytes[..]));
    bundle.write(&manifest, &blobs)?;
    let summary = Summary {
        release,
        bundle: args.out.clone(),
        manifest_sha256: farlight_release::digest::sha256(&bundle.document()?.1),
        model_bytes: onnx.len() as u64,
        samples: measured.samples,
        accuracy,
        p95_us: measured.p95_us,
        golden_vectors: vectors.len(),
        drift_features: features,
        deltas: saved,
        variants: others.iter().map(|(variant, _)| Made::of(variant)).collect(),
    };
    context.answer(&summary, show)
}

/// The other files of the model, each held to the golden vectors of the first.
fn others(
    recipe: &Recipe,
    args: &Args,
    onnx: &[u8],
    vectors: &[golden::Vector],
) -> Result<Vec<(Variant, Vec<u8>)>, CliError> {
    let folder = args.recipe.parent().unwrap_or(Path::new("."));
    let release = ReleaseId::new(recipe.model.clone(), args.version.clone());
    let mut all: Vec<(Variant, Vec<u8>)> = Vec::new();
    for other in &recipe.variants {
        let precision = other.precision.name();
        let wrong = |why: String| {
            let message =
                format!("variant {precision}: {why}; mend its file, raise golden.tolerance or leave it out");
            CliError::delivery(Exit::Failure, Code::ReleaseGate, message)
        };
        if all.iter().any(|(variant, _)| variant.precision == precision) {
            return Err(recipe_error(args, &format!("variant {precision} is there twice")));
        }
        let bytes = other.onnx(folder, onnx)?;
        runnable(args, &bytes)?;
        let blob = blob::describe(&bytes);
        let draft = recipe.draft(release.clone(), blob.clone());
        let pipeline = Pipeline::load(&draft, &bytes).map_err(|error| wrong(error.to_string()))?;
        golden::check(&pipeline, vectors, recipe.golden.tolerance, || {})
            .map_err(|error| wrong(error.to_string()))?;
        all.push((Variant::onnx(other.precision, blob, Vec::new()), bytes));
    }
    Ok(all)
}

struct Measured {
    samples: usize,
    accuracy: f64,
    p95_us: u64,
}

/// Runs the evaluation data, or the golden inputs where there is none.
fn measure(
    pipeline: &Pipeline,
    samples: Option<&Samples>,
    streams: &[Vec<Item>],
) -> Result<Measured, CliError> {
    let mut worker = pipeline.worker().map_err(|e| run_error(&e))?;
    let mut micros = Vec::new();
    let mut right = 0_usize;
    let mut run = |item: &Item, state: Option<&mut State>| {
        let start = Instant::now();
        let prediction = worker.answer(item, state, || {}).map_err(|e| run_error(&e))?;
        micros.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
        if prediction.non_finite {
            let number = micros.len() - 1;
            let message = format!("the model answers NaN or infinity to sample {number}");
            return Err(CliError::delivery(Exit::Failure, Code::ReleaseNonFinite, message));
        }
        Ok(prediction.top)
    };
    let datatype = pipeline.manifest().input.datatype;
    match samples.filter(|_| pipeline.manifest().more_inputs.is_empty()) {
        Some(samples) => {
            for (input, label) in samples.x.iter().zip(&samples.y) {
                let Some(main) = Values::from_f32(datatype, input) else { continue };
                let top = run(&Item { main, more: Vec::new() }, pipeline.state().as_mut())?;
                right += usize::from(top == *label as usize);
            }
        }
        None => {
            for stream in streams {
                let mut state = pipeline.state();
                for item in stream {
                    run(item, state.as_mut())?;
                }
            }
        }
    }
    micros.sort_unstable();
    let p95 = micros.get(micros.len().saturating_mul(95) / 100).or(micros.last()).copied();
    let accuracy = right as f64 / micros.len().max(1) as f64;
    Ok(Measured { samples: micros.len(), accuracy, p95_us: p95.unwrap_or(0) })
}

/// Refuses a graph with what the fleet's engine cannot run, or is known to run wrongly.
fn runnable(args: &Args, onnx: &[u8]) -> Result<(), CliError> {
    // What is no model at all is said by the loader.
    let Ok(unsupported) = unsupported(onnx) else { return Ok(()) };
    if unsupported.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = unsupported.iter().map(ToString::to_string).collect();
    let message =
        format!("model {} does not run on the fleet's engine: {}", args.model.display(), all.join("; "));
    Err(CliError::delivery(Exit::File, Code::ReleaseNotRunnable, message))
}

fn recipe_error(args: &Args, why: &str) -> CliError {
    CliError::file(format!("recipe {}: {why}", args.recipe.display()))
}

fn load_error(args: &Args, error: &LoadError) -> CliError {
    let message = format!("model {} does not run on the fleet's engine: {error}", args.model.display());
    let code = match error.code() {
        // The code of a device, which meets the model in its self-test.
        Code::SelfTestLoad => Code::ReleaseNotRunnable,
        code => code,
    };
    CliError::delivery(Exit::File, code, message)
}

fn run_error(error: &dyn std::error::Error) -> CliError {
    let text = format!("the model does not run on the evaluation data: {error}");
    CliError::delivery(Exit::Failure, Code::ReleaseRun, text)
}

fn show(summary: &Summary) -> String {
    let accuracy = summary.accuracy.map_or_else(|| "-".to_owned(), |accuracy| format!("{accuracy:.4}"));
    let variant = |made: &Made| format!("\n{:<9} {} bytes", made.precision, made.bytes);
    let variants: Vec<String> = summary.variants.iter().map(variant).collect();
    let deltas: Vec<String> = summary.deltas.iter().map(|saved| format!("\n{}", saved.line())).collect();
    format!(
        "release   {}\nbundle    {}\nmanifest  {}\nmodel     {} bytes\naccuracy  {accuracy} on {} samples\n\
         p95       {} µs on this machine\ngolden    {} vectors\nprofile   {} drift features{}",
        summary.release,
        summary.bundle.display(),
        summary.manifest_sha256,
        summary.model_bytes,
        summary.samples,
        summary.p95_us,
        summary.golden_vectors,
        summary.drift_features,
        variants.concat() + &deltas.concat(),
    )
}
