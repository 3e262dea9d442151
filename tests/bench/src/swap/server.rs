//! The agent's HTTP service over its model table, with the recorder behind it, in a process of its own. Each line
//! on its input swaps the model as an update does: load, put in front, let go of the one before.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use farlight_agent::choice::Way;
use farlight_agent::http::{Listeners, api};
use farlight_agent::models::{How, Keep, Loaded, Models, Scheduling};
use farlight_agent::protocol::{Service, Slow};
use farlight_agent::recorder::{self, Plan};
use farlight_agent::router::Router;
use farlight_agent::runtime::Runtime;
use farlight_agent::settings::Http;
use farlight_agent::settings::Inference;
use farlight_agent::status::Status;
use farlight_agent::store::Store;
use farlight_agent::threads::Threads;
use farlight_agent::vitals::Vitals;
use farlight_cloud::cli::release::recipe::Recipe;
use farlight_device::pointer::Slot;
use farlight_inference::Engines;
use farlight_onnx::{Limits, Model, tensor};
use farlight_release::manifest::Manifest;
use farlight_release::{Verified, blob, digest};
use farlight_wire::{Millis, ReleaseId};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, watch};

/// The model that is asked.
pub(crate) const MODEL: &str = "digits";
/// Its two versions.
pub(crate) const VERSIONS: [&str; 2] = ["1.0.0", "2.0.0"];

/// Arguments of the hidden command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    folder: PathBuf,
    socket: PathBuf,
}

/// Serves until the input ends.
pub(crate) fn serve(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let releases = [release(0)?, release(1)?];
        let schedule = Inference { workers: 2, ..Inference::default() }.plan(2);
        let scheduling = schedule.default;
        let opened = Store::open(&args.folder, Millis(0))?;
        let plan = Plan {
            window: Duration::from_secs(60),
            store_max_bytes: 64 * 1024 * 1024,
            cases: false,
            case_bytes_per_day: 0,
        };
        let (healths_sender, mut healths) = mpsc::channel(64);
        let (committed_sender, _committed) = watch::channel(0);
        tokio::spawn(async move { while healths.recv().await.is_some() {} });
        let switches = Runtime::default();
        let vitals = Vitals::new(args.folder.clone());
        let recording =
            recorder::start(opened.store, plan, vitals, switches.clone(), healths_sender, committed_sender)?;
        let models =
            Arc::new(Models::new(schedule, Engines::default(), recording.recorder.clone(), switches.clone()));
        let (updates, _inbox) = mpsc::channel(1);
        let service = Arc::new(Service {
            models: Arc::clone(&models),
            router: Arc::new(Router::new(Arc::clone(&models), switches.clone(), None)),
            status: Arc::new(Status::new("bench", "bench")),
            model_control: false,
            triton_metrics: false,
            slow: Arc::new(Slow::new(Duration::ZERO)),
            max_body_bytes: 1024 * 1024,
            runtime: switches,
            updates,
        });
        let settings = Http { listen: String::new(), socket: args.socket.clone(), ..Http::default() };
        let listeners = Listeners::bind(&settings).await.map_err(|fatal| anyhow!("listen: {fatal:?}"))?;
        let (_running, shutdown) = watch::channel(false);
        let threads = Arc::new(Threads::start(2, &[], Duration::ZERO)?);
        tokio::spawn(listeners.serve(api(service), threads, shutdown));

        models.activate(releases[0].load(scheduling)?, Keep::Nothing);
        say("ready")?;
        let mut commands = BufReader::new(tokio::io::stdin()).lines();
        let mut next = 1;
        while commands.next_line().await?.is_some() {
            let loaded = tokio::task::block_in_place(|| releases[next].load(scheduling))?;
            models.activate(loaded, Keep::Previous);
            models.confirm(MODEL);
            say("swapped")?;
            next = 1 - next;
        }
        anyhow::Ok(())
    })
}

fn say(what: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

/// What a slot on disk would hold.
struct Release {
    slot: Slot,
    manifest: Verified<Manifest>,
    model: Vec<u8>,
}

impl Release {
    fn load(&self, scheduling: Scheduling) -> anyhow::Result<Arc<Loaded>> {
        let engines = Engines::default();
        let how = How { scheduling, way: Way::default(), engines: &engines, precision: "fp32" };
        let loaded = Loaded::new(self.slot.clone(), &self.manifest, &self.model, how);
        Ok(Arc::new(loaded.context("load the model")?))
    }
}

/// One of the two versions; the second has slightly other weights.
fn release(number: usize) -> anyhow::Result<Release> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(MODEL);
    let mut model = Model::parse(&std::fs::read(folder.join("model.onnx"))?, &Limits::default())?;
    for weights in model.graph().initializer.clone() {
        if weights.data_type() == tensor::FLOAT {
            let factor = 1.0 + 1e-3 * number as f32;
            let values: Vec<f32> = tensor::to_f32(&weights)?.iter().map(|value| value * factor).collect();
            model.replace_f32(weights.name(), &values)?;
        }
    }
    let model = model.to_bytes();
    let recipe = Recipe::load(&folder.join("release.toml")).map_err(|e| anyhow!("{e}"))?;
    let release = ReleaseId::new(recipe.model.clone(), VERSIONS[number].parse()?);
    let manifest = serde_json::to_vec(&recipe.draft(release.clone(), blob::describe(&model)))?;
    let digest = digest::sha256(&manifest);
    let manifest = Manifest::reopen(&manifest, &digest)?;
    Ok(Release { slot: Slot { release, digest }, manifest, model })
}
