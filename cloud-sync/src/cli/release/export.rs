//! `release export`: a folder with everything that a device without a network needs to install releases: the
//! signed metadata, the manifests and the files. The device checks all of it; the folder proves nothing itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use farlight_release::blob::MAX_BLOB;
use farlight_release::manifest::MAX_MANIFEST;
use farlight_release::timestamp;
use farlight_release::tuf::{ASSIGNMENT_KEYS, Client, METADATA, Step, TARGETS, TufError};
use farlight_wire::ReleaseId;
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::http::Api;
use crate::cli::trust::now;
use crate::cli::{files, output};
use crate::registry::Plain;

/// Version of the list in the folder.
const FORMAT: u32 = 1;
/// Largest root and largest list of keys, in bytes, as devices bound them.
const MAX_SMALL: u64 = 512_000;

/// Arguments of `release export`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farlight release export watch-gestures/1.0.0 --out /media/usb/farlight\n\nOn the device: farlight-agent install /media/usb/farlight"
)]
pub struct Args {
    /// The releases, `‹model›/‹version›`
    #[arg(required = true)]
    releases: Vec<ReleaseId>,
    /// Folder to write; it may hold an earlier export
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let mut export = Export::begin(context.api()?).await?;
    for release in &args.releases {
        export.release(release).await?;
    }
    let total: u64 = export.files.values().map(|bytes| bytes.len() as u64).sum();
    for (path, bytes) in &export.files {
        write(&args.out, path, bytes)?;
    }
    // Last: a folder that is half written has no list.
    let list = json!({ "format": FORMAT, "releases": args.releases });
    write(&args.out, "bundle.json", &serde_json::to_vec_pretty(&list).unwrap_or_default())?;
    let expires = export.client.timestamp_expires();
    let answer = json!({ "folder": args.out, "releases": args.releases, "bytes": total, "expires": expires });
    context.answer(&answer, |_| {
        let until = expires.map_or_else(|| "-".to_owned(), timestamp::format);
        format!("wrote {} ({total} bytes); devices take it until {until}", args.out.display())
    })
}

fn write(out: &Path, path: &str, bytes: &[u8]) -> Result<(), CliError> {
    let path = out.join(path);
    if let Some(folder) = path.parent() {
        files::folder(folder)?;
    }
    files::write(&path, bytes)
}

/// What is collected, by its path in the repository.
struct Export {
    api: Api,
    client: Client,
    files: BTreeMap<String, Vec<u8>>,
}

impl Export {
    async fn begin(api: Api) -> Result<Self, CliError> {
        let first = format!("{METADATA}1.root.json");
        let root = api.file(&format!("/repo/{first}"), MAX_SMALL).await?;
        let none = || {
            CliError::failure("the cloud has no release repository yet".to_owned())
                .hint("run `farlight repo init --keys DIR` first")
        };
        let root = root.ok_or_else(none)?;
        let client = Client::new(&root).map_err(refused)?;
        let mut export = Self { api, client, files: BTreeMap::from([(first, root)]) };
        export.client.begin_refresh(now());
        export.metadata().await?;
        export.target(ASSIGNMENT_KEYS, MAX_SMALL).await?;
        Ok(export)
    }

    async fn metadata(&mut self) -> Result<(), CliError> {
        while let Step::Fetch { path, max_len } = self.client.next() {
            let file = self.api.file(&format!("/repo/{path}"), max_len).await?;
            self.client.supply(file.as_deref()).map_err(refused)?;
            if let Some(bytes) = file {
                self.files.insert(path, bytes);
            }
        }
        Ok(())
    }

    async fn target(&mut self, path: &str, limit: u64) -> Result<Vec<u8>, CliError> {
        let file = format!("{TARGETS}{}", self.client.target_file(path).map_err(refused)?);
        let bytes = self.must(&file, limit).await?;
        self.files.insert(file, bytes.clone());
        Ok(bytes)
    }

    async fn must(&self, path: &str, limit: u64) -> Result<Vec<u8>, CliError> {
        let file = self.api.file(&format!("/repo/{path}"), limit).await?;
        file.ok_or_else(|| CliError::failure(format!("the repository lacks {path}")))
    }

    async fn release(&mut self, release: &ReleaseId) -> Result<(), CliError> {
        let path = release.target_path();
        self.client.begin_lookup(&path, now());
        self.metadata().await?;
        self.client.permits(release).map_err(refused)?;
        let bytes = self.target(&path, MAX_MANIFEST).await?;
        let document =
            Plain::parse(&bytes).map_err(|e| CliError::verification(e.code(), format!("{path}: {e}")))?;
        let blobs = document.blobs();
        let bar = output::progress(blobs.iter().map(|blob| blob.length).sum(), "download");
        for blob in blobs {
            let file = format!("blobs/{}", blob.id);
            let bytes = self.must(&file, blob.length.min(MAX_BLOB)).await?;
            bar.inc(blob.length);
            self.files.insert(file, bytes);
        }
        bar.finish_and_clear();
        Ok(())
    }
}

fn refused(error: TufError) -> CliError {
    CliError::verification(error.code(), error.to_string())
}
