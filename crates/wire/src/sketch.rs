//! DDSketch quantiles (Masson, Rim, Lee: "DDSketch", VLDB 2019): logarithmic bins with 1 % relative
//! error, merged by addition, so order and replay cannot change the result. The bin function is that
//! of the `sketches-ddsketch` crate; the store is a sorted map so that foreign bytes cannot make it
//! allocate more than [`MAX_SKETCH_BINS`](crate::limits::MAX_SKETCH_BINS) bins.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sketches_ddsketch::Config;

use crate::limits::MAX_SKETCH_BINS;

/// Values below this count as zero. Unit: that of the values (µs for latency).
const MIN_VALUE: f64 = 0.1;
static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::new(0.01, MAX_SKETCH_BINS as u32, MIN_VALUE));

/// A mergeable sketch of non-negative values with 1 % relative error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sketch {
    zeros: u64,
    bins: BTreeMap<i16, u64>,
}

impl Sketch {
    /// Adds a value. Negative, NaN and tiny values count as zero.
    pub fn add(&mut self, value: f64) {
        self.add_many(value, 1);
    }

    fn add_many(&mut self, value: f64, count: u64) {
        if value.is_nan() || value < MIN_VALUE {
            self.zeros = self.zeros.saturating_add(count);
            return;
        }
        let key = CONFIG.key(value).clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16;
        self.insert(key, count);
    }

    fn insert(&mut self, key: i16, count: u64) {
        if self.bins.len() >= MAX_SKETCH_BINS && !self.bins.contains_key(&key) {
            // Full: the lowest bin takes it, as in the collapsing store of the paper.
            if let Some(lowest) = self.bins.values_mut().next() {
                *lowest = lowest.saturating_add(count);
            }
            return;
        }
        let bin = self.bins.entry(key).or_insert(0);
        *bin = bin.saturating_add(count);
    }

    /// Adds another sketch.
    pub fn merge(&mut self, other: &Self) {
        self.zeros = self.zeros.saturating_add(other.zeros);
        for (key, count) in &other.bins {
            self.insert(*key, *count);
        }
    }

    /// How many values were added.
    pub fn count(&self) -> u64 {
        self.bins.values().fold(self.zeros, |sum, count| sum.saturating_add(*count))
    }

    /// How many values are above `limit`, to the sketch's relative error.
    pub fn count_above(&self, limit: f64) -> u64 {
        let above = self.bins.iter().rev().take_while(|(key, _)| CONFIG.value(i32::from(**key)) > limit);
        above.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The value at quantile `q` (0 to 1), `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * (count - 1) as f64) as u64;
        let mut below = self.zeros;
        if rank < below {
            return Some(0.0);
        }
        for (key, count) in &self.bins {
            below = below.saturating_add(*count);
            if rank < below {
                return Some(CONFIG.value(i32::from(*key)));
            }
        }
        None
    }
}

/// On the wire: zeros, then (difference to the previous key, count) pairs.
#[derive(Serialize, Deserialize)]
struct Bins(u64, Vec<(i32, u64)>);

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut last = 0;
        let pairs = self.bins.iter().map(|(key, count)| {
            let difference = i32::from(*key) - last;
            last = i32::from(*key);
            (difference, *count)
        });
        Bins(self.zeros, pairs.collect()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let Bins(zeros, pairs) = Bins::deserialize(deserializer)?;
        if pairs.len() > MAX_SKETCH_BINS {
            return Err(D::Error::custom("too many bins"));
        }
        let mut sketch = Self { zeros, bins: BTreeMap::new() };
        let mut key = 0_i32;
        for (difference, count) in pairs {
            key = key.checked_add(difference).ok_or_else(|| D::Error::custom("overflow"))?;
            let key = i16::try_from(key).map_err(|_| D::Error::custom("bin out of range"))?;
            sketch.insert(key, count);
        }
        Ok(sketch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(mut values in prop::collection::vec(0.2_f64..1e9, 1..300), q in 0.0_f64..=1.0) {
            let mut sketch = Sketch::default();
            values.iter().for_each(|v| sketch.add(*v));
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            let estimate = sketch.quantile(q).unwrap();
            prop_assert!((estimate - exact).abs() <= 0.0101 * exact, "{estimate} for {exact}");
        }

        #[test]
        fn merging_is_adding(a in prop::collection::vec(0.0_f64..1e6, 0..50), b in prop::collection::vec(0.0_f64..1e6, 0..50)) {
            let (mut left, mut right, mut both) = (Sketch::default(), Sketch::default(), Sketch::default());
            a.iter().for_each(|v| { left.add(*v); both.add(*v); });
            b.iter().for_each(|v| { right.add(*v); both.add(*v); });
            left.merge(&right);
            prop_assert_eq!(&left, &both);
            let bytes = postcard::to_allocvec(&left).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Sketch>(&bytes).unwrap(), left);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(sketch) = postcard::from_bytes::<Sketch>(&bytes) { let _ = sketch.quantile(0.5); }
        }
    }
}
