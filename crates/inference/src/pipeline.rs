//! The pipeline: a loaded release and the workers that run it, one item at a time or several at once.

use std::sync::Arc;

use farlight_onnx::Limits;
use farlight_release::manifest::{BatchAxis, Datatype, Manifest, TensorSpec};
use farlight_wire::codes::Code;

use crate::contract;
use crate::engine::choice::{Engines, Graph, Kind, Loaded, Wish};
use crate::engine::{Engine, EngineError, Port};
use crate::outputs::Outputs;
use crate::prediction::Prediction;
use crate::steps::{Pre, Scratch, StepError};
use crate::tensor::{Tensor, Values, elements};

/// Largest input in elements (a 4-channel 2048 × 2048 image): bounds what a manifest can make a device
/// allocate for each request.
const MAX_INPUT_ELEMENTS: usize = 16 * 1024 * 1024;

/// Why a release cannot be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// A manifest field that does not fit.
    #[error("manifest field {field}: {problem}")]
    Manifest {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine refused the file.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl LoadError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Engine(EngineError::Onnx(error)) => error.code(),
            Self::Engine(_) | Self::Manifest { .. } => Code::SelfTestLoad,
        }
    }
}

/// Why a request cannot be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunError {
    /// Another number of elements than the manifest's shape has.
    #[error("input has {got} elements, but its shape asks for {expected}")]
    Length {
        /// Elements received.
        got: usize,
        /// Elements of the shape.
        expected: usize,
    },
    /// Other inputs than the manifest names, or of another type.
    #[error("{0}")]
    Inputs(String),
    /// The input breaks the data contract, and the contract says to refuse.
    #[error("{violations} input elements break the data contract (not finite, or outside {min} to {max})")]
    Contract {
        /// How many elements.
        violations: u32,
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One item as an application sends it: shapes without the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Elements of the main input.
    pub main: Values,
    /// Elements of the other inputs, in the manifest's order.
    pub more: Vec<Values>,
}

impl From<Vec<f32>> for Item {
    fn from(raw: Vec<f32>) -> Self {
        Self { main: Values::Fp32(raw), more: Vec::new() }
    }
}

/// What a stream hands from one call to the next, in the manifest's order.
#[derive(Debug, Clone, PartialEq)]
pub struct State(Vec<Tensor>);

impl State {
    /// Takes what a call left, each for its state; nothing when one is of another shape or type.
    fn leave(&mut self, left: Vec<(usize, Tensor)>) -> Result<(), EngineError> {
        let kind = |tensor: &Tensor| (tensor.shape.clone(), tensor.values.datatype());
        let fits = |(index, tensor): &&(usize, Tensor)| self.0.get(*index).map(kind) == Some(kind(tensor));
        if let Some((_, other)) = left.iter().find(|left| !fits(left)) {
            return Err(EngineError::Run(format!("a state came back with shape {:?}", other.shape)));
        }
        for (index, tensor) in left {
            if let Some(state) = self.0.get_mut(index) {
                *state = tensor;
            }
        }
        Ok(())
    }
}

/// Where an input of the graph comes from.
#[derive(Debug, Clone, Copy)]
enum Feed {
    Main,
    More(usize),
    State(usize),
}

/// A loaded release. Cheap to clone: workers share the plan and its weights.
#[derive(Clone)]
pub struct Pipeline {
    engine: Arc<dyn Engine>,
    /// The same graph for several items at once.
    batched: Option<Arc<dyn Engine>>,
    /// What was wished for and could not be had.
    refused: Arc<[String]>,
    manifest: Arc<Manifest>,
    pre: Arc<Pre>,
    answers: Arc<Outputs>,
    /// Where each input of the graph comes from.
    feeds: Arc<[Feed]>,
    /// Which state each output of the graph becomes; `None` for those that are answers.
    fates: Arc<[Option<usize>]>,
    elements: usize,
}

/// How a pipeline is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether several items can be run at once.
    pub batches: bool,
    /// The engine to run it with; tract takes the place of one that cannot.
    pub engine: Kind,
    /// Calls that run at once, which an engine may make room for; 0 is 1.
    pub workers: usize,
    /// Threads of one call in ONNX Runtime; 0 for as many as all calls together leave of `workers`. tract has none.
    pub threads: usize,
}

impl Pipeline {
    /// Loads the ONNX bytes of a release under its manifest, with tract.
    ///
    /// # Errors
    /// [`LoadError`] naming the manifest field that does not fit, or the engine's reason.
    pub fn load(manifest: &Manifest, onnx: &[u8]) -> Result<Self, LoadError> {
        Self::load_with(manifest, onnx, Options::default(), &Engines::default())
    }

    /// As [`Pipeline::load`], with options and other engines. When the one that is wished for cannot run the model,
    /// tract does; [`Pipeline::refused`] then says why.
    ///
    /// # Errors
    /// [`LoadError`] naming the manifest field that does not fit, or the engine's reason.
    pub fn load_with(
        manifest: &Manifest,
        onnx: &[u8],
        options: Options,
        engines: &Engines,
    ) -> Result<Self, LoadError> {
        let elements = check(manifest)?;
        let field = |field, error: StepError| LoadError::Manifest { field, problem: error.to_string() };
        let pre = Pre::plan(&manifest.pre, &manifest.input.shape).map_err(|error| field("pre", error))?;
        // No engine sees a file that is over a limit.
        farlight_onnx::check(onnx, &Limits::DEFAULT).map_err(EngineError::from)?;
        let batches =
            options.batches && manifest.states.is_empty() && manifest.batch_axis == BatchAxis::Leading;
        let graph = Graph { inputs: wanted(manifest, pre.output_shape()), batches };
        let wish = Wish { kind: options.engine, workers: options.workers, threads: options.threads };
        let Loaded { engine, batched, refused } = engines.load(onnx, &graph, wish)?;
        let feeds: Arc<[Feed]> = engine.inputs().iter().filter_map(|port| feed(manifest, port)).collect();
        let fates: Vec<Option<usize>> = engine
            .outputs()
            .iter()
            .map(|port| manifest.states.iter().position(|state| state.output == port.name))
            .collect();
        check_ports(manifest, &*engine)?;
        let answers = engine.outputs().iter().zip(&fates).filter(|(_, fate)| fate.is_none());
        let answers = Outputs::plan(manifest, answers.map(|(port, _)| port.clone()).collect())?;
        let (manifest, fates) = (Arc::new(manifest.clone()), fates.into());
        let (pre, answers) = (Arc::new(pre), Arc::new(answers));
        let refused = refused.into();
        Ok(Self { engine, batched, refused, manifest, pre, answers, feeds, fates, elements })
    }

    /// The manifest it was loaded under.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The engine that runs it, for people: `tract` or `onnxruntime`.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// The execution provider that runs it, where the engine has several.
    pub fn provider(&self) -> Option<&str> {
        self.engine.provider()
    }

    /// What was wished for and could not be had, each with its reason: providers, or the whole engine. Empty when it
    /// runs as it was asked.
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    /// What clients are told that there is: the outputs of the graph that are answers, after postprocessing.
    pub fn outputs(&self) -> &[Port] {
        self.answers.ports()
    }

    /// Whether several items can be run at once.
    pub fn batches(&self) -> bool {
        self.batched.is_some()
    }

    /// Elements of one main input.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Whether its calls hand a state on.
    pub fn has_state(&self) -> bool {
        !self.manifest.states.is_empty()
    }

    /// What a stream begins with; `None` for a model without state.
    pub fn state(&self) -> Option<State> {
        let states = &self.manifest.states;
        let zeros = || states.iter().map(|state| Tensor::zeros(state.datatype, &state.shape)).collect();
        (!states.is_empty()).then(|| State(zeros()))
    }

    /// The tensor that the engine sees for one raw input, after contract and preprocessing: what a
    /// trainer of the same graph must be fed.
    ///
    /// # Errors
    /// [`RunError`] for a wrong length or a refused contract violation.
    pub fn prepare(&self, raw: &[f32]) -> Result<Vec<f32>, RunError> {
        let (mut input, mut scratch) = (raw.to_vec(), Scratch::default());
        self.checked(&mut input)?;
        Ok(self.pre.run(&mut scratch, &input).map_err(failed)?.to_vec())
    }

    /// A worker with buffers of its own.
    ///
    /// # Errors
    /// [`LoadError::Engine`] when the engine cannot make one.
    pub fn worker(&self) -> Result<Worker, LoadError> {
        Ok(Worker { pipeline: self.clone(), buffers: Buffers::default() })
    }

    /// Holds an input to its contract; how many elements broke it.
    fn checked(&self, input: &mut [f32]) -> Result<u32, RunError> {
        if input.len() != self.elements {
            return Err(RunError::Length { got: input.len(), expected: self.elements });
        }
        let spec = &self.manifest.input;
        let violations = contract::check(spec, input);
        obey(spec, violations)?;
        Ok(violations)
    }

    /// The main input as the engine takes it, and how many elements broke the contract.
    fn main(&self, port: &Port, main: &Values, buffers: &mut Buffers) -> Result<(Values, u32), RunError> {
        let spec = &self.manifest.input;
        if main.len() != self.elements {
            return Err(RunError::Length { got: main.len(), expected: self.elements });
        }
        // Without steps there is no need to go through single precision, which cannot hold every integer.
        if self.manifest.pre.is_empty() && main.datatype() == port.datatype && port.datatype != Datatype::Fp32
        {
            let violations = contract::count(spec, main);
            obey(spec, violations)?;
            return Ok((main.clone(), violations));
        }
        let Buffers { raw, scratch, ready } = buffers;
        raw.clear();
        let floats =
            main.to_f32().ok_or_else(|| RunError::Inputs(format!("{:?} takes numbers", spec.name)))?;
        raw.extend_from_slice(&floats);
        let violations = self.checked(raw)?;
        let input = self.pre.run(scratch, raw).map_err(failed)?;
        if port.datatype == Datatype::Fp32 {
            let mut values = std::mem::take(ready);
            values.clear();
            values.extend_from_slice(input);
            return Ok((Values::Fp32(values), violations));
        }
        let values = Values::from_f32(port.datatype, input);
        let values = values.ok_or_else(|| RunError::Inputs(format!("{:?} takes text", spec.name)))?;
        Ok((values, violations))
    }

    /// One of the other inputs; how many elements broke the contract.
    fn more(&self, index: usize, item: &Item) -> Result<(Values, u32), RunError> {
        let wrong =
            || RunError::Inputs(format!("the model takes {} inputs", 1 + self.manifest.more_inputs.len()));
        let spec = self.manifest.more_inputs.get(index).ok_or_else(wrong)?;
        let values = item.more.get(index).ok_or_else(wrong)?;
        if values.datatype() != spec.datatype {
            let (name, wanted, got) = (&spec.name, spec.datatype.name(), values.datatype().name());
            return Err(RunError::Inputs(format!("input {name:?} is {got}, the model takes {wanted}")));
        }
        let expected = elements(&spec.shape).unwrap_or(0);
        if values.len() != expected {
            return Err(RunError::Length { got: values.len(), expected });
        }
        let violations = contract::count(spec, values);
        obey(spec, violations)?;
        Ok((values.clone(), violations))
    }

    /// The tensors of one item in the order of the graph's inputs.
    fn tensors(
        &self,
        item: &Item,
        state: Option<&State>,
        buffers: &mut Buffers,
    ) -> Result<(Vec<Tensor>, u32), RunError> {
        let mut violations = 0_u32;
        let mut tensors = Vec::with_capacity(self.feeds.len());
        for (feed, port) in self.feeds.iter().zip(self.engine.inputs()) {
            let shape = port.shape.iter().map(|size| size.unwrap_or(1)).collect();
            let (values, broken) = match feed {
                Feed::Main => self.main(port, &item.main, buffers)?,
                Feed::More(index) => self.more(*index, item)?,
                Feed::State(index) => {
                    let missing = || RunError::Inputs("the model has a state, the request none".to_owned());
                    tensors.push(state.and_then(|state| state.0.get(*index)).ok_or_else(missing)?.clone());
                    continue;
                }
            };
            violations = violations.saturating_add(broken);
            tensors.push(Tensor { shape, values });
        }
        Ok((tensors, violations))
    }
}

fn failed(error: StepError) -> RunError {
    RunError::Engine(EngineError::Run(format!("preprocessing: {error}")))
}

/// What a worker keeps from one request to the next, so that it need not be allocated again.
#[derive(Default)]
struct Buffers {
    /// The input as it came, held to its contract.
    raw: Vec<f32>,
    scratch: Scratch,
    /// What the engine was given last.
    ready: Vec<f32>,
}

/// Runs one request after another; buffers are reused.
pub struct Worker {
    pipeline: Pipeline,
    buffers: Buffers,
}

impl Worker {
    /// The manifest it runs under.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.pipeline.manifest
    }

    /// Answers one main input of the manifest's shape, row-major, as the application sent it, on a stream that
    /// begins here.
    ///
    /// # Errors
    /// [`RunError`] for a wrong length, a refused contract violation, or an engine failure.
    pub fn run(&mut self, raw: &[f32]) -> Result<Prediction, RunError> {
        self.answer(&raw.to_vec().into(), self.pipeline.state().as_mut(), || {})
    }

    /// Answers one item. `state` is what its stream left after the call before, and becomes what this one leaves; it
    /// stays as it was when the call fails. `mark` is called when preprocessing is done, and again when the engine is.
    ///
    /// # Errors
    /// [`RunError`] for wrong inputs, a refused contract violation, or an engine failure.
    pub fn answer(
        &mut self,
        item: &Item,
        state: Option<&mut State>,
        mut mark: impl FnMut(),
    ) -> Result<Prediction, RunError> {
        let pipeline = &self.pipeline;
        let (mut tensors, violations) = pipeline.tensors(item, state.as_deref(), &mut self.buffers)?;
        mark();
        let outputs = pipeline.engine.run(&tensors.iter().collect::<Vec<_>>());
        mark();
        if let Some(index) = pipeline.feeds.iter().position(|feed| matches!(feed, Feed::Main))
            && let Some(Values::Fp32(ready)) = tensors.get_mut(index).map(|tensor| &mut tensor.values)
        {
            self.buffers.ready = std::mem::take(ready);
        }
        let (mut answers, mut left) = (Vec::new(), Vec::new());
        for (output, fate) in outputs?.into_iter().zip(&*pipeline.fates) {
            match fate {
                None => answers.push(output),
                Some(index) => left.push((*index, output)),
            }
        }
        let prediction = pipeline.answers.answer(answers, violations)?;
        if let Some(state) = state {
            state.leave(left)?;
        }
        Ok(prediction)
    }

    /// Answers several items at once where the pipeline batches, else one after the other. One that is refused does
    /// not keep the others from their answers. `mark` as in [`Worker::answer`].
    pub fn answer_all(
        &mut self,
        items: &[&Item],
        mut mark: impl FnMut(),
    ) -> Vec<Result<Prediction, RunError>> {
        let pipeline = self.pipeline.clone();
        let Some(engine) = pipeline.batched.as_deref().filter(|_| items.len() > 1) else {
            return items
                .iter()
                .map(|item| self.answer(item, pipeline.state().as_mut(), &mut mark))
                .collect();
        };
        let ready: Vec<_> =
            items.iter().map(|item| pipeline.tensors(item, None, &mut self.buffers)).collect();
        let violations: Vec<u32> = ready.iter().flatten().map(|(_, violations)| *violations).collect();
        let stacked = stack(ready.iter().flatten().map(|(tensors, _)| tensors));
        mark();
        let outputs = stacked.map(|stacked| engine.run(&stacked.iter().collect::<Vec<_>>()));
        mark();
        let outputs = outputs.unwrap_or_else(|| Ok(Vec::new())).map_err(RunError::from);
        let apart = outputs.and_then(|outputs| unstack(&outputs, violations.len()));
        let answers = apart.and_then(|items| {
            let judged = items.into_iter().zip(violations);
            judged.map(|(outputs, n)| pipeline.answers.answer(outputs, n)).collect::<Result<Vec<_>, _>>()
        });
        match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                let lost = || EngineError::Run("an answer is missing".to_owned()).into();
                let one = |ready: Result<_, _>| ready.and_then(|_| answers.next().ok_or_else(lost));
                ready.into_iter().map(one).collect()
            }
            Err(error) => ready.into_iter().map(|ready| ready.and(Err(error.clone()))).collect(),
        }
    }
}

/// Puts the tensors of several items behind one another along the first axis.
fn stack<'a>(mut items: impl Iterator<Item = &'a Vec<Tensor>>) -> Option<Vec<Tensor>> {
    let mut stacked = items.next()?.clone();
    for item in items {
        for (all, one) in stacked.iter_mut().zip(item) {
            all.values.append(&one.values);
            if let (Some(all), Some(one)) = (all.shape.first_mut(), one.shape.first()) {
                *all += one;
            }
        }
    }
    Some(stacked)
}

/// Takes the outputs of `count` items apart along the first axis.
fn unstack(outputs: &[Tensor], count: usize) -> Result<Vec<Vec<Tensor>>, RunError> {
    let mut items = vec![Vec::with_capacity(outputs.len()); count];
    for output in outputs {
        if output.shape.first() != Some(&count) {
            let text = format!("{count} items were answered with shape {:?}", output.shape);
            return Err(EngineError::Run(text).into());
        }
        let size = output.values.len() / count.max(1);
        for (index, item) in items.iter_mut().enumerate() {
            let mut shape = output.shape.clone();
            shape[0] = 1;
            item.push(Tensor { shape, values: output.values.part(index * size, size) });
        }
    }
    Ok(items)
}

/// Refuses an input that broke its contract where the contract says so.
fn obey(spec: &TensorSpec, violations: u32) -> Result<(), RunError> {
    match contract::refuses(spec, violations) {
        true => Err(RunError::Contract { violations, min: spec.min, max: spec.max }),
        false => Ok(()),
    }
}

/// Names and shapes (batch included) of what the graph is to take.
fn wanted<'a>(manifest: &'a Manifest, main: &'a [usize]) -> Vec<(&'a str, Vec<usize>)> {
    let batched = |shape: &[usize]| match manifest.batch_axis {
        BatchAxis::Leading => std::iter::once(1).chain(shape.iter().copied()).collect(),
        BatchAxis::None => shape.to_vec(),
    };
    let more = manifest.more_inputs.iter().map(|spec| (spec.name.as_str(), batched(&spec.shape)));
    let inputs = std::iter::once((manifest.input.name.as_str(), batched(main))).chain(more);
    inputs.chain(manifest.states.iter().map(|state| (state.input.as_str(), state.shape.clone()))).collect()
}

fn feed(manifest: &Manifest, port: &Port) -> Option<Feed> {
    if manifest.input.name == port.name {
        return Some(Feed::Main);
    }
    let more = manifest.more_inputs.iter().position(|spec| spec.name == port.name).map(Feed::More);
    more.or_else(|| manifest.states.iter().position(|state| state.input == port.name).map(Feed::State))
}

/// Whether shapes, steps and profile of a manifest fit together; the elements of a main input.
fn check(manifest: &Manifest) -> Result<usize, LoadError> {
    let shape = &manifest.input.shape;
    let field = |field, problem: String| LoadError::Manifest { field, problem };
    let elements = elements(shape).filter(|n| (1..=MAX_INPUT_ELEMENTS).contains(n)).ok_or_else(|| {
        field("input.shape", format!("{shape:?} has no elements or more than {MAX_INPUT_ELEMENTS}"))
    })?;
    for feature in &manifest.profile.features {
        if shape.first().is_none_or(|channels| feature.channel >= *channels) {
            return Err(field("profile.features.channel", format!("{} is not a channel", feature.channel)));
        }
    }
    Ok(elements)
}

/// Whether the graph's types are what the manifest says.
fn check_ports(manifest: &Manifest, engine: &dyn Engine) -> Result<(), LoadError> {
    let field = |field, problem: String| LoadError::Manifest { field, problem };
    for port in engine.inputs() {
        let name = |datatype| port.datatype != datatype;
        let more = manifest.more_inputs.iter().find(|spec| spec.name == port.name);
        if let Some(spec) = more.filter(|spec| name(spec.datatype)) {
            let problem =
                format!("{:?} is {}, not {}", port.name, port.datatype.name(), spec.datatype.name());
            return Err(field("more_inputs.datatype", problem));
        }
        let state = manifest.states.iter().find(|state| state.input == port.name);
        if let Some(state) = state.filter(|state| name(state.datatype)) {
            let problem =
                format!("{:?} is {}, not {}", port.name, port.datatype.name(), state.datatype.name());
            return Err(field("states.datatype", problem));
        }
    }
    for state in &manifest.states {
        if !engine.outputs().iter().any(|port| port.name == state.output) {
            return Err(field("states.output", format!("the graph has no output {:?}", state.output)));
        }
    }
    Ok(())
}
