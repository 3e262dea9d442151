//! Deltas of a release that is being built: from each older file that devices may have to the new one, as
//! far as that is smaller. Each is applied once before it is offered.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use farlight_release::blob;
use farlight_release::delta::{self, DeltaError};
use farlight_release::manifest::Delta;
use serde::Serialize;

use super::bundle::Bundle;
use crate::cli::error::{CliError, Exit};
use crate::cli::files;
use crate::cli::output;
use crate::registry::Plain;

/// What became of one base.
#[derive(Debug, Serialize)]
pub(super) struct Saved {
    base: PathBuf,
    from: String,
    /// Bytes of the delta.
    delta_bytes: u64,
    /// Bytes of the whole file.
    full_bytes: u64,
    /// Whether it is part of the release: only when it is smaller.
    offered: bool,
}

impl Saved {
    pub(super) fn line(&self) -> String {
        let share = self.delta_bytes as f64 * 100.0 / self.full_bytes.max(1) as f64;
        let what = if self.offered { "saved" } else { "not smaller: devices fetch the file" };
        format!(
            "delta     from {}: {} of {} bytes, {:.1} % {what}",
            self.base.display(),
            self.delta_bytes,
            self.full_bytes,
            (100.0 - share).max(0.0),
        )
    }
}

/// A delta and its bytes.
pub(super) struct Made {
    pub(super) delta: Delta,
    pub(super) bytes: Vec<u8>,
}

/// Makes the deltas to `model` from each of `bases`, the folder of a bundle or a model file.
pub(super) fn make(bases: &[PathBuf], model: &[u8]) -> Result<(Vec<Made>, Vec<Saved>), CliError> {
    let (mut made, mut saved) = (Vec::<Made>::new(), Vec::<Saved>::new());
    let id = blob::describe(model).id;
    for base in bases {
        let old = read(base)?;
        let from = blob::describe(&old).id;
        if from == id || saved.iter().any(|other| other.from == from) {
            let message =
                format!("--base {}: it holds the same file as the model or another base", base.display());
            return Err(CliError::usage(message));
        }
        let bytes = encode(&old, model)?;
        check(&old, &bytes, model).map_err(|error| {
            let message = format!("the delta from {} does not make the model: {error}", base.display());
            CliError::delivery(Exit::Failure, error.code(), message)
        })?;
        let blob = blob::describe(&bytes);
        let offered = blob.length < model.len() as u64;
        saved.push(Saved {
            base: base.clone(),
            from: from.clone(),
            delta_bytes: blob.length,
            full_bytes: model.len() as u64,
            offered,
        });
        if offered {
            made.push(Made { delta: Delta { from, blob }, bytes });
        }
    }
    Ok((made, saved))
}

fn read(base: &Path) -> Result<Vec<u8>, CliError> {
    if !base.is_dir() {
        return files::read(base);
    }
    let bundle = Bundle::at(base);
    let (document, _) = bundle.document()?;
    // Builds make one variant; a device that runs another one fetches the file.
    let variant = match &document {
        Plain::Model(manifest) => manifest.variants.first(),
        Plain::Config(_) => None,
    };
    let variant = variant.ok_or_else(|| CliError::file(format!("{} names no model", base.display())))?;
    bundle.read_blob(&variant.blob)
}

fn encode(old: &[u8], model: &[u8]) -> Result<Vec<u8>, CliError> {
    let bar = output::progress(model.len() as u64, "delta");
    let bytes = delta::encode(old, model, &mut |done| bar.set_position(done))
        .map_err(|e| CliError::failure(format!("make a delta: {e}")))?;
    bar.finish_and_clear();
    Ok(bytes)
}

/// Applies the delta as a device does.
fn check(old: &[u8], delta: &[u8], model: &[u8]) -> Result<(), DeltaError> {
    let mut made = Vec::with_capacity(model.len());
    delta::apply(&mut Cursor::new(old), delta, &mut made, model.len() as u64)?;
    if made == model {
        return Ok(());
    }
    Err(DeltaError::New(std::io::Error::other("it makes another file")))
}
