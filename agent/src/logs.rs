//! The newest log lines in memory, for diagnostics and for the reports of failed updates. What is logged is
//! never a payload or a key, so neither is this.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Lines kept.
const LINES: usize = 200;
/// Longest line kept, in bytes.
const MAX_LINE: usize = 512;

static RING: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Where a log subscriber writes besides standard error: one call a line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ring;

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_LINE)]).trim_end().to_owned();
        let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == LINES {
            ring.pop_front();
        }
        ring.push_back(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The newest lines, oldest first.
pub fn lines() -> Vec<String> {
    RING.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// The newest lines that hold one of `levels`, oldest first, at most `most`.
pub fn last(levels: &[&str], most: usize) -> Vec<String> {
    let ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    let matching = ring.iter().rev().filter(|line| levels.iter().any(|level| line.contains(level)));
    let mut lines: Vec<String> = matching.take(most).cloned().collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_keeps_the_newest() {
        for n in 0..LINES + 10 {
            let level = if n % 2 == 0 { "WARN" } else { "INFO" };
            Ring.write_all(format!("{level} ring {n} {}\n", "x".repeat(2 * MAX_LINE)).as_bytes()).unwrap();
        }
        let lines = lines();
        assert_eq!(lines.len(), LINES);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
        let warnings = last(&["WARN"], 2);
        assert!(warnings.len() == 2 && warnings.iter().all(|line| line.starts_with("WARN")));
    }
}
