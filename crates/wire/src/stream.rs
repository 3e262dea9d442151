//! Streams of numbered records and the batches that carry them, the base of "nothing lost, nothing
//! counted twice". The rule is in [`Watermark::accept`]; both its callers and its property test rely
//! on it alone.

use serde::{Deserialize, Serialize};

use crate::ids::Seq;

/// The three streams of a device. Each has its own numbering and acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Windows of metrics.
    Telemetry,
    /// Hard cases and control samples.
    Case,
    /// Reports: update states, inventory, refusals.
    Report,
}

impl Stream {
    /// All streams.
    pub const ALL: [Self; 3] = [Self::Telemetry, Self::Case, Self::Report];

    /// Last level of the topic: `tel`, `case` or `rep`.
    pub fn topic(self) -> &'static str {
        match self {
            Self::Telemetry => "tel",
            Self::Case => "case",
            Self::Report => "rep",
        }
    }

    /// The inverse of [`Stream::topic`].
    pub fn from_topic(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.topic() == name)
    }
}

/// A batch of records of one stream, in rising order of number.
///
/// `prev` is the number of the record sent before the first of this batch (0 at the start of an
/// epoch): numbers may have holes where the device evicted records, so only `prev` tells a hole
/// from a loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch<T> {
    /// Identity of the device's store: a new one begins when the store was lost. Random, not zero.
    pub epoch: u64,
    /// The highest number the device has seen acknowledged in this epoch.
    pub acked: Seq,
    /// The number before the first record, as described above.
    pub prev: Seq,
    /// The records, numbers strictly rising and above `prev`.
    pub records: Vec<(Seq, T)>,
}

/// What the receiver has committed of one (device, stream, epoch).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watermark(pub Seq);

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// Store the records from this index on (those before are duplicates), then move the
    /// watermark and acknowledge it.
    From(usize, Watermark),
    /// A batch before this one is missing: store nothing, acknowledge the watermark as it is; the
    /// device goes back to it.
    Gap,
}

impl Watermark {
    /// Judges a batch against what was committed. A batch whose `prev` is above both the watermark
    /// and the device's own acknowledged number would skip records, so it is a [`Accept::Gap`].
    /// (`acked` above the watermark means the cloud was restored from an older backup: those
    /// records are gone on both sides, and waiting for them would stop the stream for ever.)
    pub fn accept<T>(self, batch: &Batch<T>) -> Accept {
        let floor = self.0.max(batch.acked);
        if batch.prev > floor {
            return Accept::Gap;
        }
        let first_new = batch.records.iter().take_while(|(seq, _)| *seq <= self.0).count();
        let last = batch.records.last().map_or(floor, |(seq, _)| *seq);
        Accept::From(first_new, Self(last.max(floor)))
    }
}

impl<T> Batch<T> {
    /// Whether numbers rise strictly from `prev` and the epoch is set.
    pub fn is_well_formed(&self) -> bool {
        let mut last = self.prev;
        self.epoch != 0
            && self.records.len() <= crate::limits::MAX_RECORDS
            && self.records.iter().all(|(seq, _)| std::mem::replace(&mut last, *seq) < *seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is dropped, repeated or reordered on the way, each record that the device
        /// deletes on acknowledgement was stored exactly once.
        #[test]
        fn every_acknowledged_record_is_stored_once(
            gaps in prop::collection::vec(1_u64..4, 1..60),
            schedule in prop::collection::vec((0_usize..60, 1_usize..8, any::<bool>(), any::<bool>()), 1..300),
        ) {
            let numbers: Vec<u64> = gaps.iter().scan(0, |seq, gap| { *seq += gap; Some(*seq) }).collect();
            let (mut stored, mut mark, mut device_acked) = (Vec::new(), Watermark::default(), 0);
            for (start, length, arrives, ack_arrives) in schedule {
                let start = start.min(numbers.len() - 1);
                let end = (start + length).min(numbers.len());
                // A device never sends below what it deleted.
                if numbers[start] <= device_acked { continue; }
                let batch = Batch {
                    epoch: 1,
                    acked: Seq(device_acked),
                    prev: Seq(if start == 0 { 0 } else { numbers[start - 1] }),
                    records: numbers[start..end].iter().map(|n| (Seq(*n), *n)).collect(),
                };
                prop_assert!(batch.is_well_formed());
                if !arrives { continue; }
                if let Accept::From(first, next) = mark.accept(&batch) {
                    stored.extend(batch.records[first..].iter().map(|(_, n)| *n));
                    prop_assert!(next.0 >= mark.0);
                    mark = next;
                }
                if ack_arrives { device_acked = device_acked.max(mark.0.0); }
            }
            let expected: Vec<u64> = numbers.iter().copied().filter(|n| *n <= mark.0.0).collect();
            prop_assert_eq!(stored, expected);
        }
    }
}
