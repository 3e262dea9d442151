//! The steps that a manifest declares between an application's tensor and a model, and between the model
//! and the answer, with their ranges and shapes. `crates/inference` runs them, the same on a device and in
//! the cloud; `docs/pipeline.md` shows each with its formula.

mod post;
mod pre;
mod rules;
mod shape;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use post::{BoxFormat, MAX_PARTS, Nms, PostStep, Suppress};
pub use pre::{LogMel, PreStep, Stft, Tokenise};

/// Longest Fourier transform in samples: over a second of audio at 48 kHz. With [`MAX_FRAMES`] and the
/// limit of an array's elements it bounds the time of a spectrogram.
pub const MAX_FFT: usize = 65_536;
/// Most frames of a signal: eleven minutes of speech at a frame each 10 ms.
pub const MAX_FRAMES: usize = 65_536;
/// Longest axis that is resized, padded or cropped to, in elements: bounds the tables that are kept for it.
pub const MAX_SIZE: usize = 65_536;
/// Most mel bands; models use 32 to 229.
pub const MAX_MELS: usize = 1024;
/// Most classes of a one-hot axis.
pub const MAX_CLASSES: usize = 65_536;
/// Most entries of a token table; the manifest's own limit allows about as many.
pub const MAX_TOKENS: usize = 131_072;
/// Longest token in bytes: bounds the look-ups at each position of a text.
pub const MAX_TOKEN: usize = 64;
/// Largest token id: the largest whole number up to which a 32-bit float holds each.
pub const MAX_ID: u32 = 1 << 24;
/// Most boxes that non-maximum suppression keeps, and most scores of `top_k`: bounds its comparisons.
pub const MAX_KEPT: usize = 1000;
/// Highest sample rate in Hz: ultrasound, with room.
pub const MAX_RATE: u32 = 10_000_000;

/// A field of a step that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {rule}", if field.is_empty() { "the step".to_owned() } else { format!("field `{field}`") })]
pub struct StepProblem {
    /// Name of the field; empty for the step as a whole.
    pub field: &'static str,
    /// The rule.
    pub rule: String,
}

/// How an axis is resampled. `s` is input size over output size; element `i` lies at `i + 0.5`, so the
/// centre of output `o` is at `(o + 0.5) · s` of the input. Borders repeat the outermost element.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The element that the centre falls in, as Pillow `NEAREST` and torch `nearest-exact`.
    Nearest,
    /// Two neighbours, as OpenCV `INTER_LINEAR` and torch `bilinear` with `align_corners=False`: aliases
    /// when it shrinks by more than 2.
    #[default]
    Bilinear,
    /// Four neighbours, cubic with a = −0.75, as OpenCV `INTER_CUBIC` and torch `bicubic`.
    Bicubic,
    /// Mean over the input's interval `[o · s, (o + 1) · s)`, as OpenCV `INTER_AREA` when it shrinks.
    Area,
    /// Triangle widened by `s` when it shrinks, as Pillow `BILINEAR` and torch `antialias=True`.
    BilinearAntialias,
    /// Cubic with a = −0.5, widened when it shrinks, as Pillow `BICUBIC`.
    BicubicAntialias,
    /// Lanczos with three lobes, widened when it shrinks, as Pillow `LANCZOS`.
    Lanczos,
}

/// What lies beyond the border of a padded axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// The step's `value`.
    #[default]
    Constant,
    /// The outermost element.
    Edge,
    /// The axis mirrored at its outermost element, which is not repeated.
    Reflect,
}

/// A taper `w[0..n]`; with `N = n` (periodic, for spectra) or `N = n − 1` (symmetric).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taper {
    /// `0.5 − 0.5 cos(2πi/N)`.
    #[default]
    Hann,
    /// `0.54 − 0.46 cos(2πi/N)`.
    Hamming,
    /// `0.42 − 0.5 cos(2πi/N) + 0.08 cos(4πi/N)`.
    Blackman,
    /// 1 everywhere.
    Rectangular,
}

/// Which trend is taken out of a signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trend {
    /// Its mean.
    #[default]
    Constant,
    /// Its line of least squares.
    Linear,
}

/// What is kept of a complex spectrum `X`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spectrum {
    /// `|X|`.
    #[default]
    Magnitude,
    /// `|X|²`.
    Power,
}

/// Where the frames of a spectrogram lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Centre {
    /// Frame `f` is centred at sample `f · hop`; samples beyond the signal are 0, as in librosa.
    #[default]
    Zeros,
    /// The same, but the signal is mirrored at its ends, as in torch and Whisper.
    Reflect,
    /// Frame `f` begins at sample `f · hop` and none reaches beyond the signal.
    None,
}

/// Formula of the mel scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MelScale {
    /// Linear up to 1 kHz, logarithmic above (Slaney's Auditory Toolbox; librosa's default).
    #[default]
    Slaney,
    /// `2595 log10(1 + f / 700)` (HTK; torchaudio's default).
    Htk,
}

/// Scaling of the mel filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MelNorm {
    /// Each filter has area 1: divided by half of its width in Hz (librosa's default).
    #[default]
    Slaney,
    /// Each filter peaks at 1 (torchaudio's default).
    None,
}

/// Logarithm of mel energies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Logarithm {
    /// `10 log10 x`, decibel.
    #[default]
    Db,
    /// `log10 x`.
    Log10,
    /// `ln x`.
    Ln,
}

/// How a text is cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenUnit {
    /// The longest entry of the table that matches at each position; one unknown for each character that
    /// begins none.
    Piece,
    /// The words between ASCII white space, each an entry of the table or unknown.
    Word,
    /// Each byte is a token, and its value is the id; no table.
    Byte,
}
