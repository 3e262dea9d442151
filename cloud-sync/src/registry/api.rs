//! The registry over HTTP: what `farlight repo` and `farlight release` call, and the repository itself
//! as plain files. Uploads are verified here; nothing that is refused leaves a trace.

use std::collections::BTreeMap;

use axum::body::{Body as RawBody, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farlight_release::blob::{MAX_BLOB, id_of};
use farlight_release::digest;
use farlight_release::manifest::{CHUNK, MAX_MANIFEST};
use farlight_release::tuf::{MAX_ROLES_HELD, MAX_ROOT, MAX_TARGETS, TufError};
use farlight_wire::ReleaseId;
use farlight_wire::codes::Code;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tower_http::services::ServeDir;
use utoipa::ToSchema;

use super::{Change, Document, OnlinePublic, Plain, Record, RegistryError, Status};
use crate::api::{ApiError, Body, Operator, Path, Query};
use crate::app::Shared;

/// Largest upload of signed documents in bytes: base64 of the largest manifest, targets
/// and root, and of several delegated roles.
const MAX_DOCUMENTS: usize =
    ((MAX_MANIFEST + MAX_TARGETS + MAX_ROOT + MAX_ROLES_HELD as u64) as usize / 3 + 1) * 4 + 4096;

/// Routes for operators, below `/api/v1`.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/online-keys", get(online_keys))
        .route("/online-keys/next", post(next_online_keys))
        .route("/repo", get(status))
        .route("/repo/init", post(init))
        .route("/repo/metadata", post(metadata))
        .route("/blobs/{id}", put(blob))
        .route("/releases", get(releases).post(publish))
        .route("/releases/{model}/{version}", get(release))
        .layer(DefaultBodyLimit::max(MAX_DOCUMENTS))
}

/// The repository as plain files, for everybody: what it holds is signed.
pub fn files(app: &Shared) -> Router<Shared> {
    let files = Router::new()
        .fallback_service(ServeDir::new(app.registry.folder()))
        .layer(axum::middleware::from_fn(super::guard::by_digest));
    Router::new().nest("/repo", files)
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let Some(code) = error.code() else { return Self::internal(error) };
        let status = match error {
            RegistryError::Tuf(TufError::Rollback { .. })
            | RegistryError::Immutable(_)
            | RegistryError::Initialised
            | RegistryError::NotInitialised => StatusCode::CONFLICT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let refusal = Self::delivery(status, code, error.to_string());
        // Here it is an operator who signed or uploaded, and nobody who attacks.
        match error {
            RegistryError::Tuf(TufError::Rollback { .. }) => {
                refusal.hint("somebody else published in between: run `farlight release sign` again")
            }
            RegistryError::Tuf(_) => {
                refusal.hint("are these the keys that `farlight repo init` was run with?")
            }
            _ => refusal,
        }
    }
}

/// TUF key objects of the online keys, for the root and the targets that are to be signed offline.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OnlineKeyObjects {
    /// Verifies snapshots.
    pub snapshot: Value,
    /// Verifies timestamps.
    pub timestamp: Value,
    /// Verifies assignments.
    pub assignment: Value,
}

impl From<OnlinePublic> for OnlineKeyObjects {
    fn from(keys: OnlinePublic) -> Self {
        Self {
            snapshot: keys.snapshot.to_object(),
            timestamp: keys.timestamp.to_object(),
            assignment: keys.assignment.to_object(),
        }
    }
}

/// The public online keys.
#[utoipa::path(get, path = "/api/v1/online-keys", tag = "registry",
    responses((status = 200, body = OnlineKeyObjects), (status = 401)))]
pub async fn online_keys(State(app): State<Shared>) -> Json<OnlineKeyObjects> {
    Json(app.registry.online_keys().await.into())
}

/// The keys that are to replace the online keys, made at the first call. They are used once metadata that names
/// them is published.
#[utoipa::path(post, path = "/api/v1/online-keys/next", tag = "registry",
    responses((status = 200, body = OnlineKeyObjects), (status = 401)))]
pub async fn next_online_keys(
    State(app): State<Shared>,
    Extension(Operator(actor)): Extension<Operator>,
) -> Result<Json<OnlineKeyObjects>, ApiError> {
    Ok(Json(app.registry.next_online_keys(&actor).await?.into()))
}

/// Versions and expiry of the signed metadata.
#[utoipa::path(get, path = "/api/v1/repo", tag = "registry",
    responses((status = 200, body = Status), (status = 409)))]
pub async fn status(State(app): State<Shared>) -> Result<Json<Status>, ApiError> {
    Ok(Json(app.registry.status().await.ok_or(RegistryError::NotInitialised)?))
}

/// The first root and targets, base64.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// Root metadata, version 1.
    pub root: String,
    /// Targets metadata.
    pub targets: String,
    /// The target `keys/assignment.json`.
    pub assignment_keys: String,
}

/// Begins the repository.
#[utoipa::path(post, path = "/api/v1/repo/init", tag = "registry", request_body = InitRequest,
    responses((status = 200, body = Status), (status = 409), (status = 422)))]
pub async fn init(
    State(app): State<Shared>,
    Extension(Operator(actor)): Extension<Operator>,
    Body(request): Body<InitRequest>,
) -> Result<Json<Status>, ApiError> {
    let (root, targets) = (decode("root", &request.root)?, decode("targets", &request.targets)?);
    let keys = decode("assignment_keys", &request.assignment_keys)?;
    app.registry.init_root(root, targets, keys, &actor).await?;
    status(State(app)).await
}

/// Metadata that was signed offline, base64. What is left out stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Signed {
    /// The next root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The next targets metadata, one version above the published one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
    /// The next metadata of delegated roles, by name, each one version above the published one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, String>,
}

impl Signed {
    fn decode(&self) -> Result<Change, ApiError> {
        let optional =
            |field: &str, text: &Option<String>| text.as_ref().map(|t| decode(field, t)).transpose();
        let roles = self.roles.iter().map(|(name, text)| Ok((name.clone(), decode("roles", text)?)));
        Ok(Change {
            root: optional("root", &self.root)?,
            targets: optional("targets", &self.targets)?,
            roles: roles.collect::<Result<_, ApiError>>()?,
            release: None,
        })
    }
}

/// Takes metadata that adds no release: later expiry, raised floor, withdrawn releases, other keys.
#[utoipa::path(post, path = "/api/v1/repo/metadata", tag = "registry", request_body = Signed,
    responses((status = 200, body = Status), (status = 409), (status = 422)))]
pub async fn metadata(
    State(app): State<Shared>,
    Extension(Operator(actor)): Extension<Operator>,
    Body(request): Body<Signed>,
) -> Result<Json<Status>, ApiError> {
    let before = app.registry.online_keys().await;
    app.registry.renew(request.decode()?, &actor).await?;
    if app.registry.online_keys().await != before {
        app.changes.send_modify(|changes| changes.keys = true);
    }
    status(State(app)).await
}

/// A release: its document and the metadata that vouches for it, base64.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The manifest, or the configuration.
    pub manifest: String,
    /// Metadata that names it.
    pub signed: Signed,
}

/// Publishes a release whose blobs were uploaded before.
#[utoipa::path(post, path = "/api/v1/releases", tag = "registry", request_body = PublishRequest,
    responses((status = 200, body = Record), (status = 409), (status = 422)))]
pub async fn publish(
    State(app): State<Shared>,
    Extension(Operator(actor)): Extension<Operator>,
    Body(request): Body<PublishRequest>,
) -> Result<Json<Record>, ApiError> {
    let release = Some(decode("manifest", &request.manifest)?);
    let change = Change { release, ..request.signed.decode()? };
    Ok(Json(app.registry.publish(change, &actor).await?))
}

/// Which releases.
#[derive(Debug, Deserialize)]
pub struct ReleasesQuery {
    model: Option<String>,
}

/// The releases, newest first.
#[utoipa::path(get, path = "/api/v1/releases", tag = "registry", params(("model" = Option<String>, Query)),
    responses((status = 200, body = [Record])))]
pub async fn releases(
    State(app): State<Shared>,
    Query(query): Query<ReleasesQuery>,
) -> Result<Json<Vec<Record>>, ApiError> {
    Ok(Json(app.registry.releases(query.model.as_deref()).await?))
}

/// A release with its manifest.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReleaseAnswer {
    /// What the registry says.
    #[serde(flatten)]
    pub record: Record,
    /// The manifest, or the configuration; absent once the release was withdrawn.
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<Plain>,
}

/// One release.
#[utoipa::path(get, path = "/api/v1/releases/{model}/{version}", tag = "registry",
    params(("model" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ReleaseAnswer), (status = 404)))]
pub async fn release(
    State(app): State<Shared>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<ReleaseAnswer>, ApiError> {
    let id: ReleaseId =
        format!("{model}/{version}").parse().map_err(|e: farlight_wire::IdError| bad_id(e.to_string()))?;
    let missing = || {
        let text = format!("release {id} is not in the registry");
        ApiError::delivery(StatusCode::NOT_FOUND, Code::RegistryUnknown, text)
    };
    let record = app.registry.release(&id).await?.ok_or_else(missing)?;
    let manifest = app.registry.document(&id).await?.map(Document::into_plain);
    Ok(Json(ReleaseAnswer { record, manifest }))
}

/// A blob that the service holds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BlobAnswer {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub length: u64,
}

/// Uploads a blob under the id of its content. The same again changes nothing.
#[utoipa::path(put, path = "/api/v1/blobs/{id}", tag = "registry", params(("id" = String, Path)),
    responses((status = 200, body = BlobAnswer), (status = 413), (status = 422)))]
pub async fn blob(
    State(app): State<Shared>,
    Path(id): Path<String>,
    body: RawBody,
) -> Result<Json<BlobAnswer>, ApiError> {
    let path = app.registry.blob(&id).await;
    let path = path.ok_or_else(|| bad_id("a blob's id is 64 lower-case hex digits".to_owned()))?;
    let uploads = app.registry.uploads();
    let temporary = tokio::task::spawn_blocking(move || tempfile::NamedTempFile::new_in(uploads))
        .await
        .map_err(ApiError::internal)?
        .map_err(ApiError::internal)?;
    let file = temporary.reopen().map_err(ApiError::internal)?;
    let mut file = tokio::fs::File::from_std(file);
    let mut content = Content::default();
    let mut stream = body.into_data_stream();
    while let Some(piece) = stream.next().await {
        let broken = |e: axum::Error| ApiError::bad_request("http.body_incomplete", e.to_string());
        let piece: Bytes = piece.map_err(broken)?;
        content.take(&piece);
        if content.length > MAX_BLOB {
            let text = format!("a blob has at most {MAX_BLOB} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "http.body_too_large", text));
        }
        file.write_all(&piece).await.map_err(ApiError::internal)?;
    }
    file.flush().await.map_err(ApiError::internal)?;
    let (found, length) = content.finish();
    if found != id || length == 0 {
        let text = format!("{length} bytes came, whose id is {found}, not {id}");
        return Err(ApiError::delivery(StatusCode::UNPROCESSABLE_ENTITY, Code::FetchChunkMismatch, text));
    }
    file.sync_all().await.map_err(ApiError::internal)?;
    tokio::task::spawn_blocking(move || crate::files::adopt(temporary, &path))
        .await
        .map_err(ApiError::internal)?
        .map_err(ApiError::internal)?;
    Ok(Json(BlobAnswer { id, length }))
}

/// Computes a blob's id while it arrives.
#[derive(Default)]
struct Content {
    chunks: Vec<String>,
    pending: Vec<u8>,
    length: u64,
}

impl Content {
    fn take(&mut self, mut bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len() as u64);
        while !bytes.is_empty() {
            let room = (CHUNK as usize).saturating_sub(self.pending.len());
            let (taken, rest) = bytes.split_at(bytes.len().min(room));
            self.pending.extend_from_slice(taken);
            bytes = rest;
            if self.pending.len() as u64 == CHUNK {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.chunks.push(digest::sha256(&self.pending));
        self.pending.clear();
    }

    fn finish(mut self) -> (String, u64) {
        if !self.pending.is_empty() {
            self.close();
        }
        (id_of(&self.chunks).unwrap_or_default(), self.length)
    }
}

fn bad_id(text: String) -> ApiError {
    ApiError::delivery(StatusCode::BAD_REQUEST, Code::RegistryId, text)
}

fn decode(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    STANDARD
        .decode(text)
        .map_err(|e| ApiError::bad_request("http.bad_base64", format!("`{field}` is not base64: {e}")))
}
