//! `keys rotate`: new keys in place of those in a folder, or of the cloud's. For root, targets and the cloud's
//! keys the next root says so, signed by old and new keys; for a model family the next targets do.

use std::path::PathBuf;

use clap::Args;
use farlight_release::key::PublicKey;
use farlight_release::tuf::signer::{self, Signers};
use farlight_release::tuf::{ASSIGNMENT_KEYS, Role, Targets};
use serde_json::Value;

use super::change::Change;
use super::status::Answer;
use super::{OnlineKeys, check_no_next, finish, online_key, signing};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::keys::{self, KeyFile};
use crate::cli::trust::{self, MAX_DAYS, Trust};

/// What stands for the keys that the cloud holds: snapshot, timestamp and assignment.
const ONLINE: &str = "online";

/// Arguments of `keys rotate`.
#[derive(Debug, Args)]
pub struct Rotate {
    /// `root`, `targets`, a model family, or `online` for the three keys that the cloud holds
    role: String,
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// How many keys must sign from now on; as before by default
    #[arg(long, value_name = "N")]
    threshold: Option<u64>,
    /// How many new keys to make; as many as are replaced by default
    #[arg(long, value_name = "N")]
    count: Option<u8>,
    /// Days until the next root (or the family's metadata) expires
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
}

/// Replaces the keys.
///
/// # Errors
/// [`CliError`] when no key of the role is in the folder, or something cannot be signed or written.
pub async fn run(args: &Rotate, context: &Context) -> Result<(), CliError> {
    let api = context.api()?;
    check_no_next(&args.keys)?;
    let mut trust = Trust::refresh(&args.keys, &api).await?;
    if args.role == ONLINE {
        return online(args, trust, context).await;
    }
    let role = [Role::Root, Role::Targets].into_iter().find(|role| role.name() == args.role);
    let before = signers_of(&trust, role, &args.role)?;
    let at_hand = keys::load_all(&args.keys)?;
    let (replaced, _): (Vec<KeyFile>, Vec<KeyFile>) =
        at_hand.into_iter().partition(|key| before.keys.contains(&key.pair.public()));
    if replaced.is_empty() {
        let message = format!("{} holds no key of the role {}", args.keys.display(), args.role);
        return Err(CliError::file(message).hint("see `farlight keys list DIR`"));
    }
    // Asked before keys are made: nothing may be left half done.
    let kept: Vec<PublicKey> = before
        .keys
        .iter()
        .filter(|key| !replaced.iter().any(|old| old.pair.public() == **key))
        .cloned()
        .collect();
    let count = args.count.map_or(replaced.len(), usize::from);
    let threshold = args.threshold.unwrap_or(before.threshold);
    let all = (kept.len() + count) as u64;
    if !(1..=all).contains(&threshold) {
        return Err(CliError::usage(format!(
            "--threshold {threshold} is not from 1 to {all}, the number of keys"
        )));
    }
    let published = match role {
        Some(_) => None,
        None => trust.role(&args.role, &api).await?,
    };
    let new = keys::make_more(&args.keys, &args.role, count)?;
    let keys = kept.into_iter().chain(new.iter().map(|key| key.pair.public())).collect();
    let signers = Signers { keys, threshold };
    let mut change = Change::default();
    let mut targets = Targets::clone(trust.targets()?);
    let expires = trust::in_days(args.days);
    if let Some(role) = role {
        change.set_root(&trust.root().root().successor(expires, &[(role, signers)]))?;
    } else {
        let delegated = targets.delegations.as_ref().and_then(|all| all.role(&args.role));
        let paths = delegated.and_then(|role| role.paths.clone()).unwrap_or_default();
        targets.delegate(&args.role, paths, &signers);
        if let Some(mut document) = published {
            document.version = document.version.saturating_add(1);
            document.expires = expires;
            change.set_role(&args.role, &document)?;
        }
    }
    if role != Some(Role::Root) {
        // Signed again by the new keys, or with the new delegation.
        targets.version = targets.version.saturating_add(1);
        change.set_targets(&targets)?;
    }
    let answer = finish(change, trust, &args.keys, &api).await?;
    if !answer.is_waiting() {
        keys::retire(&args.keys, &replaced)?;
    }
    context.answer(&answer, Answer::text)
}

/// Names the keys that the cloud made for this. It uses them, and signs every assignment again, once root and
/// targets are published.
async fn online(args: &Rotate, trust: Trust, context: &Context) -> Result<(), CliError> {
    if args.threshold.is_some() || args.count.is_some() {
        return Err(CliError::usage("--threshold and --count are for offline keys: online keys sign alone"));
    }
    let api = context.api()?;
    let next: OnlineKeys = api.post("/api/v1/online-keys/next", &serde_json::json!({})).await?;
    let roles = [
        (Role::Snapshot, Signers::one(online_key(&next.snapshot)?)),
        (Role::Timestamp, Signers::one(online_key(&next.timestamp)?)),
    ];
    let mut change = Change::default();
    change.set_root(&trust.root().root().successor(trust::in_days(args.days), &roles))?;
    let mut targets = Targets::clone(trust.targets()?);
    let assignment_keys = signer::assignment_keys(&[online_key(&next.assignment)?]).map_err(signing)?;
    targets.add(ASSIGNMENT_KEYS, &assignment_keys);
    targets.version = targets.version.saturating_add(1);
    change.set_targets(&targets)?;
    let answer = finish(change, trust, &args.keys, &api).await?;
    context.answer(&answer, Answer::text)
}

fn signers_of(trust: &Trust, role: Option<Role>, name: &str) -> Result<Signers, CliError> {
    let unknown = || {
        CliError::usage(format!("{name:?} is neither root nor targets nor a model family"))
            .hint("see `farlight repo status`")
    };
    let read = |object: Option<&Value>| object.and_then(|object| PublicKey::from_object(object).ok());
    match role {
        Some(role) => {
            let root = trust.root().root();
            let entry = root.roles.get(role.name()).ok_or_else(unknown)?;
            let keys = entry.keyids.iter().filter_map(|id| read(root.keys.get(id))).collect();
            Ok(Signers { keys, threshold: entry.threshold })
        }
        None => {
            let targets = trust.targets()?;
            let all = targets.delegations.as_ref().ok_or_else(unknown)?;
            let entry = all.role(name).ok_or_else(unknown)?;
            let keys = entry.keyids.iter().filter_map(|id| read(all.keys.get(id))).collect();
            Ok(Signers { keys, threshold: entry.threshold })
        }
    }
}
