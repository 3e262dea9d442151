//! The answer to one input, and what is read from its scores.

use farlight_release::manifest::Task;

use crate::tensor::Named;

/// The answer to one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Scores after postprocessing: probabilities for a classification, numbers for a regression; empty where the
    /// answer is tensors.
    pub outputs: Vec<f32>,
    /// The graph's outputs after postprocessing under their own names, batch axis included, where the task is
    /// [`Task::Tensors`].
    pub tensors: Vec<Named>,
    /// Best class; `None` when abstained, when outputs are not finite, or for another task than classification.
    pub class: Option<usize>,
    /// Index of the highest output, whether or not it abstained; 0 when there is none.
    pub top: usize,
    /// Highest output (0 when outputs are not finite).
    pub score: f32,
    /// Highest minus second highest output; 1 with a single output.
    pub margin: f32,
    /// Whether any output is NaN or infinite.
    pub non_finite: bool,
    /// Whether the score was under the abstain threshold.
    pub abstained: bool,
    /// Input elements that broke the contract.
    pub violations: u32,
}

impl Prediction {
    /// Judges the scores of a classification or regression.
    pub fn of_scores(task: Task, outputs: Vec<f32>, threshold: Option<f32>, violations: u32) -> Self {
        let non_finite = outputs.is_empty() || outputs.iter().any(|v| !v.is_finite());
        let (mut top, mut best, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        if !non_finite {
            for (index, value) in outputs.iter().enumerate() {
                if *value > best {
                    (top, second, best) = (index, best, *value);
                } else if *value > second {
                    second = *value;
                }
            }
        }
        let score = if non_finite { 0.0 } else { best };
        let margin = if non_finite {
            0.0
        } else if second.is_finite() {
            best - second
        } else {
            1.0
        };
        let abstained = !non_finite && threshold.is_some_and(|t| score < t);
        let class = (task == Task::Classification && !non_finite && !abstained).then_some(top);
        Self { outputs, tensors: Vec::new(), class, top, score, margin, non_finite, abstained, violations }
    }

    /// An answer of tensors, which have no score and no class.
    pub fn of_tensors(tensors: Vec<Named>, violations: u32) -> Self {
        let non_finite = tensors.iter().any(|named| named.tensor.values.has_non_finite());
        Self {
            outputs: Vec::new(),
            tensors,
            class: None,
            top: 0,
            score: 0.0,
            margin: 1.0,
            non_finite,
            abstained: false,
            violations,
        }
    }

    /// Withholds the class when the score is below `threshold`, and gives it when it is not, whatever the
    /// manifest's own threshold is. Outputs that are not finite have no class in any case.
    pub fn abstain_below(&mut self, threshold: f32) {
        if self.non_finite || (self.class.is_none() && !self.abstained) {
            return;
        }
        self.abstained = self.score < threshold;
        self.class = (!self.abstained).then_some(self.top);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judging_is_right_at_the_edges() {
        let judge = |outputs, threshold| Prediction::of_scores(Task::Classification, outputs, threshold, 0);
        let p = judge(vec![], None);
        assert!(p.non_finite && p.class.is_none() && p.margin == 0.0);
        let p = judge(vec![1.0], None);
        assert_eq!((p.class, p.score, p.margin), (Some(0), 1.0, 1.0));
        let p = judge(vec![0.2, f32::NAN], None);
        assert!(p.non_finite && p.class.is_none());
        let p = judge(vec![0.4, 0.6], Some(0.7));
        assert!(p.abstained && p.class.is_none() && p.top == 1);
        let p = Prediction::of_scores(Task::Regression, vec![0.4, 0.6], None, 0);
        assert_eq!(p.class, None);
    }
}
