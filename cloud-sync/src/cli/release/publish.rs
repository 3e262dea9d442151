//! `release publish`: uploads what the cloud does not have yet, blobs first, then manifest and targets.
//! Doing it again, or going on after it broke off, is safe at any point.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use farlight_release::digest;
use farlight_release::manifest::Blob;
use farlight_release::timestamp;
use farlight_wire::Millis;
use farlight_wire::codes::Code;
use futures_util::stream;
use indicatif::ProgressBar;
use reqwest::Body;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::bundle::Bundle;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::http::Api;
use crate::cli::output;
use crate::cli::repo::change::Change;
use crate::registry::Record;

/// Bytes that are read and sent at once.
const PIECE: usize = 256 * 1024;

/// Arguments of `release publish`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The signed bundle
    bundle: PathBuf,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let api = context.api()?;
    let bundle = Bundle::at(&args.bundle);
    let (document, bytes) = bundle.document()?;
    let release = document.release();
    let query = [("model", release.model.as_str())];
    let published: Vec<Record> = api.get_with("/api/v1/releases", &query).await?;
    if let Some(record) = published.into_iter().find(|record| record.release == *release) {
        if record.manifest_sha256 == digest::sha256(&bytes) {
            return answer(context, &record, "was published already");
        }
        let message = format!("release {release} is published with another manifest");
        return Err(CliError::verification(Code::RegistryImmutable, message));
    }
    let signed = Change::in_bundle(&args.bundle)?;
    if signed.is_empty() {
        return Err(CliError::file(format!("{}: the bundle is not signed", args.bundle.display()))
            .hint("run `farlight release sign BUNDLE --keys DIR`"));
    }
    let blobs = bundle.check_blobs(&document)?;
    let bar = output::progress(blobs.iter().map(|blob| blob.length).sum(), "upload");
    for blob in blobs {
        upload(&api, &bundle, blob, &bar).await?;
    }
    bar.finish_and_clear();
    let body = json!({ "manifest": STANDARD.encode(&bytes), "signed": signed.to_signed() });
    let record: Record = api.post("/api/v1/releases", &body).await?;
    answer(context, &record, "published")
}

fn answer(context: &Context, record: &Record, what: &str) -> Result<(), CliError> {
    context.answer(record, |record| {
        format!("{} {what} at {}", record.release, timestamp::format(Millis(record.published)))
    })
}

async fn upload(api: &Api, bundle: &Bundle, blob: &Blob, bar: &ProgressBar) -> Result<(), CliError> {
    if api.exists(&format!("/repo/blobs/{}", blob.id)).await? {
        bar.inc(blob.length);
        return Ok(());
    }
    let path = bundle.blob_path(blob);
    let file =
        File::open(&path).await.map_err(|e| CliError::file(format!("read {}: {e}", path.display())))?;
    let bar = bar.clone();
    let pieces = stream::unfold(file, move |mut file| {
        let bar = bar.clone();
        async move {
            let mut piece = vec![0; PIECE];
            match file.read(&mut piece).await {
                Ok(0) => None,
                Ok(length) => {
                    piece.truncate(length);
                    bar.inc(length as u64);
                    Some((Ok(Bytes::from(piece)), file))
                }
                Err(error) => Some((Err(error), file)),
            }
        }
    });
    let path = format!("/api/v1/blobs/{}", blob.id);
    api.put::<Value>(&path, blob.length, Body::wrap_stream(pieces)).await.map(|_| ())
}
