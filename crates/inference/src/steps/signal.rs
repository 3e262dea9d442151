//! Steps on signals along an axis: tapers, trends and the Fourier transform.

use std::f64::consts::TAU;
use std::sync::Arc;

use farlight_release::manifest::steps::{Spectrum, Taper, Trend};
use realfft::{RealFftPlanner, RealToComplex};

use super::layout::Split;
use super::pre::{Stage, Work};

/// A complex number.
pub(super) type Complex = realfft::num_complex::Complex<f32>;

/// The values of a taper of `n` samples.
pub(super) fn taper(taper: Taper, n: usize, symmetric: bool) -> Vec<f32> {
    let period = if symmetric { n.saturating_sub(1) } else { n };
    if period == 0 {
        return vec![1.0; n];
    }
    let value = |i: usize| {
        let x = TAU * i as f64 / period as f64;
        match taper {
            Taper::Hann => 0.5 - 0.5 * x.cos(),
            Taper::Hamming => 0.54 - 0.46 * x.cos(),
            Taper::Blackman => 0.42 - 0.5 * x.cos() + 0.08 * (2.0 * x).cos(),
            Taper::Rectangular => 1.0,
        }
    };
    (0..n).map(|i| value(i) as f32).collect()
}

/// Takes the trend out along an axis.
pub(super) struct Detrend {
    split: Split,
    kind: Trend,
}

impl Detrend {
    pub(super) fn new(axis: usize, kind: Trend, shape: &[usize]) -> Self {
        Self { split: Split::new(axis, shape), kind }
    }
}

impl Stage for Detrend {
    fn length(&self) -> usize {
        self.split.outer * self.split.length * self.split.inner
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        let Split { length, inner, .. } = self.split;
        let block = (length * inner).max(1);
        let middle = (length as f64 - 1.0) / 2.0;
        for (from, to) in source.chunks_exact(block).zip(target.chunks_exact_mut(block)) {
            for offset in 0..inner {
                let line = || from[offset..].iter().step_by(inner).map(|v| f64::from(*v)).enumerate();
                let mean = line().map(|(_, v)| v).sum::<f64>() / length as f64;
                let slope = match self.kind {
                    Trend::Constant => 0.0,
                    Trend::Linear => {
                        let (mut up, mut across) = (0.0, 0.0);
                        for (i, v) in line() {
                            let x = i as f64 - middle;
                            up += x * (v - mean);
                            across += x * x;
                        }
                        if across > 0.0 { up / across } else { 0.0 }
                    }
                };
                let result = line().map(|(i, v)| (v - mean - slope * (i as f64 - middle)) as f32);
                to[offset..].iter_mut().step_by(inner).zip(result).for_each(|(to, v)| *to = v);
            }
        }
    }
}

/// The Fourier transform of real lines of one length.
pub(super) struct Transform {
    plan: Arc<dyn RealToComplex<f32>>,
    output: Spectrum,
}

impl Transform {
    pub(super) fn new(length: usize, output: Spectrum) -> Self {
        Self { plan: RealFftPlanner::new().plan_fft_forward(length), output }
    }

    /// Samples of a line.
    pub(super) fn samples(&self) -> usize {
        self.plan.len()
    }

    /// What is kept of the spectrum of `line`, which is used up: `samples / 2 + 1` values.
    pub(super) fn run<'a>(
        &self,
        line: &mut [f32],
        spectrum: &'a mut Vec<Complex>,
        work: &mut Vec<Complex>,
    ) -> impl Iterator<Item = f32> + use<'a> {
        spectrum.resize(self.plan.complex_len(), Complex::default());
        work.resize(self.plan.get_scratch_len(), Complex::default());
        if self.plan.process_with_scratch(line, spectrum, work).is_err() {
            // Only for buffers of other lengths than the plan's, which these are not.
            spectrum.fill(Complex::new(f32::NAN, f32::NAN));
        }
        let output = self.output;
        spectrum.iter().map(move |x| match output {
            Spectrum::Power => x.norm_sqr(),
            Spectrum::Magnitude => x.norm_sqr().sqrt(),
        })
    }
}

/// The spectrum along an axis.
pub(super) struct Magnitudes {
    split: Split,
    transform: Transform,
}

impl Magnitudes {
    pub(super) fn new(axis: usize, output: Spectrum, shape: &[usize]) -> Self {
        let split = Split::new(axis, shape);
        Self { split, transform: Transform::new(split.length, output) }
    }

    fn frequencies(&self) -> usize {
        self.split.length / 2 + 1
    }
}

impl Stage for Magnitudes {
    fn length(&self) -> usize {
        self.split.outer * self.frequencies() * self.split.inner
    }

    fn run(&self, source: &[f32], target: &mut [f32], work: &mut Work) {
        let Split { length, inner, .. } = self.split;
        let blocks = source.chunks_exact((length * inner).max(1));
        for (from, to) in blocks.zip(target.chunks_exact_mut((self.frequencies() * inner).max(1))) {
            for offset in 0..inner {
                work.line.clear();
                work.line.extend(from[offset..].iter().step_by(inner));
                let values = self.transform.run(&mut work.line, &mut work.spectrum, &mut work.transform);
                to[offset..].iter_mut().step_by(inner).zip(values).for_each(|(to, v)| *to = v);
            }
        }
    }
}
