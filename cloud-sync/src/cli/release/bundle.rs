//! A bundle on disk: `manifest.json` (a model's manifest, or a configuration), `blobs/‹id›`, and once it is
//! signed the metadata that names it: `targets.json`, or that of a model family.

use std::path::{Path, PathBuf};

use farlight_release::blob;
use farlight_release::manifest::Blob;
use farlight_wire::codes::Code;
use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::files;
use crate::registry::Plain;

/// A bundle's folder.
pub(in crate::cli) struct Bundle {
    folder: PathBuf,
}

impl Bundle {
    /// The bundle in `folder`.
    pub(in crate::cli) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.folder.join("manifest.json")
    }

    pub(super) fn blob_path(&self, blob: &Blob) -> PathBuf {
        self.folder.join("blobs").join(&blob.id)
    }

    /// Writes a bundle that is not signed yet.
    pub(in crate::cli) fn write(&self, document: &impl Serialize, blobs: &[&[u8]]) -> Result<(), CliError> {
        files::folder(&self.folder.join("blobs"))?;
        for bytes in blobs {
            files::write(&self.blob_path(&blob::describe(bytes)), bytes)?;
        }
        // A signature over an earlier build would not fit this one.
        for path in files::list(&self.folder)? {
            if path.extension().is_some_and(|extension| extension == "json") && path != self.manifest_path() {
                std::fs::remove_file(&path)
                    .map_err(|e| CliError::file(format!("remove {}: {e}", path.display())))?;
            }
        }
        let text = serde_json::to_vec_pretty(document)
            .map_err(|e| CliError::failure(format!("write the manifest as JSON: {e}")))?;
        files::write(&self.manifest_path(), &text)
    }

    /// Reads and checks the document; its bytes are what is signed.
    pub(in crate::cli) fn document(&self) -> Result<(Plain, Vec<u8>), CliError> {
        let path = self.manifest_path();
        let bytes = files::read(&path)?;
        let document = Plain::parse(&bytes)
            .map_err(|e| CliError::verification(e.code(), format!("{}: {e}", path.display())))?;
        Ok((document, bytes))
    }

    /// Checks that every blob is there and holds what the manifest says.
    pub(super) fn check_blobs<'a>(&self, document: &'a Plain) -> Result<Vec<&'a Blob>, CliError> {
        let blobs = document.blobs();
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
        Err(CliError::verification(Code::FetchChunkMismatch, message).hint("build the release again"))
    }
}
