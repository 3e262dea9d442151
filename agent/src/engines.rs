//! The engines of this device: loaded once, and kept from telling others about it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context;
use farlight_inference::Engines;

use crate::settings::OnnxRuntime;

/// Tells ONNX Runtime to send nothing and to write nothing. Microsoft's builds for Linux, from 1.29 on, else report
/// models, devices and errors, and keep a database in the home folder. Its interface can only stop what comes after the
/// start; a variable in the environment that the process began with stops all of it.
pub(crate) const QUIET: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// Begins this program again in the same process with [`QUIET`] in its environment; returns where it is there already.
/// To be called before anything is opened.
///
/// # Errors
/// When the program cannot begin again.
pub fn be_quiet() -> anyhow::Result<()> {
    let (name, value) = QUIET;
    if std::env::var_os(name).is_some_and(|now| now == value) {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let mut again = Command::new(std::env::current_exe().context("find own program")?);
    if let Some(own) = args.next() {
        again.arg0(own);
    }
    // It returns only when it fails.
    Err(again.args(args).env(name, value).exec()).context("start again with ORT_DISABLE_TELEMETRY=1")
}

/// Loads what is configured.
///
/// # Errors
/// When the program cannot begin again for [`be_quiet`].
pub(crate) fn open(settings: &OnnxRuntime) -> anyhow::Result<Engines> {
    let onnxruntime = settings.open();
    if onnxruntime.is_some() {
        be_quiet()?;
    }
    Ok(Engines::open(onnxruntime))
}
