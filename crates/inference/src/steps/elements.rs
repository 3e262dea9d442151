//! Steps that look at one element at a time, fused: the data is read and written once, in tiles that stay in
//! the fastest cache while the steps run over them one after the other.

use farlight_release::manifest::{Datatype, PreStep};
use half::f16;

use super::layout::Split;
use super::pre::{Stage, Work};
use super::signal;

/// Elements of a tile: 16 KiB, half of the smallest first-level cache.
const TILE: usize = 4096;
/// Channels whose elements lie in runs shorter than this have their values laid out element by element, so that
/// neighbours can be computed together.
const SHORT_RUN: usize = 64;

/// A fused list of steps.
pub(super) struct Elements {
    elements: usize,
    operations: Vec<Operation>,
}

enum Operation {
    Scale {
        factor: f32,
        offset: f32,
    },
    Normalise {
        mean: Channels,
        std: Channels,
    },
    Multiply(Channels),
    Clip {
        min: f32,
        max: f32,
    },
    /// Rounded to whole numbers within the ends of an integer type.
    Round {
        min: f32,
        max: f32,
    },
    /// 1 unless it is 0.
    Truth,
    /// Rounded to half precision.
    Half,
}

/// A value for each channel of an axis.
struct Channels {
    /// In order; repeated for each element when `run` is 1.
    values: Vec<f32>,
    /// Neighbours that share a value.
    run: usize,
}

impl Elements {
    pub(super) fn new(elements: usize) -> Self {
        Self { elements, operations: Vec::new() }
    }

    /// Whether nothing was added that does anything.
    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether a step can be fused.
    pub(super) fn takes(step: &PreStep) -> bool {
        matches!(
            step,
            PreStep::Scale { .. }
                | PreStep::Normalise { .. }
                | PreStep::Clip { .. }
                | PreStep::Cast { .. }
                | PreStep::Window { .. }
        )
    }

    /// Adds a step on an array of `shape`, for which its rules were checked.
    pub(super) fn push(&mut self, step: &PreStep, shape: &[usize]) {
        let operation = match step {
            PreStep::Scale { factor, offset } => Operation::Scale { factor: *factor, offset: *offset },
            PreStep::Normalise { axis, mean, std } => Operation::Normalise {
                mean: Channels::new(mean, *axis, shape),
                std: Channels::new(std, *axis, shape),
            },
            PreStep::Clip { min, max } => Operation::Clip { min: *min, max: *max },
            PreStep::Cast { datatype } => match cast(*datatype) {
                Some(operation) => operation,
                None => return,
            },
            PreStep::Window { axis, taper, symmetric } => {
                let taper = signal::taper(*taper, Split::new(*axis, shape).length, *symmetric);
                Operation::Multiply(Channels::new(&taper, *axis, shape))
            }
            _ => return,
        };
        self.operations.push(operation);
    }
}

impl Stage for Elements {
    fn length(&self) -> usize {
        self.elements
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        for (index, (from, to)) in source.chunks(TILE).zip(target.chunks_mut(TILE)).enumerate() {
            to.copy_from_slice(from);
            for operation in &self.operations {
                operation.apply(index * TILE, to);
            }
        }
    }
}

impl Operation {
    /// Applies it to a tile that begins at element `at`.
    fn apply(&self, at: usize, tile: &mut [f32]) {
        match self {
            Self::Scale { factor, offset } => tile.iter_mut().for_each(|v| *v = *v * factor + offset),
            Self::Normalise { mean, std } => {
                mean.apply(at, tile, |v, mean| v - mean);
                std.apply(at, tile, |v, std| v / std);
            }
            Self::Multiply(values) => values.apply(at, tile, |v, w| v * w),
            Self::Clip { min, max } => tile.iter_mut().for_each(|v| *v = v.max(*min).min(*max)),
            Self::Round { min, max } => tile.iter_mut().for_each(|v| {
                let number = if v.is_nan() { 0.0 } else { *v };
                *v = number.max(*min).min(*max).round_ties_even();
            }),
            Self::Truth => tile.iter_mut().for_each(|v| *v = f32::from(u8::from(*v != 0.0 && !v.is_nan()))),
            Self::Half => tile.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        }
    }
}

impl Channels {
    fn new(values: &[f32], axis: usize, shape: &[usize]) -> Self {
        let run = Split::new(axis, shape).inner;
        if run >= SHORT_RUN {
            return Self { values: values.to_vec(), run };
        }
        let once: Vec<f32> = values.iter().flat_map(|value| std::iter::repeat_n(*value, run)).collect();
        // Several periods, so that a period of three colours is not a loop of three.
        let periods = TILE / 4 / once.len().max(1) + 1;
        Self { values: once.repeat(periods), run: 1 }
    }

    /// Applies `f` to each element of a tile that begins at element `at` and to its channel's value.
    fn apply(&self, at: usize, tile: &mut [f32], f: impl Fn(f32, f32) -> f32) {
        let mut at = at;
        let mut rest = tile;
        while !rest.is_empty() {
            let channel = at / self.run % self.values.len();
            let length = if self.run == 1 { self.values.len() - channel } else { self.run - at % self.run };
            let (now, later) = rest.split_at_mut(length.min(rest.len()));
            if self.run == 1 {
                now.iter_mut().zip(&self.values[channel..]).for_each(|(v, value)| *v = f(*v, *value));
            } else {
                let value = self.values[channel];
                now.iter_mut().for_each(|v| *v = f(*v, value));
            }
            at += now.len();
            rest = later;
        }
    }
}

/// The rounding of a type; none for a type that holds what a 32-bit float does.
fn cast(datatype: Datatype) -> Option<Operation> {
    let (min, max) = match datatype {
        Datatype::Bool => return Some(Operation::Truth),
        Datatype::Uint8 => (0.0, f32::from(u8::MAX)),
        Datatype::Uint16 => (0.0, f32::from(u16::MAX)),
        Datatype::Uint32 => (0.0, u32::MAX as f32),
        Datatype::Uint64 => (0.0, u64::MAX as f32),
        Datatype::Int8 => (f32::from(i8::MIN), f32::from(i8::MAX)),
        Datatype::Int16 => (f32::from(i16::MIN), f32::from(i16::MAX)),
        Datatype::Int32 => (i32::MIN as f32, i32::MAX as f32),
        Datatype::Int64 => (i64::MIN as f32, i64::MAX as f32),
        Datatype::Fp16 => return Some(Operation::Half),
        Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes => return None,
    };
    Some(Operation::Round { min, max })
}
