//! AdamW (Loshchilov and Hutter 2019) on the host: the weights of an edge model are few, and one
//! order of operations gives one result.

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// Moments of all weights.
pub(super) struct AdamW {
    moments: Vec<Moments>,
    step: i32,
}

struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    decays: bool,
}

impl AdamW {
    /// For weights of these shapes; vectors and scalars (biases, normalisation) do not decay.
    pub(super) fn new<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> Self {
        let moments = shapes
            .map(|dims| {
                let count = dims.iter().product();
                Moments { first: vec![0.0; count], second: vec![0.0; count], decays: dims.len() > 1 }
            })
            .collect();
        Self { moments, step: 0 }
    }

    /// One step down the gradients, which are first scaled to at most `clip`.
    pub(super) fn step(
        &mut self,
        weights: &mut [Vec<f32>],
        gradients: &[Vec<f32>],
        rate: f32,
        decay: f32,
        clip: f32,
    ) {
        self.step += 1;
        let norm =
            gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt() as f32;
        let scale = if norm > clip { clip / norm } else { 1.0 };
        let (correct_1, correct_2) = (1.0 - BETA_1.powi(self.step), 1.0 - BETA_2.powi(self.step));
        for ((weights, gradients), moments) in weights.iter_mut().zip(gradients).zip(&mut self.moments) {
            let keep = if moments.decays { 1.0 - rate * decay } else { 1.0 };
            let second = moments.first.iter_mut().zip(&mut moments.second);
            for ((weight, gradient), (first, second)) in weights.iter_mut().zip(gradients).zip(second) {
                let gradient = gradient * scale;
                *first = BETA_1 * *first + (1.0 - BETA_1) * gradient;
                *second = BETA_2 * *second + (1.0 - BETA_2) * gradient * gradient;
                let step = (*first / correct_1) / ((*second / correct_2).sqrt() + EPSILON);
                *weight = *weight * keep - rate * step;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bowl_is_descended_to_its_ground() {
        let mut weights = vec![vec![3.0, -2.0]];
        let mut adam = AdamW::new([&[2][..]].into_iter());
        for _ in 0..2000 {
            let gradients = vec![weights[0].iter().map(|w| 2.0 * w).collect()];
            adam.step(&mut weights, &gradients, 0.01, 0.0, 100.0);
        }
        assert!(weights[0].iter().all(|w| w.abs() < 1e-2), "{weights:?}");
    }
}
