//! Steps that move elements: transpose, crop, pad, frame, and the nearest element of a resize.

use farlight_release::manifest::check::MAX_RANK;
use farlight_release::manifest::steps::Border;

use super::pre::{Stage, Work};

/// A shape seen from one of its axes: `[outer, length, inner]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub(super) outer: usize,
    pub(super) length: usize,
    pub(super) inner: usize,
}

impl Split {
    /// At an axis of `shape`.
    pub(super) fn new(axis: usize, shape: &[usize]) -> Self {
        let product = |axes: Option<&[usize]>| axes.unwrap_or_default().iter().product();
        let length = shape.get(axis).copied().unwrap_or(1);
        Self { outer: product(shape.get(..axis)), length, inner: product(shape.get(axis + 1..)) }
    }
}

/// Neighbours along an axis that are copied together.
struct Run {
    /// Where they lie in the source; without, they are the fill value.
    from: Option<usize>,
    length: usize,
}

/// Elements of an axis taken in another order, several times, or not at all.
pub(super) struct Take {
    split: Split,
    runs: Vec<Run>,
    value: f32,
    length: usize,
}

impl Take {
    /// Takes for each element of the result along the axis the source's element, or `value` without one.
    pub(super) fn new(split: Split, indices: impl Iterator<Item = Option<usize>>, value: f32) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        let mut count = 0;
        for index in indices {
            count += 1;
            match runs.last_mut() {
                Some(run) if run.from.map(|from| from + run.length) == index => run.length += 1,
                _ => runs.push(Run { from: index, length: 1 }),
            }
        }
        Self { split, runs, value, length: split.outer * count * split.inner }
    }
}

impl Stage for Take {
    fn length(&self) -> usize {
        self.length
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        let Split { length, inner, .. } = self.split;
        let mut rest = target;
        for block in source.chunks_exact((length * inner).max(1)) {
            for run in &self.runs {
                let (now, later) = rest.split_at_mut(run.length * inner);
                match run.from {
                    Some(from) => now.copy_from_slice(&block[from * inner..(from + run.length) * inner]),
                    None => now.fill(self.value),
                }
                rest = later;
            }
        }
    }
}

/// Axes in another order.
pub(super) struct Transpose {
    /// Shape of the result.
    shape: Vec<usize>,
    /// Distance in the source from one element to the next, for each axis of the result.
    strides: Vec<usize>,
}

impl Transpose {
    pub(super) fn new(axes: &[usize], shape: &[usize]) -> Self {
        let splits: Vec<Split> = axes.iter().map(|axis| Split::new(*axis, shape)).collect();
        Self {
            shape: splits.iter().map(|split| split.length).collect(),
            strides: splits.iter().map(|split| split.inner).collect(),
        }
    }
}

impl Stage for Transpose {
    fn length(&self) -> usize {
        self.shape.iter().product()
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        let (Some((row, outer)), Some((step, strides))) =
            (self.shape.split_last(), self.strides.split_last())
        else {
            return;
        };
        let mut index = [0_usize; MAX_RANK];
        let mut base = 0;
        for row in target.chunks_exact_mut((*row).max(1)) {
            let from = source.get(base..).unwrap_or_default();
            row.iter_mut().zip(from.iter().step_by(*step)).for_each(|(to, from)| *to = *from);
            // The next index before the last axis, as an odometer counts.
            for ((at, length), stride) in index.iter_mut().zip(outer).zip(strides).rev() {
                *at += 1;
                base += stride;
                if *at < *length {
                    break;
                }
                base -= stride * length;
                *at = 0;
            }
        }
    }
}

/// Adds the stages that crop, an axis after the other.
pub(super) fn crop(
    stages: &mut Vec<Box<dyn Stage>>,
    axes: &[usize],
    size: &[usize],
    offset: Option<&[usize]>,
    shape: &[usize],
) {
    let mut shape = shape.to_vec();
    for (i, (axis, size)) in axes.iter().zip(size).enumerate() {
        let split = Split::new(*axis, &shape);
        let centre = split.length.saturating_sub(*size) / 2;
        let at = offset.and_then(|offset| offset.get(i).copied()).unwrap_or(centre);
        add_take(stages, *axis, &mut shape, (at..at + size).map(Some), 0.0);
    }
}

/// Adds the stages that pad, an axis after the other.
pub(super) fn pad(
    stages: &mut Vec<Box<dyn Stage>>,
    axes: &[usize],
    (before, after): (&[usize], &[usize]),
    (border, value): (Border, f32),
    shape: &[usize],
) {
    let mut shape = shape.to_vec();
    for (axis, (before, after)) in axes.iter().zip(before.iter().zip(after)) {
        let length = Split::new(*axis, &shape).length;
        let source = |at: usize| match at.checked_sub(*before) {
            Some(at) if at < length => Some(at),
            inside_or_after => match border {
                Border::Constant => None,
                Border::Edge => Some(if inside_or_after.is_some() { length - 1 } else { 0 }),
                Border::Reflect => Some(match inside_or_after {
                    Some(at) => (2 * (length - 1)).saturating_sub(at),
                    None => before - at,
                }),
            },
        };
        add_take(stages, *axis, &mut shape, (0..before + length + after).map(source), value);
    }
}

/// The stage that cuts an axis into windows.
pub(super) fn frame(axis: usize, window: usize, stride: usize, shape: &[usize]) -> Take {
    let split = Split::new(axis, shape);
    let frames = 1 + split.length.saturating_sub(window) / stride.max(1);
    let indices = (0..frames).flat_map(|frame| (frame * stride..frame * stride + window).map(Some));
    Take::new(split, indices, 0.0)
}

/// Adds a stage that takes `indices` of an axis, unless they are all of it in order.
pub(super) fn add_take(
    stages: &mut Vec<Box<dyn Stage>>,
    axis: usize,
    shape: &mut [usize],
    indices: impl ExactSizeIterator<Item = Option<usize>>,
    value: f32,
) {
    let split = Split::new(axis, shape);
    let length = indices.len();
    let take = Take::new(split, indices, value);
    let all = matches!(take.runs.as_slice(), [Run { from: Some(0), length }] if *length == split.length);
    if !all {
        stages.push(Box::new(take));
    }
    if let Some(slot) = shape.get_mut(axis) {
        *slot = length;
    }
}
