//! The rule at the end of a route: an answer without a model.

use std::time::Duration;

use farlight_inference::{Item, Prediction, profile};
use farlight_release::config::route::{Fallback, Row};
use farlight_release::manifest::{Manifest, Task};

/// The last answer of a route and its age.
pub(super) struct Last {
    pub(super) prediction: Prediction,
    pub(super) age: Duration,
}

/// The answer of a rule; `None` for a model of tensors, which no rule can stand in for.
pub(super) fn answer(
    rule: &Fallback,
    manifest: &Manifest,
    item: &Item,
    last: Option<Last>,
) -> Option<Prediction> {
    let value = match rule {
        Fallback::Constant { value } => *value,
        Fallback::Last { max_age_ms, otherwise } => {
            match last.filter(|last| last.age <= Duration::from_millis(*max_age_ms)) {
                Some(last) => return Some(last.prediction),
                None => *otherwise,
            }
        }
        Fallback::Table { rows, otherwise } => {
            let raw = item.main.to_f32();
            let fits = |row: &&Row| {
                raw.as_ref().is_some_and(|raw| {
                    profile::feature_of(manifest, row.statistic, row.channel, raw) >= row.at_least
                })
            };
            rows.iter().find(fits).map_or(*otherwise, |row| row.value)
        }
    };
    match manifest.task {
        Task::Regression => Some(Prediction::of_scores(manifest.task, vec![value], None, 0)),
        Task::Classification => {
            // No score: nobody was sure of it.
            let outputs = vec![0.0; manifest.labels.len()];
            let mut prediction = Prediction::of_scores(manifest.task, outputs, None, 0);
            prediction.top = value.max(0.0) as usize;
            prediction.class = (prediction.top < manifest.labels.len()).then_some(prediction.top);
            prediction.margin = 0.0;
            Some(prediction)
        }
        Task::Tensors => None,
    }
}
