//! `release sign`: adds a bundle's document to the newest metadata of the role that may speak for it, and
//! signs that offline. The cloud is asked only for what is published, and believed only as far as it is signed.

use std::path::PathBuf;

use farlight_release::tuf::{Role, Targets};
use farlight_wire::ReleaseId;
use farlight_wire::codes::Code;
use serde::Serialize;

use super::bundle::Bundle;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::repo;
use crate::cli::repo::change::{Change, Progress};
use crate::cli::trust::{self, MAX_DAYS, Trust};

/// Arguments of `release sign`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bundle
    bundle: PathBuf,
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Days until the signed metadata expires
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
    /// From now on, no device may be told to run a version of this model below this one
    #[arg(long, value_name = "VERSION")]
    floor: Option<semver::Version>,
}

#[derive(Debug, Serialize)]
struct Signed {
    release: ReleaseId,
    role: String,
    targets_version: u64,
    floor: Option<semver::Version>,
    missing: Vec<Progress>,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let bundle = Bundle::at(&args.bundle);
    let (document, bytes) = bundle.document()?;
    bundle.check_blobs(&document)?;
    let pairs = repo::pairs(&args.keys)?;
    let api = context.api()?;
    let mut trust = Trust::refresh(&args.keys, &api).await?;
    let release = document.release().clone();
    let path = release.target_path();
    let top = Targets::clone(trust.targets()?);
    let family = top.delegations.as_ref().and_then(|all| Some(all.of(&path).0.first()?.name.clone()));
    let role = family.clone().unwrap_or_else(|| Role::Targets.name().to_owned());
    let published = match &family {
        Some(family) => {
            let role = trust.role(family, &api).await?;
            role.unwrap_or_else(|| Targets::new(trust.listed(family), trust::in_days(0)))
        }
        None => top.clone(),
    };
    for old in [&top, &published] {
        if let Some(old) = old.targets.get(&path) {
            let message = match old.verify(&path, &bytes) {
                Ok(()) => format!("release {release} is signed and published already"),
                Err(_) => format!("release {release} is published already, with another manifest"),
            };
            let hint = "a release never changes: build it under another version";
            return Err(CliError::failure(message).hint(hint));
        }
    }
    let mut next = published.clone();
    if let Some(floor) = &args.floor {
        raise_floor(&mut next, &release, floor)?;
    }
    next.add(path, &bytes);
    next.version = next.version.saturating_add(1);
    next.expires = next.expires.max(trust::in_days(args.days));
    // Another machine may have signed the very same before: then this one adds its signatures.
    let mut change = Change::read(&args.bundle, &trust)?;
    let begun = match &family {
        Some(family) => change.role(family)?,
        None => Some(change.targets(&trust)?),
    };
    let same = begun.is_some_and(|begun| {
        next.expires = begun.expires;
        begun == next
    });
    if !same {
        change.remove(&args.bundle);
        change = Change::default();
        next.expires = published.expires.max(trust::in_days(args.days));
        match &family {
            Some(family) => change.set_role(family, &next)?,
            None => change.set_targets(&next)?,
        }
    }
    if change.sign(&pairs, &trust)? == 0 {
        let message = format!("none of these keys may sign releases of {} (role {role})", release.model);
        return Err(CliError::verification(Code::TufUnknownKey, message)
            .hint("are these the right keys? see `farlight repo status` and `farlight keys list DIR`"));
    }
    let missing = change.missing(&trust)?;
    change.write(&args.bundle)?;
    let floor = next.floor.get(&release.model).cloned();
    let summary = Signed { release, role, targets_version: next.version, floor, missing };
    context.answer(&summary, |signed| {
        let floor = signed.floor.as_ref().map_or_else(String::new, |floor| format!(", floor {floor}"));
        let (release, role, version) = (&signed.release, &signed.role, signed.targets_version);
        let missing = repo::waiting_text(&signed.missing);
        format!("signed {release} in {role} version {version}{floor}{missing}")
    })
}

fn raise_floor(targets: &mut Targets, release: &ReleaseId, floor: &semver::Version) -> Result<(), CliError> {
    let old = targets.floor.get(&release.model);
    if *floor > release.version {
        return Err(CliError::usage(format!("--floor {floor} is above {}", release.version)));
    }
    if let Some(old) = old.filter(|old| floor < *old) {
        return Err(CliError::usage(format!("the floor of {} is {old}; it can only rise", release.model)));
    }
    targets.floor.insert(release.model.clone(), floor.clone());
    Ok(())
}
