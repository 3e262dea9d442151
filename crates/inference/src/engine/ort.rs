//! ONNX Runtime: the one file that names `ort`. The library is the board's own and is loaded at run time; what it
//! cannot do comes back as a text, so that tract can take its place. Nothing of it may end the process.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use farlight_onnx::proto::tensor_shape_proto::Dimension;
use farlight_onnx::proto::tensor_shape_proto::dimension::Value as Size;
use farlight_onnx::proto::{ValueInfoProto, type_proto};
use farlight_onnx::{Limits, Model};
use farlight_release::manifest::Datatype;
use half::f16;
use ort::environment::Environment;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue, SessionInputs};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};

use super::choice::{OnnxRuntime, Provider, Wish};
use super::tract::guarded;
use super::{Batch, Engine, EngineError, Port};
use crate::tensor::{Tensor, Values};

/// Weights that the sessions of one model may hold together. A session runs one call at a time and has weights of its
/// own: a small model, which threads do not make faster, gets one for each worker; a large one gets few, and threads.
const SESSION_BYTES: usize = 32 * 1024 * 1024;

/// The library, loaded for the rest of the process's life.
pub(super) struct Library(Environment);

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Library")
    }
}

impl Library {
    /// Loads it; why it cannot be, in words.
    pub(super) fn open(configuration: &OnnxRuntime) -> Result<Self, String> {
        let open = |path: &Path| -> Result<Self, String> {
            let builder = ort::init_from(path).map_err(|error| error.to_string())?;
            let builder = builder.with_name("farlight").with_telemetry(false);
            builder.build().map(Self).map_err(|error| error.to_string())
        };
        let opened = guarded(|| open(&configuration.library)).and_then(|opened| opened);
        opened.map_err(|error| format!("ONNX Runtime cannot be used: {error}"))
    }

    /// Loads a graph with the first providers that take it. What could not be had goes to `refused`; `None` when that
    /// is everything.
    pub(super) fn load(
        &self,
        configuration: &OnnxRuntime,
        onnx: &[u8],
        inputs: &[(&str, Vec<usize>)],
        batch: Batch,
        wish: Wish,
        refused: &mut Vec<String>,
    ) -> Option<Sessions> {
        let loaded = guarded(|| {
            let onnx = shaped(onnx, inputs, batch)?;
            self.sessions(configuration, &onnx, wish, refused)
        });
        match loaded {
            Ok(Ok(sessions)) => sessions,
            Err(why) | Ok(Err(EngineError::Load(why))) => {
                refused.push(format!("ONNX Runtime refuses the model: {why}"));
                None
            }
            Ok(Err(error)) => {
                refused.push(error.to_string());
                None
            }
        }
    }

    /// Sessions of the first provider that takes the graph, with those after it; `None` when none is left.
    fn sessions(
        &self,
        configuration: &OnnxRuntime,
        onnx: &[u8],
        wish: Wish,
        refused: &mut Vec<String>,
    ) -> Result<Option<Sessions>, EngineError> {
        let workers = wish.workers.max(1);
        let mut chain: Vec<&Provider> = configuration.providers.iter().collect();
        loop {
            let Some(first) = chain.first() else { return Ok(None) };
            let alone = first.is_cpu();
            // A device works on one call at a time, whoever asks.
            let places = workers / wish.threads.clamp(1, workers);
            let count = if alone { (SESSION_BYTES / onnx.len().max(1)).clamp(1, places) } else { 1 };
            let threads = if wish.threads == 0 { workers / count } else { wish.threads };
            let used = chain.iter().take_while(|provider| !provider.is_cpu());
            let used: Vec<&Provider> = used.copied().collect();
            let session = || self.session(&used, &configuration.session_options, threads.max(1), onnx);
            match (0..count).map(|_| session()).collect::<Result<Vec<_>, _>>() {
                Ok(sessions) => return Sessions::new(sessions, first.short()).map(Some),
                Err((index, reason)) => {
                    let provider = chain.remove(index.min(chain.len().saturating_sub(1)));
                    refused.push(format!("provider {}: {reason}", provider.name));
                }
            }
        }
    }

    /// One session with these providers; the number of the one that refused otherwise.
    fn session(
        &self,
        providers: &[&Provider],
        options: &BTreeMap<String, String>,
        threads: usize,
        onnx: &[u8],
    ) -> Result<Session, (usize, String)> {
        let failed = |error: ort::Error| (0, error.to_string());
        let mut builder = self.builder(options, threads).map_err(failed)?;
        for (index, provider) in providers.iter().enumerate() {
            // Without this the library would run the model on the processor and not say so.
            let registered = dispatch(provider)
                .and_then(|provider| provider.register(&mut builder).map_err(|error| error.to_string()));
            registered.map_err(|error| (index, error))?;
        }
        builder.commit_from_memory(onnx).map_err(failed)
    }

    fn builder(&self, options: &BTreeMap<String, String>, threads: usize) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.0)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Threads that wait for work must not keep a core busy.
            .with_intra_op_spinning(false)?;
        for (key, value) in options {
            builder = builder.with_config_entry(key, value)?;
        }
        Ok(builder)
    }
}

/// The provider of that name, with its options.
fn dispatch(provider: &Provider) -> Result<ExecutionProviderDispatch, String> {
    fn with(
        mut provider: impl ArbitrarilyConfigurableExecutionProvider + Into<ExecutionProviderDispatch>,
        options: &BTreeMap<String, String>,
    ) -> Result<ExecutionProviderDispatch, String> {
        for (key, value) in options {
            if key.contains('\0') || value.contains('\0') {
                return Err(format!("option {key:?} has a NUL in it"));
            }
            provider = provider.with_arbitrary_config(key, value);
        }
        Ok(provider.into())
    }
    let options = &provider.options;
    let plain = |provider: ExecutionProviderDispatch| match options.keys().next() {
        None => Ok(provider),
        Some(option) => Err(format!("it takes no option {option:?}")),
    };
    match provider.short().as_str() {
        "acl" => match options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>()[..] {
            [("enable_fast_math", value @ ("true" | "false"))] => {
                Ok(ep::ACL::default().with_fast_math(value == "true").into())
            }
            _ => plain(ep::ACL::default().into()),
        },
        "cann" => with(ep::CANN::default(), options),
        "cuda" => with(ep::CUDA::default(), options),
        "dnnl" => with(ep::OneDNN::default(), options),
        "openvino" => with(ep::OpenVINO::default(), options),
        "qnn" => with(ep::QNN::default(), options),
        "rknpu" => plain(ep::RKNPU::default().into()),
        "tensorrt" => with(ep::TensorRT::default(), options),
        "vsinpu" => plain(ep::VSINPU.into()),
        "xnnpack" => with(ep::XNNPACK::default(), options),
        _ => Err("this agent does not know it; it knows acl, cann, cpu, cuda, dnnl, openvino, qnn, rknpu, tensorrt, \
                  vsinpu and xnnpack"
            .to_owned()),
    }
}

/// The graph with these shapes: drivers want sizes that are fixed, and running items together one that is not. Sizes that
/// the file says of other values may be stale; the engine finds them.
fn shaped(onnx: &[u8], inputs: &[(&str, Vec<usize>)], batch: Batch) -> Result<Vec<u8>, EngineError> {
    let mut model = Model::parse(onnx, &Limits::DEFAULT)?;
    let names: Vec<String> = model.inputs().into_iter().map(|input| input.name).collect();
    let given: HashSet<&str> = names.iter().map(String::as_str).collect();
    if inputs.len() != names.len() || inputs.iter().any(|(name, _)| !given.contains(name)) {
        let manifest = inputs.iter().map(|(name, _)| (*name).to_owned()).collect();
        return Err(EngineError::Inputs { manifest, graph: names });
    }
    let graph = model.graph_mut();
    graph.value_info.clear();
    for input in &mut graph.input {
        let Some((_, shape)) = inputs.iter().find(|(name, _)| *name == input.name()) else { continue };
        let sizes = shape.iter().enumerate().map(|(axis, size)| match batch {
            Batch::Any if axis == 0 => Some(Size::DimParam("N".to_owned())),
            _ => i64::try_from(*size).ok().map(Size::DimValue),
        });
        if let Some(tensor) = tensor_of(input) {
            let dims = sizes.map(|value| Dimension { value, ..Dimension::default() });
            tensor.shape.get_or_insert_default().dim = dims.collect();
        }
    }
    for output in &mut graph.output {
        let shape = tensor_of(output).and_then(|tensor| tensor.shape.as_mut());
        for dim in shape.into_iter().flat_map(|shape| &mut shape.dim) {
            dim.value = None;
        }
    }
    Ok(model.into_bytes())
}

/// What is declared of a value that is a tensor.
fn tensor_of(value: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match value.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
        _ => None,
    }
}

/// A graph in one or several sessions.
pub(super) struct Sessions {
    sessions: Vec<Mutex<Session>>,
    /// Who waits next when all are busy.
    next: AtomicUsize,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    provider: String,
}

impl Sessions {
    fn new(sessions: Vec<Session>, provider: String) -> Result<Self, EngineError> {
        let ports = |outlets: &[Outlet]| outlets.iter().map(port).collect::<Result<Vec<_>, _>>();
        let first = sessions.first().ok_or_else(|| EngineError::Load("there is no session".to_owned()))?;
        let (inputs, outputs) = (ports(first.inputs())?, ports(first.outputs())?);
        let sessions = sessions.into_iter().map(Mutex::new).collect();
        Ok(Self { sessions, next: AtomicUsize::new(0), inputs, outputs, provider })
    }

    /// A session that is free; when none is, the wait for one.
    fn session(&self) -> Option<MutexGuard<'_, Session>> {
        for session in &self.sessions {
            match session.try_lock() {
                Ok(session) => return Some(session),
                // The session of a call that panicked is the library's, and as good as before.
                Err(TryLockError::Poisoned(session)) => return Some(session.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.sessions.len().max(1);
        Some(self.sessions.get(turn)?.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Engine for Sessions {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn provider(&self) -> Option<&str> {
        Some(&self.provider)
    }

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let failed = |error: String| EngineError::Run(error);
        let mut session = self.session().ok_or_else(|| failed("there is no session".to_owned()))?;
        guarded(|| run(&mut session, inputs)).map_err(failed)?.map_err(|error| failed(error.to_string()))
    }
}

fn run(session: &mut Session, inputs: &[&Tensor]) -> ort::Result<Vec<Tensor>> {
    let values = inputs.iter().map(|tensor| value(tensor)).collect::<ort::Result<Vec<_>>>()?;
    let outputs = session.run(SessionInputs::<'_, '_, 0>::ValueSlice(&values))?;
    outputs.values().map(|output| tensor(&output)).collect()
}

/// A view of a tensor; only texts are copied.
fn value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape.as_slice();
    macro_rules! view {
        ($elements:expr) => {
            TensorRef::from_array_view((shape, $elements.as_slice()))?.into()
        };
    }
    Ok(match &tensor.values {
        Values::Bool(v) => view!(v),
        Values::Uint8(v) => view!(v),
        Values::Uint16(v) => view!(v),
        Values::Uint32(v) => view!(v),
        Values::Uint64(v) => view!(v),
        Values::Int8(v) => view!(v),
        Values::Int16(v) => view!(v),
        Values::Int32(v) => view!(v),
        Values::Int64(v) => view!(v),
        Values::Fp16(v) => view!(v),
        Values::Fp32(v) => view!(v),
        Values::Fp64(v) => view!(v),
        Values::Bytes(v) => {
            let texts = v.iter().map(|bytes| String::from_utf8(bytes.clone())).collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|_| ort::Error::new("text is not UTF-8"))?;
            ort::value::Tensor::from_string_array((shape, texts.as_slice()))?.into()
        }
    })
}

fn tensor(output: &DynValue) -> ort::Result<Tensor> {
    fn copied<T: PrimitiveTensorElementType + Clone>(
        output: &DynValue,
        wrap: fn(Vec<T>) -> Values,
    ) -> ort::Result<Tensor> {
        let (shape, elements) = output.try_extract_tensor::<T>()?;
        Ok(Tensor { shape: sizes(shape), values: wrap(elements.to_vec()) })
    }
    let ValueType::Tensor { ty, .. } = output.dtype() else {
        return Err(ort::Error::new(format!("an output is a {}", output.dtype())));
    };
    match datatype(*ty) {
        Some(Datatype::Bool) => copied(output, Values::Bool),
        Some(Datatype::Uint8) => copied(output, Values::Uint8),
        Some(Datatype::Uint16) => copied(output, Values::Uint16),
        Some(Datatype::Uint32) => copied(output, Values::Uint32),
        Some(Datatype::Uint64) => copied(output, Values::Uint64),
        Some(Datatype::Int8) => copied(output, Values::Int8),
        Some(Datatype::Int16) => copied(output, Values::Int16),
        Some(Datatype::Int32) => copied(output, Values::Int32),
        Some(Datatype::Int64) => copied(output, Values::Int64),
        Some(Datatype::Fp16) => copied::<f16>(output, Values::Fp16),
        Some(Datatype::Fp32) => copied(output, Values::Fp32),
        Some(Datatype::Fp64) => copied(output, Values::Fp64),
        Some(Datatype::Bytes) => {
            let (shape, texts) = output.try_extract_strings()?;
            let values = Values::Bytes(texts.into_iter().map(String::into_bytes).collect());
            Ok(Tensor { shape: sizes(shape), values })
        }
        None => Err(ort::Error::new(format!("an output is of type {ty}"))),
    }
}

fn sizes(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect()
}

fn port(outlet: &Outlet) -> Result<Port, EngineError> {
    let name = outlet.name().to_owned();
    let refuse = |what: &dyn std::fmt::Display| EngineError::Load(format!("{name:?} is of type {what}"));
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(refuse(outlet.dtype())) };
    let datatype = datatype(*ty).ok_or_else(|| refuse(ty))?;
    let shape = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
    Ok(Port { name, datatype, shape })
}

fn datatype(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}
