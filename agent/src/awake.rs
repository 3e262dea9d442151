//! Keeps cores from resting so deep that they take long to wake up. On a device that is asked now and then, waking the core
//! that answers, and the client's after it, can take longer than the model.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::Context;

/// Where the kernel takes wishes (`Documentation/power/pm_qos_interface.rst`).
const WISHES: &str = "/dev/cpu_dma_latency";

/// A wish that holds until it is dropped.
#[derive(Debug)]
pub struct Awake {
    _wish: File,
}

impl Awake {
    /// Asks the kernel that no core rests deeper than it can wake up from within so many microseconds; 0 keeps all of them
    /// from resting.
    ///
    /// # Errors
    /// When the kernel takes no wishes, or none of this user.
    pub fn within(micros: u32) -> anyhow::Result<Self> {
        Self::wish(Path::new(WISHES), micros)
    }

    fn wish(path: &Path, micros: u32) -> anyhow::Result<Self> {
        let path_of = || path.display().to_string();
        let mut wish = OpenOptions::new().write(true).open(path).with_context(path_of)?;
        // A signed number of 32 bits in the machine's own order; the kernel takes no other length.
        let micros = i32::try_from(micros).context("so long is no number for it")?;
        wish.write_all(&micros.to_ne_bytes()).with_context(path_of)?;
        Ok(Self { _wish: wish })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wish_is_a_number_as_the_kernel_takes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let awake = Awake::wish(file.path(), 70_000).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), 70_000_i32.to_ne_bytes());
        drop(awake);
        let error = Awake::wish(Path::new("/no/such/device"), 0).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/device"), "{error:#}");
    }

    #[test]
    fn the_kernel_heeds_it_until_it_is_dropped() {
        // What the smallest of all wishes is now.
        let smallest = || {
            let read = std::fs::read(WISHES).ok()?;
            Some(i32::from_ne_bytes(read.get(..4)?.try_into().ok()?))
        };
        let (Some(before), Ok(awake)) = (smallest(), Awake::within(7)) else {
            // No such device here, or not for this user.
            return;
        };
        assert_eq!(smallest(), Some(before.min(7)));
        drop(awake);
        assert_eq!(smallest(), Some(before));
    }
}
