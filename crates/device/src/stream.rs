//! Windows over a stream of samples that may come out of order, twice or not at all. Samples are put in the order
//! of their event time; windows are counted in samples and may overlap. Sources of the agent call it.
//!
//! Event time and watermark are those of the Dataflow model (Akidau et al., "The Dataflow Model", VLDB 2015,
//! section 2.3) with Flink's bounded out-of-orderness (`BoundedOutOfOrdernessWatermarks`): the watermark is the
//! newest event time seen less `lateness`. A sample before it is late and dropped; one at or after it waits until
//! the watermark reaches it, and then leaves in order. Flink's watermark lies one unit lower, because there
//! several events may share a time; here a second sample of the same time is a duplicate.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

/// Most values of one window, and most that wait for their turn: 4 MiB of numbers each.
pub const MAX_VALUES: usize = 1 << 20;
/// Most samples that wait for their turn: each costs some 80 bytes beside its values.
pub const MAX_WAITING: usize = 1 << 16;
/// Late samples in a row, at least, before the stream is taken to have begun again: one burst of a sensor that
/// caught up is shorter, a clock that was set back would otherwise silence the stream for ever.
pub const RESTART_AFTER: usize = 100;

/// When a sample was taken. One unit a stream: microseconds, or the number of the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventTime(pub i64);

/// How a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Values of each sample, at least 1.
    pub channels: usize,
    /// Samples of a window, at least 1; `channels * length` is at most [`MAX_VALUES`].
    pub length: usize,
    /// Samples from the start of a window to the start of the next, at least 1: under `length` windows overlap,
    /// over it samples between them are left out.
    pub stride: usize,
    /// How far behind the newest sample one may come, in the unit of the event time.
    pub lateness: u64,
    /// Longest time between two samples of a window; any when `None`.
    pub max_gap: Option<u64>,
}

/// A plan that cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A size is 0.
    #[error("channels, length and stride must be at least 1")]
    Empty,
    /// A window would be larger than [`MAX_VALUES`].
    #[error("a window has more than {MAX_VALUES} values")]
    TooLarge,
}

/// A sample of another width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sample has {found} values, expected {expected}")]
pub struct WrongChannels {
    /// Channels of the plan.
    pub expected: usize,
    /// Values of the sample.
    pub found: usize,
}

/// A window.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Event time of its first sample.
    pub start: EventTime,
    /// Event time of its last sample.
    pub end: EventTime,
    /// Its values, row-major `[channels, length]`.
    pub values: Vec<f32>,
}

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has its place.
    Accepted,
    /// It came after the watermark had passed it.
    Late,
    /// There is a sample of that time already.
    Duplicate,
}

/// What happened to a stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples that came too late.
    pub late: u64,
    /// Samples of a time that was there already.
    pub duplicates: u64,
    /// Gaps over `max_gap`: the window that was begun before each was given up.
    pub gaps: u64,
    /// Times that the stream began again in the past; what had been waiting was given up.
    pub restarts: u64,
}

/// Cuts one stream. Holds at most a window, and [`MAX_WAITING`] samples or [`MAX_VALUES`] values that wait (one
/// sample more while it is added): when more would wait, the watermark moves on to the oldest.
#[derive(Debug, Clone)]
pub struct Windower {
    plan: Plan,
    waiting: BTreeMap<EventTime, Vec<f32>>,
    /// In order, the beginning of the next window: times, and the values of each sample one after the other.
    times: VecDeque<EventTime>,
    rows: VecDeque<f32>,
    /// Samples to leave out before the next window.
    skip: usize,
    watermark: Option<EventTime>,
    released: Option<EventTime>,
    late_in_a_row: usize,
    counts: Counts,
}

impl Windower {
    /// An empty stream.
    ///
    /// # Errors
    /// [`PlanError`] when the plan cannot be followed.
    pub fn new(plan: Plan) -> Result<Self, PlanError> {
        if plan.channels == 0 || plan.length == 0 || plan.stride == 0 {
            return Err(PlanError::Empty);
        }
        if plan.channels.checked_mul(plan.length).is_none_or(|values| values > MAX_VALUES) {
            return Err(PlanError::TooLarge);
        }
        Ok(Self {
            plan,
            waiting: BTreeMap::new(),
            times: VecDeque::new(),
            rows: VecDeque::new(),
            skip: 0,
            watermark: None,
            released: None,
            late_in_a_row: 0,
            counts: Counts::default(),
        })
    }

    /// How it cuts.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Samples in memory.
    pub fn held(&self) -> usize {
        self.waiting.len() + self.times.len()
    }

    /// Adds a sample. The windows that this completes are in the second part, each made when it is asked for;
    /// those not asked for are lost.
    ///
    /// # Errors
    /// [`WrongChannels`]; the stream is unchanged.
    pub fn push(&mut self, at: EventTime, values: &[f32]) -> Result<(Fate, Windows<'_>), WrongChannels> {
        if values.len() != self.plan.channels {
            return Err(WrongChannels { expected: self.plan.channels, found: values.len() });
        }
        let fate = self.place(at, values);
        Ok((fate, Windows(self)))
    }

    /// The stream has ended: nothing that waits is waited for any longer.
    pub fn finish(&mut self) -> Windows<'_> {
        let newest = self.waiting.last_key_value().map(|(at, _)| *at);
        self.watermark = self.watermark.max(newest);
        Windows(self)
    }

    fn place(&mut self, at: EventTime, values: &[f32]) -> Fate {
        if self.watermark.is_some_and(|watermark| at < watermark) {
            self.late_in_a_row += 1;
            if self.late_in_a_row <= RESTART_AFTER.max(self.plan.length) {
                self.counts.late += 1;
                return Fate::Late;
            }
            self.restart();
        }
        self.late_in_a_row = 0;
        if self.released == Some(at) || self.waiting.contains_key(&at) {
            self.counts.duplicates += 1;
            return Fate::Duplicate;
        }
        self.waiting.insert(at, values.to_vec());
        let lateness = i64::try_from(self.plan.lateness).unwrap_or(i64::MAX);
        self.watermark = self.watermark.max(Some(EventTime(at.0.saturating_sub(lateness))));
        if self.waiting.len() > (MAX_VALUES / self.plan.channels).clamp(1, MAX_WAITING) {
            let oldest = self.waiting.first_key_value().map(|(at, _)| *at);
            self.watermark = self.watermark.max(oldest);
        }
        Fate::Accepted
    }

    fn restart(&mut self) {
        self.counts.restarts += 1;
        self.waiting.clear();
        self.begin_window();
        (self.watermark, self.released) = (None, None);
    }

    fn begin_window(&mut self) {
        self.times.clear();
        self.rows.clear();
        self.skip = 0;
    }

    /// The next window of samples that the watermark has reached.
    fn next_window(&mut self) -> Option<Window> {
        while let Some(oldest) = self.waiting.first_entry() {
            if self.watermark.is_none_or(|watermark| *oldest.key() > watermark) {
                return None;
            }
            let (at, row) = oldest.remove_entry();
            if let Some(window) = self.release(at, row) {
                return Some(window);
            }
        }
        None
    }

    /// Takes the next sample in order; the window that it completes.
    fn release(&mut self, at: EventTime, row: Vec<f32>) -> Option<Window> {
        let before = self.released.replace(at);
        if let (Some(before), Some(max_gap)) = (before, self.plan.max_gap)
            && at.0.abs_diff(before.0) > max_gap
        {
            self.counts.gaps += 1;
            self.begin_window();
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times.push_back(at);
        self.rows.extend(row);
        if self.times.len() < self.plan.length {
            return None;
        }
        let (start, end) = (*self.times.front()?, *self.times.back()?);
        let channels = self.plan.channels;
        let column = |channel| self.rows.iter().skip(channel).step_by(channels).copied();
        let values = (0..channels).flat_map(column).collect();
        let passed = self.plan.stride.min(self.plan.length);
        self.times.drain(..passed);
        // Every row has as many values as there are channels: `push` saw to it.
        self.rows.drain(..passed * channels);
        self.skip = self.plan.stride.saturating_sub(self.plan.length);
        Some(Window { start, end, values })
    }
}

/// Windows that are complete, oldest first.
#[derive(Debug)]
pub struct Windows<'a>(&'a mut Windower);

impl Iterator for Windows<'_> {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        self.0.next_window()
    }
}

impl Drop for Windows<'_> {
    /// What the watermark has reached does not wait, whoever asked: that bounds the memory.
    fn drop(&mut self) {
        while self.0.next_window().is_some() {}
    }
}
