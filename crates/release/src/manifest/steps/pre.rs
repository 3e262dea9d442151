//! The preprocessing steps as a manifest writes them. Arrays are row-major; axis 0 is the first after the
//! batch. What a step makes of a shape is in `shape.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Border, Centre, Filter, Logarithm, MelNorm, MelScale, Spectrum, Taper, TokenUnit, Trend};
use crate::manifest::Datatype;

/// A preprocessing step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum PreStep {
    /// `x * factor + offset`.
    Scale {
        /// The factor, not 0.
        factor: f32,
        /// Added after it.
        #[serde(default, skip_serializing_if = "is_zero")]
        offset: f32,
    },
    /// `(x - mean[c]) / std[c]` over the channels `c` of `axis`.
    Normalise {
        /// Axis of the channels.
        axis: usize,
        /// Mean of each channel.
        mean: Vec<f32>,
        /// Standard deviation of each channel, above 0.
        std: Vec<f32>,
    },
    /// `min(max(x, min), max)`; what is not a number becomes `min`.
    Clip {
        /// Lowest value.
        min: f32,
        /// Highest value, above `min`.
        max: f32,
    },
    /// What the type would hold, as a 32-bit float: for an integer the nearest whole number (halves to even), at
    /// most the type's ends; for a truth value 1 unless `x` is 0; what is not a number becomes 0 in both.
    Cast {
        /// The type, of numbers.
        datatype: Datatype,
    },
    /// Axis `k` of the result is axis `axes[k]`.
    Transpose {
        /// Each axis once.
        axes: Vec<usize>,
    },
    /// The same elements in the same order under another shape.
    Reshape {
        /// The shape, with as many elements.
        shape: Vec<usize>,
    },
    /// Resampled to another size.
    Resize {
        /// The axes, each once.
        axes: Vec<usize>,
        /// New size of each of them, 1 to [`super::MAX_SIZE`].
        size: Vec<usize>,
        /// How.
        #[serde(default)]
        filter: Filter,
    },
    /// A part of it.
    Crop {
        /// The axes, each once.
        axes: Vec<usize>,
        /// Size of the part along each of them.
        size: Vec<usize>,
        /// Where it begins along each of them; without, it is the centre, at `(n - size) / 2` rounded down.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<Vec<usize>>,
    },
    /// More around it.
    Pad {
        /// The axes, each once.
        axes: Vec<usize>,
        /// Elements before each of them, 0 to [`super::MAX_SIZE`].
        before: Vec<usize>,
        /// Elements after each of them, 0 to [`super::MAX_SIZE`].
        after: Vec<usize>,
        /// What they are.
        #[serde(default)]
        border: Border,
        /// Their value when the border is constant.
        #[serde(default)]
        value: f32,
    },
    /// Resized with its proportions kept, centred in a field of `value`.
    Letterbox {
        /// The axes of height and width.
        axes: [usize; 2],
        /// Height and width of the result.
        size: [usize; 2],
        /// How it is resized.
        #[serde(default)]
        filter: Filter,
        /// Value of the field around it.
        #[serde(default)]
        value: f32,
    },
    /// Windows with overlap: `axis` of `n` becomes two, `[1 + (n - length) / stride, length]`. What is left
    /// at the end is left out.
    Frame {
        /// The axis.
        axis: usize,
        /// Elements of a window, 1 to `n`.
        length: usize,
        /// Elements from the begin of one to the begin of the next, above 0.
        stride: usize,
    },
    /// `x[i] * w[i]` along `axis`.
    Window {
        /// The axis.
        axis: usize,
        /// The taper `w`.
        #[serde(default)]
        taper: Taper,
        /// Whether the taper ends with its first value (for filters) instead of before it (for spectra).
        #[serde(default)]
        symmetric: bool,
    },
    /// Its trend along `axis` taken out.
    Detrend {
        /// The axis.
        axis: usize,
        /// Which trend.
        #[serde(default)]
        kind: Trend,
    },
    /// Spectrum of the real signal along `axis`, whose `n` elements (at most [`super::MAX_FFT`]) become
    /// `n / 2 + 1` frequencies; not divided by `n`.
    Fft {
        /// The axis.
        axis: usize,
        /// What is kept of it.
        #[serde(default)]
        output: Spectrum,
    },
    /// Spectrogram along the last axis.
    Stft(Stft),
    /// Logarithm of mel band energies along the last axis.
    LogMel(LogMel),
    /// A new last axis of `classes`, 1 at the class that the element is (rounded) and else 0; all 0 for an
    /// element that is none of them.
    OneHot {
        /// Classes, 1 to [`super::MAX_CLASSES`].
        classes: usize,
    },
    /// Token ids of the text along the last axis.
    Tokenise(Tokenise),
}

/// Short-time Fourier transform: `[.., n]` becomes `[.., n_fft / 2 + 1, frames]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stft {
    /// Samples of a transform, 2 to [`super::MAX_FFT`].
    pub n_fft: usize,
    /// Samples from one frame to the next, above 0.
    pub hop: usize,
    /// Samples of the taper, 1 to `n_fft`, centred in it; without, `n_fft`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// The taper, periodic.
    #[serde(default)]
    pub taper: Taper,
    /// Where the frames lie.
    #[serde(default)]
    pub centre: Centre,
    /// What is kept of the spectrum.
    #[serde(default)]
    pub output: Spectrum,
}

/// Mel spectrogram with its logarithm: `[.., n]` becomes `[.., n_mels, frames]`.
///
/// With `m` the band's energy: `log(max(m + offset, floor)) - log(max(reference, floor))`, then no less than
/// `top` below the largest of the array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogMel {
    /// Samples a second, 1 to [`super::MAX_RATE`].
    pub sample_rate: u32,
    /// As in [`Stft`].
    pub n_fft: usize,
    /// As in [`Stft`].
    pub hop: usize,
    /// As in [`Stft`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// As in [`Stft`].
    #[serde(default)]
    pub taper: Taper,
    /// As in [`Stft`].
    #[serde(default)]
    pub centre: Centre,
    /// What of the spectrum the bands add up.
    #[serde(default = "power")]
    pub spectrum: Spectrum,
    /// Bands, 1 to [`super::MAX_MELS`].
    pub n_mels: usize,
    /// Lowest frequency, Hz.
    #[serde(default)]
    pub f_min: f32,
    /// Highest frequency, Hz, above `f_min` and at most half of the sample rate, which it is without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f_max: Option<f32>,
    /// The mel scale.
    #[serde(default)]
    pub scale: MelScale,
    /// Scaling of the filters.
    #[serde(default)]
    pub norm: MelNorm,
    /// The logarithm.
    #[serde(default)]
    pub log: Logarithm,
    /// Added to the energies, at least 0.
    #[serde(default)]
    pub offset: f32,
    /// Lowest energy, above 0.
    #[serde(default = "floor")]
    pub floor: f32,
    /// Energy whose logarithm is 0, above 0.
    #[serde(default = "one")]
    pub reference: f32,
    /// Range below the largest value, in the unit of the result, above 0; without, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<f32>,
}

impl LogMel {
    /// The spectrogram below it.
    pub fn stft(&self) -> Stft {
        Stft {
            n_fft: self.n_fft,
            hop: self.hop,
            window: self.window,
            taper: self.taper,
            centre: self.centre,
            output: self.spectrum,
        }
    }

    /// Highest frequency, Hz.
    pub fn highest(&self) -> f64 {
        self.f_max.map_or_else(|| f64::from(self.sample_rate) / 2.0, f64::from)
    }
}

/// Tokens of a text by a table: `[.., n]` becomes `[.., length]`.
///
/// The elements are the bytes of the text in UTF-8, each 0 to 255; bytes of 0 at the end are no text. What is
/// beyond `length` is cut off, what is missing is `pad`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenise {
    /// How the text is cut.
    pub unit: TokenUnit,
    /// Token to id: at most [`super::MAX_TOKENS`] tokens of 1 to [`super::MAX_TOKEN`] bytes, ids at most
    /// [`super::MAX_ID`]; empty when the unit is a byte.
    #[serde(default)]
    pub table: BTreeMap<String, u32>,
    /// Tokens of the result, with `begin` and `end`.
    pub length: usize,
    /// Id of what is missing at the end.
    #[serde(default)]
    pub pad: u32,
    /// Id of what the table lacks; without, it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<u32>,
    /// Id before the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<u32>,
    /// Id after the text, which is cut so that this one has room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u32>,
    /// Whether ASCII letters become small before they are looked up.
    #[serde(default)]
    pub lowercase: bool,
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

fn power() -> Spectrum {
    Spectrum::Power
}

fn floor() -> f32 {
    1e-10
}

fn one() -> f32 {
    1.0
}
