//! Which engines there are and which one is to run a graph. Made once by the process and handed to whoever loads a
//! release. Nothing here names an engine's library.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::tract::Tract;
use super::{Batch, Engine, EngineError};

/// An engine by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Built in; runs everywhere.
    #[default]
    Tract,
    /// The ONNX Runtime of the board, if it has one.
    OnnxRuntime,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tract => "tract",
            Self::OnnxRuntime => "onnxruntime",
        })
    }
}

/// ONNX Runtime as the board has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnnxRuntime {
    /// Its library, `libonnxruntime.so`; absolute.
    pub library: PathBuf,
    /// Execution providers in order of preference, at least one. Operators that one cannot run are run by those after it, or by ONNX
    /// Runtime's own code. `cpu` is that code alone; where it is not in the list, and no other can be had, tract runs
    /// the model.
    pub providers: Vec<Provider>,
    /// ONNX Runtime's own session options, such as `session.disable_cpu_ep_fallback`.
    pub session_options: BTreeMap<String, String>,
}

impl OnnxRuntime {
    /// Whether it may run models on more than the processor: then drivers work in this process.
    pub fn has_drivers(&self) -> bool {
        self.providers.iter().any(|provider| !provider.is_cpu())
    }

    /// Whether its own code for the processor is what is preferred.
    pub fn is_on_processor(&self) -> bool {
        self.providers.first().is_some_and(Provider::is_cpu)
    }
}

/// An execution provider of ONNX Runtime: what runs operators on an NPU, a GPU, or faster on the processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// Its name: `qnn`, `QNN` and `QNNExecutionProvider` are the same.
    pub name: String,
    /// Its options by ONNX Runtime's names.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Provider {
    /// ONNX Runtime's own code, on the processor.
    pub fn cpu() -> Self {
        Self { name: "cpu".to_owned(), options: BTreeMap::new() }
    }

    /// Whether it is [`Provider::cpu`].
    pub fn is_cpu(&self) -> bool {
        self.short() == "cpu"
    }

    /// Its name in lower case, without what ONNX Runtime puts behind it.
    pub(crate) fn short(&self) -> String {
        let name = self.name.to_ascii_lowercase();
        name.strip_suffix("executionprovider").unwrap_or(&name).to_owned()
    }
}

/// How a graph is to be run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// By which engine, if it can.
    pub(crate) kind: Kind,
    /// Calls that are to run at once.
    pub(crate) workers: usize,
    /// Threads of one call, where the engine has any; 0 for as many as all calls together leave.
    pub(crate) threads: usize,
}

/// The engines that are there. Cheap to clone; the default is tract alone.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    onnxruntime: Option<Arc<Opened>>,
}

/// ONNX Runtime, or why it is not there.
#[derive(Debug)]
struct Opened {
    configuration: OnnxRuntime,
    #[cfg(feature = "onnxruntime")]
    library: Result<super::ort::Library, String>,
}

impl Engines {
    /// Loads the library of ONNX Runtime. It stays in the process, which can have one only, so this is called once. What
    /// is wrong with it is said for each model that was to be run with it.
    pub fn open(onnxruntime: Option<OnnxRuntime>) -> Self {
        let opened = onnxruntime.map(|configuration| Opened {
            #[cfg(feature = "onnxruntime")]
            library: super::ort::Library::open(&configuration),
            configuration,
        });
        Self { onnxruntime: opened.map(Arc::new) }
    }

    /// ONNX Runtime as it was configured.
    pub fn onnxruntime(&self) -> Option<&OnnxRuntime> {
        self.onnxruntime.as_deref().map(|opened| &opened.configuration)
    }

    /// Why ONNX Runtime cannot be used at all; `None` when it can.
    pub fn trouble(&self) -> Option<&str> {
        match self.onnxruntime.as_deref() {
            None => Some("inference.onnxruntime.library is not set"),
            #[cfg(feature = "onnxruntime")]
            Some(opened) => opened.library.as_ref().err().map(String::as_str),
            #[cfg(not(feature = "onnxruntime"))]
            Some(_) => Some("this build has no ONNX Runtime (feature onnxruntime)"),
        }
    }

    /// Loads a graph as it is wished, or by tract.
    pub(crate) fn load(&self, onnx: &[u8], graph: &Graph<'_>, wish: Wish) -> Result<Loaded, EngineError> {
        let tract = |refused| {
            let load = |batch| -> Result<Arc<dyn Engine>, EngineError> {
                Ok(Arc::new(Tract::load(onnx, &graph.inputs, batch)?))
            };
            let batched = graph.batches.then(|| load(Batch::Any)).transpose()?;
            Ok(Loaded { engine: load(Batch::Fixed)?, batched, refused })
        };
        match wish.kind {
            Kind::Tract => tract(Vec::new()),
            Kind::OnnxRuntime => self.load_onnxruntime(onnx, graph, wish).or_else(tract),
        }
    }

    #[cfg(feature = "onnxruntime")]
    fn load_onnxruntime(&self, onnx: &[u8], graph: &Graph<'_>, wish: Wish) -> Result<Loaded, Vec<String>> {
        let Some(Opened { configuration, library: Ok(library) }) = self.onnxruntime.as_deref() else {
            return Err(self.trouble().map(str::to_owned).into_iter().collect());
        };
        let mut refused = Vec::new();
        let mut load = |batch| -> Option<Arc<dyn Engine>> {
            let loaded = library.load(configuration, onnx, &graph.inputs, batch, wish, &mut refused);
            loaded.map(|sessions| Arc::new(sessions) as Arc<dyn Engine>)
        };
        let engine = load(Batch::Fixed);
        // One engine answers for a model, whether alone or together with others: they differ in the last digits.
        let batched = if graph.batches { load(Batch::Any).map(Some) } else { Some(None) };
        refused.dedup();
        match (engine, batched) {
            (Some(engine), Some(batched)) => Ok(Loaded { engine, batched, refused }),
            _ => Err(refused),
        }
    }

    #[cfg(not(feature = "onnxruntime"))]
    fn load_onnxruntime(&self, _: &[u8], _: &Graph<'_>, _: Wish) -> Result<Loaded, Vec<String>> {
        Err(self.trouble().map(str::to_owned).into_iter().collect())
    }
}

/// What is known of a graph before it is loaded.
pub(crate) struct Graph<'a> {
    /// Names and shapes (batch included) of its inputs, in any order.
    pub(crate) inputs: Vec<(&'a str, Vec<usize>)>,
    /// Whether it is to run several items at once, too.
    pub(crate) batches: bool,
}

/// A loaded graph.
pub(crate) struct Loaded {
    pub(crate) engine: Arc<dyn Engine>,
    /// The same graph for several items at once.
    pub(crate) batched: Option<Arc<dyn Engine>>,
    /// What was wished for and could not be had, each with its reason.
    pub(crate) refused: Vec<String>,
}
