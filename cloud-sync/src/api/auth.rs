//! Operators and their bearer tokens. Only a token's SHA-256 is stored; the first operator's token is
//! written once into `operator.json`, the profile that the `farlight` command line reads.

use std::path::Path;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::ApiError;
use crate::app::Shared;
use crate::clock;
use crate::enrol::{Secret, digest, matches_digest};
use crate::files::{self, Access, FileError};
use crate::store::{During, Store, StoreError, int};

/// Most operators that a request is compared with.
const MAX_OPERATORS: i64 = 1000;

/// The operator a request comes from, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator(pub String);

/// `operator.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Profile {
    cloud: String,
    token: String,
    ca_pem: String,
}

/// What can go wrong with the first operator's profile.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The profile file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the first operator at first start; later only keeps the address in `operator.json` current,
/// if the file is still there.
///
/// # Errors
/// [`OperatorError`] when the file or the database cannot be used.
pub async fn prepare_operator(
    store: &Store,
    folder: &Path,
    cloud: String,
    ca_pem: String,
) -> Result<(), OperatorError> {
    let path = folder.join("operator.json");
    let existing: Option<Profile> = files::read(&path)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut write = store.write().await?;
    let operators: i64 = sqlx::query("SELECT COUNT(*) FROM operators")
        .fetch_one(write.connection())
        .await
        .during("count operators")?
        .get(0);
    let token = match existing {
        Some(profile) => profile.token,
        None if operators > 0 => return Ok(()),
        None => Secret::generate().reveal().to_owned(),
    };
    if operators == 0 {
        sqlx::query("INSERT INTO operators (name, token_sha256, created) VALUES ('operator', $1, $2)")
            .bind(digest(&token))
            .bind(int(clock::now().0))
            .execute(write.connection())
            .await
            .during("store the first operator")?;
    }
    let profile = Profile { cloud, token, ca_pem };
    let text = serde_json::to_vec_pretty(&profile).unwrap_or_default();
    // The file first: a token whose hash is stored but which nobody has would lock everybody out.
    files::replace(&path, &text, Access::Private)?;
    write.commit().await?;
    Ok(())
}

/// The operator whose token the request carries.
///
/// # Errors
/// 401 when there is none or it is not known.
pub async fn operator_of(app: &Shared, headers: &HeaderMap) -> Result<Operator, ApiError> {
    let refuse = |message: &str| {
        ApiError::new(StatusCode::UNAUTHORIZED, "auth.token", message)
            .hint("send 'Authorization: Bearer TOKEN' with the token of operator.json")
    };
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| refuse("this request carries no bearer token"))?;
    operator_with(app, token).await?.ok_or_else(|| refuse("this token is not known"))
}

/// The operator with this token.
pub(crate) async fn operator_with(app: &Shared, token: &str) -> Result<Option<Operator>, ApiError> {
    let rows = sqlx::query("SELECT name, token_sha256 FROM operators ORDER BY name LIMIT $1")
        .bind(MAX_OPERATORS)
        .fetch_all(app.store.reader())
        .await
        .during("read operators")?;
    Ok(rows
        .iter()
        .find(|row| matches_digest(token, &row.get::<String, _>(1)))
        .map(|row| Operator(row.get(0))))
}

pub(super) async fn require_operator(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let operator = operator_of(&app, request.headers()).await?;
    request.extensions_mut().insert(operator);
    Ok(next.run(request).await)
}
