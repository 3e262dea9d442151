//! Pages of the program itself. A start runs through megabytes of code that a running agent does not need again, and the
//! kernel maps up to fifteen pages around each. They are let go of here: what no process maps is the first to be used for
//! something else, and what is needed again is mapped again at once, from the page cache while it is there.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use rustix::mm::{Advice, madvise};

/// After the start, when what is installed was loaded and the session with the cloud began.
const FIRST: Duration = Duration::from_secs(2);
/// After that: an update runs through other code again.
const EVERY: Duration = Duration::from_secs(600);

/// Lets go of them again and again.
pub async fn tend() {
    let mut rest = FIRST;
    loop {
        tokio::time::sleep(rest).await;
        rest = EVERY;
        match let_go() {
            Ok(bytes) => tracing::debug!(bytes, "pages of the program are mapped anew"),
            // Memory is all that it costs.
            Err(error) => tracing::debug!(%error, "pages of the program stay mapped"),
        }
    }
}

/// Unmaps the pages of the program's code and constants (`madvise(2)`, `MADV_DONTNEED`); bytes of them, mapped or not. Those
/// of libraries stay: a vendor's may have been changed when it was loaded.
///
/// # Errors
/// When the kernel does not say where they are, or refuses.
pub fn let_go() -> anyhow::Result<usize> {
    let maps = std::fs::File::open("/proc/self/maps").context("open /proc/self/maps")?;
    let lines: Vec<String> =
        BufReader::new(maps).lines().collect::<Result<_, _>>().context("read /proc/self/maps")?;
    let mappings: Vec<Mapping<'_>> = lines.iter().filter_map(|line| Mapping::parse(line)).collect();
    let here = let_go as fn() -> anyhow::Result<usize> as usize;
    let own = mappings.iter().find(|mapping| mapping.is_code() && mapping.at.contains(&here));
    let own = own.context("the program's code is in no mapping of a file")?;
    let mut bytes = 0;
    for mapping in &mappings {
        let Mapping { file, at, .. } = mapping;
        if *file != own.file || !(mapping.is_code() || mapping.is_constants()) {
            continue;
        }
        // SAFETY: here the program's file is mapped as it is, without permission to write, and it is linked so that nothing
        // in these parts is changed when it is loaded: whoever looks there next finds the same bytes mapped again.
        #[expect(unsafe_code, reason = "of other pages, this would lose what was written to them")]
        unsafe { madvise(std::ptr::with_exposed_provenance_mut(at.start), at.len(), Advice::LinuxDontNeed) }
            .context("madvise")?;
        bytes += at.len();
    }
    Ok(bytes)
}

/// A private mapping of a file.
#[derive(Debug, PartialEq)]
struct Mapping<'a> {
    at: Range<usize>,
    permissions: &'a str,
    /// Where in the file.
    offset: usize,
    /// Device and inode.
    file: (&'a str, &'a str),
}

impl<'a> Mapping<'a> {
    /// From a line of `proc_pid_maps(5)`; `None` where no file is mapped.
    fn parse(line: &'a str) -> Option<Self> {
        let number = |text| usize::from_str_radix(text, 16).ok();
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (permissions, offset) = (fields.next()?, number(fields.next()?)?);
        let file = (fields.next()?, fields.next()?);
        (file.1 != "0").then_some(Self { at: number(start)?..number(end)?, permissions, offset, file })
    }

    fn is_code(&self) -> bool {
        self.permissions == "r-xp"
    }

    /// What the file begins with: other parts that are only read may have been written before, when addresses were put in.
    fn is_constants(&self) -> bool {
        self.permissions == "r--p" && self.offset == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_let_go_that_may_have_been_written() {
        let kind = |line| Mapping::parse(line).map(|mapping| (mapping.is_code(), mapping.is_constants()));
        let text = "55e0c0a00000-55e0c0b00000 r-xp 00002000 fd:01 1234 /usr/bin/farlight-agent";
        let at = 0x55e0_c0a0_0000..0x55e0_c0b0_0000;
        let mapping = Mapping { at, permissions: "r-xp", offset: 0x2000, file: ("fd:01", "1234") };
        assert_eq!(Mapping::parse(text), Some(mapping));
        for (line, expected) in [
            (text, Some((true, false))),
            (
                "55e0c0900000-55e0c0a00000 r--p 00000000 fd:01 1234 /usr/bin/farlight-agent",
                Some((false, true)),
            ),
            // Addresses were put in before it was made read-only.
            (
                "55e0c0b00000-55e0c0c00000 r--p 00102000 fd:01 1234 /usr/bin/farlight-agent",
                Some((false, false)),
            ),
            (
                "55e0c0a00000-55e0c0b00000 rwxp 00002000 fd:01 1234 /usr/bin/farlight-agent",
                Some((false, false)),
            ),
            (
                "55e0c0a00000-55e0c0b00000 r-xs 00002000 fd:01 1234 /usr/bin/farlight-agent",
                Some((false, false)),
            ),
            (
                "55e0c0900000-55e0c0a00000 rw-p 00000000 fd:01 1234 /usr/bin/farlight-agent",
                Some((false, false)),
            ),
            ("7ffd0a1f2000-7ffd0a1f4000 r-xp 00000000 00:00 0 [vdso]", None),
            ("r-xp", None),
            ("", None),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
    }

    #[test]
    fn less_is_resident_after_and_everything_runs_on() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        assert!(let_go().unwrap() > 0);
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
