//! Spectrograms along the last axis, frame by frame, and the mel bands over them.

use farlight_release::manifest::steps::{Centre, LogMel, Logarithm, MelNorm, MelScale, Stft};

use super::pre::{Stage, Work};
use super::signal::{self, Transform};

/// The frames of a signal, as spectra or as mel bands.
pub(super) struct Frames {
    outer: usize,
    samples: usize,
    frames: usize,
    hop: usize,
    centre: Centre,
    /// As long as the transform.
    taper: Vec<f32>,
    transform: Transform,
    bands: Option<Bands>,
}

/// Mel bands and their logarithm.
struct Bands {
    filters: Vec<MelFilter>,
    log: Logarithm,
    offset: f32,
    floor: f32,
    /// Logarithm of the reference.
    zero: f32,
    top: Option<f32>,
}

/// The weights of one band, from frequency `first` on; others are 0.
struct MelFilter {
    first: usize,
    weights: Vec<f32>,
}

impl Frames {
    /// Spectra.
    pub(super) fn spectrum(stft: &Stft, shape: &[usize]) -> Self {
        let samples = shape.last().copied().unwrap_or(0);
        let window = stft.window.unwrap_or(stft.n_fft).min(stft.n_fft);
        let mut taper = vec![0.0; stft.n_fft];
        let values = signal::taper(stft.taper, window, false);
        let middle = taper.iter_mut().skip((stft.n_fft - window) / 2);
        middle.zip(values).for_each(|(to, value)| *to = value);
        Self {
            outer: shape.iter().rev().skip(1).product(),
            samples,
            frames: stft.frames(samples),
            hop: stft.hop,
            centre: stft.centre,
            taper,
            transform: Transform::new(stft.n_fft, stft.output),
            bands: None,
        }
    }

    /// Mel bands.
    pub(super) fn mel(mel: &LogMel, shape: &[usize]) -> Self {
        Self { bands: Some(Bands::new(mel)), ..Self::spectrum(&mel.stft(), shape) }
    }

    /// Values of one frame.
    fn height(&self) -> usize {
        self.bands.as_ref().map_or(self.transform.samples() / 2 + 1, |bands| bands.filters.len())
    }

    /// The tapered samples of a frame.
    fn fill(&self, frame: usize, signal: &[f32], line: &mut Vec<f32>) {
        let before = if self.centre == Centre::None { 0 } else { self.taper.len() / 2 };
        let begin = frame * self.hop;
        line.clear();
        let inside = begin.checked_sub(before).and_then(|at| signal.get(at..at + self.taper.len()));
        if let Some(inside) = inside {
            line.extend(inside.iter().zip(&self.taper).map(|(v, w)| v * w));
            return;
        }
        line.extend(self.taper.iter().enumerate().map(|(i, w)| {
            let at = begin + i;
            let source = match (at.checked_sub(before), self.centre) {
                (Some(at), _) if at < signal.len() => Some(at),
                (Some(at), Centre::Reflect) => (2 * (signal.len() - 1)).checked_sub(at),
                (None, Centre::Reflect) => Some(before - at),
                _ => None,
            };
            source.and_then(|at| signal.get(at)).map_or(0.0, |v| v * w)
        }));
    }
}

impl Stage for Frames {
    fn length(&self) -> usize {
        self.outer * self.height() * self.frames
    }

    fn run(&self, source: &[f32], target: &mut [f32], work: &mut Work) {
        let lines = source.chunks_exact(self.samples.max(1));
        for (signal, to) in lines.zip(target.chunks_exact_mut((self.height() * self.frames).max(1))) {
            for frame in 0..self.frames {
                self.fill(frame, signal, &mut work.line);
                let values = self.transform.run(&mut work.line, &mut work.spectrum, &mut work.transform);
                let column = to[frame..].iter_mut().step_by(self.frames);
                match &self.bands {
                    None => column.zip(values).for_each(|(to, value)| *to = value),
                    Some(bands) => {
                        work.energies.clear();
                        work.energies.extend(values);
                        let values = bands.filters.iter().map(|filter| bands.log(filter.sum(&work.energies)));
                        column.zip(values).for_each(|(to, value)| *to = value);
                    }
                }
            }
        }
        if let Some(top) = self.bands.as_ref().and_then(|bands| bands.top) {
            let lowest = target.iter().copied().fold(f32::NEG_INFINITY, f32::max) - top;
            target.iter_mut().for_each(|v| *v = v.max(lowest));
        }
    }
}

impl Bands {
    fn new(mel: &LogMel) -> Self {
        let logarithm = |x: f32| logarithm(mel.log, x);
        Self {
            filters: filters(mel),
            log: mel.log,
            offset: mel.offset,
            floor: mel.floor,
            zero: logarithm(mel.reference.max(mel.floor)),
            top: mel.top,
        }
    }

    fn log(&self, energy: f32) -> f32 {
        logarithm(self.log, (energy + self.offset).max(self.floor)) - self.zero
    }
}

impl MelFilter {
    fn sum(&self, energies: &[f32]) -> f32 {
        let from = energies.get(self.first..).unwrap_or_default();
        from.iter().zip(&self.weights).map(|(v, w)| v * w).sum()
    }
}

fn logarithm(log: Logarithm, x: f32) -> f32 {
    match log {
        Logarithm::Db => 10.0 * x.log10(),
        Logarithm::Log10 => x.log10(),
        Logarithm::Ln => x.ln(),
    }
}

/// Triangles between neighbours of `n_mels + 2` frequencies that lie evenly on the mel scale.
fn filters(mel: &LogMel) -> Vec<MelFilter> {
    let (low, high) = (to_mel(mel.scale, f64::from(mel.f_min)), to_mel(mel.scale, mel.highest()));
    let edge = |i: usize| to_hertz(mel.scale, low + (high - low) * i as f64 / (mel.n_mels + 1) as f64);
    let frequency = |k: usize| k as f64 * f64::from(mel.sample_rate) / mel.n_fft as f64;
    let filter = |band: usize| {
        let (left, middle, right) = (edge(band), edge(band + 1), edge(band + 2));
        let scale = if mel.norm == MelNorm::Slaney { 2.0 / (right - left) } else { 1.0 };
        let weight = |k: usize| {
            let f = frequency(k);
            let weight = scale * ((f - left) / (middle - left)).min((right - f) / (right - middle)).max(0.0);
            // Edges that are one number have no width.
            if weight.is_finite() { weight as f32 } else { 0.0 }
        };
        let all: Vec<f32> = (0..=mel.n_fft / 2).map(weight).collect();
        let first = all.iter().position(|w| *w > 0.0).unwrap_or(0);
        let last = all.iter().rposition(|w| *w > 0.0).map_or(first, |last| last + 1);
        MelFilter { first, weights: all.get(first..last).unwrap_or_default().to_vec() }
    };
    (0..mel.n_mels).map(filter).collect()
}

/// Hz of a mel on Slaney's linear part, and where the logarithmic part begins.
const SLANEY_STEP: f64 = 200.0 / 3.0;
const SLANEY_KNEE: f64 = 1000.0;

/// Slaney's logarithmic part: 27 mels from the knee to 6.4 times of it.
fn slaney_log_step() -> f64 {
    6.4_f64.ln() / 27.0
}

fn to_mel(scale: MelScale, hertz: f64) -> f64 {
    match scale {
        MelScale::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
        MelScale::Slaney if hertz < SLANEY_KNEE => hertz / SLANEY_STEP,
        MelScale::Slaney => SLANEY_KNEE / SLANEY_STEP + (hertz / SLANEY_KNEE).ln() / slaney_log_step(),
    }
}

fn to_hertz(scale: MelScale, mel: f64) -> f64 {
    let knee = SLANEY_KNEE / SLANEY_STEP;
    match scale {
        MelScale::Htk => 700.0 * (10_f64.powf(mel / 2595.0) - 1.0),
        MelScale::Slaney if mel < knee => mel * SLANEY_STEP,
        MelScale::Slaney => SLANEY_KNEE * ((mel - knee) * slaney_log_step()).exp(),
    }
}
