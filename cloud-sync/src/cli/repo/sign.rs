//! `repo sign` and `repo add-root-signature`: how a threshold of keys on several machines is reached.

use std::path::PathBuf;

use clap::Args;
use farlight_release::tuf::{Role, Root, TrustedRoot};
use farlight_wire::codes::Code;
use serde::Serialize;

use super::change::{self, Change};
use super::status::{Answer, Status};
use super::{pairs, publish, signing};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::files;
use crate::cli::http::Api;
use crate::cli::trust::Trust;

/// Arguments of `repo sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// Folder of what is to be signed
    folder: PathBuf,
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
}

/// Arguments of `repo add-root-signature`.
#[derive(Debug, Args)]
pub struct AddRootSignature {
    /// File of the root
    root: PathBuf,
    /// Folder of the offline keys
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// The root before it, whose keys must sign as well
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Signed {
    version: u64,
    added: usize,
    complete: bool,
}

pub(super) async fn run(args: &Sign, api: &Api) -> Result<Answer, CliError> {
    let trust = Trust::refresh(&args.keys, api).await?;
    let mut change = Change::read(&args.folder, &trust)?;
    if change.is_empty() {
        return Err(CliError::file(format!("{} holds nothing to sign", args.folder.display())));
    }
    if change.sign(&pairs(&args.keys)?, &trust)? == 0 {
        return Err(CliError::verification(
            Code::TufUnknownKey,
            "none of these keys may sign what is in the folder",
        )
        .hint("see `farlight keys list DIR`"));
    }
    let missing = change.missing(&trust)?;
    change.write(&args.folder)?;
    if !missing.is_empty() {
        let status: Status = api.get("/api/v1/repo").await?;
        return Ok(Answer::waiting(status, missing, args.folder.clone()));
    }
    let answer = publish(&change, &args.keys, api).await?;
    change.remove(&args.folder);
    Ok(answer)
}

pub(super) fn add_root_signature(args: &AddRootSignature, context: &Context) -> Result<(), CliError> {
    let mut bytes = files::read(&args.root)?;
    let old = match &args.old {
        Some(path) => Some(TrustedRoot::open(&files::read(path)?).map_err(signing)?),
        None => None,
    };
    let added = change::sign_root(&mut bytes, &pairs(&args.keys)?, old.as_ref())?;
    if added == 0 {
        return Err(CliError::verification(Code::TufUnknownKey, "none of these keys is one of the root's")
            .hint("name the root before it with --old if the keys are among those that it replaces"));
    }
    files::write(&args.root, &bytes)?;
    let complete = match &old {
        Some(old) => old.succeed(&bytes).is_ok(),
        None => TrustedRoot::open(&bytes).is_ok(),
    };
    let version = Root::peek(&bytes).map_err(signing)?.version;
    context.answer(&Signed { version, added, complete }, |signed| {
        let rest = if signed.complete { "enough have signed" } else { "more must sign" };
        format!("added {} signatures to {} version {}: {rest}", signed.added, Role::Root, signed.version)
    })
}
