//! `repo delegate` and `repo revoke`: a model family's releases are signed by keys of its own.

use std::path::PathBuf;

use clap::Args;
use farlight_release::key::PublicKey;
use farlight_release::tuf::Targets;
use farlight_release::tuf::signer::Signers;
use farlight_wire::ModelName;

use super::change::Change;
use super::finish;
use super::status::Answer;
use crate::cli::error::CliError;
use crate::cli::http::Api;
use crate::cli::keys;
use crate::cli::trust::{self, MAX_DAYS, Trust};

/// Arguments of `repo delegate`.
#[derive(Debug, Args)]
pub struct Delegate {
    /// Name of the family, and of the keys' files (`‹family›-1.pem`)
    family: ModelName,
    /// Folder of the offline keys (targets)
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Folder of the family's keys; that of the offline keys by default
    #[arg(long, value_name = "DIR")]
    family_keys: Option<PathBuf>,
    /// A public key of the family (hex) whose private half is elsewhere; may be repeated
    #[arg(long, value_name = "HEX", conflicts_with = "family_keys")]
    public_key: Vec<String>,
    /// Models of the family, `*` stands for any text; the model of the family's name by default
    #[arg(long, value_name = "PATTERN")]
    models: Vec<String>,
    /// How many of the family's keys must sign a release
    #[arg(long, default_value_t = 1, value_name = "N")]
    threshold: u64,
    /// Days until the family's metadata expires
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
}

/// Arguments of `repo revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// Name of the family
    family: ModelName,
    /// Folder of the offline keys (targets)
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
}

pub(super) async fn run(args: &Delegate, api: &Api) -> Result<Answer, CliError> {
    let family = args.family.as_str();
    if ["root", "targets", "snapshot", "timestamp"].contains(&family) {
        return Err(CliError::usage(format!("a family cannot be named {family:?}: that is a role of TUF")));
    }
    let folder = args.family_keys.as_ref().unwrap_or(&args.keys);
    let pairs = if args.public_key.is_empty() { keys::load(folder, family)? } else { Vec::new() };
    let mut public = keys::publics(&pairs);
    for text in &args.public_key {
        public.push(parse_key(text)?);
    }
    if !(1..=public.len() as u64).contains(&args.threshold) {
        let (threshold, all) = (args.threshold, public.len());
        return Err(CliError::usage(format!(
            "--threshold {threshold} is not from 1 to {all}, the number of keys"
        )));
    }
    let mut trust = Trust::refresh(&args.keys, api).await?;
    let old = trust.role(family, api).await?;
    let mut targets = Targets::clone(trust.targets()?);
    targets.version = targets.version.saturating_add(1);
    targets.delegate(family, paths(args)?, &Signers { keys: public, threshold: args.threshold });
    let mut change = Change::default();
    change.set_targets(&targets)?;
    let listed = trust.listed(family);
    // What was published under other keys has to be signed anew by these.
    if !pairs.is_empty() || listed > 0 {
        let mut role = old.unwrap_or_else(|| Targets::new(0, trust::in_days(args.days)));
        role.version = listed.saturating_add(1);
        role.expires = role.expires.max(trust::in_days(args.days));
        change.set_role(family, &role)?;
        change.sign(&pairs, &trust)?;
    }
    finish(change, trust, &args.keys, api).await
}

pub(super) async fn revoke(args: &Revoke, api: &Api) -> Result<Answer, CliError> {
    let trust = Trust::refresh(&args.keys, api).await?;
    let mut targets = Targets::clone(trust.targets()?);
    if !targets.revoke(args.family.as_str()) {
        return Err(
            CliError::usage(format!("{} is no model family", args.family)).hint("see `farlight repo status`")
        );
    }
    targets.version = targets.version.saturating_add(1);
    let mut change = Change::default();
    change.set_targets(&targets)?;
    finish(change, trust, &args.keys, api).await
}

/// The target paths of the family's models.
fn paths(args: &Delegate) -> Result<Vec<String>, CliError> {
    let own = [args.family.to_string()];
    let patterns: &[String] = if args.models.is_empty() { &own } else { &args.models };
    patterns
        .iter()
        .map(|pattern| {
            // With its wildcards filled in it must be a model's name.
            let model = pattern.replace('*', "x").parse::<ModelName>();
            model.map_err(|e| CliError::usage(format!("--models {pattern:?}: {e}")))?;
            Ok(format!("{pattern}/*"))
        })
        .collect()
}

fn parse_key(text: &str) -> Result<PublicKey, CliError> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes =
        bytes.ok_or_else(|| CliError::usage("--public-key is 64 hex digits: see `farlight keys list`"))?;
    PublicKey::from_bytes(&bytes).map_err(|e| CliError::usage(format!("--public-key {text}: {e}")))
}
