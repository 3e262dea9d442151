//! The two ends of enrolment: an operator invites a device and gets a one-time token; the device
//! brings the token and a certificate request and gets its certificate.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use farlight_wire::{DeviceId, FleetId, Millis};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use super::AuthorityError;
use super::authority::DeviceRequest;
use super::secret::{Secret, digest};
use crate::api::{ApiError, Body, Operator};
use crate::app::Shared;
use crate::clock;
use crate::store::{During, audit, int, uint};

/// How long a token is valid unless the operator says otherwise.
const DEFAULT_TTL: u64 = 24 * 3600;
/// Fleet of a device unless the operator says otherwise.
const DEFAULT_FLEET: &str = "default";
/// Longest validity of a token: it is a password lying around.
const MAX_TTL: u64 = 30 * 24 * 3600;
/// Most labels of a device.
const MAX_LABELS: usize = 32;
/// Longest label key or value in bytes.
const MAX_LABEL: usize = 128;

/// An invitation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Id of the device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Fleet it joins; `default` when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub fleet: Option<FleetId>,
    /// Labels for selecting devices.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Seconds that the token is valid; 24 hours when left out.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
}

/// What the device needs to enrol; goes into a file.
#[derive(Debug, Serialize, ToSchema)]
pub struct Invitation {
    /// Address of the service.
    pub cloud: String,
    /// Id of the device.
    pub device: String,
    /// The one-time token.
    pub token: String,
    /// Certificate to trust when connecting.
    pub ca_pem: String,
    /// Until when the token is valid, Unix milliseconds.
    pub expires: u64,
}

/// A device's request to enrol.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// The one-time token.
    pub token: String,
    /// Certificate request; only its key is used.
    pub csr_pem: String,
}

/// Everything an enrolled device needs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Enrolled {
    /// Id of the device, also the common name of its certificate.
    pub device: String,
    /// Its fleet.
    pub fleet: String,
    /// Its certificate.
    pub certificate_pem: String,
    /// Certificate to trust when connecting.
    pub ca_pem: String,
    /// The newest trusted root of the release repository, base64.
    pub root: String,
    /// Where to connect by MQTT.
    pub mqtt: MqttAddress,
    /// Base URL of the release repository.
    pub repository: String,
}

/// Where to connect by MQTT.
#[derive(Debug, Serialize, ToSchema)]
pub struct MqttAddress {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Invites a device.
#[utoipa::path(post, path = "/api/v1/devices", tag = "devices", request_body = Invite,
    responses((status = 200, body = Invitation), (status = 400), (status = 401)))]
pub async fn invite(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Body(invite): Body<Invite>,
) -> Result<Json<Invitation>, ApiError> {
    let fits = |text: &String| !text.is_empty() && text.len() <= MAX_LABEL;
    if invite.labels.len() > MAX_LABELS || !invite.labels.iter().all(|(k, v)| fits(k) && fits(v)) {
        return Err(ApiError::bad_request(
            "enrol.labels",
            format!("use at most {MAX_LABELS} labels of 1 to {MAX_LABEL} bytes"),
        ));
    }
    let ttl = invite.ttl_seconds.unwrap_or(DEFAULT_TTL);
    if !(1..=MAX_TTL).contains(&ttl) {
        return Err(ApiError::bad_request("enrol.ttl", format!("ttl_seconds: use 1 to {MAX_TTL}")));
    }
    let fleet = match invite.fleet {
        Some(fleet) => fleet,
        None => FleetId::new(DEFAULT_FLEET).map_err(ApiError::internal)?,
    };
    let (now, secret) = (clock::now(), Secret::generate());
    let expires = now.plus(Millis::from_secs(ttl));
    let mut write = app.store.write().await?;
    sqlx::query(
        "INSERT INTO enrolment_tokens (token_sha256, device, fleet, labels, created, expires) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(digest(secret.reveal()))
    .bind(invite.device.as_str())
    .bind(fleet.as_str())
    .bind(serde_json::to_string(&invite.labels).map_err(ApiError::internal)?)
    .bind(int(now.0))
    .bind(int(expires.0))
    .execute(write.connection())
    .await
    .during("store an enrolment token")?;
    audit(&mut write, &operator.0, "device.invite", invite.device.as_str(), fleet.as_str()).await?;
    write.commit().await?;
    Ok(Json(Invitation {
        cloud: app.addresses.url(),
        device: invite.device.to_string(),
        token: secret.reveal().to_owned(),
        ca_pem: app.authority.ca_pem().to_owned(),
        expires: expires.0,
    }))
}

/// Enrols a device: a token and a certificate request for a certificate.
///
/// A token works once. The same device may repeat the same request (same key) while the token is
/// valid, because the answer to the first one may have been lost on the way.
#[utoipa::path(post, path = "/api/v1/enrol", tag = "devices", request_body = Enrol,
    responses((status = 200, body = Enrolled), (status = 400), (status = 401), (status = 409)))]
pub async fn enrol(State(app): State<Shared>, Body(enrol): Body<Enrol>) -> Result<Json<Enrolled>, ApiError> {
    let request = DeviceRequest::parse(&enrol.csr_pem).map_err(refuse_request)?;
    let root = app.registry.newest_root().await.ok_or_else(|| {
        ApiError::conflict("repo.not_initialised", "the release repository has no trusted root yet")
            .hint("run 'farlight keys generate' and 'farlight repo init' first")
    })?;
    let now = clock::now();
    let token = digest(&enrol.token);
    let mut write = app.store.write().await?;
    let row = sqlx::query(
        "SELECT device, fleet, labels, expires, used, key_sha256 FROM enrolment_tokens WHERE token_sha256 = $1",
    )
    .bind(&token)
    .fetch_optional(write.connection())
    .await
    .during("look up an enrolment token")?
    .ok_or_else(|| refuse_token("enrol.token_unknown", "this enrolment token is not known"))?;
    if uint(row.get(3)) < now.0 {
        return Err(refuse_token("enrol.token_expired", "this enrolment token has expired"));
    }
    let repeated = row.get::<Option<String>, _>(5).as_deref() == Some(request.key_sha256.as_str());
    if row.get::<Option<i64>, _>(4).is_some() && !repeated {
        return Err(refuse_token("enrol.token_used", "this enrolment token has been used"));
    }
    let device: DeviceId = row.get::<String, _>(0).parse().map_err(ApiError::internal)?;
    let (fleet, labels): (String, String) = (row.get(1), row.get(2));
    let certificate_pem = app.authority.device(&request, &device, now).map_err(refuse_request)?;
    sqlx::query("UPDATE enrolment_tokens SET used = $1, key_sha256 = $2 WHERE token_sha256 = $3")
        .bind(int(now.0))
        .bind(&request.key_sha256)
        .bind(&token)
        .execute(write.connection())
        .await
        .during("use up an enrolment token")?;
    sqlx::query(
        "INSERT INTO devices (id, fleet, labels, enrolled, key_sha256) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET fleet = excluded.fleet, labels = excluded.labels, \
         enrolled = excluded.enrolled, key_sha256 = excluded.key_sha256, revoked = 0",
    )
    .bind(device.as_str())
    .bind(&fleet)
    .bind(&labels)
    .bind(int(now.0))
    .bind(&request.key_sha256)
    .execute(write.connection())
    .await
    .during("store a device")?;
    audit(&mut write, device.as_str(), "device.enrol", device.as_str(), &request.key_sha256).await?;
    write.commit().await?;
    Ok(Json(Enrolled {
        device: device.to_string(),
        fleet,
        certificate_pem,
        ca_pem: app.authority.ca_pem().to_owned(),
        root: STANDARD.encode(root),
        mqtt: MqttAddress { host: app.addresses.host.clone(), port: app.addresses.mqtt.port() },
        repository: format!("{}/repo/", app.addresses.url()),
    }))
}

fn refuse_token(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, code, message)
        .hint("ask for a new one: farlight device enrol ID --out FILE")
}

fn refuse_request(error: AuthorityError) -> ApiError {
    match error {
        AuthorityError::Request(why) => {
            ApiError::bad_request("enrol.csr", format!("the certificate request is not usable: {why}"))
                .hint("send a PEM certificate request, signed with its own ECDSA P-256 or Ed25519 key")
        }
        error => ApiError::internal(error),
    }
}
