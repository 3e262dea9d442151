//! Answers that are kept for inputs that come again: compared by the whole input, for a time, and only as long as
//! the same releases answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use farlight_inference::Prediction;

/// Largest input that is looked up, bytes: comparing a larger one costs as much as a small model.
pub(super) const MAX_KEY: usize = 64 * 1024;

struct Kept {
    prediction: Prediction,
    stage: usize,
    until: Instant,
}

/// A bounded cache of one route.
pub(super) struct Cache {
    ttl: Duration,
    entries: usize,
    /// Which releases answered what is kept.
    releases: Vec<String>,
    kept: HashMap<Vec<u8>, Kept>,
}

impl Cache {
    /// An empty cache.
    pub(super) fn new(ttl: Duration, entries: usize) -> Self {
        Self { ttl, entries, releases: Vec::new(), kept: HashMap::new() }
    }

    /// The answer to an input that came before, and the stage that gave it. Everything is forgotten when the releases
    /// are others.
    pub(super) fn get(
        &mut self,
        key: &[u8],
        releases: &[String],
        now: Instant,
    ) -> Option<(Prediction, usize)> {
        if self.releases != releases {
            self.kept.clear();
            self.releases = releases.to_vec();
        }
        let kept = self.kept.get(key).filter(|kept| now < kept.until)?;
        Some((kept.prediction.clone(), kept.stage))
    }

    /// Keeps an answer of these releases. A full cache forgets what is too old, else everything: a cheap rule that
    /// a stream of ever new inputs cannot make slow.
    pub(super) fn put(
        &mut self,
        key: Vec<u8>,
        releases: &[String],
        prediction: &Prediction,
        stage: usize,
        now: Instant,
    ) {
        if self.releases != releases {
            return;
        }
        if self.kept.len() >= self.entries {
            self.kept.retain(|_, kept| now < kept.until);
        }
        if self.kept.len() >= self.entries {
            self.kept.clear();
        }
        self.kept.insert(key, Kept { prediction: prediction.clone(), stage, until: now + self.ttl });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(score: f32) -> Prediction {
        Prediction::of_scores(farlight_release::manifest::Task::Regression, vec![score], None, 0)
    }

    #[test]
    fn it_keeps_for_a_time_within_its_bound_and_only_for_the_same_releases() {
        let now = Instant::now();
        let (one, two) = (["a".to_owned()], ["b".to_owned()]);
        let mut cache = Cache::new(Duration::from_secs(1), 2);
        assert!(cache.get(b"x", &one, now).is_none());
        cache.put(b"x".to_vec(), &one, &answer(1.0), 3, now);
        assert_eq!(cache.get(b"x", &one, now), Some((answer(1.0), 3)));
        assert!(cache.get(b"y", &one, now).is_none());
        assert!(cache.get(b"x", &one, now + Duration::from_secs(1)).is_none());
        for key in [b"1", b"2", b"3"] {
            cache.put(key.to_vec(), &one, &answer(2.0), 0, now);
            assert!(cache.kept.len() <= 2);
        }
        cache.put(b"3".to_vec(), &one, &answer(1.0), 0, now);
        assert!(cache.get(b"3", &two, now).is_none() && cache.get(b"3", &one, now).is_none());
        // An answer that was asked for before the releases changed is not kept.
        assert!(cache.get(b"3", &two, now).is_none());
        cache.put(b"3".to_vec(), &one, &answer(1.0), 0, now);
        assert!(cache.get(b"3", &two, now).is_none());
    }
}
