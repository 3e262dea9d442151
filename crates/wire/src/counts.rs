//! Count vectors, written as differences of neighbours: histogram bins next to each other are alike,
//! so the differences fit in one byte each where the counts would not.

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MAX_BINS;

/// Counts per bin or class. Merged by addition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(pub Vec<u32>);

impl Counts {
    /// `n` bins of zero.
    pub fn zeros(n: usize) -> Self {
        Self(vec![0; n])
    }

    /// Adds one to a bin; a bin outside is ignored.
    pub fn add(&mut self, bin: usize) {
        if let Some(count) = self.0.get_mut(bin) {
            *count = count.saturating_add(1);
        }
    }

    /// Adds other counts bin by bin, growing to the longer of the two.
    pub fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count = count.saturating_add(*more);
        }
    }

    /// The sum of all bins.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        let mut last = 0_i64;
        for count in &self.0 {
            seq.serialize_element(&(i64::from(*count) - last))?;
            last = i64::from(*count);
        }
        seq.end()
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Differences;
        impl<'de> Visitor<'de> for Differences {
            type Value = Counts;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {MAX_BINS} differences of neighbouring counts")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Counts, A::Error> {
                let mut counts = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(MAX_BINS));
                let mut last = 0_i64;
                while let Some(difference) = seq.next_element::<i64>()? {
                    last = last.checked_add(difference).ok_or_else(|| A::Error::custom("overflow"))?;
                    let count = u32::try_from(last).map_err(|_| A::Error::custom("count out of range"))?;
                    if counts.len() == MAX_BINS {
                        return Err(A::Error::custom("too many bins"));
                    }
                    counts.push(count);
                }
                Ok(Counts(counts))
            }
        }
        deserializer.deserialize_seq(Differences)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_round_trip(counts in prop::collection::vec(any::<u32>(), 0..64)) {
            let counts = Counts(counts);
            let bytes = postcard::to_allocvec(&counts).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Counts>(&bytes).unwrap(), counts);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = postcard::from_bytes::<Counts>(&bytes);
        }
    }
}
