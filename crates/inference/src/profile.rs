//! The reference profile: features of the raw input in reference-quantile bins. `build` makes it when a
//! release is built; `bins` counts against it on the device. Both use `feature`, so they cannot differ.

use farlight_release::manifest::{FeatureProfile, Manifest, Profile, Statistic};

use crate::pipeline::{RunError, Worker};

/// Bins of each feature: deciles.
const FEATURE_BINS: usize = 10;
/// Upper edges of the score bins.
const SCORE_EDGES: [f32; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// One feature of one raw input, row-major with channels first; NaN when it has no finite elements.
fn feature(statistic: Statistic, channel: usize, channels: usize, raw: &[f32]) -> f32 {
    let length = raw.len() / channels.max(1);
    let values = raw.get(channel * length..(channel + 1) * length).unwrap_or(&[]);
    let (mut n, mut sum, mut squares) = (0.0_f64, 0.0_f64, 0.0_f64);
    for value in values.iter().filter(|v| v.is_finite()) {
        let value = f64::from(*value);
        n += 1.0;
        sum += value;
        squares += value * value;
    }
    let mean = sum / n;
    match statistic {
        Statistic::Mean => mean as f32,
        Statistic::Std => (squares / n - mean * mean).max(0.0).sqrt() as f32,
    }
}

/// One statistic of one channel of a raw input of a model; NaN when there is no such channel, or nothing finite in it.
pub fn feature_of(manifest: &Manifest, statistic: Statistic, channel: usize, raw: &[f32]) -> f32 {
    feature(statistic, channel, manifest.input.shape.first().copied().unwrap_or(1), raw)
}

/// The bin of a value among rising upper edges; the last bin (`edges.len() + 1`) is for NaN.
fn bin(edges: &[f32], value: f32) -> usize {
    if value.is_nan() { edges.len() + 1 } else { edges.partition_point(|edge| *edge < value) }
}

/// Calls `count(feature index, bin)` for each feature of a raw input.
pub fn bins(manifest: &Manifest, raw: &[f32], mut count: impl FnMut(usize, usize)) {
    let channels = manifest.input.shape.first().copied().unwrap_or(1);
    for (index, profile) in manifest.profile.features.iter().enumerate() {
        let value = feature(profile.statistic, profile.channel, channels, raw);
        count(index, bin(&profile.edges, value));
    }
}

/// The score bin of a top score.
pub fn score_bin(manifest: &Manifest, score: f32) -> usize {
    bin(&manifest.profile.score_edges, score).min(manifest.profile.score_edges.len())
}

/// How far an input is from the reference, 0 to 1: the share of its features that fall in an outermost
/// reference bin or are missing. `bins` are the (feature, bin) pairs of [`bins`]. A cheap novelty score
/// without storing embeddings.
pub fn novelty(manifest: &Manifest, bins: &[(usize, usize)]) -> f32 {
    let features = &manifest.profile.features;
    let is_outer = |(feature, bin): &&(usize, usize)| {
        *bin == 0 || features.get(*feature).is_none_or(|profile| *bin >= profile.edges.len())
    };
    bins.iter().filter(is_outer).count() as f32 / features.len().max(1) as f32
}

/// Computes the reference profile of a release on evaluation inputs: mean and deviation of every channel
/// in deciles, scores in tenths, predicted classes. `channel_names` name the channels for people; missing
/// names become `channel ‹n›`.
///
/// # Errors
/// [`RunError`] when an input does not run.
pub fn build(
    worker: &mut Worker,
    inputs: &[Vec<f32>],
    channel_names: &[String],
) -> Result<Profile, RunError> {
    let manifest = worker.manifest().clone();
    let channels = manifest.input.shape.first().copied().unwrap_or(1);
    let mut features = Vec::with_capacity(channels * 2);
    for channel in 0..channels {
        let label = channel_names.get(channel).cloned().unwrap_or_else(|| format!("channel {channel}"));
        for (statistic, suffix) in [(Statistic::Mean, "mean"), (Statistic::Std, "std")] {
            let values: Vec<f32> =
                inputs.iter().map(|raw| feature(statistic, channel, channels, raw)).collect();
            let edges = deciles(&values);
            let mut counts = vec![0; edges.len() + 2];
            values.iter().for_each(|value| counts[bin(&edges, *value)] += 1);
            features.push(FeatureProfile {
                name: format!("{label} {suffix}"),
                statistic,
                channel,
                edges,
                counts,
            });
        }
    }
    let mut score_counts = vec![0; SCORE_EDGES.len() + 1];
    let mut class_counts = vec![0; manifest.labels.len()];
    for raw in inputs {
        let prediction = worker.run(raw)?;
        score_counts[bin(&SCORE_EDGES, prediction.score).min(SCORE_EDGES.len())] += 1;
        if let Some(count) = class_counts.get_mut(prediction.top) {
            *count += 1;
        }
    }
    Ok(Profile { features, score_edges: SCORE_EDGES.to_vec(), score_counts, class_counts })
}

/// Strictly rising decile edges; equal neighbours collapse, so a constant feature has one edge.
fn deciles(values: &[f32]) -> Vec<f32> {
    let mut finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.sort_by(f32::total_cmp);
    let mut edges: Vec<f32> =
        (1..FEATURE_BINS).filter_map(|k| finite.get(finite.len() * k / FEATURE_BINS).copied()).collect();
    edges.dedup();
    edges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn features_of_a_channel() {
        let raw = [1.0, 3.0, f32::NAN, f32::NAN, 5.0, 5.0];
        assert_eq!(feature(Statistic::Mean, 0, 3, &raw), 2.0);
        assert_eq!(feature(Statistic::Std, 0, 3, &raw), 1.0);
        assert!(feature(Statistic::Mean, 1, 3, &raw).is_nan());
        assert_eq!(feature(Statistic::Std, 2, 3, &raw), 0.0);
    }

    proptest! {
        #[test]
        fn every_value_has_a_bin_and_edges_rise(values in prop::collection::vec(prop::num::f32::ANY, 0..100), probe in prop::num::f32::ANY) {
            let edges = deciles(&values);
            prop_assert!(edges.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(bin(&edges, probe) < edges.len() + 2);
        }
    }
}
