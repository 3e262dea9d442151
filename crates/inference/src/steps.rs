//! Preprocessing and postprocessing steps, in place. Shapes were checked when the pipeline was loaded.

use farlight_release::manifest::{PostStep, PreStep};

/// Applies the preprocessing steps to one item of `shape`, row-major.
pub(crate) fn preprocess(steps: &[PreStep], shape: &[usize], values: &mut [f32]) {
    for step in steps {
        match step {
            PreStep::Scale { factor } => values.iter_mut().for_each(|v| *v *= factor),
            PreStep::Normalise { axis, mean, std } => {
                let inner: usize = shape[axis + 1..].iter().product();
                for (index, chunk) in values.chunks_mut(inner.max(1)).enumerate() {
                    let channel = index % mean.len();
                    let (mean, std) = (mean[channel], std[channel]);
                    chunk.iter_mut().for_each(|v| *v = (*v - mean) / std);
                }
            }
        }
    }
}

/// Applies the postprocessing steps to an output; returns the abstain threshold if one is declared.
pub(crate) fn postprocess(steps: &[PostStep], values: &mut [f32]) -> Option<f32> {
    let mut threshold = None;
    for step in steps {
        match step {
            PostStep::Softmax => softmax(values),
            PostStep::Abstain { threshold: t } => threshold = Some(*t),
        }
    }
    threshold
}

/// Softmax with the maximum subtracted, so that large logits do not overflow.
fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalise_uses_the_channel_of_its_axis() {
        let mut values = [1.0, 2.0, 30.0, 40.0];
        let step = PreStep::Normalise { axis: 0, mean: vec![1.0, 10.0], std: vec![1.0, 10.0] };
        preprocess(&[step], &[2, 2], &mut values);
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0]);
        let mut values = [1.0, 20.0, 3.0, 40.0];
        let step = PreStep::Normalise { axis: 1, mean: vec![1.0, 10.0], std: vec![1.0, 10.0] };
        preprocess(&[step], &[2, 2], &mut values);
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0]);
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution(mut values in prop::collection::vec(-1e30_f32..1e30, 1..20)) {
            softmax(&mut values);
            prop_assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
            prop_assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        }
    }
}
