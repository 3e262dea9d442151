//! The pointer file: the only truth about what runs. It survives the loss of any database. One line of
//! JSON and one line with its SHA-256, so that a torn write is told from a valid file.

use farlight_wire::ReleaseId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Starts that a release on probation gets before it is taken back.
pub const TRIALS: u8 = 3;
/// Largest pointer file in bytes.
pub const MAX_POINTER: usize = 4096;

/// A slot: a verified release on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The release.
    pub release: ReleaseId,
    /// SHA-256 of its manifest, hex; the folder's name.
    pub digest: String,
}

/// What runs, and what to go back to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// Rises with every write.
    pub sequence: u64,
    /// What runs; `None` before the first release and after the first one failed.
    pub active: Option<Slot>,
    /// The last release that was confirmed before `active`. It stays on disk also after `active` was
    /// confirmed: going back to it needs no network.
    pub previous: Option<Slot>,
    /// Starts left for `active` while on probation; `None` once confirmed.
    pub trials: Option<u8>,
    /// The newest assignment known when `active` was activated.
    pub assignment: u64,
    /// Who asked for `active`.
    #[serde(default)]
    pub origin: Origin,
}

/// Who asked for what runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// An assignment of the cloud.
    #[default]
    Cloud,
    /// A person at the device, from a bundle: it stays until a newer assignment.
    Local,
}

/// Why bytes are no pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pointer file is damaged: {0}")]
pub struct PointerError(&'static str);

/// What to do with a pointer at start, before anything is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// Nothing is installed.
    Empty,
    /// Load `active`. On probation, first write this pointer (one trial fewer) durably.
    Run {
        /// The pointer to write before loading, if it changed.
        write: Option<Pointer>,
    },
    /// Trials are used up: write this pointer durably, load its `active`, report the crash loop.
    Revert {
        /// The pointer after going back.
        write: Pointer,
        /// What was taken back.
        failed: Slot,
    },
}

impl Pointer {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of numbers and strings always serialises.
        let line = serde_json::to_string(self).unwrap_or_default();
        let digest = hex::encode(Sha256::digest(line.as_bytes()));
        format!("{line}\n{digest}\n").into_bytes()
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`PointerError`] for anything but a whole file as written.
    pub fn decode(bytes: &[u8]) -> Result<Self, PointerError> {
        if bytes.len() > MAX_POINTER {
            return Err(PointerError("too large"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PointerError("not text"))?;
        let (line, digest) = text.split_once('\n').ok_or(PointerError("no checksum"))?;
        if digest.strip_suffix('\n') != Some(&hex::encode(Sha256::digest(line.as_bytes()))) {
            return Err(PointerError("checksum differs"));
        }
        serde_json::from_str(line).map_err(|_| PointerError("fields are wrong"))
    }

    /// The pointer that makes `slot` active on probation.
    pub fn activate(&self, slot: Slot, assignment: u64, origin: Origin) -> Self {
        // A candidate that never was confirmed is not something to go back to, nor is the slot itself.
        let previous = if self.trials.is_some() { self.previous.clone() } else { self.active.clone() };
        let previous = previous.filter(|previous| *previous != slot);
        Self {
            sequence: self.sequence + 1,
            active: Some(slot),
            previous,
            trials: Some(TRIALS),
            assignment,
            origin,
        }
    }

    /// The pointer after a passed probation.
    pub fn confirm(&self) -> Self {
        Self { sequence: self.sequence + 1, trials: None, ..self.clone() }
    }

    /// The pointer after going back to the last confirmed release.
    pub fn revert(&self) -> Self {
        Self {
            sequence: self.sequence + 1,
            active: self.previous.clone(),
            previous: None,
            trials: None,
            assignment: self.assignment,
            origin: Origin::Cloud,
        }
    }

    /// What to do at start.
    pub fn boot(&self) -> Boot {
        match (&self.active, self.trials) {
            (None, _) => Boot::Empty,
            (Some(_), None) => Boot::Run { write: None },
            (Some(failed), Some(0)) => Boot::Revert { write: self.revert(), failed: failed.clone() },
            (Some(_), Some(left)) => Boot::Run {
                write: Some(Self { sequence: self.sequence + 1, trials: Some(left - 1), ..self.clone() }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(version: &str) -> Slot {
        Slot { release: format!("m/{version}").parse().unwrap(), digest: "d".repeat(64) }
    }

    #[test]
    fn a_crash_loop_ends_on_the_previous_release() {
        let confirmed = Pointer::default().activate(slot("1.0.0"), 1, Origin::Cloud).confirm();
        let mut pointer = confirmed.activate(slot("2.0.0"), 2, Origin::Cloud);
        for _ in 0..TRIALS {
            let Boot::Run { write: Some(next) } = pointer.boot() else { panic!("{pointer:?}") };
            assert!(next.sequence > pointer.sequence);
            pointer = next;
        }
        let Boot::Revert { write, failed } = pointer.boot() else { panic!("{pointer:?}") };
        assert_eq!((write.active, failed), (Some(slot("1.0.0")), slot("2.0.0")));
    }

    #[test]
    fn an_unconfirmed_release_is_never_gone_back_to() {
        let pointer = Pointer::default().activate(slot("1.0.0"), 1, Origin::Cloud).confirm();
        let pointer =
            pointer.activate(slot("2.0.0"), 2, Origin::Cloud).activate(slot("3.0.0"), 3, Origin::Cloud);
        assert_eq!(pointer.revert().active, Some(slot("1.0.0")));
        assert_eq!(Pointer::default().activate(slot("1.0.0"), 1, Origin::Cloud).revert().active, None);
    }

    #[test]
    fn a_confirmed_release_that_goes_bad_leaves_the_one_before() {
        let pointer = Pointer::default().activate(slot("1.0.0"), 1, Origin::Cloud).confirm();
        let pointer = pointer.activate(slot("2.0.0"), 2, Origin::Cloud).confirm();
        assert_eq!(pointer.boot(), Boot::Run { write: None });
        assert_eq!(pointer.revert().active, Some(slot("1.0.0")));
        assert_eq!(pointer.revert().revert().active, None, "there is nothing before that");
        assert_eq!(pointer.activate(slot("1.0.0"), 3, Origin::Cloud).previous, Some(slot("2.0.0")));
        assert_eq!(pointer.activate(slot("2.0.0"), 3, Origin::Cloud).previous, None);
    }

    proptest! {
        #[test]
        fn torn_files_are_refused(cut in 0_usize..300, flip in 0_usize..300) {
            let bytes = Pointer::default().activate(slot("1.0.0"), 1, Origin::Cloud).encode();
            prop_assert!(Pointer::decode(&bytes).is_ok());
            prop_assert!(Pointer::decode(&bytes[..cut.min(bytes.len() - 1)]).is_err());
            let mut flipped = bytes.clone();
            let at = flip % bytes.len();
            flipped[at] ^= 1;
            prop_assert!(Pointer::decode(&flipped).is_err());
        }
    }
}
