//! Sensor recordings: one int16 array of all samples and a JSON index (`models/watch-gestures/data`).
//! Cuts them into windows; of each recording the first half may be trained on or labelled and the
//! second half only evaluates, and a window never crosses that cut.

use serde::{Deserialize, Serialize};

use super::npy::{self, Values};
use super::{DataError, Part, Samples};

/// Version of the index this build reads.
const FORMAT: u32 = 1;

/// The index file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Version, 1.
    pub format: u32,
    /// Samples a second.
    pub rate_hz: u32,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// Counts of the array for one unit of each channel.
    pub counts_per_unit: Vec<f32>,
    /// Class names.
    pub labels: Vec<String>,
    /// One row a recording.
    pub recordings: Vec<Recording>,
}

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// First row in the array.
    pub start: usize,
    /// Rows.
    pub length: usize,
    /// Class.
    pub label: u32,
    /// Person.
    pub subject: u32,
    /// Arm.
    pub side: Side,
}

/// On which arm the watch was worn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Right arm.
    Right,
    /// Left arm.
    Left,
}

/// Which windows to cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Arm.
    pub side: Side,
    /// People.
    pub subjects: Vec<u32>,
    /// Half of each recording.
    pub part: Part,
    /// Samples in a window.
    pub window: usize,
    /// Samples from one window's start to the next.
    pub stride: usize,
}

/// All recordings.
#[derive(Debug, Clone, PartialEq)]
pub struct Recordings {
    index: Index,
    samples: Vec<i16>,
}

impl Recordings {
    /// Decodes `recordings.npy` and `index.json`.
    ///
    /// # Errors
    /// [`DataError`] when either does not decode or they do not fit together.
    pub fn parse(array: &[u8], index: &[u8]) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Index(reason);
        let index: Index = serde_json::from_slice(index).map_err(|error| wrong(error.to_string()))?;
        let array = npy::parse(array)?;
        let channels = index.channels.len();
        let (Values::I16(samples), [rows, columns]) = (array.values, array.dims.as_slice()) else {
            return Err(DataError::Shape {
                what: "recordings",
                found: array.dims,
                expected: "[rows, channels] of int16".into(),
            });
        };
        if index.format != FORMAT {
            return Err(wrong(format!("format {} is not {FORMAT}", index.format)));
        }
        if channels == 0 || *columns != channels || index.counts_per_unit.len() != channels {
            return Err(wrong(format!(
                "channels, counts_per_unit and the array's {columns} columns disagree"
            )));
        }
        if index.counts_per_unit.iter().any(|counts| !counts.is_finite() || *counts <= 0.0) {
            return Err(wrong("counts_per_unit must be above 0".into()));
        }
        for (number, recording) in index.recordings.iter().enumerate() {
            if recording.start.checked_add(recording.length).is_none_or(|end| end > *rows) {
                return Err(wrong(format!("recording {number} ends behind row {rows}")));
            }
            if recording.label as usize >= index.labels.len() {
                return Err(wrong(format!("recording {number} has unknown label {}", recording.label)));
            }
        }
        Ok(Self { index, samples })
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Cuts windows, `[channels, window]` each, in the order of the index and of time.
    pub fn windows(&self, selection: &Selection) -> Samples {
        let channels = self.index.channels.len();
        let window = selection.window.max(1);
        let mut cut = Samples { shape: vec![channels, window], ..Samples::default() };
        let chosen = self.index.recordings.iter().filter(|recording| {
            recording.side == selection.side && selection.subjects.contains(&recording.subject)
        });
        for recording in chosen {
            let half = recording.length / 2;
            let (from, to) = match selection.part {
                Part::Train => (0, half),
                Part::Evaluate => (half, recording.length),
            };
            for start in (from..to).step_by(selection.stride.max(1)).take_while(|start| start + window <= to)
            {
                cut.x.push(self.window(recording.start + start, window));
                cut.y.push(recording.label);
            }
        }
        cut
    }

    /// Rows `start..start + window`, channel by channel, in the unit of the sensor.
    fn window(&self, start: usize, window: usize) -> Vec<f32> {
        let channels = self.index.channels.len();
        let mut values = Vec::with_capacity(channels * window);
        for (channel, counts) in self.index.counts_per_unit.iter().enumerate() {
            let column = self.samples.iter().skip(start * channels + channel).step_by(channels);
            values.extend(column.take(window).map(|&value| f32::from(value) / counts));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARRAY: &[u8] = include_bytes!("../../../../models/watch-gestures/data/recordings.npy");
    const INDEX: &[u8] = include_bytes!("../../../../models/watch-gestures/data/index.json");

    fn selection(side: Side, part: Part) -> Selection {
        Selection { side, subjects: (1..=6).collect(), part, window: 100, stride: 50 }
    }

    #[test]
    fn the_reference_recordings_are_cut_as_documented() {
        let recordings = Recordings::parse(ARRAY, INDEX).unwrap();
        let train = recordings.windows(&selection(Side::Right, Part::Train));
        let field = recordings.windows(&selection(Side::Left, Part::Train));
        assert_eq!((train.len(), field.len()), (592, 679));
        assert_eq!(train.shape, [6, 100]);
        assert!(train.x.iter().all(|x| x.len() == 600 && x.iter().all(|value| value.abs() < 30.0)));
        let counts = |y: &[u32]| (0..7).map(|class| y.iter().filter(|&&y| y == class).count()).min();
        assert!(counts(&train.y) > Some(50), "every class is there: {:?}", counts(&train.y));
    }

    #[test]
    fn no_sample_is_in_both_parts() {
        let index = r#"{"format":1,"rate_hz":1,"channels":["a"],"counts_per_unit":[1],"labels":["l"],
            "recordings":[{"start":0,"length":23,"label":0,"subject":1,"side":"left"}]}"#;
        let mut array = npy::write_f32(&[23, 1], &[0.0; 23]);
        let at = array.windows(3).position(|bytes| bytes == b"<f4").unwrap();
        array[at..at + 3].copy_from_slice(b"<i2");
        let body = array.len() - 92;
        array.truncate(body);
        (0..23i16).for_each(|value| array.extend(value.to_le_bytes()));
        let recordings = Recordings::parse(&array, index.as_bytes()).unwrap();
        for (part, range) in [(Part::Train, 0.0..=10.0), (Part::Evaluate, 11.0..=22.0)] {
            let cut = recordings.windows(&Selection {
                side: Side::Left,
                subjects: vec![1],
                part,
                window: 4,
                stride: 3,
            });
            assert!(cut.len() >= 3);
            assert!(cut.x.iter().flatten().all(|value| range.contains(value)), "{part:?} {cut:?}");
        }
    }

    #[test]
    fn an_index_that_does_not_fit_is_refused() {
        let text = str::from_utf8(INDEX).unwrap();
        for (from, to, word) in [
            ("\"length\": 1333", "\"length\": 99999999", "ends behind"),
            ("\"label\": 0", "\"label\": 70", "unknown label"),
            ("\"format\": 1", "\"format\": 2", "format 2"),
            ("4096, 4096, 4096", "4096, 0, 4096", "above 0"),
            ("\"rate_hz\"", "\"rate\"", "rate"),
        ] {
            let error = Recordings::parse(ARRAY, text.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
