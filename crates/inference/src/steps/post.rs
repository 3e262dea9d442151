//! The plan of the postprocessing: steps over the outputs of a model by name, in place where the shape
//! stays. The plan runs the steps once on zeros, so that what it refuses is what a run would refuse.

use farlight_release::manifest::PostStep;
use farlight_release::manifest::check::MAX_ELEMENTS;
use farlight_release::manifest::steps::{Nms, StepProblem};

use super::layout::{Split, Take, Transpose};
use super::pre::{Stage, Work};
use super::{Array, NamedArray, StepError, nms};

/// A planned postprocessing.
#[derive(Debug, Clone)]
pub struct Post {
    steps: Vec<PostStep>,
    outputs: Vec<(String, Vec<usize>)>,
}

impl Post {
    /// Plans `steps` for a model's `outputs`, names and shapes without the batch.
    ///
    /// # Errors
    /// [`StepError::Step`] with the index of the step that does not fit and the field that is wrong.
    pub fn plan(steps: &[PostStep], outputs: &[(String, Vec<usize>)]) -> Result<Self, StepError> {
        if steps.is_empty() {
            return Ok(Self { steps: Vec::new(), outputs: outputs.to_vec() });
        }
        let mut arrays = Vec::with_capacity(outputs.len());
        for (name, shape) in outputs {
            let array = zeros(shape).map_err(|problem| StepError::Step { step: 0, problem })?;
            arrays.push(NamedArray { name: name.clone(), array });
        }
        for (step, one) in steps.iter().enumerate() {
            let tried = one.check().and_then(|()| apply(one, &mut arrays));
            tried
                .and_then(|()| widest(one, &mut arrays))
                .map_err(|problem| StepError::Step { step, problem })?;
        }
        let outputs = arrays.into_iter().map(|output| (output.name, output.array.shape)).collect();
        Ok(Self { steps: steps.to_vec(), outputs })
    }

    /// Names and shapes of the result; the first axis of suppressed boxes is the most that are kept.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &self.outputs
    }

    /// Turns a model's outputs into the answer's and returns the threshold below which there is none, if one
    /// is declared.
    ///
    /// # Errors
    /// [`StepError`] only for outputs of other names or shapes than planned for.
    pub fn run(&self, outputs: &mut Vec<NamedArray>) -> Result<Option<f32>, StepError> {
        for NamedArray { array, .. } in outputs.iter() {
            let product = array.shape.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis));
            if product != Some(array.values.len()) {
                let expected = product.unwrap_or(usize::MAX);
                return Err(StepError::Length { got: array.values.len(), expected });
            }
        }
        let mut threshold = None;
        for (step, one) in self.steps.iter().enumerate() {
            apply(one, outputs).map_err(|problem| StepError::Step { step, problem })?;
            if let PostStep::Abstain { threshold: lowest } = one {
                threshold = Some(*lowest);
            }
        }
        Ok(threshold)
    }
}

fn problem<T>(field: &'static str, rule: impl Into<String>) -> Result<T, StepProblem> {
    Err(StepProblem { field, rule: rule.into() })
}

fn zeros(shape: &[usize]) -> Result<Array, StepProblem> {
    let product = shape.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis));
    match product {
        Some(elements) if elements <= MAX_ELEMENTS => {
            Ok(Array { shape: shape.to_vec(), values: vec![0.0; elements] })
        }
        _ => problem("output", format!("has shape {shape:?}, more than {MAX_ELEMENTS} elements")),
    }
}

/// Gives the result of a step whose number of rows is known only when it runs the most of them.
fn widest(step: &PostStep, arrays: &mut [NamedArray]) -> Result<(), StepProblem> {
    if let PostStep::Nms(Nms { name, max_boxes, .. }) = step {
        let at = find(arrays, Some(name), "name")?;
        arrays[at].array = zeros(&[*max_boxes, nms::ROW])?;
    }
    Ok(())
}

/// Index of an output by name, else of the first.
fn find(arrays: &[NamedArray], name: Option<&String>, field: &'static str) -> Result<usize, StepProblem> {
    match name {
        Some(name) => arrays.iter().position(|output| output.name == *name).ok_or_else(|| {
            let names: Vec<&str> = arrays.iter().map(|output| output.name.as_str()).collect();
            StepProblem { field, rule: format!("is {name:?}, but the outputs here are {names:?}") }
        }),
        None if arrays.is_empty() => problem(field, "has no output to work on"),
        None => Ok(0),
    }
}

/// The array seen from an axis, the last without one.
fn split(array: &Array, axis: Option<usize>) -> Result<(usize, Split), StepProblem> {
    let axis = axis.unwrap_or(array.shape.len().saturating_sub(1));
    match array.shape.get(axis) {
        Some(0) => problem("axis", format!("is {axis}, which has no elements in {:?}", array.shape)),
        Some(_) => Ok((axis, Split::new(axis, &array.shape))),
        None => problem("axis", format!("is {axis}, which is no axis of {:?}", array.shape)),
    }
}

/// Refuses a name that another output has.
fn is_new(arrays: &[NamedArray], name: &str, field: &'static str) -> Result<(), StepProblem> {
    match arrays.iter().any(|output| output.name == name) {
        true => problem(field, format!("makes an output {name:?}, which there is already")),
        false => Ok(()),
    }
}

/// The step on `arrays`; its own rules were checked.
fn apply(step: &PostStep, arrays: &mut Vec<NamedArray>) -> Result<(), StepProblem> {
    let mut each = |output: &Option<String>, f: &dyn Fn(f32) -> f32| {
        let at = find(arrays, output.as_ref(), "output")?;
        arrays[at].array.values.iter_mut().for_each(|v| *v = f(*v));
        Ok(())
    };
    match step {
        PostStep::Sigmoid { output } => each(output, &|v| 1.0 / (1.0 + (-v).exp())),
        PostStep::Scale { factor, offset, output } => each(output, &|v| v * factor + offset),
        PostStep::Threshold { at, output } => each(output, &|v| f32::from(u8::from(v >= *at))),
        PostStep::Softmax { axis, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            let (_, split) = split(&arrays[at].array, *axis)?;
            softmax(split, &mut arrays[at].array.values);
            Ok(())
        }
        PostStep::Argmax { axis, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            argmax(&mut arrays[at].array, *axis)
        }
        PostStep::Transpose { axes, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            transpose(&mut arrays[at].array, axes)
        }
        PostStep::LabelMap { axis, indices, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            label_map(&mut arrays[at].array, *axis, indices)
        }
        PostStep::TopK { k, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            let name = format!("{}_indices", arrays[at].name);
            is_new(arrays, &name, "output")?;
            let array = top_k(&mut arrays[at].array, *k)?;
            arrays.insert(at + 1, NamedArray { name, array });
            Ok(())
        }
        PostStep::Split { axis, lengths, names, output } => {
            let at = find(arrays, output.as_ref(), "output")?;
            let parts = parts(&arrays[at].array, *axis, lengths)?;
            arrays.remove(at);
            for name in names {
                is_new(arrays, name, "names")?;
            }
            let named = names.iter().zip(parts).map(|(name, array)| NamedArray { name: name.clone(), array });
            arrays.splice(at..at, named);
            Ok(())
        }
        PostStep::Keep { outputs } => {
            let mut kept = Vec::with_capacity(outputs.len());
            for name in outputs {
                let at = find(arrays, Some(name), "outputs")?;
                kept.push(arrays.remove(at));
            }
            *arrays = kept;
            Ok(())
        }
        PostStep::Nms(step) => suppress(step, arrays),
        PostStep::Abstain { .. } => Ok(()),
    }
}

/// Softmax with the maximum subtracted, so that large logits do not overflow.
fn softmax(split: Split, values: &mut [f32]) {
    let Split { length, inner, .. } = split;
    for block in values.chunks_exact_mut((length * inner).max(1)) {
        for offset in 0..inner {
            let line = || block[offset..].iter().step_by(inner);
            let max = line().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for value in block[offset..].iter_mut().step_by(inner) {
                *value = (*value - max).exp();
                sum += *value;
            }
            block[offset..].iter_mut().step_by(inner).for_each(|value| *value /= sum);
        }
    }
}

fn argmax(array: &mut Array, axis: Option<usize>) -> Result<(), StepProblem> {
    let (axis, Split { outer, length, inner }) = split(array, axis)?;
    let mut result = Vec::with_capacity(outer * inner);
    for block in array.values.chunks_exact((length * inner).max(1)) {
        for offset in 0..inner {
            let line = block[offset..].iter().step_by(inner).enumerate();
            let best =
                line.fold((0, f32::NEG_INFINITY), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
            result.push(best.0 as f32);
        }
    }
    array.values = result;
    array.shape.remove(axis);
    if array.shape.is_empty() {
        array.shape.push(1);
    }
    Ok(())
}

fn transpose(array: &mut Array, axes: &[usize]) -> Result<(), StepProblem> {
    if axes.len() != array.shape.len() {
        return problem("axes", format!("must name each axis of {:?} once", array.shape));
    }
    let plan = Transpose::new(axes, &array.shape);
    array.values = run(&plan, &array.values);
    array.shape = axes.iter().filter_map(|axis| array.shape.get(*axis).copied()).collect();
    Ok(())
}

/// The result of one stage in a buffer of its own.
fn run(stage: &impl Stage, source: &[f32]) -> Vec<f32> {
    let mut target = vec![0.0; stage.length()];
    stage.run(source, &mut target, &mut Work::default());
    target
}

fn label_map(array: &mut Array, axis: Option<usize>, indices: &[usize]) -> Result<(), StepProblem> {
    let (axis, split) = split(array, axis)?;
    if let Some(index) = indices.iter().find(|index| **index >= split.length) {
        return problem("indices", format!("has {index}, but the axis has {} classes", split.length));
    }
    let mut shape = array.shape.clone();
    shape[axis] = indices.len();
    zeros(&shape)?;
    array.values = run(&Take::new(split, indices.iter().copied().map(Some), 0.0), &array.values);
    array.shape = shape;
    Ok(())
}

/// Leaves the `k` largest of the last axis, falling, and returns their indices.
fn top_k(array: &mut Array, k: usize) -> Result<Array, StepProblem> {
    let (axis, Split { outer, length, .. }) = split(array, None)?;
    if k > length {
        return problem("k", format!("is {k}, but the last axis has {length} elements"));
    }
    let mut values = Vec::with_capacity(outer * k);
    let mut indices = Vec::with_capacity(outer * k);
    for row in array.values.chunks_exact(length) {
        let mut order: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
        let falling = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if k < length {
            order.select_nth_unstable_by(k, falling);
        }
        order.truncate(k);
        order.sort_unstable_by(falling);
        values.extend(order.iter().map(|(_, value)| *value));
        indices.extend(order.iter().map(|(index, _)| *index as f32));
    }
    array.values = values;
    array.shape[axis] = k;
    Ok(Array { shape: array.shape.clone(), values: indices })
}

fn parts(array: &Array, axis: usize, lengths: &[usize]) -> Result<Vec<Array>, StepProblem> {
    let (axis, split) = split(array, Some(axis))?;
    let sum = lengths.iter().try_fold(0_usize, |sum, length| sum.checked_add(*length));
    if sum != Some(split.length) {
        return problem("lengths", format!("must add up to the axis' {} elements", split.length));
    }
    let mut at = 0;
    let part = |length: &usize| {
        let take = Take::new(split, (at..at + length).map(Some), 0.0);
        at += length;
        let mut shape = array.shape.clone();
        shape[axis] = *length;
        Array { shape, values: run(&take, &array.values) }
    };
    Ok(lengths.iter().map(part).collect())
}

fn suppress(step: &Nms, arrays: &mut Vec<NamedArray>) -> Result<(), StepProblem> {
    let boxes = find(arrays, Some(&step.boxes), "boxes")?;
    let scores = find(arrays, Some(&step.scores), "scores")?;
    let array = nms::suppress(step, &arrays[boxes].array, &arrays[scores].array)?;
    arrays[boxes] = NamedArray { name: step.name.clone(), array };
    arrays.remove(scores);
    let same = arrays.iter().filter(|output| output.name == step.name).count();
    if same > 1 {
        return problem("name", format!("makes an output {:?}, which there is already", step.name));
    }
    Ok(())
}
