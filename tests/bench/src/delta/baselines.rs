//! Deltas of other tools, at the settings that make them smallest. Each is applied again.

use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Most logarithm of zstd's window: the whole of both files.
const WINDOW_LOG: u32 = 27;

/// Bytes by tool.
pub(super) fn measure(
    old: &[u8],
    new: &[u8],
    python: Option<&Python>,
) -> anyhow::Result<Vec<(&'static str, usize)>> {
    let mut found = vec![("zstd --patch-from", zstd(old, new)?), ("bsdiff", bsdiff(old, new)?)];
    if let Some(python) = python {
        found.push(("HDiffPatch", python.hdiffpatch(old, new)?));
    }
    Ok(found)
}

/// As `zstd -19 --patch-from`: the old file as prefix of a window that holds both.
fn zstd(old: &[u8], new: &[u8]) -> anyhow::Result<usize> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), 19, old)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.long_distance_matching(true)?;
    encoder.set_pledged_src_size(Some(new.len() as u64))?;
    encoder.write_all(new)?;
    let delta = encoder.finish()?;
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(&delta[..], old)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let mut made = Vec::new();
    std::io::copy(&mut decoder, &mut made)?;
    ensure!(made == new, "zstd makes another file");
    Ok(delta.len())
}

fn bsdiff(old: &[u8], new: &[u8]) -> anyhow::Result<usize> {
    let mut delta = Vec::new();
    qbsdiff::Bsdiff::new(old, new).compression_level(9).compare(Cursor::new(&mut delta))?;
    let mut made = Vec::new();
    qbsdiff::Bspatch::new(&delta)?.apply(old, Cursor::new(&mut made))?;
    ensure!(made == new, "bsdiff makes another file");
    Ok(delta.len())
}

/// A Python with the package `hdiffpatch`.
#[derive(Debug)]
pub(super) struct Python {
    packages: Option<PathBuf>,
}

/// Prints the smallest delta of all its compressors; the package checks each by applying it.
const HDIFFPATCH: &str = "
import hdiffpatch as h, sys
old, new = (open(path, 'rb').read() for path in sys.argv[1:3])
configs = [h.ZStdConfig(level=22, window=24), h.Lzma2Config(level=9), h.COMPRESSION_BZIP2]
print(min(len(h.diff(old, new, config, validate=True)) for config in configs))
";

impl Python {
    /// Looks for the package in `folder`/python, where `fetch-pypi` puts it, or on this machine.
    pub(super) fn find(folder: Option<&Path>) -> Option<Self> {
        let packages = folder.map(|folder| folder.join("python"));
        let python = Self { packages: packages.filter(|folder| folder.is_dir()) };
        let found = python.command("import hdiffpatch").stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success()).then_some(python)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("python3");
        command.args(["-c", program]);
        if let Some(packages) = &self.packages {
            command.env("PYTHONPATH", packages);
        }
        command
    }

    fn hdiffpatch(&self, old: &[u8], new: &[u8]) -> anyhow::Result<usize> {
        let folder = tempfile::tempdir()?;
        let (old_path, new_path) = (folder.path().join("old"), folder.path().join("new"));
        std::fs::write(&old_path, old)?;
        std::fs::write(&new_path, new)?;
        let output =
            self.command(HDIFFPATCH).args([&old_path, &new_path]).output().context("start python3")?;
        if !output.status.success() {
            bail!("HDiffPatch: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().with_context(|| format!("HDiffPatch printed {text:?}"))
    }
}
