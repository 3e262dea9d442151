//! `farlight repo`: begins the release repository with offline signatures, shows where it stands, and
//! signs the targets again before they expire.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use farlight_release::key::{KeyPair, PublicKey};
use farlight_release::timestamp;
use farlight_release::tuf::signer::{self, RootSigners, Signers};
use farlight_release::tuf::{ASSIGNMENT_KEYS, MAX_ROOT, Root, Targets, TrustedRoot, TufError};
use farlight_wire::Millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::Context;
use super::error::CliError;
use super::http::Api;
use super::keys::{self, Offline};
use super::trust::{self, MAX_DAYS, Trust};

/// Commands on the repository.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin the repository: root and targets signed by the offline keys
    Init(Init),
    /// Show versions and expiry of the signed metadata
    Status,
    /// Sign the targets again, so that they expire later
    Refresh(Refresh),
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
    /// Days until the targets expire
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
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

#[derive(Serialize)]
struct TargetsRequest {
    targets: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Status {
    roles: std::collections::BTreeMap<String, RoleStatus>,
    targets: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct RoleStatus {
    version: u64,
    expires: u64,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), CliError> {
    let api = context.api()?;
    let status = match command {
        Command::Init(args) => init(&args, &api).await?,
        Command::Status => api.get("/api/v1/repo").await?,
        Command::Refresh(args) => refresh(&args, &api).await?,
    };
    context.answer(&status, show)
}

async fn init(args: &Init, api: &Api) -> Result<Status, CliError> {
    let root_keys = keys::load(&args.keys, Offline::Root)?;
    let targets_keys = keys::load(&args.keys, Offline::Targets)?;
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
    let online_key = |object: &Value| {
        PublicKey::from_object(object).map_err(|e| CliError::failure(format!("the cloud's online key: {e}")))
    };
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

/// The repository exists: fine, if it is that of these keys.
async fn adopt(args: &Init, api: &Api, root: &[u8], pairs: &[KeyPair]) -> Result<Status, CliError> {
    let trusted = TrustedRoot::open(root).map_err(signing)?;
    let ours: std::collections::BTreeSet<_> = pairs.iter().map(|pair| *pair.public().as_bytes()).collect();
    if trusted.keys(farlight_release::tuf::Role::Root) != ours {
        return Err(CliError::verification(
            "registry.initialised",
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

async fn refresh(args: &Refresh, api: &Api) -> Result<Status, CliError> {
    let pairs = keys::load(&args.keys, Offline::Targets)?;
    let trust = Trust::refresh(&args.keys, api).await?;
    let mut targets = Targets::clone(trust.targets()?);
    targets.version = targets.version.saturating_add(1);
    targets.expires = trust::in_days(args.days);
    let bytes = sign_targets(&targets, &pairs)?;
    trust.check(&bytes)?;
    let request = TargetsRequest { targets: STANDARD.encode(bytes) };
    let status = api.post("/api/v1/repo/targets", &request).await?;
    // What was just published is the least that is accepted from now on.
    Trust::refresh(&args.keys, api).await?;
    Ok(status)
}

/// Signs targets with all keys at hand.
///
/// # Errors
/// [`CliError`] when the targets break a rule.
pub(super) fn sign_targets(targets: &Targets, pairs: &[KeyPair]) -> Result<Vec<u8>, CliError> {
    signer::sign(targets, &pairs.iter().collect::<Vec<_>>()).map_err(signing)
}

fn signing(error: TufError) -> CliError {
    CliError::verification(error.code(), error.to_string())
}

fn show(status: &Status) -> String {
    let rows: Vec<[String; 3]> = status
        .roles
        .iter()
        .map(|(role, at)| [role.clone(), at.version.to_string(), timestamp::format(Millis(at.expires))])
        .collect();
    let table = super::output::table(["ROLE", "VERSION", "EXPIRES"], &rows);
    format!("{table}\n{} signed targets", status.targets)
}
