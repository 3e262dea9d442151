//! Divides labelled field cases and old data into what a job trains on, what chooses its best epoch,
//! and what only the gate sees. Pure and by seed, so that a job can be repeated.

use farlight_training::random::Random;
use farlight_training::{Examples, Samples};

/// Share of the labelled cases that only the gate sees: one in so many.
const FIELD_TEST_SHARE: usize = 4;
/// Fewest cases that only the gate sees, as far as there are twice as many.
const MIN_FIELD_TEST: usize = 24;
/// Share of the rest that chooses the best epoch: one in so many.
const VALIDATION_SHARE: usize = 6;
/// Replayed old samples for each labelled case: measured, fewer forget and more drown the cases.
const REPLAY_RATIO: usize = 2;
/// Fewest replayed samples.
const MIN_REPLAY: usize = 200;
/// Old samples that help to choose the best epoch.
const OLD_VALIDATION: usize = 100;

/// A labelled field case.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Id of the case.
    pub id: String,
    /// The device it comes from.
    pub device: String,
    /// The input as the application sent it.
    pub input: Vec<f32>,
    /// Its class.
    pub label: u32,
}

/// Samples with where each comes from: a case, or empty for replayed old data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traced {
    /// The samples.
    pub samples: Samples,
    /// Case ids, empty for old data.
    pub origin: Vec<String>,
}

impl Traced {
    fn old(samples: Samples) -> Self {
        Self { origin: vec![String::new(); samples.len()], samples }
    }

    fn cases(cases: Vec<Labelled>, shape: &[usize]) -> Self {
        let mut traced = Self::default();
        traced.samples.shape = shape.to_vec();
        for case in cases {
            traced.samples.x.push(case.input);
            traced.samples.y.push(case.label);
            traced.origin.push(case.id);
        }
        traced
    }

    fn join(mut self, other: Self) -> Self {
        self.samples.extend(other.samples);
        self.origin.extend(other.origin);
        self
    }
}

/// The four sets of a job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sets {
    /// Trained on: labelled cases and replayed old data.
    pub train: Traced,
    /// Chooses the best epoch: some of both.
    pub val: Traced,
    /// Old data that only the gate sees.
    pub test_old: Traced,
    /// Labelled cases that only the gate sees.
    pub test_field: Traced,
}

impl Sets {
    /// The same with every set's samples changed.
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn map<E>(self, mut change: impl FnMut(Samples) -> Result<Samples, E>) -> Result<Self, E> {
        let mut each = |set: Traced| -> Result<Traced, E> {
            Ok(Traced { samples: change(set.samples)?, origin: set.origin })
        };
        Ok(Self {
            train: each(self.train)?,
            val: each(self.val)?,
            test_old: each(self.test_old)?,
            test_field: each(self.test_field)?,
        })
    }
}

/// Divides labelled cases and old data. The same case never trains and tests.
pub fn divide(mut cases: Vec<Labelled>, old: Samples, holdout: Samples, seed: u64) -> Sets {
    let shape = old.shape.clone();
    let mut random = Random::new(seed);
    cases.sort_by(|a, b| a.id.cmp(&b.id));
    random.shuffle(&mut cases);
    let count = cases.len();
    let tests = (count / FIELD_TEST_SHARE).max(MIN_FIELD_TEST).min(count / 2);
    let rest = cases.split_off(tests);
    let mut trained = rest;
    let validate = trained.split_off(trained.len() - trained.len() / VALIDATION_SHARE);

    let mut order: Vec<usize> = (0..old.len()).collect();
    random.shuffle(&mut order);
    let choose = OLD_VALIDATION.min(order.len() / 5);
    let replay = (count * REPLAY_RATIO).max(MIN_REPLAY);
    let (choosing, replayed) = order.split_at(choose);
    let replayed = &replayed[..replay.min(replayed.len())];
    Sets {
        train: Traced::cases(trained, &shape).join(Traced::old(old.select(replayed))),
        val: Traced::cases(validate, &shape).join(Traced::old(old.select(choosing))),
        test_old: Traced::old(holdout),
        test_field: Traced::cases(cases, &shape),
    }
}

/// The examples of a job: field cases weigh `field_weight`; when the best epoch is chosen, the field
/// and the old data count the same in sum.
pub fn examples(sets: Sets, classes: usize, field_weight: f32) -> (Examples, Examples) {
    let weigh = |set: Traced, field: f32, old: f32| {
        let weights = set.origin.iter().map(|origin| if origin.is_empty() { old } else { field }).collect();
        Examples { weights, ..Examples::labelled(set.samples, classes, 1.0) }
    };
    let field = sets.val.origin.iter().filter(|origin| !origin.is_empty()).count();
    let share = |count: usize| 1.0 / count.max(1) as f32;
    let old = sets.val.origin.len() - field;
    (weigh(sets.train, field_weight, 1.0), weigh(sets.val, share(field), share(old)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn old(count: usize) -> Samples {
        Samples { shape: vec![1], x: (0..count).map(|at| vec![at as f32]).collect(), y: vec![0; count] }
    }

    fn cases(count: usize) -> Vec<Labelled> {
        (0..count)
            .map(|at| Labelled { id: format!("c{at}"), device: "d".into(), input: vec![-1.0], label: 1 })
            .collect()
    }

    #[test]
    fn no_case_trains_and_tests_and_none_is_lost() {
        for count in [0, 1, 2, 10, 50, 300] {
            let sets = divide(cases(count), old(600), old(50), 7);
            let ids =
                |set: &Traced| set.origin.iter().filter(|id| !id.is_empty()).cloned().collect::<Vec<_>>();
            let all = [ids(&sets.train), ids(&sets.val), ids(&sets.test_field)].concat();
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), count);
            assert_eq!(all.len(), count);
            assert!(sets.train.samples.len() >= 200 && sets.test_old.samples.len() == 50);
            assert!(ids(&sets.test_field).len() <= count / 2);
        }
        assert_eq!(divide(cases(60), old(600), old(5), 7), divide(cases(60), old(600), old(5), 7));
        assert_ne!(divide(cases(60), old(600), old(5), 7), divide(cases(60), old(600), old(5), 8));
    }

    #[test]
    fn field_and_old_choose_with_equal_weight() {
        let (train, val) = examples(divide(cases(120), old(600), old(5), 7), 2, 3.0);
        let sum = |class: usize| -> f32 {
            (0..val.len()).filter(|&at| val.label(at) == class).map(|at| val.weights[at]).sum()
        };
        assert!((sum(0) - 1.0).abs() < 1e-4 && (sum(1) - 1.0).abs() < 1e-4);
        assert!(train.weights.contains(&3.0) && train.weights.contains(&1.0));
    }
}
