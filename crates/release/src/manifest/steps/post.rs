//! The postprocessing steps as a manifest writes them, with the rules that need no shape. They work on the
//! model's outputs by name; without a name, on the first.

use serde::{Deserialize, Serialize};

use super::rules::{Rule, ensure, finite, name, permutation};
use super::{MAX_KEPT, StepProblem};
use crate::manifest::check::{MAX_LABELS, MAX_RANK};

/// Most outputs that one step makes or keeps.
pub const MAX_PARTS: usize = 64;

/// A postprocessing step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum PostStep {
    /// Logits to probabilities that add up to 1 along `axis`: `exp(x - max) / sum`.
    Softmax {
        /// The axis; without, the last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axis: Option<usize>,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// `1 / (1 + exp(-x))`.
    Sigmoid {
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// `x * factor + offset`.
    Scale {
        /// The factor, not 0.
        factor: f32,
        /// Added after it.
        #[serde(default)]
        offset: f32,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// Axis `k` of the result is axis `axes[k]`.
    Transpose {
        /// Each axis once.
        axes: Vec<usize>,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// Index of the largest along `axis` (the first of equals), which is left out of the shape.
    Argmax {
        /// The axis; without, the last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axis: Option<usize>,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// The `k` largest of the last axis, falling, and a further output of their indices, whose name has
    /// `_indices` added. Equal values keep the order of their indices.
    TopK {
        /// How many, 1 to [`MAX_KEPT`].
        k: usize,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// 1 where `x >= at`, else 0.
    Threshold {
        /// The threshold.
        at: f32,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// The model's classes in the order of the manifest's labels: element `j` of `axis` is what was element
    /// `indices[j]`. Classes without a label are left out.
    LabelMap {
        /// The axis; without, the last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axis: Option<usize>,
        /// For each label the index of the model's class.
        indices: Vec<usize>,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// The output in parts along `axis`, which take its place.
    Split {
        /// The axis.
        axis: usize,
        /// Elements of each part, all of the axis together.
        lengths: Vec<usize>,
        /// Names of the parts.
        names: Vec<String>,
        /// The output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// The outputs that are answered, in this order; others are dropped.
    Keep {
        /// Their names.
        outputs: Vec<String>,
    },
    /// Non-maximum suppression of boxes.
    Nms(Nms),
    /// Withhold the class when the best score is below `threshold`.
    Abstain {
        /// Lowest score that counts as an answer, 0 to 1.
        threshold: f32,
    },
}

/// Non-maximum suppression: of boxes that overlap, the one with the best score.
///
/// A box counts with the best of its scores, if that is at least `score`. Boxes are taken by falling score; one
/// that overlaps an earlier one by more than `iou` is dropped. The boxes' output is replaced by `[kept, 6]`, rows
/// of `x1, y1, x2, y2, score, class`, and the scores' output is dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nms {
    /// Output of the boxes, `[n, 4]`, or with more axes of 1 before.
    pub boxes: String,
    /// Output of the scores, `[n, classes]`, or with more axes of 1 before.
    pub scores: String,
    /// The four numbers of a box.
    #[serde(default)]
    pub format: BoxFormat,
    /// Largest intersection over union of two boxes that are both kept, 0 to 1.
    pub iou: f32,
    /// Lowest score of a box.
    pub score: f32,
    /// Most boxes kept, 1 to [`MAX_KEPT`].
    pub max_boxes: usize,
    /// Which boxes can suppress a box.
    #[serde(default)]
    pub suppress: Suppress,
    /// Name of the result.
    #[serde(default = "detections")]
    pub name: String,
}

/// The four numbers of a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxFormat {
    /// `x1, y1, x2, y2`.
    #[default]
    Corners,
    /// `x, y` of the centre, width, height.
    Centre,
}

/// Which boxes can suppress a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppress {
    /// Those of its class.
    #[default]
    Class,
    /// All.
    All,
}

impl PostStep {
    /// Checks the rules that need no shape.
    ///
    /// # Errors
    /// [`StepProblem`] naming the field and the rule.
    pub fn check(&self) -> Rule {
        match self {
            Self::Softmax { axis, output } | Self::Argmax { axis, output } => {
                below_rank(*axis)?;
                named(output.as_ref())
            }
            Self::Sigmoid { output } => named(output.as_ref()),
            Self::Scale { factor, offset, output } => {
                ensure(factor.is_finite() && *factor != 0.0, "factor", "must be finite and not 0")?;
                finite("offset", &[*offset])?;
                named(output.as_ref())
            }
            Self::Transpose { axes, output } => {
                permutation(axes, axes.len())?;
                named(output.as_ref())
            }
            Self::TopK { k, output } => {
                let rule = || format!("must be from 1 to {MAX_KEPT}");
                ensure((1..=MAX_KEPT).contains(k), "k", rule())?;
                named(output.as_ref())
            }
            Self::Threshold { at, output } => {
                finite("at", &[*at])?;
                named(output.as_ref())
            }
            Self::LabelMap { axis, indices, output } => {
                below_rank(*axis)?;
                let rule = || format!("must be 1 to {MAX_LABELS} indices");
                ensure((1..=MAX_LABELS).contains(&indices.len()), "indices", rule())?;
                named(output.as_ref())
            }
            Self::Split { axis, lengths, names, output } => {
                below_rank(Some(*axis))?;
                ensure(lengths.iter().all(|n| *n > 0), "lengths", "must be above 0 everywhere")?;
                ensure(names.len() == lengths.len(), "names", "must be as many as the lengths")?;
                names_of("names", names)?;
                named(output.as_ref())
            }
            Self::Keep { outputs } => names_of("outputs", outputs),
            Self::Nms(nms) => nms.check(),
            Self::Abstain { threshold } => {
                ensure((0.0..=1.0).contains(threshold), "threshold", "must be from 0 to 1")
            }
        }
    }
}

impl Nms {
    fn check(&self) -> Rule {
        name("boxes", &self.boxes)?;
        name("scores", &self.scores)?;
        ensure(self.boxes != self.scores, "scores", "must be another output than the boxes")?;
        name("name", &self.name)?;
        ensure((0.0..=1.0).contains(&self.iou), "iou", "must be from 0 to 1")?;
        finite("score", &[self.score])?;
        let rule = || format!("must be from 1 to {MAX_KEPT}");
        ensure((1..=MAX_KEPT).contains(&self.max_boxes), "max_boxes", rule())
    }
}

fn below_rank(axis: Option<usize>) -> Rule {
    ensure(axis.is_none_or(|axis| axis < MAX_RANK), "axis", format!("must be below {MAX_RANK}"))
}

fn named(output: Option<&String>) -> Rule {
    output.map_or(Ok(()), |output| name("output", output))
}

fn names_of(field: &'static str, names: &[String]) -> Rule {
    let rule = || format!("must be 1 to {MAX_PARTS} names");
    ensure((1..=MAX_PARTS).contains(&names.len()), field, rule())?;
    for (i, one) in names.iter().enumerate() {
        name(field, one)?;
        if names.iter().take(i).any(|before| before == one) {
            return Err(StepProblem { field, rule: format!("has {one:?} twice") });
        }
    }
    Ok(())
}

fn detections() -> String {
    "detections".to_owned()
}
