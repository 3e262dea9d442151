//! Local files of the operator, with errors that name the file; keys are made 0600 and never replaced.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::CliError;

/// Reads a file.
///
/// # Errors
/// [`CliError`] naming the file.
pub fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(|e| CliError::file(format!("read {}: {e}", path.display())))
}

/// Reads a text file.
///
/// # Errors
/// [`CliError`] naming the file.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    String::from_utf8(read(path)?)
        .map_err(|_| CliError::file(format!("{} is not a text file", path.display())))
}

/// Writes a file, replacing it as a whole.
///
/// # Errors
/// [`CliError`] naming the file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let fail = |e: std::io::Error| CliError::file(format!("write {}: {e}", path.display()));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let mut file = fs::File::create(&temporary).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}

/// Writes a new secret file that only its owner may read; refuses to replace one.
///
/// # Errors
/// [`CliError`] naming the file.
pub fn write_secret(path: &Path, text: &str) -> Result<(), CliError> {
    let fail = |e: std::io::Error| {
        CliError::file(format!("create {}: {e}", path.display()))
            .hint("an existing key is never replaced; choose another folder")
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.sync_all().map_err(fail)
}

/// Makes a folder and those above it.
///
/// # Errors
/// [`CliError`] naming the folder.
pub fn folder(path: &Path) -> Result<(), CliError> {
    fs::create_dir_all(path).map_err(|e| CliError::file(format!("create folder {}: {e}", path.display())))
}

/// Makes a folder that only its owner may enter.
///
/// # Errors
/// [`CliError`] naming the folder.
pub fn private_folder(path: &Path) -> Result<(), CliError> {
    folder(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(|e| CliError::file(format!("set the mode of {}: {e}", path.display())))
}

/// The files of a folder by name.
///
/// # Errors
/// [`CliError`] naming the folder.
pub fn list(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    let fail = |e: std::io::Error| CliError::file(format!("read folder {}: {e}", path.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        files.push(entry.map_err(fail)?.path());
    }
    files.sort();
    Ok(files)
}
