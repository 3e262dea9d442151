//! The plan of the preprocessing: a list of stages, each from one array to the next, between two buffers
//! that are used in turn. Steps that look at one element at a time become one stage together.

use std::fmt;

use farlight_release::manifest::PreStep;
use farlight_release::manifest::steps::StepProblem;

use super::elements::Elements;
use super::signal::Complex;
use super::{StepError, image, layout, signal, spectrogram, text};

/// A stage of the plan. Lengths are those of the plan: `target` is of [`Stage::length`].
pub(super) trait Stage: Send + Sync {
    /// Elements of the result.
    fn length(&self) -> usize;

    /// Writes every element of `target`.
    fn run(&self, source: &[f32], target: &mut [f32], work: &mut Work);
}

/// Buffers within a stage.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// One line of a signal.
    pub(super) line: Vec<f32>,
    /// Energies of one frame.
    pub(super) energies: Vec<f32>,
    /// Spectrum of one line.
    pub(super) spectrum: Vec<Complex>,
    /// The transform's own.
    pub(super) transform: Vec<Complex>,
    /// Bytes of one text.
    pub(super) text: Vec<u8>,
}

/// Buffers of one worker, grown on the first run and used again by every later one, of any plan.
#[derive(Debug, Default)]
pub struct Scratch {
    front: Vec<f32>,
    back: Vec<f32>,
    work: Work,
}

/// A planned preprocessing; shared by workers, each with a [`Scratch`] of its own.
pub struct Pre {
    stages: Vec<Box<dyn Stage>>,
    elements: usize,
    output_shape: Vec<usize>,
}

impl fmt::Debug for Pre {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pre")
            .field("stages", &self.stages.len())
            .field("elements", &self.elements)
            .field("output_shape", &self.output_shape)
            .finish()
    }
}

impl Pre {
    /// Plans `steps` for arrays of `input_shape`, without the batch.
    ///
    /// # Errors
    /// [`StepError::Step`] with the index of the step that does not fit and the field that is wrong.
    pub fn plan(steps: &[PreStep], input_shape: &[usize]) -> Result<Self, StepError> {
        let nothing = StepProblem { field: "", rule: format!("{input_shape:?} has too many elements") };
        let mut elements = 1_usize;
        for axis in input_shape {
            let product = elements.checked_mul(*axis);
            elements = product.ok_or_else(|| StepError::Step { step: 0, problem: nothing.clone() })?;
        }
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        let mut fused: Option<Elements> = None;
        let mut shape = input_shape.to_vec();
        for (step, one) in steps.iter().enumerate() {
            let next = one.shape(&shape).map_err(|problem| StepError::Step { step, problem })?;
            if Elements::takes(one) {
                let elements = next.iter().product();
                fused.get_or_insert_with(|| Elements::new(elements)).push(one, &shape);
            } else {
                // A new shape of the same elements lets the next step join those before it.
                if !matches!(one, PreStep::Reshape { .. }) {
                    close(&mut stages, &mut fused);
                }
                add(&mut stages, one, &shape, &next);
            }
            shape = next;
        }
        close(&mut stages, &mut fused);
        Ok(Self { stages, elements, output_shape: shape })
    }

    /// Shape of the result, without the batch.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// The result for one input of the planned shape, row-major. It is the input itself when there is nothing
    /// to do, else it lies in `scratch`.
    ///
    /// # Errors
    /// [`StepError::Length`] for an input of another length.
    pub fn run<'a>(&self, scratch: &'a mut Scratch, input: &'a [f32]) -> Result<&'a [f32], StepError> {
        if input.len() != self.elements {
            return Err(StepError::Length { got: input.len(), expected: self.elements });
        }
        let Scratch { front, back, work } = scratch;
        // The references change places, not the buffers: each stage finds its own again on the next run.
        let (mut current, mut next) = (front, back);
        let mut length = None;
        for stage in &self.stages {
            let source = length.map_or(input, |length| &current[..length]);
            let needed = stage.length();
            if next.len() < needed {
                next.resize(needed, 0.0);
            }
            stage.run(source, &mut next[..needed], work);
            std::mem::swap(&mut current, &mut next);
            length = Some(needed);
        }
        Ok(length.map_or(input, |length| &current[..length]))
    }
}

/// Adds the fused steps, if they do anything.
fn close(stages: &mut Vec<Box<dyn Stage>>, fused: &mut Option<Elements>) {
    if let Some(elements) = fused.take().filter(|elements| !elements.is_empty()) {
        stages.push(Box::new(elements));
    }
}

/// Adds the stages of a step that does not look at one element at a time.
fn add(stages: &mut Vec<Box<dyn Stage>>, step: &PreStep, shape: &[usize], next: &[usize]) {
    match step {
        PreStep::Scale { .. }
        | PreStep::Normalise { .. }
        | PreStep::Clip { .. }
        | PreStep::Cast { .. }
        | PreStep::Window { .. }
        | PreStep::Reshape { .. } => {}
        PreStep::Transpose { axes } => stages.push(Box::new(layout::Transpose::new(axes, shape))),
        PreStep::Resize { axes, size, filter } => image::resize(stages, axes, size, *filter, shape),
        PreStep::Crop { axes, size, offset } => {
            layout::crop(stages, axes, size, offset.as_deref(), shape);
        }
        PreStep::Pad { axes, before, after, border, value } => {
            layout::pad(stages, axes, (before, after), (*border, *value), shape);
        }
        PreStep::Letterbox { axes, size, filter, value } => {
            image::letterbox(stages, *axes, *size, (*filter, *value), shape);
        }
        PreStep::Frame { axis, length, stride } => {
            stages.push(Box::new(layout::frame(*axis, *length, *stride, shape)));
        }
        PreStep::Detrend { axis, kind } => {
            stages.push(Box::new(signal::Detrend::new(*axis, *kind, shape)));
        }
        PreStep::Fft { axis, output } => {
            stages.push(Box::new(signal::Magnitudes::new(*axis, *output, shape)));
        }
        PreStep::Stft(stft) => stages.push(Box::new(spectrogram::Frames::spectrum(stft, shape))),
        PreStep::LogMel(mel) => stages.push(Box::new(spectrogram::Frames::mel(mel, shape))),
        PreStep::OneHot { classes } => {
            stages.push(Box::new(text::OneHot::new(*classes, next)));
        }
        PreStep::Tokenise(tokenise) => stages.push(Box::new(text::Tokens::new(tokenise, shape))),
    }
}
