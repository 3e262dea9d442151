//! `farlight config`: makes a configuration release from a settings file. It is signed, published and rolled
//! out like a model.

use std::path::PathBuf;

use clap::Subcommand;
use farlight_release::config::{ConfigManifest, FORMAT, NAME, Runtime};
use farlight_release::digest;
use farlight_release::manifest::Requires;
use farlight_wire::ReleaseId;
use serde::Serialize;

use super::context::Context;
use super::error::CliError;
use super::files;
use super::release::bundle::Bundle;

/// Commands on configuration releases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a bundle of a settings file; then `farlight release sign` and `publish`
    #[command(after_help = "Example: farlight config build settings.toml --version 1.0.0 --out config-1\n\n\
        settings.toml:\n  kill_switch = false\n  [models.watch-gestures]\n  abstain_below = 0.6\n  \
        case_bytes_per_day = 200000\n  [flags]\n  new-screen = true")]
    Build(Build),
}

/// Arguments of `config build`.
#[derive(Debug, clap::Args)]
pub struct Build {
    /// The settings: `kill_switch`, `[models.‹name›]` and `[flags]`
    settings: PathBuf,
    /// The release's version
    #[arg(long)]
    version: semver::Version,
    /// Folder to write the bundle to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Summary {
    release: ReleaseId,
    bundle: PathBuf,
    manifest_sha256: String,
}

pub(super) fn run(command: Command, context: &Context) -> Result<(), CliError> {
    let Command::Build(args) = command;
    let named = |why: String| CliError::file(format!("{}: {why}", args.settings.display()));
    let runtime: Runtime =
        toml::from_str(&files::read_text(&args.settings)?).map_err(|e| named(e.to_string()))?;
    let name = NAME.parse().map_err(|e: farlight_wire::IdError| CliError::failure(e.to_string()))?;
    let release = ReleaseId::new(name, args.version.clone());
    let config =
        ConfigManifest { format: FORMAT, release: release.clone(), runtime, requires: Requires::default() };
    config.check().map_err(|e| named(e.to_string()))?;
    let bundle = Bundle::at(&args.out);
    bundle.write(&config, &[])?;
    let manifest_sha256 = digest::sha256(&bundle.document()?.1);
    let summary = Summary { release, bundle: args.out.clone(), manifest_sha256 };
    context.answer(&summary, |summary| {
        format!("release   {}\nbundle    {}", summary.release, summary.bundle.display())
    })
}
