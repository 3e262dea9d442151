//! Trains the initialisers of a graph by gradient descent and writes them back into the same graph.
//! Same model, data and settings give the same bytes on one machine. Progress and cancelling go
//! through a callback; there is no clock here.

mod adamw;
mod examples;
mod settings;
mod snap;

use std::ops::ControlFlow;

use burn_autodiff::Autodiff;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, Backend, FloatDType, TensorMetadata, try_read_sync};
use burn_flex::{Flex, FlexDevice};
use farlight_onnx::{Model, OnnxError};
use serde::{Deserialize, Serialize};

pub use self::examples::{ExampleError, Examples, top};
pub use self::settings::{Augment, MAX_EPOCHS, Settings};
use crate::graph::{BatchNorm, Output, Parameter, Plan, PlanError, RunError, Runner, float};
use crate::random::Random;
use adamw::AdamW;

/// Samples in one forward pass without gradients.
const EVALUATE_BATCH: usize = 256;

/// How a model does on a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Weighted mean cross-entropy.
    pub loss: f32,
    /// Share of examples whose top class is the target's.
    pub accuracy: f32,
}

/// One pass over the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1; 0 is the model as it was.
    pub epoch: u32,
    /// Passes at most.
    pub of: u32,
    /// Mean training loss during the pass, 0 for epoch 0.
    pub train_loss: f32,
    /// On the validation set after it.
    pub validation: Scores,
    /// True when this is the best so far.
    pub best: bool,
}

/// The result.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The graph with the weights of the best epoch, snapped as [`Settings::change_bits`] says.
    pub model: Model,
    /// On the validation set, of this model: after snapping.
    pub validation: Scores,
    /// Number of the best epoch; 0 when none improved on the start.
    pub best_epoch: u32,
    /// Every epoch, the start first.
    pub history: Vec<Epoch>,
}

/// Why training ended without a result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// The model cannot be trained.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Settings out of range.
    #[error("settings: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// Data that does not fit the model.
    #[error(transparent)]
    Example(#[from] ExampleError),
    /// No examples to train on.
    #[error("the {0} set is empty")]
    Empty(&'static str),
    /// A node failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The graph's output is not one number a class.
    #[error("the output has shape {found:?}; expected [batch, {classes}]")]
    Output {
        /// Its shape.
        found: Vec<usize>,
        /// Classes of the task.
        classes: usize,
    },
    /// The loss left the numbers.
    #[error("the loss is not finite in epoch {epoch}: lower learning_rate (it is {rate})")]
    Diverged {
        /// In which epoch.
        epoch: u32,
        /// The learning rate.
        rate: f32,
    },
    /// The callback asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The device gave no result.
    #[error("the device did not return a tensor: {0}")]
    Device(String),
    /// Weights cannot be written back.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

/// Trains on the CPU. `progress` hears every epoch, the start included, and may stop the run: the
/// result is then [`FitError::Cancelled`].
///
/// # Errors
/// [`FitError`].
pub fn fit(
    model: &Model,
    train: &Examples,
    validation: &Examples,
    classes: usize,
    settings: &Settings,
    progress: &mut dyn FnMut(&Epoch) -> ControlFlow<()>,
) -> Result<Fitted, FitError> {
    fit_on::<Autodiff<Flex>>(FlexDevice, model, train, validation, classes, settings, progress)
}

/// Trains on any differentiable backend.
///
/// # Errors
/// [`FitError`].
pub fn fit_on<B: AutodiffBackend>(
    device: B::Device,
    model: &Model,
    train: &Examples,
    validation: &Examples,
    classes: usize,
    settings: &Settings,
    progress: &mut dyn FnMut(&Epoch) -> ControlFlow<()>,
) -> Result<Fitted, FitError> {
    settings.check().map_err(FitError::Settings)?;
    for (set, name) in [(train, "train"), (validation, "validation")] {
        if set.is_empty() {
            return Err(FitError::Empty(name));
        }
        set.check(name, &train.shape, classes)?;
    }
    let plan = Plan::new(model, &settings.freeze)?;
    let mut fit = Fit::<B> {
        learner: Runner::new(&plan, device.clone(), FloatDType::F32),
        judge: Runner::new(&plan, device, FloatDType::F32),
        weights: values(plan.parameters()),
        state: values(plan.state()),
        plan: &plan,
        classes,
    };
    let mut train = train.clone();
    train.balance(settings.class_weight_cap);
    let smooth = settings.label_smoothing;
    train
        .targets
        .iter_mut()
        .flatten()
        .for_each(|share| *share = *share * (1.0 - smooth) + smooth / classes as f32);

    let start = Epoch {
        epoch: 0,
        of: settings.epochs,
        train_loss: 0.0,
        validation: fit.score(validation)?,
        best: true,
    };
    let mut best = (start.validation.loss, 0, fit.weights.clone(), fit.state.clone());
    let mut history = vec![start];
    if progress(&history[0]).is_break() {
        return Err(FitError::Cancelled);
    }
    let mut adam = AdamW::new(plan.parameters().iter().map(|parameter| parameter.dims.as_slice()));
    let mut random = Random::new(settings.seed);
    let mut order: Vec<usize> = (0..train.len()).collect();
    let per_epoch = train.len().div_ceil(settings.batch);
    let steps = per_epoch * settings.epochs as usize;
    for epoch in 1..=settings.epochs {
        random.shuffle(&mut order);
        let mut total = 0.0;
        for (number, picked) in order.chunks(settings.batch).enumerate() {
            let (loss, gradients) = fit.gradients(&train, picked, settings, &mut random)?;
            if !loss.is_finite() {
                return Err(FitError::Diverged { epoch, rate: settings.learning_rate });
            }
            let rate = settings.rate((epoch as usize - 1) * per_epoch + number, steps);
            adam.step(&mut fit.weights, &gradients, rate, settings.weight_decay, settings.clip_gradient);
            total += loss * picked.len() as f32;
        }
        let scores = fit.score(validation)?;
        let better = scores.loss < best.0;
        if better {
            best = (scores.loss, epoch, fit.weights.clone(), fit.state.clone());
        }
        let done = Epoch {
            epoch,
            of: settings.epochs,
            train_loss: total / train.len() as f32,
            validation: scores,
            best: better,
        };
        let stop = progress(&done);
        history.push(done);
        if stop.is_break() {
            return Err(FitError::Cancelled);
        }
        if settings.patience > 0 && epoch - best.1 >= settings.patience {
            break;
        }
    }
    let (_, best_epoch, weights, state) = best;
    (fit.weights, fit.state) = (weights, state);
    if settings.change_bits > 0 {
        for (parameter, weights) in plan.parameters().iter().zip(&mut fit.weights) {
            snap::snap(&parameter.values, weights, settings.change_bits);
        }
    }
    let mut trained = model.clone();
    for (parameter, weights) in plan.parameters().iter().zip(&fit.weights) {
        trained.replace_f32(&parameter.name, weights)?;
    }
    if settings.batch_norm == BatchNorm::Training {
        for (statistic, values) in plan.state().iter().zip(&fit.state) {
            trained.replace_f32(&statistic.name, values)?;
        }
    }
    Ok(Fitted { model: trained, validation: fit.score(validation)?, best_epoch, history })
}

/// The class probabilities of each input, by the trainer's own arithmetic on the CPU. For
/// selection and progress; what counts is scored with the fleet's engine.
///
/// # Errors
/// [`FitError`].
pub fn predict(
    model: &Model,
    shape: &[usize],
    x: &[Vec<f32>],
    classes: usize,
) -> Result<Vec<Vec<f32>>, FitError> {
    let plan = Plan::new(model, &[])?;
    let fit = Fit::<Autodiff<Flex>> {
        learner: Runner::new(&plan, FlexDevice, FloatDType::F32),
        judge: Runner::new(&plan, FlexDevice, FloatDType::F32),
        weights: values(plan.parameters()),
        state: values(plan.state()),
        plan: &plan,
        classes,
    };
    let inputs: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
    let elements: usize = shape.iter().product();
    if let Some(index) = inputs.iter().position(|x| x.len() != elements) {
        let reason = format!("{} values where {shape:?} needs {elements}", x[index].len());
        return Err(ExampleError { set: "predicted", index, reason }.into());
    }
    fit.log_probabilities(shape, &inputs)
        .map(|rows| rows.into_iter().map(|row| row.into_iter().map(f32::exp).collect()).collect())
}

fn values(parameters: &[Parameter]) -> Vec<Vec<f32>> {
    parameters.iter().map(|parameter| parameter.values.clone()).collect()
}

fn read<B: Backend>(tensor: FloatTensor<B>) -> Result<Vec<f32>, FitError> {
    let device = |error: String| FitError::Device(error);
    let data = try_read_sync(B::float_into_data(tensor))
        .ok_or_else(|| device("it is not ready".into()))?
        .map_err(|error| device(error.to_string()))?;
    data.into_vec::<f32>().map_err(|error| device(format!("{error:?}")))
}

/// A run: weights on the host, graph on the device with and without gradients.
struct Fit<'a, B: AutodiffBackend> {
    plan: &'a Plan,
    learner: Runner<'a, B>,
    judge: Runner<'a, B::InnerBackend>,
    weights: Vec<Vec<f32>>,
    state: Vec<Vec<f32>>,
    classes: usize,
}

impl<B: AutodiffBackend> Fit<'_, B> {
    /// Loss and gradients of one batch; running statistics move when batch norm trains.
    fn gradients(
        &mut self,
        set: &Examples,
        picked: &[usize],
        settings: &Settings,
        random: &mut Random,
    ) -> Result<(f32, Vec<Vec<f32>>), FitError> {
        let mut inputs = Vec::with_capacity(picked.len() * set.x[picked[0]].len());
        let mut targets = Vec::with_capacity(picked.len() * self.classes);
        let total: f32 = picked.iter().map(|&at| set.weights[at]).sum();
        for &at in picked {
            let from = inputs.len();
            inputs.extend_from_slice(&set.x[at]);
            if settings.augment != Augment::default() {
                examples::vary(&mut inputs[from..], &set.shape, &settings.augment, random);
            }
            targets.extend(set.targets[at].iter().map(|share| share * set.weights[at] / total));
        }
        let runner = &self.learner;
        let x = runner.lift(&inputs, &[&[picked.len()], set.shape.as_slice()].concat());
        let parameters: Vec<FloatTensor<B>> = self
            .plan
            .parameters()
            .iter()
            .zip(&self.weights)
            .map(|(parameter, values)| B::float_set_require_grad(runner.lift(values, &parameter.dims), true))
            .collect();
        let state: Vec<FloatTensor<B>> = self
            .plan
            .state()
            .iter()
            .zip(&self.state)
            .map(|(s, values)| runner.lift(values, &s.dims))
            .collect();
        let Output { logits, running } = runner.run(x, &parameters, &state, settings.batch_norm)?;
        let expected = [picked.len(), self.classes];
        if logits.shape().as_ref() != expected {
            return Err(FitError::Output { found: float::dims::<B>(&logits), classes: self.classes });
        }
        let logs = float::softmax::<B>(logits, 1, true);
        let loss = B::float_neg(B::float_sum(B::float_mul(logs, runner.lift(&targets, &expected))));
        let value = read::<B::InnerBackend>(B::inner(loss.clone()))?;
        let mut gradients = B::backward(loss);
        let gradients = parameters
            .iter()
            .zip(&self.weights)
            .map(|(parameter, weights)| match B::grad_remove(parameter, &mut gradients) {
                Some(gradient) => read::<B::InnerBackend>(gradient),
                None => Ok(vec![0.0; weights.len()]),
            })
            .collect::<Result<_, _>>()?;
        for (at, mean, variance) in running {
            self.state[at] = read::<B::InnerBackend>(B::inner(mean))?;
            self.state[at + 1] = read::<B::InnerBackend>(B::inner(variance))?;
        }
        Ok((value.first().copied().unwrap_or(f32::NAN), gradients))
    }

    fn score(&self, set: &Examples) -> Result<Scores, FitError> {
        let inputs: Vec<&[f32]> = set.x.iter().map(Vec::as_slice).collect();
        let logs = self.log_probabilities(&set.shape, &inputs)?;
        let (mut loss, mut right) = (0.0f64, 0usize);
        for (at, logs) in logs.iter().enumerate() {
            let cross: f32 = logs.iter().zip(&set.targets[at]).map(|(log, share)| -log * share).sum();
            loss += f64::from(cross * set.weights[at]);
            right += usize::from(top(logs) == set.label(at));
        }
        let total: f64 = set.weights.iter().map(|&weight| f64::from(weight)).sum();
        Ok(Scores { loss: (loss / total) as f32, accuracy: right as f32 / set.len() as f32 })
    }

    fn log_probabilities(&self, shape: &[usize], inputs: &[&[f32]]) -> Result<Vec<Vec<f32>>, FitError> {
        let runner = &self.judge;
        let lift = |parameters: &[Parameter], values: &[Vec<f32>]| -> Vec<_> {
            parameters.iter().zip(values).map(|(p, values)| runner.lift(values, &p.dims)).collect()
        };
        let parameters = lift(self.plan.parameters(), &self.weights);
        let state = lift(self.plan.state(), &self.state);
        let mut rows = Vec::with_capacity(inputs.len());
        for batch in inputs.chunks(EVALUATE_BATCH) {
            let x = runner.lift(&batch.concat(), &[&[batch.len()], shape].concat());
            let logits = runner.run(x, &parameters, &state, BatchNorm::Frozen)?.logits;
            if logits.shape().as_ref() != [batch.len(), self.classes] {
                let found = float::dims::<B::InnerBackend>(&logits);
                return Err(FitError::Output { found, classes: self.classes });
            }
            let logs = read::<B::InnerBackend>(float::softmax::<B::InnerBackend>(logits, 1, true))?;
            rows.extend(logs.chunks(self.classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(rows)
    }
}
