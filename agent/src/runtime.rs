//! What a configuration release changes while the agent runs, shared with the inference path and the recorder
//! by an atomic pointer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use farlight_device::pointer::Slot;
use farlight_release::config::{self, ModelRuntime};

/// A configuration that was verified.
#[derive(Debug, Clone)]
pub struct ConfigSlot {
    /// Which.
    pub slot: Slot,
    /// What it says.
    pub runtime: config::Runtime,
}

/// The configuration in force; empty without a release of one.
#[derive(Debug, Clone, Default)]
pub struct Runtime(Arc<ArcSwap<config::Runtime>>);

impl Runtime {
    /// Puts a configuration in force; `None` takes all back.
    pub fn apply(&self, config: Option<&ConfigSlot>) {
        let runtime = config.map(|config| config.runtime.clone()).unwrap_or_default();
        self.0.store(Arc::new(runtime));
    }

    /// The configuration in force.
    pub fn get(&self) -> Arc<config::Runtime> {
        self.0.load_full()
    }

    /// Whether any name is routed.
    pub fn has_routes(&self) -> bool {
        !self.0.load().routes.is_empty()
    }

    /// Whether requests for a model are to be refused.
    pub fn is_off(&self, model: &str) -> bool {
        let runtime = self.0.load();
        runtime.kill_switch || find(&runtime, model).is_some_and(|settings| settings.disabled)
    }

    /// The score below which a model's class is withheld, in place of its manifest's.
    pub fn abstain_below(&self, model: &str) -> Option<f32> {
        find(&self.0.load(), model)?.abstain_below
    }
}

/// What a configuration says of one model.
pub fn find<'a>(runtime: &'a config::Runtime, model: &str) -> Option<&'a ModelRuntime> {
    // Most have none: then nothing is compared.
    runtime.models.iter().find(|(name, _)| name.as_str() == model).map(|(_, settings)| settings)
}
