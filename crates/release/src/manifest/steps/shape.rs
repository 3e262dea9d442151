//! The rules of the preprocessing steps and what each makes of a shape. `Manifest::check` follows the shape
//! through all steps, and so does the plan that runs them, so that both refuse the same.

use super::rules::{Rule, ensure, finite, permutation};
use super::{
    Border, Centre, LogMel, MAX_CLASSES, MAX_FFT, MAX_FRAMES, MAX_ID, MAX_MELS, MAX_RATE, MAX_SIZE,
    MAX_TOKEN, MAX_TOKENS, PreStep, StepProblem, Stft, TokenUnit, Tokenise,
};
use crate::manifest::Datatype;
use crate::manifest::check::{MAX_ELEMENTS, MAX_RANK};

type Shape = Result<Vec<usize>, StepProblem>;

impl PreStep {
    /// The shape that the step makes of `shape`, when all of its rules hold.
    ///
    /// # Errors
    /// [`StepProblem`] naming the field and the rule.
    pub fn shape(&self, shape: &[usize]) -> Shape {
        within_limits("", shape)?;
        let same = || Ok(shape.to_vec());
        match self {
            Self::Scale { factor, offset } => {
                ensure(factor.is_finite() && *factor != 0.0, "factor", "must be finite and not 0")?;
                finite("offset", &[*offset])?;
                same()
            }
            Self::Normalise { axis, mean, std } => {
                let channels = length(*axis, shape)?;
                for (field, values) in [("mean", mean), ("std", std)] {
                    let rule = || format!("must have {channels} values, as axis {axis}");
                    ensure(values.len() == channels, field, rule())?;
                    finite(field, values)?;
                }
                ensure(std.iter().all(|s| *s > 0.0), "std", "must be above 0 everywhere")?;
                same()
            }
            Self::Clip { min, max } => {
                finite("min", &[*min])?;
                finite("max", &[*max])?;
                ensure(min < max, "max", "must be above `min`")?;
                same()
            }
            Self::Cast { datatype } => {
                ensure(*datatype != Datatype::Bytes, "datatype", "must be of numbers")?;
                same()
            }
            Self::Transpose { axes } => {
                permutation(axes, shape.len())?;
                Ok(axes.iter().filter_map(|axis| shape.get(*axis).copied()).collect())
            }
            Self::Reshape { shape: to } => {
                let (before, after) = (within_limits("", shape)?, within_limits("shape", to)?);
                ensure(before == after, "shape", format!("must hold {before} elements, as before"))?;
                Ok(to.clone())
            }
            Self::Resize { axes, size, .. } => resized(axes, size, shape),
            Self::Crop { axes, size, offset } => cropped(axes, size, offset.as_deref(), shape),
            Self::Pad { axes, before, after, border, value } => {
                finite("value", &[*value])?;
                padded(axes, before, after, *border, shape)
            }
            Self::Letterbox { axes, size, value, .. } => {
                finite("value", &[*value])?;
                resized(axes, size, shape)
            }
            Self::Frame { axis, length: window, stride } => framed(*axis, *window, *stride, shape),
            Self::Window { axis, .. } | Self::Detrend { axis, .. } => {
                length(*axis, shape)?;
                same()
            }
            Self::Fft { axis, .. } => {
                let n = length(*axis, shape)?;
                ensure(n <= MAX_FFT, "axis", format!("must have at most {MAX_FFT} elements"))?;
                Ok(replaced(shape, &[*axis], &[n / 2 + 1]))
            }
            Self::Stft(stft) => stft.shape(shape),
            Self::LogMel(mel) => mel.shape(shape),
            Self::OneHot { classes } => {
                let rule = || format!("must be from 1 to {MAX_CLASSES}");
                ensure((1..=MAX_CLASSES).contains(classes), "classes", rule())?;
                let mut result = shape.to_vec();
                result.push(*classes);
                within_limits("classes", &result)?;
                Ok(result)
            }
            Self::Tokenise(tokenise) => tokenise.shape(shape),
        }
    }
}

impl Stft {
    /// Frames of a signal of `n` samples; 0 when it is too short for one.
    pub fn frames(&self, n: usize) -> usize {
        let padded = match self.centre {
            Centre::None => n,
            Centre::Zeros | Centre::Reflect => n.saturating_add(self.n_fft / 2 * 2),
        };
        padded.checked_sub(self.n_fft).map_or(0, |rest| 1 + rest / self.hop.max(1))
    }

    fn shape(&self, shape: &[usize]) -> Shape {
        let rule = || format!("must be from 2 to {MAX_FFT}");
        ensure((2..=MAX_FFT).contains(&self.n_fft), "n_fft", rule())?;
        ensure(self.hop > 0, "hop", "must be above 0")?;
        let window = self.window.unwrap_or(self.n_fft);
        ensure((1..=self.n_fft).contains(&window), "window", "must be from 1 to `n_fft`")?;
        let (n, outer) = last(shape)?;
        if self.centre == Centre::Reflect {
            let rule = || format!("can only mirror a signal of more than n_fft / 2 samples, not {n}");
            ensure(n > self.n_fft / 2, "centre", rule())?;
        }
        let frames = self.frames(n);
        ensure(frames > 0, "n_fft", format!("must be at most the signal's {n} samples"))?;
        ensure(frames <= MAX_FRAMES, "hop", format!("makes more than {MAX_FRAMES} frames"))?;
        let mut result = outer.to_vec();
        result.extend([self.n_fft / 2 + 1, frames]);
        within_limits("hop", &result)?;
        Ok(result)
    }
}

impl LogMel {
    fn shape(&self, shape: &[usize]) -> Shape {
        // The spectrogram below is bounded too: it is not kept, but takes the time.
        let mut result = self.stft().shape(shape)?;
        let rate = self.sample_rate;
        ensure((1..=MAX_RATE).contains(&rate), "sample_rate", format!("must be from 1 to {MAX_RATE}"))?;
        let rule = || format!("must be from 1 to {MAX_MELS}");
        ensure((1..=MAX_MELS).contains(&self.n_mels), "n_mels", rule())?;
        let highest = self.highest();
        ensure(highest <= f64::from(rate) / 2.0, "f_max", "must be at most half of the sample rate")?;
        let low = self.f_min >= 0.0 && f64::from(self.f_min) < highest;
        ensure(low, "f_min", "must be at least 0 and below `f_max`")?;
        for (field, value) in [("floor", self.floor), ("reference", self.reference)] {
            ensure(value.is_finite() && value > 0.0, field, "must be finite and above 0")?;
        }
        ensure(self.offset.is_finite() && self.offset >= 0.0, "offset", "must be finite and at least 0")?;
        let top = self.top.is_none_or(|top| top.is_finite() && top > 0.0);
        ensure(top, "top", "must be finite and above 0")?;
        let bands = result.len() - 2;
        result[bands] = self.n_mels;
        within_limits("n_mels", &result)?;
        Ok(result)
    }
}

impl Tokenise {
    fn shape(&self, shape: &[usize]) -> Shape {
        let (_, outer) = last(shape)?;
        let table = self.unit != TokenUnit::Byte;
        ensure(table != self.table.is_empty(), "table", "must be there, except for bytes")?;
        let rule = || format!("has more than {MAX_TOKENS} tokens");
        ensure(self.table.len() <= MAX_TOKENS, "table", rule())?;
        for (token, id) in &self.table {
            let rule = || format!("has {token:?}, which is not 1 to {MAX_TOKEN} bytes");
            ensure((1..=MAX_TOKEN).contains(&token.len()), "table", rule())?;
            ensure(*id <= MAX_ID, "table", format!("has {token:?} above {MAX_ID}"))?;
        }
        let optional = [("unknown", self.unknown), ("begin", self.begin), ("end", self.end)];
        for (field, id) in optional.into_iter().chain([("pad", Some(self.pad))]) {
            ensure(id.is_none_or(|id| id <= MAX_ID), field, format!("must be at most {MAX_ID}"))?;
        }
        let ends = usize::from(self.begin.is_some()) + usize::from(self.end.is_some());
        ensure(self.length > ends, "length", "must have room for a token besides `begin` and `end`")?;
        let mut result = outer.to_vec();
        result.push(self.length);
        within_limits("length", &result)?;
        Ok(result)
    }
}

/// Elements of a shape that has 1 to [`MAX_RANK`] axes and 1 to [`MAX_ELEMENTS`] elements.
fn within_limits(field: &'static str, shape: &[usize]) -> Result<usize, StepProblem> {
    let rule = || format!("leads to shape {shape:?}, but an array has 1 to {MAX_RANK} axes");
    ensure((1..=MAX_RANK).contains(&shape.len()), field, rule())?;
    let elements = shape.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis));
    elements.filter(|elements| (1..=MAX_ELEMENTS).contains(elements)).ok_or_else(|| StepProblem {
        field,
        rule: format!("leads to shape {shape:?}, but an array has 1 to {MAX_ELEMENTS} elements"),
    })
}

/// Length of an axis.
fn length(axis: usize, shape: &[usize]) -> Result<usize, StepProblem> {
    let rule = || format!("must be an axis of {shape:?}, counted from 0");
    shape.get(axis).copied().ok_or_else(|| StepProblem { field: "axis", rule: rule() })
}

/// Length of the last axis, and the axes before.
fn last(shape: &[usize]) -> Result<(usize, &[usize]), StepProblem> {
    let nothing = || StepProblem { field: "", rule: "needs an axis".to_owned() };
    shape.split_last().map(|(n, outer)| (*n, outer)).ok_or_else(nothing)
}

/// `shape` with other lengths at `axes`.
fn replaced(shape: &[usize], axes: &[usize], lengths: &[usize]) -> Vec<usize> {
    let mut result = shape.to_vec();
    for (axis, length) in axes.iter().zip(lengths) {
        if let Some(slot) = result.get_mut(*axis) {
            *slot = *length;
        }
    }
    result
}

/// The lengths of `axes`, which must be axes of `shape`, each once.
fn lengths(axes: &[usize], shape: &[usize]) -> Result<Vec<usize>, StepProblem> {
    let once = axes.iter().enumerate().all(|(i, axis)| axes.iter().take(i).all(|before| before != axis));
    let all: Option<Vec<usize>> = axes.iter().map(|axis| shape.get(*axis).copied()).collect();
    all.filter(|all| once && !all.is_empty())
        .ok_or_else(|| StepProblem { field: "axes", rule: format!("must be axes of {shape:?}, each once") })
}

/// One value for each axis.
fn paired(field: &'static str, axes: &[usize], values: &[usize]) -> Rule {
    ensure(values.len() == axes.len(), field, format!("must have {} values, as `axes`", axes.len()))
}

fn resized(axes: &[usize], size: &[usize], shape: &[usize]) -> Shape {
    let before = lengths(axes, shape)?;
    paired("size", axes, size)?;
    let rule = || format!("must be from 1 to {MAX_SIZE} everywhere");
    ensure(size.iter().all(|n| (1..=MAX_SIZE).contains(n)), "size", rule())?;
    let rule = || format!("must have at most {MAX_SIZE} elements each");
    ensure(before.iter().all(|n| *n <= MAX_SIZE), "axes", rule())?;
    // One axis is resized after the other; what lies between is an array too.
    for done in 1..=axes.len() {
        within_limits("size", &replaced(shape, &axes[..done], &size[..done]))?;
    }
    Ok(replaced(shape, axes, size))
}

fn cropped(axes: &[usize], size: &[usize], offset: Option<&[usize]>, shape: &[usize]) -> Shape {
    let before = lengths(axes, shape)?;
    paired("size", axes, size)?;
    let fits = size.iter().zip(&before).all(|(size, n)| (1..=*n).contains(size));
    ensure(fits, "size", format!("must be from 1 to the axes' {before:?}"))?;
    if let Some(offset) = offset {
        paired("offset", axes, offset)?;
        let inside = offset.iter().zip(size).zip(&before).all(|((at, size), n)| *at <= n - size);
        ensure(inside, "offset", format!("must leave `size` within {before:?}"))?;
    }
    Ok(replaced(shape, axes, size))
}

fn padded(axes: &[usize], before: &[usize], after: &[usize], border: Border, shape: &[usize]) -> Shape {
    let sizes = lengths(axes, shape)?;
    for (field, values) in [("before", before), ("after", after)] {
        paired(field, axes, values)?;
        let rule = || format!("must be at most {MAX_SIZE} everywhere");
        ensure(values.iter().all(|n| *n <= MAX_SIZE), field, rule())?;
        let mirrored = border != Border::Reflect || values.iter().zip(&sizes).all(|(n, size)| n < size);
        ensure(mirrored, field, format!("must be less than the axes' {sizes:?}, to be mirrored"))?;
    }
    let grown: Vec<usize> = sizes.iter().zip(before).zip(after).map(|((n, b), a)| n + b + a).collect();
    let result = replaced(shape, axes, &grown);
    within_limits("before", &result)?;
    Ok(result)
}

fn framed(axis: usize, window: usize, stride: usize, shape: &[usize]) -> Shape {
    let n = length(axis, shape)?;
    ensure((1..=n).contains(&window), "length", format!("must be from 1 to {n}"))?;
    ensure(stride > 0, "stride", "must be above 0")?;
    let frames = 1 + (n - window) / stride;
    ensure(frames <= MAX_FRAMES, "stride", format!("makes more than {MAX_FRAMES} frames"))?;
    let mut result = shape.to_vec();
    result.splice(axis..=axis, [frames, window]);
    within_limits("stride", &result)?;
    Ok(result)
}
