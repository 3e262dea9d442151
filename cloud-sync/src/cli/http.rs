//! The way to the cloud: HTTPS with the profile's certificate authority and token. Error answers of the
//! cloud become [`CliError`]s with their own code and hint.

use std::time::Duration;

use reqwest::{Body, Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::context::Profile;
use super::error::{CliError, Exit};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of the cloud within an answer; slow answers as a whole are fine.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest JSON answer in bytes.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// The cloud's API.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    base: Url,
    token: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    code: String,
    message: String,
    #[serde(default)]
    hint: Option<String>,
}

impl Api {
    /// A client for the cloud of this profile, which trusts that profile's authority alone.
    ///
    /// # Errors
    /// [`CliError`] when the profile holds no usable URL or certificate.
    pub fn new(profile: &Profile) -> Result<Self, CliError> {
        let bad = |what: &str, why: String| {
            CliError::usage(format!("the profile's `{what}` cannot be used: {why}"))
        };
        // One TLS provider in the whole process; an error only means that it is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = Url::parse(&profile.cloud).map_err(|e| bad("cloud", e.to_string()))?;
        let authority =
            Certificate::from_pem(profile.ca_pem.as_bytes()).map_err(|e| bad("ca_pem", e.to_string()))?;
        let client = Client::builder()
            .tls_certs_only([authority])
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|e| bad("ca_pem", chain(&e)))?;
        Ok(Self { client, base, token: profile.token.clone() })
    }

    /// Gets JSON. `path` begins with a slash: `/api/v1/devices?fleet=a`.
    ///
    /// # Errors
    /// [`CliError`]: unreachable, refused, or an answer that is not what was expected.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.answer(self.request(Method::GET, path)?).await
    }

    /// Gets JSON with query parameters, which are escaped here.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, CliError> {
        self.answer(self.request(Method::GET, path)?.query(query)).await
    }

    /// Posts JSON and gets JSON; ask for `serde_json::Value` where the answer may be empty.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        self.answer(self.request(Method::POST, path)?.json(body)).await
    }

    /// Deletes and gets JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.answer(self.request(Method::DELETE, path)?).await
    }

    /// Puts bytes, which may be a stream, and gets JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        length: u64,
        body: impl Into<Body>,
    ) -> Result<T, CliError> {
        let request = self
            .request(Method::PUT, path)?
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(body);
        self.answer(request).await
    }

    /// Gets a file of at most `limit` bytes; `None` when there is none.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, CliError> {
        let response = self.send(self.request(Method::GET, path)?).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.body(accept(response).await?, limit).await.map(Some)
    }

    /// Whether the cloud has a file.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn exists(&self, path: &str) -> Result<bool, CliError> {
        let response = self.send(self.request(Method::HEAD, path)?).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        accept(response).await.map(|_| true)
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, CliError> {
        let url = self
            .base
            .join(path)
            .map_err(|e| CliError::usage(format!("{path:?} is no path below {}: {e}", self.base)))?;
        Ok(self.client.request(method, url).bearer_auth(&self.token))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        request.send().await.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let message = format!("reach {}: {}", self.base, chain(error));
        CliError::new(Exit::Unreachable, "cli.unreachable", message)
            .hint("is farlight-cloud running, and is the profile the one it wrote last?")
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = accept(self.send(request).await?).await?;
        let url = response.url().clone();
        let bytes = self.body(response, MAX_ANSWER).await?;
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(|e| {
            CliError::failure(format!("the answer of {url} is not what was expected: {e}"))
                .hint("do farlight and farlight-cloud have the same version?")
        })
    }

    async fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(CliError::failure(format!("{} sends more than {limit} bytes", response.url())));
            }
        }
        Ok(bytes)
    }
}

/// Turns an error answer into a [`CliError`].
async fn accept(response: Response) -> Result<Response, CliError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url().clone();
    let exit = if status.is_client_error() { Exit::Refused } else { Exit::Failure };
    let body = response.text().await.unwrap_or_default();
    Err(match serde_json::from_str::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => {
            CliError::new(exit, error.code, error.message).hint(error.hint.unwrap_or_default())
        }
        Err(_) => CliError::new(exit, "cli.http", format!("{url} answered {status}")),
    })
}

/// An error with its causes: reqwest's own text does not name them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
