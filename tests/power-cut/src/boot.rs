//! Starts the agent in a state that a cut left, again and again, as a device would that is switched on
//! and off: its own boot code, in this process, without any network.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::Context;
use farlight_agent::identity::Identity;
use farlight_agent::models::{Ask, Models};
use farlight_agent::run::{self, Started};
use farlight_agent::settings::Settings;
use farlight_agent::slots::{Opened, Slots};
use farlight_agent::trust::Trust;
use farlight_device::pointer::{Pointer, Slot, TRIALS};
use farlight_inference::golden;
use farlight_release::config;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::look::{self, DATABASES, Journal, Rows, Scratch, Trusted};
use crate::trace::{Item, Tree, is_digest};

/// Starts after which a device must have come to rest: all trials, the one that goes back, one more.
const MAX_BOOTS: usize = TRIALS as usize + 3;

/// What a cut left, and what became of it.
#[derive(Debug)]
pub struct Outcome {
    /// Each model's pointer; `None` for a damaged one.
    pub pointers: BTreeMap<String, Option<Pointer>>,
    /// Slots that pointers name and that are not whole, with the reason.
    pub broken: Vec<String>,
    /// Folders that have a slot's name and are not whole, with the reason.
    pub halves: Vec<String>,
    /// The trust store; `None` when no copy is readable.
    pub trust: Option<Trusted>,
    /// Whether the device knows who it is.
    pub is_enrolled: bool,
    /// Rows of the databases that are readable.
    pub rows: BTreeMap<String, Rows>,
    /// What `state.db` knows.
    pub journal: Journal,
    /// The starts, one after another.
    pub boots: Vec<Boot>,
}

/// One start.
#[derive(Debug)]
pub struct Boot {
    /// Pointers before it.
    pub before: BTreeMap<String, Option<Pointer>>,
    /// What ran then, by model; or why it did not start.
    pub result: Result<BTreeMap<String, Running>, String>,
}

/// A model that runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Running {
    /// Its release.
    pub slot: Slot,
    /// What is wrong with it: its slot is not whole, or it does not answer a golden input.
    pub problem: Option<String>,
}

/// Starts agents.
#[derive(Debug)]
pub struct Starter {
    scratch: Scratch,
    runtime: Runtime,
}

impl Starter {
    /// Makes one; one thread uses it at a time.
    ///
    /// # Errors
    /// When no folder or runtime can be made.
    pub fn new() -> anyhow::Result<Self> {
        farlight_test_support::init();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self { scratch: Scratch::new()?, runtime: runtime.context("start a runtime")? })
    }

    /// Examines one state.
    ///
    /// # Errors
    /// When the rig itself fails; what the agent does wrong is in the outcome.
    pub fn examine(&self, tree: &Tree) -> anyhow::Result<Outcome> {
        let mut rows = BTreeMap::new();
        let mut journal = Journal::default();
        for name in DATABASES {
            if let Some(database) = self.scratch.database(tree, name)? {
                if name == "state.db" {
                    journal = database.journal();
                }
                rows.insert(name.to_owned(), database.rows);
            }
        }
        let folder = self.scratch.empty("state")?;
        tree.write(&folder)?;
        let pointers = look::pointers(tree);
        let mut outcome = Outcome {
            broken: broken(&folder, &pointers),
            halves: halves(&folder, tree),
            pointers,
            trust: look::trusted(tree).filter(|_| Trust::open(&folder).is_ok()),
            is_enrolled: tree.file("identity.json").is_some_and(|_| Identity::load(&folder).is_ok()),
            rows,
            journal,
            boots: Vec::new(),
        };
        // Without an identity the agent asks for one and waits.
        while outcome.is_enrolled && outcome.boots.len() < MAX_BOOTS {
            let before = look::pointers_on_disk(&folder)?;
            let result = self.boot(&folder);
            let is_over = result.is_err() || before == look::pointers_on_disk(&folder)?;
            outcome.boots.push(Boot { before, result });
            if is_over {
                break;
            }
        }
        Ok(outcome)
    }

    fn boot(&self, folder: &Path) -> Result<BTreeMap<String, Running>, String> {
        let start = || self.runtime.block_on(start(folder));
        match catch_unwind(AssertUnwindSafe(start)) {
            Ok(result) => result.map_err(|error| format!("{error:#}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(format!("panicked: {}", text.unwrap_or("no message")))
            }
        }
    }
}

fn broken(folder: &Path, pointers: &BTreeMap<String, Option<Pointer>>) -> Vec<String> {
    let slots = Slots::new(folder);
    let named =
        pointers.values().flatten().flat_map(|pointer| pointer.active.iter().chain(&pointer.previous));
    named
        .filter_map(|slot| slots.open(slot).err().map(|error| format!("{}: {error}", slot.release)))
        .collect()
}

fn halves(folder: &Path, tree: &Tree) -> Vec<String> {
    let slots = Slots::new(folder);
    let named = tree.0.iter().filter(|(_, item)| matches!(item, Item::Folder));
    named
        .filter_map(|(path, _)| slots.open(&slot_at(path)?).err().map(|error| format!("{path}: {error}")))
        .collect()
}

/// The slot that a folder has the name of. The version is not told by it, and does not matter to opening.
fn slot_at(path: &str) -> Option<Slot> {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["models", model, digest] if is_digest(digest) => {
            Some(Slot { release: format!("{model}/0.0.0").parse().ok()?, digest: digest.to_owned() })
        }
        _ => None,
    }
}

async fn start(folder: &Path) -> anyhow::Result<BTreeMap<String, Running>> {
    let mut settings = Settings::default();
    settings.device.state_dir = folder.to_path_buf();
    let fatal = |error: farlight_agent::exit::Fatal| anyhow::anyhow!("{error}");
    let identity = Identity::load(folder).map_err(fatal)?.context("the identity is gone")?;
    let (_stop, shutdown) = watch::channel(false);
    let Started { models, runtime, recording, driver, .. } =
        run::start(&settings, identity, &shutdown).await.map_err(fatal)?;
    let slots = Slots::new(folder);
    let mut running = BTreeMap::new();
    for (name, entry) in models.list() {
        let slot = entry.active.slot.clone();
        let problem = answer(&models, &slots, &name, &slot).await.err().map(|error| format!("{error:#}"));
        running.insert(name, Running { slot, problem });
    }
    if let Some(config) = config(&slots, &runtime)? {
        running.insert(config::NAME.to_owned(), config);
    }
    drop(driver);
    recording.stop();
    Ok(running)
}

/// The configuration in force: what its pointer names must be what the agent goes by.
fn config(slots: &Slots, runtime: &farlight_agent::runtime::Runtime) -> anyhow::Result<Option<Running>> {
    let pointer = slots.pointer(&config::NAME.parse()?)?.unwrap_or_default();
    let Some(slot) = pointer.active else { return Ok(None) };
    let problem = match slots.open(&slot) {
        Ok(Opened::Config(config)) => {
            (*runtime.get() != config.runtime).then(|| "another configuration is in force".to_owned())
        }
        Ok(Opened::Model(_)) => Some("its slot holds a model".to_owned()),
        Err(error) => Some(format!("its slot is not whole: {error}")),
    };
    Ok(Some(Running { slot, problem }))
}

/// Hashes the slot and asks the model a golden input.
async fn answer(models: &Models, slots: &Slots, name: &str, slot: &Slot) -> anyhow::Result<()> {
    let Opened::Model(whole) = slots.open(slot).context("its slot is not whole")? else {
        anyhow::bail!("its slot holds no model");
    };
    let vectors = golden::decode(&whole.golden).context("its golden vectors are not readable")?;
    let first = vectors.into_iter().next().and_then(|vector| vector.calls.into_iter().next());
    let mut inputs = first.context("it has no golden vectors")?.inputs.into_iter();
    let main = inputs.next().context("a golden vector has no input")?;
    let loaded = models.find(name, None)?;
    models
        .infer(loaded, farlight_inference::Item { main, more: inputs.collect() }, &Ask::now("golden"))
        .await?;
    Ok(())
}
