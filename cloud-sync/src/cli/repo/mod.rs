//! `farlight repo`: begins the release repository with offline signatures, shows where it stands, keeps it
//! from expiring, and hands model families to keys of their own.

pub mod change;
mod delegate;
pub mod rotate;
mod sign;
mod status;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use farlight_release::key::{KeyPair, PublicKey};
use farlight_release::tuf::signer::{self, RootSigners, Signers};
use farlight_release::tuf::{ASSIGNMENT_KEYS, MAX_ROOT, Role, Root, Targets, TrustedRoot, TufError};
use farlight_wire::codes::Code;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use super::error::CliError;
use super::files;
use super::http::Api;
use super::keys;
use super::trust::{self, MAX_DAYS, Trust};
use change::Change;
pub(super) use status::waiting_text;
use status::{Answer, Status};

/// Where signed documents wait for more signatures, below the folder of the keys.
const NEXT: &str = "next";

/// Commands on the repository.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin the repository: root and targets signed by the offline keys
    #[command(after_help = "Example: farlight repo init --keys offline --root-threshold 2")]
    Init(Init),
    /// Trust a root that was handed over, to sign on this machine with the keys it has
    #[command(after_help = "Example: farlight repo trust 1.root.json --keys my-keys")]
    Trust {
        /// The root
        root: PathBuf,
        /// Folder of the offline keys
        #[arg(long, value_name = "DIR")]
        keys: PathBuf,
    },
    /// Show versions, keys and expiry of the signed metadata, and what expires soon
    #[command(after_help = "Example: farlight repo status --json")]
    Status,
    /// Sign again what the keys at hand may sign, so that it expires later
    #[command(after_help = "Example: farlight repo refresh --keys offline --days 180\n\
        Example: farlight repo refresh --keys offline --root --days 730")]
    Refresh(Refresh),
    /// Sign what waits for more signatures; it is published once there are enough
    #[command(after_help = "Example: farlight repo sign next --keys my-keys")]
    Sign(sign::Sign),
    /// Sign a root with the root keys at hand, on a machine without a network
    #[command(after_help = "Example: farlight repo add-root-signature next/root.json --keys my-keys")]
    AddRootSignature(sign::AddRootSignature),
    /// Let keys of their own sign the releases of a model family
    #[command(
        after_help = "Example: farlight repo delegate vibration --models 'vibration-*' --keys offline --family-keys vibration-keys"
    )]
    Delegate(delegate::Delegate),
    /// Take a model family's keys their right to sign; its releases may not be assigned any more
    #[command(after_help = "Example: farlight repo revoke vibration --keys offline")]
    Revoke(delegate::Revoke),
}

/// Arguments of `repo init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// How many root keys must sign a root; all of them by default
    #[arg(long, value_name = "N")]
    root_threshold: Option<u64>,
    /// How many targets keys must sign a release
    #[arg(long, default_value_t = 1, value_name = "N")]
    targets_threshold: u64,
    /// Days until the root expires
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    root_days: u32,
    /// Days until the targets expire
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    targets_days: u32,
}

/// Arguments of `repo refresh`.
#[derive(Debug, Args)]
pub struct Refresh {
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Days until it expires
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
    /// The root, in place of the targets and the model families
    #[arg(long)]
    root: bool,
}

#[derive(Deserialize)]
struct OnlineKeys {
    snapshot: Value,
    timestamp: Value,
    assignment: Value,
}

#[derive(Serialize)]
struct InitRequest {
    root: String,
    targets: String,
    assignment_keys: String,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    if let Command::AddRootSignature(args) = command {
        return sign::add_root_signature(&args, context);
    }
    let api = context.api()?;
    let answer = match command {
        Command::Init(args) => init(&args, &api).await?.into(),
        Command::Trust { root, keys } => begin(&root, &keys, &api).await?.into(),
        Command::Status => api.get::<Status>("/api/v1/repo").await?.into(),
        Command::Refresh(args) => refresh(&args, &api).await?,
        Command::Sign(args) => sign::run(&args, &api).await?,
        Command::Delegate(args) => delegate::run(&args, &api).await?,
        Command::Revoke(args) => delegate::revoke(&args, &api).await?,
        Command::AddRootSignature(_) => return Ok(()),
    };
    context.answer(&answer, Answer::text)
}

async fn init(args: &Init, api: &Api) -> Result<Status, CliError> {
    let root_keys = keys::load(&args.keys, Role::Root.name())?;
    let targets_keys = keys::load(&args.keys, Role::Targets.name())?;
    if let Some(root) = api.file("/repo/metadata/1.root.json", MAX_ROOT).await? {
        return adopt(args, api, &root, &root_keys).await;
    }
    let threshold = |asked: Option<u64>, keys: &[KeyPair], name: &str| {
        let all = keys.len() as u64;
        match asked.unwrap_or(all) {
            n if (1..=all).contains(&n) => Ok(n),
            n => Err(CliError::usage(format!(
                "--{name}-threshold {n} is not from 1 to {all}, the number of keys"
            ))),
        }
    };
    let online: OnlineKeys = api.get("/api/v1/online-keys").await?;
    let signers = RootSigners {
        root: Signers {
            threshold: threshold(args.root_threshold, &root_keys, "root")?,
            keys: keys::publics(&root_keys),
        },
        targets: Signers {
            threshold: threshold(Some(args.targets_threshold), &targets_keys, "targets")?,
            keys: keys::publics(&targets_keys),
        },
        snapshot: Signers::one(online_key(&online.snapshot)?),
        timestamp: Signers::one(online_key(&online.timestamp)?),
    };
    let root = Root::new(1, trust::in_days(args.root_days), &signers);
    let root = signer::sign(&root, &root_keys.iter().collect::<Vec<_>>()).map_err(signing)?;
    let assignment_keys = signer::assignment_keys(&[online_key(&online.assignment)?]).map_err(signing)?;
    let mut targets = Targets::new(1, trust::in_days(args.targets_days));
    targets.add(ASSIGNMENT_KEYS, &assignment_keys);
    let targets = sign_targets(&targets, &targets_keys)?;
    // Before the upload: a root that the cloud has and its owner has not would be of no use.
    Trust::begin(&args.keys, &root)?;
    let request = InitRequest {
        root: STANDARD.encode(&root),
        targets: STANDARD.encode(targets),
        assignment_keys: STANDARD.encode(assignment_keys),
    };
    let status = api.post("/api/v1/repo/init", &request).await?;
    Trust::refresh(&args.keys, api).await?;
    Ok(status)
}

fn online_key(object: &Value) -> Result<PublicKey, CliError> {
    PublicKey::from_object(object).map_err(|e| CliError::failure(format!("the cloud's online key: {e}")))
}

/// The repository exists: fine, if it is that of these keys.
async fn adopt(args: &Init, api: &Api, root: &[u8], pairs: &[KeyPair]) -> Result<Status, CliError> {
    let trusted = TrustedRoot::open(root).map_err(signing)?;
    let ours: std::collections::BTreeSet<_> = pairs.iter().map(|pair| *pair.public().as_bytes()).collect();
    if ours.is_disjoint(&trusted.keys(Role::Root)) {
        return Err(CliError::verification(
            Code::RegistryInitialised,
            "the cloud has a repository with other root keys",
        )
        .hint("use the folder of keys that it was made with"));
    }
    if !Trust::exists(&args.keys) {
        Trust::begin(&args.keys, root)?;
    }
    Trust::refresh(&args.keys, api).await?;
    api.get("/api/v1/repo").await
}

async fn begin(root: &Path, keys: &Path, api: &Api) -> Result<Status, CliError> {
    let bytes = files::read(root)?;
    TrustedRoot::open(&bytes).map_err(signing)?;
    if Trust::exists(keys) {
        return Err(CliError::usage(format!("{} has a trusted copy already", keys.display())));
    }
    Trust::begin(keys, &bytes)?;
    Trust::refresh(keys, api).await?;
    api.get("/api/v1/repo").await
}

async fn refresh(args: &Refresh, api: &Api) -> Result<Answer, CliError> {
    let mut trust = Trust::refresh(&args.keys, api).await?;
    let at_hand = keys::load_all(&args.keys)?;
    let ours = |of: &std::collections::BTreeSet<[u8; 32]>| {
        at_hand.iter().any(|key| of.contains(key.pair.public().as_bytes()))
    };
    let expires = trust::in_days(args.days);
    let mut change = Change::default();
    if args.root {
        let mut root = trust.root().root().clone();
        root.version = root.version.saturating_add(1);
        root.expires = expires;
        change.set_root(&root)?;
        return finish(change, trust, &args.keys, api).await;
    }
    let mut targets = Targets::clone(trust.targets()?);
    let delegations = targets.delegations.clone();
    if ours(&trust.root().keys(Role::Targets)) {
        targets.version = targets.version.saturating_add(1);
        targets.expires = expires;
        change.set_targets(&targets)?;
    }
    for name in delegations.iter().flat_map(|all| &all.roles).map(|role| &role.name) {
        if delegations.as_ref().is_some_and(|all| ours(&all.keys(name)))
            && let Some(mut role) = trust.role(name, api).await?
        {
            role.version = role.version.saturating_add(1);
            role.expires = expires;
            change.set_role(name, &role)?;
        }
    }
    if change.is_empty() {
        return Err(CliError::file("none of these keys may sign targets or a model family")
            .hint("see `farlight repo status` and `farlight keys list DIR`"));
    }
    finish(change, trust, &args.keys, api).await
}

/// Refuses to begin a change while another one waits for signatures.
fn check_no_next(keys: &Path) -> Result<(), CliError> {
    let next = keys.join(NEXT);
    if next.exists() {
        return Err(CliError::file(format!("{} waits for more signatures", next.display()))
            .hint("finish it with `farlight repo sign`, or remove that folder"));
    }
    Ok(())
}

/// Signs a change with all keys at hand. Publishes it if that is enough, else leaves it in a folder.
async fn finish(mut change: Change, trust: Trust, keys: &Path, api: &Api) -> Result<Answer, CliError> {
    check_no_next(keys)?;
    change.sign(&pairs(keys)?, &trust)?;
    let folder = keys.join(NEXT);
    let missing = change.missing(&trust)?;
    if missing.is_empty() {
        return publish(&change, keys, api).await;
    }
    change.write(&folder)?;
    let status: Status = api.get("/api/v1/repo").await?;
    Ok(Answer::waiting(status, missing, folder))
}

async fn publish(change: &Change, keys: &Path, api: &Api) -> Result<Answer, CliError> {
    let status: Status = api.post("/api/v1/repo/metadata", &change.to_signed()).await?;
    // What was just published is the least that is accepted from now on.
    Trust::refresh(keys, api).await?;
    Ok(status.into())
}

/// The keys of a folder.
///
/// # Errors
/// [`CliError`] when a file is no key, or there is none.
pub(super) fn pairs(keys: &Path) -> Result<Vec<KeyPair>, CliError> {
    Ok(keys::load_all(keys)?.into_iter().map(|key| key.pair).collect())
}

fn sign_targets(targets: &Targets, pairs: &[KeyPair]) -> Result<Vec<u8>, CliError> {
    signer::sign(targets, &pairs.iter().collect::<Vec<_>>()).map_err(signing)
}

pub(super) fn signing(error: TufError) -> CliError {
    CliError::verification(error.code(), error.to_string())
}
