//! What of a release runs on this device: which of its files, with which engine, and on how many threads. Each that may
//! is tried by a self-test of its own before the release is first activated, and the fastest that passes is kept beside the
//! release.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farlight_device::update::Failure;
use farlight_inference::{Engines, Kind, OnnxRuntime};
use farlight_release::manifest::{Manifest, Precision, Variant};
use farlight_wire::codes::Code;
use farlight_wire::report::{self, Tried};
use serde::{Deserialize, Serialize};

use crate::durable::{self, Access};
use crate::selftest::{self, Engine};

/// Its file in the folder of a release.
const FILE: &str = "choice.json";
/// Largest such file: sixteen variants, each run in three ways, each with a reason.
const MAX_FILE: u64 = 128 * 1024;
/// Longest reason that is kept and reported, characters.
const MAX_REASON: usize = 300;
/// One that comes later in the list must be faster by so much, so that noise does not decide for fewer bits.
const CLEARLY: f64 = 0.95;
/// One that takes more threads must be faster by so much: it takes them from other requests.
const WORTH_THREADS: f64 = 0.7;

/// How a file is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// What runs it.
    pub engine: Kind,
    /// Threads of one inference; 0 for one, or as many as the workers leave where sessions are fewer. tract has none.
    pub threads: usize,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.threads {
            0 | 1 => write!(f, "{}", self.engine),
            several => write!(f, "{}, {several} threads", self.engine),
        }
    }
}

impl Way {
    /// The part of the time of `best` that this way may take to be preferred.
    fn must(self, best: Self) -> f64 {
        if self.threads > best.threads.max(1) { WORTH_THREADS } else { CLEARLY }
    }
}

/// What the device's owner has set; what is not set is chosen by measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins {
    /// The engine.
    pub engine: Option<Kind>,
    /// The form of the weights, where the release has it.
    pub precision: Option<Precision>,
    /// Threads of one inference; 0 where nothing is set.
    pub threads: usize,
    /// Most threads that are tried.
    pub cores: usize,
}

impl Pins {
    /// Files of a release that this device needs: the pinned one, or all of which one is to be chosen.
    pub fn wanted(self, variants: &[Variant]) -> Vec<&Variant> {
        let pinned = variants.iter().find(|variant| self.is(variant));
        pinned.map_or_else(|| variants.iter().collect(), |pinned| vec![pinned])
    }

    fn is(self, variant: &Variant) -> bool {
        self.precision.is_some_and(|precision| precision.name() == variant.precision)
    }

    /// What may be tried of a release whose files are in `folder`, in order of preference.
    fn candidates<'a>(
        self,
        folder: &Path,
        variants: &'a [Variant],
        engines: &Engines,
    ) -> Vec<(&'a Variant, Way)> {
        let kinds = match self.engine {
            Some(kind) => vec![kind],
            None if engines.trouble().is_none() => vec![Kind::Tract, Kind::OnnxRuntime],
            None => vec![Kind::Tract],
        };
        let there =
            self.wanted(variants).into_iter().filter(|variant| folder.join(&variant.blob.id).is_file());
        let ways = kinds.into_iter().flat_map(|kind| self.ways(kind, engines)).collect::<Vec<_>>();
        there.flat_map(|variant| ways.iter().map(move |way| (variant, *way))).collect()
    }

    /// The ways of one engine. Threads are for ONNX Runtime's own code: a device works as it does, whoever waits for it.
    fn ways(self, engine: Kind, engines: &Engines) -> Vec<Way> {
        let on_processor = || engines.onnxruntime().is_some_and(OnnxRuntime::is_on_processor);
        let threads = match engine {
            Kind::Tract => vec![0],
            Kind::OnnxRuntime if self.threads == 0 && self.cores > 1 && on_processor() => vec![0, self.cores],
            Kind::OnnxRuntime => vec![self.threads],
        };
        threads.into_iter().map(|threads| Way { engine, threads }).collect()
    }
}

/// What the device's owner has set for every model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Models that nothing else is said of.
    pub default: Pins,
    /// By model.
    pub models: HashMap<String, Pins>,
}

impl Plan {
    /// What is set for a model.
    pub fn of(&self, model: &str) -> Pins {
        self.models.get(model).copied().unwrap_or(self.default)
    }
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Id of the file's blob.
    variant: String,
    /// The engine.
    pub engine: Kind,
    /// Threads of one inference, as in [`Way`].
    #[serde(default)]
    threads: usize,
    /// Everything that was tried.
    tried: Vec<Tried>,
}

impl Choice {
    /// What was chosen for the release in `folder`, if anything was.
    pub fn read(folder: &Path) -> Option<Self> {
        let bytes = durable::read_limited(&folder.join(FILE), MAX_FILE).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    fn write(&self, folder: &Path) -> std::io::Result<()> {
        durable::replace(&folder.join(FILE), &serde_json::to_vec(self)?, Access::Normal)
    }

    /// For the cloud.
    pub fn report(&self, manifest: &Manifest) -> report::Choice {
        let chosen = manifest.variants.iter().find(|variant| variant.blob.id == self.variant);
        report::Choice {
            release: manifest.release.clone(),
            precision: chosen.map(|variant| variant.precision.clone()).unwrap_or_default(),
            engine: self.engine.to_string(),
            tried: self.tried.clone(),
        }
    }
}

/// What runs of the release whose files are in `folder`: what is pinned, or was chosen, or the first file with tract.
pub fn what<'a>(folder: &Path, variants: &'a [Variant], pins: Pins) -> (Option<&'a Variant>, Way) {
    let there = |variant: &&Variant| folder.join(&variant.blob.id).is_file();
    let choice = Choice::read(folder);
    let chosen = |variant: &Variant| choice.as_ref().is_some_and(|choice| choice.variant == variant.blob.id);
    let pinned = variants.iter().filter(there).find(|variant| pins.is(variant));
    let file = pinned
        .or_else(|| variants.iter().filter(there).find(|variant| chosen(variant)))
        .or_else(|| variants.iter().find(there))
        .or(variants.first());
    let engine = pins.engine.or(choice.as_ref().map(|choice| choice.engine)).unwrap_or_default();
    let chosen = choice.filter(|choice| choice.engine == engine).map_or(0, |choice| choice.threads);
    let threads = match engine {
        Kind::OnnxRuntime if pins.threads > 0 => pins.threads,
        _ => chosen,
    };
    (file, Way { engine, threads })
}

/// How a release is tried.
pub struct Trial {
    /// The agent's own program.
    pub program: PathBuf,
    /// The folder of the release, named by its digest.
    pub folder: PathBuf,
    /// SHA-256 of its manifest.
    pub digest: String,
    /// Longest time of one self-test.
    pub limit: Duration,
    /// Time in which others are tried after the first one that passed.
    pub within: Duration,
    /// What is set.
    pub pins: Pins,
    /// The engines that are there.
    pub engines: Engines,
}

impl Trial {
    /// Runs the self-tests, and keeps what was chosen beside the release, durably.
    ///
    /// # Errors
    /// What the first of them found, when none passes; `storage.failed`.
    pub async fn run(&self, manifest: &Manifest) -> Result<Choice, Failure> {
        let began = Instant::now();
        let mut best: Option<(&Variant, Way, u64)> = None;
        let (mut tried, mut first) = (Vec::new(), None);
        let candidates = self.pins.candidates(&self.folder, &manifest.variants, &self.engines);
        for (variant, way) in &candidates {
            let left = self.within.saturating_sub(began.elapsed());
            let limit = match &best {
                Some(_) if left.is_zero() => break,
                Some(_) => left.min(self.limit),
                None => self.limit,
            };
            let found = self.one(variant, *way, limit).await;
            let (micros, why) = match &found {
                Ok(micros) => (Some(*micros), String::new()),
                Err(failure) => (None, failure.message.chars().take(MAX_REASON).collect()),
            };
            let (precision, engine) = (variant.precision.clone(), way.to_string());
            tried.push(Tried { precision, engine, micros, why });
            match (found, &best) {
                (Err(failure), _) => first = first.or(Some(failure)),
                (Ok(micros), Some((_, of, least))) if micros as f64 > *least as f64 * way.must(*of) => {}
                (Ok(micros), _) => best = Some((variant, *way, micros)),
            }
        }
        let Some((variant, way, micros)) = best else {
            let nothing = || Failure::new(Code::VerifyMismatch, "no file of the release is there".to_owned());
            return Err(first.unwrap_or_else(nothing));
        };
        if candidates.len() > 1 {
            let precision = &variant.precision;
            tracing::info!(release = %manifest.release, precision, engine = %way, micros, "chosen to run");
        }
        let Way { engine, threads } = way;
        let choice = Choice { variant: variant.blob.id.clone(), engine, threads, tried };
        let failed =
            |error: std::io::Error| Failure::new(Code::StorageFailed, format!("keep the choice: {error}"));
        choice.write(&self.folder).map_err(failed)?;
        Ok(choice)
    }

    /// The shortest time of one inference, µs.
    async fn one(&self, variant: &Variant, way: Way, limit: Duration) -> Result<u64, Failure> {
        let Way { engine: kind, threads } = way;
        let engine = Engine::new(kind, &self.engines).with_file(&variant.blob.id).with_threads(threads);
        let outcome = selftest::run(&self.program, &self.folder, &self.digest, limit, &engine).await?;
        // Where only one engine may run it, tract answers in place of one that cannot, and says so.
        if self.pins.engine.is_none() && outcome.engine() != kind.to_string() {
            return Err(Failure::new(Code::SelfTestLoad, outcome.refused().join("; ")));
        }
        Ok(outcome.micros())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use farlight_inference::Provider;
    use farlight_release::blob;

    use super::*;

    fn variant(precision: Precision) -> Variant {
        Variant::onnx(precision, blob::describe(precision.name().as_bytes()), Vec::new())
    }

    #[test]
    fn the_pinned_file_comes_before_the_chosen_one_and_that_before_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let all = [Precision::Fp32, Precision::F16, Precision::Int8].map(variant);
        let name = |pins| what(folder, &all, pins).0.map(|variant| variant.precision.as_str());
        let int8 = Pins { precision: Some(Precision::Int8), ..Pins::default() };
        // Nothing is there: the first is missed.
        assert_eq!(name(int8), Some("fp32"));
        for variant in &all[1..] {
            std::fs::write(folder.join(&variant.blob.id), b"").unwrap();
        }
        assert_eq!(name(Pins::default()), Some("f16"));
        let (variant, engine) = (all[2].blob.id.clone(), Kind::OnnxRuntime);
        let choice = Choice { variant, engine, threads: 4, tried: Vec::new() };
        choice.write(folder).unwrap();
        assert_eq!(Choice::read(folder), Some(choice));
        assert_eq!(name(Pins::default()), Some("int8"));
        let way = |pins| what(folder, &all, pins).1;
        assert_eq!(way(Pins::default()), Way { engine, threads: 4 });
        assert_eq!(way(Pins { threads: 2, ..Pins::default() }), Way { engine, threads: 2 });
        let tract = Pins { engine: Some(Kind::Tract), threads: 2, ..Pins::default() };
        assert_eq!(way(tract), Way::default());
        assert_eq!(name(Pins { precision: Some(Precision::F16), ..Pins::default() }), Some("f16"));
        // One that is not there cannot be run, whatever is pinned or was chosen.
        std::fs::remove_file(folder.join(&all[2].blob.id)).unwrap();
        assert_eq!(name(int8), Some("f16"));
        std::fs::write(folder.join(FILE), b"{").unwrap();
        assert_eq!(Choice::read(folder), None);
    }

    #[test]
    fn only_what_may_run_is_fetched_and_tried() {
        let folder = tempfile::tempdir().unwrap();
        let all = [Precision::Fp32, Precision::Int8].map(variant);
        let names = |pins: Pins| pins.wanted(&all).iter().map(|v| v.precision.clone()).collect::<Vec<_>>();
        let pin = |precision| Pins { precision: Some(precision), ..Pins::default() };
        assert_eq!(names(Pins::default()), ["fp32", "int8"]);
        assert_eq!(names(pin(Precision::Int8)), ["int8"]);
        // The release has no such file.
        assert_eq!(names(pin(Precision::F16)), ["fp32", "int8"]);
        std::fs::write(folder.path().join(&all[1].blob.id), b"").unwrap();
        let tract = Engines::default();
        let tried = Pins::default().candidates(folder.path(), &all, &tract);
        assert_eq!(tried.len(), 1);
        assert_eq!((tried[0].0.precision.as_str(), tried[0].1), ("int8", Way::default()));
    }

    #[test]
    fn threads_are_tried_where_the_processor_runs_it_and_must_be_worth_it() {
        let board = |provider: &str| {
            let provider = Provider { name: provider.to_owned(), ..Provider::default() };
            let (library, session_options) = (PathBuf::from("/no/such/library"), BTreeMap::new());
            Engines::open(Some(OnnxRuntime { library, providers: vec![provider], session_options }))
        };
        let pins = Pins { cores: 4, ..Pins::default() };
        let threads = |pins: Pins, kind, engines: &Engines| {
            pins.ways(kind, engines).into_iter().map(|way| way.threads).collect::<Vec<_>>()
        };
        assert_eq!(threads(pins, Kind::OnnxRuntime, &board("cpu")), [0, 4]);
        assert_eq!(threads(pins, Kind::OnnxRuntime, &board("qnn")), [0]);
        assert_eq!(threads(pins, Kind::Tract, &board("cpu")), [0]);
        assert_eq!(threads(Pins { threads: 3, ..pins }, Kind::OnnxRuntime, &board("cpu")), [3]);
        assert_eq!(threads(Pins { cores: 1, ..pins }, Kind::OnnxRuntime, &board("cpu")), [0]);

        let way = |threads| Way { engine: Kind::OnnxRuntime, threads };
        assert_eq!((way(4).must(way(0)), way(0).must(way(4))), (WORTH_THREADS, CLEARLY));
        assert_eq!(
            (way(0).to_string(), way(4).to_string()),
            ("onnxruntime".into(), "onnxruntime, 4 threads".into())
        );
    }
}
