//! A bundle on disk: `manifest.json`, `blobs/‹id›`, `targets.json` once it is signed.

use std::path::{Path, PathBuf};

use farlight_release::blob;
use farlight_release::manifest::{Blob, Manifest};

use crate::cli::error::CliError;
use crate::cli::files;

/// A bundle's folder.
pub(super) struct Bundle {
    folder: PathBuf,
}

impl Bundle {
    /// The bundle in `folder`.
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.folder.join("manifest.json")
    }

    pub(super) fn targets_path(&self) -> PathBuf {
        self.folder.join("targets.json")
    }

    pub(super) fn blob_path(&self, blob: &Blob) -> PathBuf {
        self.folder.join("blobs").join(&blob.id)
    }

    /// Writes a bundle that is not signed yet.
    pub(super) fn write(&self, manifest: &Manifest, blobs: &[&[u8]]) -> Result<(), CliError> {
        files::folder(&self.folder.join("blobs"))?;
        for bytes in blobs {
            files::write(&self.blob_path(&blob::describe(bytes)), bytes)?;
        }
        // A signature over an earlier build would not fit this one.
        match std::fs::remove_file(self.targets_path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::file(format!("remove {}: {e}", self.targets_path().display())));
            }
            _ => {}
        }
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|e| CliError::failure(format!("write the manifest as JSON: {e}")))?;
        files::write(&self.manifest_path(), &text)
    }

    /// Reads and checks the manifest; its bytes are what is signed.
    pub(super) fn manifest(&self) -> Result<(Manifest, Vec<u8>), CliError> {
        let path = self.manifest_path();
        let bytes = files::read(&path)?;
        let manifest = Manifest::parse_checked(&bytes)
            .map_err(|e| CliError::verification(e.code(), format!("{}: {e}", path.display())))?;
        Ok((manifest, bytes))
    }

    /// Checks that every blob is there and holds what the manifest says.
    pub(super) fn check_blobs<'a>(&self, manifest: &'a Manifest) -> Result<Vec<&'a Blob>, CliError> {
        let blobs: Vec<&Blob> = manifest.blobs().collect();
        for blob in &blobs {
            self.read_blob(blob)?;
        }
        Ok(blobs)
    }

    /// Reads a blob and checks that it holds what the manifest says.
    pub(super) fn read_blob(&self, blob: &Blob) -> Result<Vec<u8>, CliError> {
        let path = self.blob_path(blob);
        let bytes = files::read(&path)?;
        if blob::describe(&bytes) == *blob {
            return Ok(bytes);
        }
        let message = format!("{} is not the blob that the manifest names", path.display());
        Err(CliError::verification("fetch.chunk_mismatch", message).hint("build the release again"))
    }
}
