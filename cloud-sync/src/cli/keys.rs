//! `farlight keys`: the offline keys. One PKCS#8 PEM file a key, named after its role, 0600; which roles
//! a key may sign for is said by the signed root, not by the file's name.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use farlight_release::key::{KeyPair, PublicKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::Serialize;
use zeroize::Zeroizing;

use super::context::Context;
use super::error::CliError;
use super::files;

/// Most keys of one role: more only make signing tedious.
const MAX_KEYS: u8 = 16;

/// Commands on keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make root and targets keys in a folder; keep that folder offline
    Generate(Generate),
    /// Show the public halves of the keys in a folder
    Show {
        /// Folder of the keys
        folder: PathBuf,
    },
}

/// Arguments of `keys generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Folder to make the keys in
    folder: PathBuf,
    /// Number of root keys
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_KEYS)))]
    root: u8,
    /// Number of targets keys
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_KEYS)))]
    targets: u8,
}

/// A key with the file it is in.
#[derive(Debug, Serialize)]
struct Shown {
    file: PathBuf,
    id: String,
    public: String,
}

/// The offline roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offline {
    /// Signs roots.
    Root,
    /// Signs targets.
    Targets,
}

impl Offline {
    /// What the files of this role's keys begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
        }
    }
}

pub(super) fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Generate(args) => generate(&args, context),
        Command::Show { folder } => show(&folder, context),
    }
}

fn generate(args: &Generate, context: &Context) -> Result<(), CliError> {
    files::private_folder(&args.folder)?;
    for (role, count) in [(Offline::Root, args.root), (Offline::Targets, args.targets)] {
        for number in 1..=count {
            let mut seed = Zeroizing::new([0; 32]);
            OsRng
                .try_fill_bytes(&mut *seed)
                .map_err(|e| CliError::failure(format!("get random bytes from the system: {e}")))?;
            let pair = KeyPair::from_seed(&seed);
            let pem = pair.to_pem().map(Zeroizing::new).map_err(|e| CliError::failure(e.to_string()))?;
            files::write_secret(&args.folder.join(format!("{}-{number}.pem", role.prefix())), &pem)?;
        }
    }
    show(&args.folder, context)
}

fn show(folder: &Path, context: &Context) -> Result<(), CliError> {
    let mut shown = Vec::new();
    for role in [Offline::Root, Offline::Targets] {
        for (file, pair) in read(folder, role)? {
            shown.push(Shown { file, id: pair.public().id(), public: hex::encode(pair.public().as_bytes()) });
        }
    }
    context.list(&shown, ["FILE", "KEY ID", "PUBLIC KEY"], |key| {
        [key.file.display().to_string(), key.id.clone(), key.public.clone()]
    })
}

/// Reads the keys of one role from a folder: all `‹role›*.pem`.
///
/// # Errors
/// [`CliError`] when a file is no key, or there is none.
pub fn load(folder: &Path, role: Offline) -> Result<Vec<KeyPair>, CliError> {
    Ok(read(folder, role)?.into_iter().map(|(_, pair)| pair).collect())
}

/// The public halves of `pairs`.
pub fn publics(pairs: &[KeyPair]) -> Vec<PublicKey> {
    pairs.iter().map(KeyPair::public).collect()
}

fn read(folder: &Path, role: Offline) -> Result<Vec<(PathBuf, KeyPair)>, CliError> {
    let mut pairs = Vec::new();
    for path in files::list(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(role.prefix()) && name.ends_with(".pem") {
            let pem = Zeroizing::new(files::read_text(&path)?);
            let pair = KeyPair::from_pem(&pem)
                .map_err(|e| CliError::file(format!("key {}: {e}", path.display())))?;
            pairs.push((path, pair));
        }
    }
    if pairs.is_empty() {
        let message = format!("{} holds no {}*.pem key", folder.display(), role.prefix());
        return Err(CliError::file(message).hint("make keys with `farlight keys generate DIR`"));
    }
    Ok(pairs)
}
