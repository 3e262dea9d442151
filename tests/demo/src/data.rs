//! The recordings, cut into windows. Of each recording the first half may be labelled, the second half
//! only evaluates.

use std::path::Path;

use anyhow::Context;
use farlight_training::data::recordings::{Recordings, Selection, Side};
use farlight_training::data::{Part, Samples};

/// People whose recordings are used; the others stay out of training altogether.
const SUBJECTS: [u32; 6] = [1, 2, 3, 4, 5, 6];
/// Samples of a window: 2 s at 50 Hz.
pub(crate) const WINDOW: usize = 100;
/// Half overlapping windows.
const STRIDE: usize = 50;

/// One arm's windows.
#[derive(Debug)]
pub(crate) struct Arm {
    /// May be labelled.
    pub(crate) field: Samples,
    /// Only evaluates.
    pub(crate) evaluation: Samples,
}

/// Both arms.
#[derive(Debug)]
pub(crate) struct Gestures {
    /// Class names.
    pub(crate) labels: Vec<String>,
    /// What the model was trained for.
    pub(crate) right: Arm,
    /// The drift.
    pub(crate) left: Arm,
}

impl Gestures {
    /// Reads `models/watch-gestures/data`.
    ///
    /// # Errors
    /// When a file is missing or does not decode.
    pub(crate) fn load(model_folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = model_folder.join("data").join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let recordings = Recordings::parse(&read("recordings.npy")?, &read("index.json")?)?;
        let cut = |side, part| {
            let selection =
                Selection { side, subjects: SUBJECTS.to_vec(), part, window: WINDOW, stride: STRIDE };
            recordings.windows(&selection)
        };
        let arm = |side| Arm { field: cut(side, Part::Train), evaluation: cut(side, Part::Evaluate) };
        Ok(Self { labels: recordings.index().labels.clone(), right: arm(Side::Right), left: arm(Side::Left) })
    }
}
