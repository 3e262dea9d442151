//! Non-maximum suppression of boxes, as torchvision's `batched_nms` with the best class of each box.

use farlight_release::manifest::steps::{BoxFormat, Nms, StepProblem, Suppress};

use super::Array;

/// Numbers of a row of the result: `x1, y1, x2, y2, score, class`.
pub(super) const ROW: usize = 6;
/// Most boxes above the score threshold that are looked at, the best of them: bounds the comparisons of a frame
/// in which everything scores.
const MAX_CANDIDATES: usize = 30_000;

struct Candidate {
    corners: [f32; 4],
    score: f32,
    class: usize,
    index: usize,
}

/// The boxes that are kept, best first: `[kept, ROW]`.
pub(super) fn suppress(step: &Nms, boxes: &Array, scores: &Array) -> Result<Array, StepProblem> {
    let (n, four) = rows("boxes", boxes)?;
    let (scored, classes) = rows("scores", scores)?;
    if four != 4 {
        let rule = format!("must have four numbers on the last axis, not {:?}", boxes.shape);
        return Err(StepProblem { field: "boxes", rule });
    }
    if scored != n || classes == 0 {
        let rule = format!("must have a row for each of {n} boxes, not {:?}", scores.shape);
        return Err(StepProblem { field: "scores", rule });
    }
    let mut candidates = candidates(step, boxes, scores, classes);
    candidates.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
    candidates.truncate(MAX_CANDIDATES);
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.len() == step.max_boxes {
            break;
        }
        let rivals = |other: &&Candidate| step.suppress == Suppress::All || other.class == candidate.class;
        let mut rivals = kept.iter().filter(rivals);
        if rivals.all(|other| overlap(&other.corners, &candidate.corners) <= step.iou) {
            kept.push(candidate);
        }
    }
    let rows = kept.iter().flat_map(|c| c.corners.into_iter().chain([c.score, c.class as f32]));
    Ok(Array { shape: vec![kept.len(), ROW], values: rows.collect() })
}

/// Boxes whose best score is high enough; those that are not finite are none.
fn candidates(step: &Nms, boxes: &Array, scores: &Array, classes: usize) -> Vec<Candidate> {
    let rows = boxes.values.chunks_exact(4).zip(scores.values.chunks_exact(classes)).enumerate();
    rows.filter_map(|(index, (numbers, scores))| {
        let best = scores.iter().copied().enumerate().filter(|(_, score)| *score >= step.score);
        let (class, score) = best.fold(None, |best: Option<(usize, f32)>, next| match best {
            Some(best) if best.1 >= next.1 => Some(best),
            _ => Some(next),
        })?;
        let [a, b, c, d] = *numbers else { return None };
        let corners = match step.format {
            BoxFormat::Corners => [a, b, c, d],
            BoxFormat::Centre => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        };
        let finite = corners.iter().all(|v| v.is_finite()) && score.is_finite();
        finite.then_some(Candidate { corners, score, class, index })
    })
    .collect()
}

/// Rows and columns of an array that has no further axes, or only of length 1 before.
fn rows(field: &'static str, array: &Array) -> Result<(usize, usize), StepProblem> {
    match array.shape.as_slice() {
        [before @ .., rows, columns] if before.iter().all(|n| *n == 1) => Ok((*rows, *columns)),
        shape => Err(StepProblem { field, rule: format!("must be a table of rows, not {shape:?}") }),
    }
}

/// Intersection over union; 0 for boxes without an area.
pub(super) fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |x1: f32, y1: f32, x2: f32, y2: f32| (x2 - x1).max(0.0) * (y2 - y1).max(0.0);
    let both = area(a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3]));
    let union = area(a[0], a[1], a[2], a[3]) + area(b[0], b[1], b[2], b[3]) - both;
    if both > 0.0 && union > 0.0 { both / union } else { 0.0 }
}
