//! Runs a plan on one batch: dispatch only, the arithmetic is in `float` and `host`.

use burn_backend::{Backend, FloatDType, Shape, TensorData};

use super::float::{self, Tensor, dims};
use super::host::{self, Host};
use super::op::{Axes, Binary, Constant, Op, Reduction};
use super::plan::{Plan, Step};

/// What batch normalisation does while training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchNorm {
    /// Normalises by the running statistics of the file, which stay: right for few new cases.
    #[default]
    Frozen,
    /// Normalises by the batch and updates the running statistics: right for training from nothing.
    Training,
}

/// A node that failed on a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {node} ({operator}) cannot run: {reason}")]
pub struct RunError {
    /// Its name.
    pub node: String,
    /// Operator.
    pub operator: String,
    /// Why.
    pub reason: String,
}

/// The logits of a batch, and what batch normalisation saw.
pub(crate) struct Output<B: Backend> {
    pub(crate) logits: Tensor<B>,
    /// Index of a running mean in the state, its new value and that of the variance behind it.
    pub(crate) running: Vec<(usize, Tensor<B>, Tensor<B>)>,
}

enum Value<B: Backend> {
    Float(Tensor<B>),
    Int(Host),
}

impl<B: Backend> Clone for Value<B> {
    fn clone(&self) -> Self {
        match self {
            Self::Float(tensor) => Self::Float(tensor.clone()),
            Self::Int(host) => Self::Int(host.clone()),
        }
    }
}

/// A plan with its constants on a device.
pub(crate) struct Runner<'a, B: Backend> {
    plan: &'a Plan,
    device: B::Device,
    precision: FloatDType,
    constants: Vec<(usize, Value<B>)>,
}

impl<'a, B: Backend> Runner<'a, B> {
    pub(crate) fn new(plan: &'a Plan, device: B::Device, precision: FloatDType) -> Self {
        let constants = plan
            .constants
            .iter()
            .map(|(slot, constant)| (*slot, value(constant, precision, &device)))
            .collect();
        Self { plan, device, precision, constants }
    }

    /// A tensor on this runner's device.
    pub(crate) fn lift(&self, values: &[f32], dims: &[usize]) -> Tensor<B> {
        float::lift::<B>(values, dims, self.precision, &self.device)
    }

    /// Runs one batch with these parameters and running statistics, both in the plan's order.
    pub(crate) fn run(
        &self,
        x: Tensor<B>,
        parameters: &[Tensor<B>],
        state: &[Tensor<B>],
        mode: BatchNorm,
    ) -> Result<Output<B>, RunError> {
        let mut values: Vec<Option<Value<B>>> = vec![None; self.plan.slots];
        for (slot, constant) in &self.constants {
            values[*slot] = Some(constant.clone());
        }
        let named = self.plan.parameters().iter().zip(parameters).chain(self.plan.state().iter().zip(state));
        for (parameter, tensor) in named {
            values[parameter.slot] = Some(Value::Float(tensor.clone()));
        }
        values[self.plan.input] = Some(Value::Float(x));
        let mut running = Vec::new();
        for step in &self.plan.steps {
            let result = self.step(step, &values, mode, &mut running).map_err(|reason| RunError {
                node: step.name.clone(),
                operator: step.operator.clone(),
                reason,
            })?;
            values[step.output] = Some(result);
        }
        match values[self.plan.logits].take() {
            Some(Value::Float(logits)) => Ok(Output { logits, running }),
            _ => Err(RunError {
                node: "output".into(),
                operator: "none".into(),
                reason: "the output is not a float tensor".into(),
            }),
        }
    }

    fn step(
        &self,
        step: &Step,
        values: &[Option<Value<B>>],
        mode: BatchNorm,
        running: &mut Vec<(usize, Tensor<B>, Tensor<B>)>,
    ) -> Result<Value<B>, String> {
        let input =
            |place: usize| step.inputs.get(place).copied().flatten().and_then(|slot| values[slot].as_ref());
        let tensor = |place: usize| match input(place) {
            Some(Value::Float(tensor)) => Ok(tensor.clone()),
            Some(Value::Int(_)) => Err(format!("input {place} is of integers")),
            None => Err(format!("input {place} is missing")),
        };
        let ints = |place: usize| match input(place) {
            Some(Value::Int(host)) => Ok(host.clone()),
            _ => Err(format!("input {place} must be integers known from shapes")),
        };
        let axes = |axes: &Axes, rank: usize| match axes {
            Axes::Fixed(list) => host::axes(list, rank),
            Axes::Input => host::axes(&ints(1)?.values, rank),
        };
        if let Some(Value::Int(first)) = input(0) {
            let list = match &step.op {
                Op::Squeeze(Axes::Input) | Op::Unsqueeze(Axes::Input) => ints(1)?.values,
                Op::Squeeze(Axes::Fixed(list)) | Op::Unsqueeze(Axes::Fixed(list)) => list.clone(),
                _ => Vec::new(),
            };
            let rest = (1..step.inputs.len()).map(|place| ints(place).ok()).collect::<Vec<_>>();
            return integers(&step.op, first, &rest, &list).map(Value::Int);
        }
        let x = match &step.op {
            Op::Constant(constant) => return Ok(value(constant, self.precision, &self.device)),
            _ => tensor(0)?,
        };
        let from = dims::<B>(&x);
        let rank = from.len();
        Ok(Value::Float(match &step.op {
            Op::Unary(op) => float::unary::<B>(*op, x),
            Op::Binary(op) => float::binary::<B>(*op, x, tensor(1)?)?,
            Op::Conv { window, groups } => {
                let bias = input(2).is_some().then(|| tensor(2)).transpose()?;
                float::conv::<B>(x, tensor(1)?, bias, window, *groups)?
            }
            Op::Gemm { alpha, beta, trans_a, trans_b } => {
                let b = tensor(1)?;
                if rank != 2 || dims::<B>(&b).len() != 2 {
                    return Err("Gemm takes matrices".into());
                }
                let a = if *trans_a { B::float_swap_dims(x, 0, 1) } else { x };
                let b = if *trans_b { B::float_swap_dims(b, 0, 1) } else { b };
                let scale =
                    |t: Tensor<B>, by: f64| if by == 1.0 { t } else { B::float_mul_scalar(t, by.into()) };
                let product = scale(float::matmul::<B>(a, b)?, *alpha);
                match input(2) {
                    Some(_) => float::binary::<B>(Binary::Add, product, scale(tensor(2)?, *beta))?,
                    None => product,
                }
            }
            Op::MatMul => float::matmul::<B>(x, tensor(1)?)?,
            Op::BatchNorm { epsilon, momentum } => {
                if rank < 2 {
                    return Err(format!("an input of shape {from:?}"));
                }
                let mut wide = vec![1; rank];
                wide[1] = from[1];
                let channel = |place: usize| float::reshape::<B>(tensor(place)?, &wide);
                let (mean, variance) = match (mode, step.running) {
                    (BatchNorm::Training, Some(at)) => {
                        let over: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
                        let mean = float::reduce::<B>(Reduction::Mean, x.clone(), &over, true)?;
                        let centred = float::binary::<B>(Binary::Sub, x.clone(), mean.clone())?;
                        let square = B::float_mul(centred.clone(), centred);
                        let variance = float::reduce::<B>(Reduction::Mean, square, &over, true)?;
                        let blend = |old: Tensor<B>, new: &Tensor<B>| {
                            let old = B::float_mul_scalar(old, (*momentum).into());
                            let new =
                                B::float_mul_scalar(B::float_detach(new.clone()), (1.0 - momentum).into());
                            float::binary::<B>(Binary::Add, old, new)
                        };
                        running.push((at, blend(channel(3)?, &mean)?, blend(channel(4)?, &variance)?));
                        (mean, variance)
                    }
                    _ => (channel(3)?, channel(4)?),
                };
                float::normalise::<B>(x, mean, variance, channel(1)?, Some(channel(2)?), *epsilon)?
            }
            Op::LayerNorm { axis, epsilon } => {
                let over: Vec<usize> = (host::axis(*axis, rank)?..rank).collect();
                let mean = float::reduce::<B>(Reduction::Mean, x.clone(), &over, true)?;
                let centred = float::binary::<B>(Binary::Sub, x.clone(), mean.clone())?;
                let square = B::float_mul(centred.clone(), centred);
                let variance = float::reduce::<B>(Reduction::Mean, square, &over, true)?;
                let bias = input(2).is_some().then(|| tensor(2)).transpose()?;
                float::normalise::<B>(x, mean, variance, tensor(1)?, bias, *epsilon)?
            }
            Op::MaxPool(window) => float::max_pool::<B>(x, window)?,
            Op::AveragePool { window, count_pad } => float::average_pool::<B>(x, window, *count_pad)?,
            Op::GlobalAveragePool | Op::GlobalMaxPool => {
                let how = if step.op == Op::GlobalMaxPool { Reduction::Max } else { Reduction::Mean };
                if rank < 3 {
                    return Err(format!("an input of shape {from:?} has no spatial axis"));
                }
                let flat = float::reshape::<B>(x, &[from[0], from[1], from[2..].iter().product()])?;
                let mut to = vec![1; rank];
                to[..2].copy_from_slice(&from[..2]);
                float::reshape::<B>(float::reduce::<B>(how, flat, &[2], true)?, &to)?
            }
            Op::Reduce { how, axes: which, keep, noop_when_empty } => {
                let mut over = axes(which, rank)?;
                if over.is_empty() && *noop_when_empty {
                    return Ok(Value::Float(x));
                }
                if over.is_empty() {
                    over = (0..rank).collect();
                }
                float::reduce::<B>(*how, x, &over, *keep)?
            }
            Op::Softmax { axis, flatten, log } => {
                let axis = host::axis(*axis, rank)?;
                if *flatten {
                    let rows = from[..axis].iter().product();
                    let flat = float::reshape::<B>(x, &[rows, from[axis..].iter().product()])?;
                    float::reshape::<B>(float::softmax::<B>(flat, 1, *log), &from)?
                } else {
                    float::softmax::<B>(x, axis, *log)
                }
            }
            Op::Clip { min, max } => {
                let bound = |place: usize, fixed: Option<f64>| match (
                    fixed,
                    step.inputs.get(place).copied().flatten(),
                ) {
                    (Some(fixed), _) => Ok(Some(fixed)),
                    (None, None) => Ok(None),
                    (None, Some(slot)) => self.scalar(slot).map(Some),
                };
                let x = match bound(1, *min)? {
                    Some(min) => B::float_clamp_min(x, min.into()),
                    None => x,
                };
                match bound(2, *max)? {
                    Some(max) => B::float_clamp_max(x, max.into()),
                    None => x,
                }
            }
            Op::Reshape { zero_is_zero } => {
                let to = host::reshaped(&from, &ints(1)?.values, *zero_is_zero)?;
                float::reshape::<B>(x, &to)?
            }
            Op::Flatten { axis } => {
                let signed = i64::try_from(rank).unwrap_or(i64::MAX);
                let at = if *axis == signed { rank } else { host::axis(*axis, rank)? };
                float::reshape::<B>(x, &[from[..at].iter().product(), from[at..].iter().product()])?
            }
            Op::Transpose { perm } => {
                let perm = perm.clone().unwrap_or_else(|| (0..rank).rev().collect());
                let mut sorted = perm.clone();
                sorted.sort_unstable();
                if sorted != (0..rank).collect::<Vec<_>>() {
                    return Err(format!("perm {perm:?} on rank {rank}"));
                }
                B::float_permute(x, &perm)
            }
            Op::Squeeze(which) => {
                let mut drop = axes(which, rank)?;
                if drop.is_empty() {
                    drop = (0..rank).filter(|&axis| from[axis] == 1).collect();
                }
                let to: Vec<usize> =
                    (0..rank).filter(|axis| !drop.contains(axis)).map(|axis| from[axis]).collect();
                float::reshape::<B>(x, &to)?
            }
            Op::Unsqueeze(which) => {
                let added = match which {
                    Axes::Fixed(list) => list.len(),
                    Axes::Input => ints(1)?.values.len(),
                };
                let at = axes(which, rank + added)?;
                let mut old = from.iter();
                let to: Vec<usize> = (0..rank + added)
                    .map(|axis| if at.contains(&axis) { 1 } else { old.next().copied().unwrap_or(1) })
                    .collect();
                float::reshape::<B>(x, &to)?
            }
            Op::Concat { axis } => {
                let axis = host::axis(*axis, rank)?;
                let parts = (0..step.inputs.len()).map(tensor).collect::<Result<Vec<_>, _>>()?;
                for part in parts.iter().map(dims::<B>) {
                    let fits = part.len() == rank && (0..rank).all(|at| at == axis || part[at] == from[at]);
                    if !fits {
                        return Err(format!("{part:?} does not join {from:?} along axis {axis}"));
                    }
                }
                B::float_cat(parts, axis)
            }
            Op::Slice { fixed } => {
                let [starts, ends, which] = match fixed {
                    Some(fixed) => fixed.clone(),
                    None => {
                        let which = if input(3).is_some() { ints(3)?.values } else { Vec::new() };
                        [ints(1)?.values, ints(2)?.values, which]
                    }
                };
                let steps = if fixed.is_none() && input(4).is_some() { ints(4)?.values } else { Vec::new() };
                let mut x = x;
                for (at, (&start, &end)) in starts.iter().zip(&ends).enumerate() {
                    let number = i64::try_from(at).unwrap_or(i64::MAX);
                    let axis = host::axis(which.get(at).copied().unwrap_or(number), rank)?;
                    let step = steps.get(at).copied().unwrap_or(1);
                    let (start, end) = host::bounds(start, end, step, dims::<B>(&x)[axis])?;
                    x = float::slice::<B>(x, axis, start, end)?;
                }
                x
            }
            Op::Gather { axis } => {
                let axis = host::axis(*axis, rank)?;
                let indices = ints(1)?;
                let picked = indices
                    .values
                    .iter()
                    .map(|&index| host::axis(index, from[axis]).map(|at| at as i64))
                    .collect::<Result<Vec<_>, _>>()?;
                let data = TensorData::new(picked, Shape::from(vec![indices.values.len()]));
                let picked = B::float_select(x, axis, B::int_from_data(data, &self.device));
                float::reshape::<B>(picked, &[&from[..axis], &indices.dims, &from[axis + 1..]].concat())?
            }
            Op::Cast { .. } => x,
            Op::Shape => {
                let values = from.iter().map(|&dim| i64::try_from(dim).unwrap_or(i64::MAX)).collect();
                return Ok(Value::Int(Host::list(values)));
            }
            Op::Constant(constant) => return Ok(value(constant, self.precision, &self.device)),
        }))
    }

    /// The number in a constant slot.
    fn scalar(&self, slot: usize) -> Result<f64, String> {
        let constants = self.plan.constants.iter().map(|(slot, constant)| (*slot, constant));
        let nodes = self.plan.steps.iter().filter_map(|step| match &step.op {
            Op::Constant(constant) => Some((step.output, constant)),
            _ => None,
        });
        match constants.chain(nodes).find(|(at, _)| *at == slot) {
            Some((_, Constant::Float { values, .. })) if values.len() == 1 => Ok(f64::from(values[0])),
            _ => Err("a bound that is not a constant number".into()),
        }
    }
}

fn value<B: Backend>(constant: &Constant, precision: FloatDType, device: &B::Device) -> Value<B> {
    match constant {
        Constant::Float { dims, values } => Value::Float(float::lift::<B>(values, dims, precision, device)),
        Constant::Int(host) => Value::Int(host.clone()),
    }
}

/// An operator on integers; `rest` are the inputs after the first, `axes` those of (Un)Squeeze.
fn integers(op: &Op, first: &Host, rest: &[Option<Host>], axes: &[i64]) -> Result<Host, String> {
    let other = |place: usize| rest.get(place).and_then(Option::as_ref).ok_or("an input is not of integers");
    Ok(match op {
        Op::Unary(_) | Op::Cast { .. } => first.clone(),
        Op::Binary(Binary::Add) => first.zip(other(0)?, i64::checked_add)?,
        Op::Binary(Binary::Sub) => first.zip(other(0)?, i64::checked_sub)?,
        Op::Binary(Binary::Mul) => first.zip(other(0)?, i64::checked_mul)?,
        Op::Binary(Binary::Div) => first.zip(other(0)?, i64::checked_div)?,
        Op::Gather { .. } => first.gather(other(0)?)?,
        Op::Concat { .. } => {
            let mut values = first.values.clone();
            for place in 0..rest.len() {
                values.extend(&other(place)?.values);
            }
            Host::list(values)
        }
        Op::Slice { fixed } => {
            let (start, end) = match fixed {
                Some([starts, ends, _]) => (starts.first().copied(), ends.first().copied()),
                None => (other(0)?.values.first().copied(), other(1)?.values.first().copied()),
            };
            let step = rest.get(3).and_then(Option::as_ref).and_then(|steps| steps.values.first()).copied();
            let (start, end) = start.zip(end).ok_or("a slice without bounds")?;
            let (start, end) = host::bounds(start, end, step.unwrap_or(1), first.values.len())?;
            Host::list(first.values[start..end].to_vec())
        }
        Op::Unsqueeze(_) if first.dims.is_empty() && axes == [0] => Host::list(first.values.clone()),
        Op::Squeeze(_) if first.values.len() == 1 => Host { dims: vec![], values: first.values.clone() },
        Op::Reshape { .. } => {
            let dims = host::reshaped(&first.dims, &other(0)?.values, false)?;
            Host { dims, values: first.values.clone() }
        }
        _ => return Err("this operator on integers".into()),
    })
}
