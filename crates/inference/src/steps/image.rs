//! Resizing: one axis after the other, each output a weighted sum of neighbours. Own code, because it works
//! along any axes of any layout, has OpenCV's and Pillow's weights, and adds in the same order on every
//! processor.

use std::f64::consts::PI;

use farlight_release::manifest::steps::{Border, Filter};

use super::layout::{self, Split, add_take};
use super::pre::{Stage, Work};

/// An axis resampled with filter weights.
struct Resample {
    split: Split,
    taps: Vec<Taps>,
    weights: Vec<f32>,
}

/// The neighbours that make one output.
struct Taps {
    /// First of them in the source.
    first: usize,
    /// Their weights' range.
    weights: std::ops::Range<usize>,
}

impl Resample {
    fn new(split: Split, size: usize, filter: Filter) -> Self {
        let mut taps = Vec::with_capacity(size);
        let mut weights = Vec::new();
        for output in 0..size {
            let (first, values) = neighbours(output, split.length, size, filter);
            let from = weights.len();
            weights.extend(values);
            taps.push(Taps { first, weights: from..weights.len() });
        }
        Self { split, taps, weights }
    }
}

impl Stage for Resample {
    fn length(&self) -> usize {
        self.split.outer * self.taps.len() * self.split.inner
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        let Split { length, inner, .. } = self.split;
        let blocks = source.chunks_exact((length * inner).max(1));
        for (from, to) in blocks.zip(target.chunks_exact_mut((self.taps.len() * inner).max(1))) {
            for (taps, row) in self.taps.iter().zip(to.chunks_exact_mut(inner.max(1))) {
                let weights = &self.weights[taps.weights.clone()];
                let near = &from[taps.first * inner..];
                if let [element] = row {
                    *element = weights.iter().zip(near).map(|(w, v)| w * v).sum();
                    continue;
                }
                row.fill(0.0);
                for (w, line) in weights.iter().zip(near.chunks_exact(inner)) {
                    row.iter_mut().zip(line).for_each(|(sum, v)| *sum += w * v);
                }
            }
        }
    }
}

/// Adds the stages of a resize.
pub(super) fn resize(
    stages: &mut Vec<Box<dyn Stage>>,
    axes: &[usize],
    size: &[usize],
    filter: Filter,
    shape: &[usize],
) {
    let mut shape = shape.to_vec();
    for (axis, size) in axes.iter().zip(size) {
        let split = Split::new(*axis, &shape);
        let (n, size) = (split.length, *size);
        if filter == Filter::Nearest || n == size {
            // `(o + 0.5) · n / size` in whole numbers, of 64 bits because the product needs them.
            let nearest =
                (0..size).map(|o| Some(((2 * o as u64 + 1) * n as u64 / (2 * size as u64)) as usize));
            add_take(stages, *axis, &mut shape, nearest, 0.0);
            continue;
        }
        stages.push(Box::new(Resample::new(split, size, filter)));
        if let Some(slot) = shape.get_mut(*axis) {
            *slot = size;
        }
    }
}

/// Adds the stages of a letterbox: the largest size of the same proportions that fits, then a border.
pub(super) fn letterbox(
    stages: &mut Vec<Box<dyn Stage>>,
    axes: [usize; 2],
    size: [usize; 2],
    (filter, value): (Filter, f32),
    shape: &[usize],
) {
    let mut shape = shape.to_vec();
    let source = axes.map(|axis| Split::new(axis, &shape).length as f64);
    let ratio = (size[0] as f64 / source[0]).min(size[1] as f64 / source[1]);
    let inside = [0, 1].map(|i| ((source[i] * ratio).round() as usize).clamp(1, size[i]));
    resize(stages, &axes, &inside, filter, &shape);
    for (axis, inside) in axes.iter().zip(inside) {
        if let Some(slot) = shape.get_mut(*axis) {
            *slot = inside;
        }
    }
    let before = [0, 1].map(|i| (size[i] - inside[i]) / 2);
    let after = [0, 1].map(|i| size[i] - inside[i] - before[i]);
    layout::pad(stages, &axes, (&before, &after), (Border::Constant, value), &shape);
}

/// The first neighbour of output `o` and the weights from it on, which add up to 1.
fn neighbours(o: usize, n: usize, size: usize, filter: Filter) -> (usize, Vec<f32>) {
    let step = n as f64 / size as f64;
    let centre = (o as f64 + 0.5) * step;
    // Shrinking with a filter that does not alias makes it as much wider.
    let wide = step.max(1.0);
    match filter {
        Filter::Nearest => (((o as f64 + 0.5) * step) as usize, vec![1.0]),
        Filter::Bilinear => bordered(centre, n, 1, triangle),
        Filter::Bicubic => bordered(centre, n, 2, |x| cubic(x, -0.75)),
        Filter::Area => {
            let (from, to) = (o as f64 * step, (o as f64 + 1.0) * step);
            let first = (from as usize).min(n - 1);
            let last = (to.ceil() as usize).clamp(first + 1, n);
            let overlap = |i: usize| (to.min(i as f64 + 1.0) - from.max(i as f64)).max(0.0);
            normalised(first, (first..last).map(overlap).collect())
        }
        Filter::BilinearAntialias => widened(centre, n, wide, 1.0, triangle),
        Filter::BicubicAntialias => widened(centre, n, wide, 2.0, |x| cubic(x, -0.5)),
        Filter::Lanczos => widened(centre, n, wide, 3.0, lanczos),
    }
}

/// Weights of the `2 · reach` elements around `centre`; what lies beyond the border adds to its element.
fn bordered(centre: f64, n: usize, reach: i64, weight: impl Fn(f64) -> f64) -> (usize, Vec<f32>) {
    let at = centre - 0.5;
    let base = at.floor() as i64;
    let clamp = |i: i64| i.clamp(0, n as i64 - 1) as usize;
    let first = clamp(base + 1 - reach);
    let mut weights = vec![0.0; clamp(base + reach) - first + 1];
    for i in base + 1 - reach..=base + reach {
        weights[clamp(i) - first] += weight(at - i as f64);
    }
    normalised(first, weights)
}

/// Weights of the elements within `reach · wide` of `centre`; what lies beyond the border is left out.
fn widened(centre: f64, n: usize, wide: f64, reach: f64, weight: impl Fn(f64) -> f64) -> (usize, Vec<f32>) {
    let first = ((centre - reach * wide + 0.5).max(0.0) as usize).min(n - 1);
    let last = ((centre + reach * wide + 0.5) as usize).clamp(first + 1, n);
    normalised(first, (first..last).map(|i| weight((i as f64 + 0.5 - centre) / wide)).collect())
}

fn normalised(first: usize, weights: Vec<f64>) -> (usize, Vec<f32>) {
    let sum: f64 = weights.iter().sum();
    (first, weights.into_iter().map(|w| (w / sum) as f32).collect())
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// The cubic convolution kernel (Keys 1981) with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else if x.abs() < 3.0 {
        let x = PI * x;
        x.sin() / x * (x / 3.0).sin() / (x / 3.0)
    } else {
        0.0
    }
}
