//! `farlight keys`: the offline keys. One PKCS#8 PEM file a key, named `‹role›-‹number›.pem`, 0600; which
//! roles a key may sign for is said by the signed metadata, not by the file's name.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use farlight_release::key::{KeyPair, PublicKey};
use farlight_wire::ModelName;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::Serialize;
use zeroize::Zeroizing;

use super::context::Context;
use super::error::{CliError, Exit};
use super::files;
use super::repo::rotate;

/// Most keys of one role: more only make signing tedious.
const MAX_KEYS: u8 = 16;
/// Where keys go that were replaced.
const RETIRED: &str = "retired";

/// Commands on keys.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make offline keys in a folder; keep that folder offline
    #[command(after_help = "Example: farlight keys generate offline --root 2\n\
        Example: farlight keys generate vibration-keys --role vibration=2")]
    Generate(Generate),
    /// Replace the keys of a role that are in a folder by new ones; the next root (or targets) says so
    #[command(after_help = "Example: farlight keys rotate targets --keys offline\n\
        Where other machines have to sign as well, carry the folder it names there: farlight repo sign")]
    Rotate(rotate::Rotate),
    /// Show the public halves of the keys in a folder
    #[command(alias = "show", after_help = "Example: farlight keys list offline")]
    List {
        /// Folder of the keys
        folder: PathBuf,
    },
}

/// Arguments of `keys generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Folder to make the keys in
    folder: PathBuf,
    /// Number of root keys; 1 unless --role is given
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_KEYS)))]
    root: Option<u8>,
    /// Number of targets keys; 1 unless --role is given
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_KEYS)))]
    targets: Option<u8>,
    /// Keys of a model family (see `farlight repo delegate`), 1 by default; may be repeated
    #[arg(long, value_name = "FAMILY[=N]", value_parser = parse_role)]
    role: Vec<(ModelName, u8)>,
}

fn parse_role(text: &str) -> Result<(ModelName, u8), String> {
    let (name, count) = text.split_once('=').unwrap_or((text, "1"));
    let count = count.parse().ok().filter(|count| (1..=MAX_KEYS).contains(count));
    let count = count.ok_or_else(|| format!("the number of keys is from 1 to {MAX_KEYS}"))?;
    Ok((name.parse().map_err(|e: farlight_wire::IdError| e.to_string())?, count))
}

/// A key with the file it is in.
#[derive(Debug, Serialize)]
struct Shown {
    role: String,
    file: PathBuf,
    id: String,
    public: String,
}

/// A key on disk.
#[derive(Debug)]
pub struct KeyFile {
    /// What its file is named after.
    pub role: String,
    /// The file.
    pub path: PathBuf,
    /// The key.
    pub pair: KeyPair,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Generate(args) => generate(&args, context),
        Command::Rotate(args) => rotate::run(&args, context).await,
        Command::List { folder } => list(&folder, context),
    }
}

fn generate(args: &Generate, context: &Context) -> Result<(), CliError> {
    files::private_folder(&args.folder)?;
    let default = u8::from(args.role.is_empty());
    let top = [("root", args.root.unwrap_or(default)), ("targets", args.targets.unwrap_or(default))];
    let families = args.role.iter().map(|(name, count)| (name.as_str(), *count));
    for (role, count) in top.into_iter().chain(families) {
        for number in 1..=u32::from(count) {
            make(&args.folder, role, number)?;
        }
    }
    list(&args.folder, context)
}

/// Makes a key.
///
/// # Errors
/// [`CliError`] when its file exists or cannot be written.
fn make(folder: &Path, role: &str, number: u32) -> Result<KeyFile, CliError> {
    let mut seed = Zeroizing::new([0; 32]);
    OsRng
        .try_fill_bytes(&mut *seed)
        .map_err(|e| CliError::failure(format!("get random bytes from the system: {e}")))?;
    let pair = KeyPair::from_seed(&seed);
    let pem = pair.to_pem().map(Zeroizing::new).map_err(|e| CliError::failure(e.to_string()))?;
    let path = folder.join(format!("{role}-{number}.pem"));
    files::write_secret(&path, &pem)?;
    Ok(KeyFile { role: role.to_owned(), path, pair })
}

/// Makes `count` more keys of a role, under numbers that were never used in this folder.
///
/// # Errors
/// [`CliError`] when a file cannot be written.
pub fn make_more(folder: &Path, role: &str, count: usize) -> Result<Vec<KeyFile>, CliError> {
    let mut used = files::list(folder)?;
    let retired = folder.join(RETIRED);
    if retired.is_dir() {
        used.extend(files::list(&retired)?);
    }
    let numbers = used.iter().filter_map(|path| role_of(path)).filter(|(of, _)| of == role);
    let first = numbers.map(|(_, number)| number).max().unwrap_or(0).saturating_add(1);
    (first..).take(count).map(|number| make(folder, role, number)).collect()
}

/// Puts keys aside that were replaced.
///
/// # Errors
/// [`CliError`] when they cannot be moved.
pub fn retire(folder: &Path, keys: &[KeyFile]) -> Result<(), CliError> {
    let retired = folder.join(RETIRED);
    files::private_folder(&retired)?;
    keys.iter().try_for_each(|key| {
        let to = retired.join(key.path.file_name().unwrap_or_default());
        std::fs::rename(&key.path, &to)
            .map_err(|e| CliError::file(format!("move {} to {}: {e}", key.path.display(), to.display())))
    })
}

fn list(folder: &Path, context: &Context) -> Result<(), CliError> {
    let shown: Vec<Shown> = load_all(folder)?
        .into_iter()
        .map(|KeyFile { role, path, pair }| {
            let public = hex::encode(pair.public().as_bytes());
            Shown { role, file: path, id: pair.public().id(), public }
        })
        .collect();
    context.list(&shown, ["ROLE", "FILE", "KEY ID", "PUBLIC KEY"], |key| {
        [key.role.clone(), key.file.display().to_string(), key.id.clone(), key.public.clone()]
    })
}

/// Reads the keys of one role from a folder.
///
/// # Errors
/// [`CliError`] when a file is no key, or there is none.
pub fn load(folder: &Path, role: &str) -> Result<Vec<KeyPair>, CliError> {
    let keys = load_all(folder)?.into_iter().filter(|key| key.role == role);
    let pairs: Vec<KeyPair> = keys.map(|key| key.pair).collect();
    if pairs.is_empty() {
        let message = format!("{} holds no {role}-*.pem key", folder.display());
        return Err(CliError::file(message).hint("make keys with `farlight keys generate DIR`"));
    }
    Ok(pairs)
}

/// Reads all keys of a folder.
///
/// # Errors
/// [`CliError`] when a file is no key, or there is none.
pub fn load_all(folder: &Path) -> Result<Vec<KeyFile>, CliError> {
    let mut keys = Vec::new();
    for path in files::list(folder)? {
        let Some((role, _)) = role_of(&path) else { continue };
        let pem = Zeroizing::new(files::read_text(&path)?);
        let pair = KeyPair::from_pem(&pem)
            .map_err(|e| CliError::delivery(Exit::File, e.code(), format!("key {}: {e}", path.display())))?;
        keys.push(KeyFile { role, path, pair });
    }
    if keys.is_empty() {
        return Err(CliError::file(format!("{} holds no keys (‹role›-‹number›.pem)", folder.display()))
            .hint("make keys with `farlight keys generate DIR`"));
    }
    Ok(keys)
}

/// The public halves of `pairs`.
pub fn publics(pairs: &[KeyPair]) -> Vec<PublicKey> {
    pairs.iter().map(KeyPair::public).collect()
}

/// Role and number of a key's file.
fn role_of(path: &Path) -> Option<(String, u32)> {
    let (role, number) = path.file_name()?.to_str()?.strip_suffix(".pem")?.rsplit_once('-')?;
    Some((role.to_owned(), number.parse().ok()?))
}
