//! `release sign`: adds a bundle's manifest to the newest targets and signs them with the offline keys.
//! The cloud is asked only for what is published, and believed only as far as it is signed.

use std::path::PathBuf;

use farlight_release::tuf::Targets;
use farlight_wire::ReleaseId;
use serde::Serialize;

use super::bundle::Bundle;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::files;
use crate::cli::keys::{self, Offline};
use crate::cli::repo::sign_targets;
use crate::cli::trust::{self, MAX_DAYS, Trust};

/// Arguments of `release sign`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bundle
    bundle: PathBuf,
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Days until the signed targets expire
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
    /// From now on, no device may be told to run a version of this model below this one
    #[arg(long, value_name = "VERSION")]
    floor: Option<semver::Version>,
}

#[derive(Debug, Serialize)]
struct Signed {
    release: ReleaseId,
    targets_version: u64,
    floor: Option<semver::Version>,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let bundle = Bundle::at(&args.bundle);
    let (manifest, bytes) = bundle.manifest()?;
    bundle.check_blobs(&manifest)?;
    let pairs = keys::load(&args.keys, Offline::Targets)?;
    let trust = Trust::refresh(&args.keys, &context.api()?).await?;
    let release = manifest.release;
    let mut targets = Targets::clone(trust.targets()?);
    let path = release.target_path();
    if let Some(old) = targets.targets.get(&path) {
        let message = match old.verify(&path, &bytes) {
            Ok(()) => format!("release {release} is signed and published already"),
            Err(_) => format!("release {release} is published already, with another manifest"),
        };
        return Err(
            CliError::failure(message).hint("a release never changes: build it under another version")
        );
    }
    if let Some(floor) = &args.floor {
        raise_floor(&mut targets, &release, floor)?;
    }
    targets.add(path, &bytes);
    targets.version = targets.version.saturating_add(1);
    targets.expires = targets.expires.max(trust::in_days(args.days));
    let signed = sign_targets(&targets, &pairs)?;
    trust.check(&signed)?;
    files::write(&bundle.targets_path(), &signed)?;
    let floor = targets.floor.get(&release.model).cloned();
    let summary = Signed { release, targets_version: targets.version, floor };
    context.answer(&summary, |signed| {
        let floor = signed.floor.as_ref().map_or_else(String::new, |floor| format!(", floor {floor}"));
        format!("signed {} in targets version {}{floor}", signed.release, signed.targets_version)
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
