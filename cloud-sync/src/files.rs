//! Small files that must survive a power cut: written beside, synced, renamed, folder synced.
//! Secrets get mode 0600 before a byte is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The service alone.
    Private,
    /// Everybody on the machine.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Replaces a file as a whole or not at all.
///
/// # Errors
/// [`FileError`] naming the step that failed.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    let fail = |operation| move |source| FileError { operation, path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(access.mode())
        .open(&temporary)
        .map_err(fail("create"))?;
    file.write_all(bytes).map_err(fail("write"))?;
    file.sync_all().map_err(fail("sync"))?;
    fs::rename(&temporary, path).map_err(fail("rename"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync the folder of"))
}

/// Moves a file to another name on the same file system, over one that is there.
///
/// # Errors
/// [`FileError`] naming the step that failed.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    let fail = |operation| move |source| FileError { operation, path: to.to_owned(), source };
    fs::rename(from, to).map_err(fail("rename to"))?;
    let folder = to.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync the folder of"))
}

/// Reads a file that may not exist.
///
/// # Errors
/// [`FileError`] for anything but a missing file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError { operation: "read", path: path.to_owned(), source }),
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// [`FileError`] when it cannot be made.
pub fn folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(|source| FileError {
        operation: "create folder",
        path: path.to_owned(),
        source,
    })
}

/// Moves a finished temporary file of the same file system to its place; a file there is replaced.
///
/// # Errors
/// [`FileError`] naming the step that failed.
pub fn adopt(temporary: tempfile::NamedTempFile, path: &Path) -> Result<(), FileError> {
    let fail = |operation| move |source| FileError { operation, path: path.to_owned(), source };
    let mode = fs::Permissions::from_mode(Access::Public.mode());
    fs::set_permissions(temporary.path(), mode).map_err(fail("set the mode of"))?;
    temporary.persist(path).map_err(|e| fail("rename")(e.error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail("sync the folder of"))
}
