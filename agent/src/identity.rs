//! Who this device is: its key, certificate and where its cloud is. Made once, by enrolment, with a
//! single-use token; the private key never leaves the device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farlight_wire::{DeviceId, FleetId};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::durable::{self, Access};
use crate::exit::{ExitCode, Fatal};
use crate::trust::Trust;

/// Largest identity or enrolment file in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// Largest enrolment answer in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// The file from `farlight device enrol`.
#[derive(Debug, Deserialize)]
struct Enrolment {
    cloud: String,
    device: DeviceId,
    token: String,
    ca_pem: String,
}

#[derive(Serialize)]
struct Request<'a> {
    token: &'a str,
    csr_pem: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    device: DeviceId,
    fleet: FleetId,
    certificate_pem: String,
    ca_pem: String,
    root: String,
    mqtt: Endpoint,
    repository: String,
}

#[derive(Deserialize)]
struct Refused {
    error: RefusedError,
}

#[derive(Deserialize)]
struct RefusedError {
    code: String,
    message: String,
    #[serde(default)]
    hint: String,
}

/// Host and port.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Who this device is.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Broker.
    pub mqtt: Endpoint,
    /// Address of the release repository, ending in `/`.
    pub repository: String,
    certificate_pem: String,
    key_pem: String,
    ca_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        write!(f, "Identity({} of {})", self.device, self.fleet)
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("identity.json")
}

impl Identity {
    /// Reads the identity; `None` when the device is not enrolled.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, Fatal> {
        let path = path(state_dir);
        let hint = "restore it, or delete it and enrol the device again";
        let bytes = durable::read_limited(&path, MAX_FILE)
            .with_context(|| format!("read {}", path.display()))
            .map_err(|e| Fatal::new(ExitCode::Identity, e, hint))?;
        let Some(bytes) = bytes else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .with_context(|| format!("understand {}", path.display()))
            .map(Some)
            .map_err(|e| Fatal::new(ExitCode::Identity, e, hint))
    }

    /// TLS settings that present this device's certificate and trust only its cloud's CA.
    ///
    /// # Errors
    /// When the stored certificate or key is not readable.
    pub fn tls(&self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots(&self.ca_pem)?)
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }

    /// An HTTP client that trusts only this device's cloud.
    ///
    /// # Errors
    /// When the stored certificate is not readable.
    pub fn http(&self) -> anyhow::Result<reqwest::Client> {
        http(&self.ca_pem)
    }
}

/// The CA certificates of a PEM text.
pub(crate) fn roots(ca_pem: &str) -> anyhow::Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.context("read CA certificate")?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "there is no CA certificate");
    Ok(roots)
}

/// An HTTP client that trusts only what these CA certificates (PEM) vouch for.
///
/// # Errors
/// When they are not readable.
pub fn http(ca_pem: &str) -> anyhow::Result<reqwest::Client> {
    let tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(ca_pem)?)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(std::time::Duration::from_secs(10))
        .read_timeout(std::time::Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?)
}

/// Enrols the device with the file from `farlight device enrol`: makes a key, has the cloud sign its
/// certificate, and stores identity and trust root. A device that is enrolled already stays as it is.
///
/// # Errors
/// When the file is not usable, the cloud cannot be reached or refuses, or nothing can be stored.
pub async fn enrol(state_dir: &Path, file: &Path) -> Result<Identity, Fatal> {
    if let Some(identity) = Identity::load(state_dir)? {
        return Ok(identity);
    }
    let fail = |error: anyhow::Error, hint: &str| Fatal::new(ExitCode::Identity, error, hint);
    let make = "make it with: farlight device enrol ID --out FILE";
    let bytes = durable::read_limited(file, MAX_FILE)
        .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .with_context(|| format!("read enrolment file {}", file.display()))
        .map_err(|e| fail(e, make))?;
    let enrolment: Enrolment = serde_json::from_slice(&bytes)
        .with_context(|| format!("understand enrolment file {}", file.display()))
        .map_err(|e| fail(e, make))?;

    let key = enrolment_key(state_dir)?;
    let csr = rcgen::CertificateParams::new(Vec::new())
        .and_then(|mut params| {
            params.distinguished_name.push(rcgen::DnType::CommonName, enrolment.device.as_str());
            params.serialize_request(&key)?.pem()
        })
        .context("make certificate request")
        .map_err(|e| fail(e, "report this"))?;

    let url = format!("{}/api/v1/enrol", enrolment.cloud.trim_end_matches('/'));
    let answer = ask(&enrolment, &url, &csr).await?;
    let unusable = "the cloud answered something this agent cannot use; compare their versions";
    let root = BASE64.decode(&answer.root).context("trust root").map_err(|e| fail(e, unusable))?;
    let identity = Identity {
        device: answer.device,
        fleet: answer.fleet,
        mqtt: answer.mqtt,
        repository: format!("{}/", answer.repository.trim_end_matches('/')),
        certificate_pem: answer.certificate_pem,
        key_pem: key.serialize_pem(),
        ca_pem: answer.ca_pem,
    };
    identity.tls().map_err(|e| fail(e, unusable))?;

    // Trust first: an identity without a trust store would look enrolled and refuse everything.
    let store = |error: anyhow::Error| fail(error, "check the state directory's permissions and space");
    Trust::create(state_dir, &root).context("store trust root").map_err(store)?;
    let bytes = serde_json::to_vec_pretty(&identity).context("store identity").map_err(store)?;
    durable::replace(&path(state_dir), &bytes, Access::Secret).context("store identity").map_err(store)?;
    // A leftover is harmless: it is the key in the identity.
    let _ = std::fs::remove_file(key_path(state_dir));
    tracing::info!(device = %identity.device, fleet = %identity.fleet, "enrolled");
    Ok(identity)
}

fn key_path(state_dir: &Path) -> PathBuf {
    state_dir.join("enrolment-key.pem")
}

/// The key to enrol with, durable before the token is spent: when the cloud's answer is lost on the way,
/// the same request may be repeated, and only with the same key.
fn enrolment_key(state_dir: &Path) -> Result<rcgen::KeyPair, Fatal> {
    let path = key_path(state_dir);
    let fail = |error: anyhow::Error| {
        Fatal::new(ExitCode::Identity, error, "check the state directory's permissions and space")
    };
    let stored = durable::read_limited(&path, MAX_FILE)
        .with_context(|| format!("read {}", path.display()))
        .map_err(fail)?;
    if let Some(key) = stored
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|pem| rcgen::KeyPair::from_pem(&pem).ok())
    {
        return Ok(key);
    }
    let key = rcgen::KeyPair::generate().context("generate key").map_err(fail)?;
    durable::replace(&path, key.serialize_pem().as_bytes(), Access::Secret)
        .with_context(|| format!("write {}", path.display()))
        .map_err(fail)?;
    Ok(key)
}

async fn ask(enrolment: &Enrolment, url: &str, csr_pem: &str) -> Result<Answer, Fatal> {
    let fail = |error: anyhow::Error, hint: &str| Fatal::new(ExitCode::Identity, error, hint);
    let client = http(&enrolment.ca_pem).map_err(|e| fail(e, "make a new enrolment file"))?;
    let mut response = client
        .post(url)
        .json(&Request { token: &enrolment.token, csr_pem })
        .send()
        .await
        .with_context(|| format!("reach {url}"))
        .map_err(|e| fail(e, "check the network, and the address in the enrolment file"))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.context("read answer").map_err(|e| fail(e, "try again"))? {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ANSWER {
            let text = format!("the answer has more than {MAX_ANSWER} bytes");
            return Err(fail(anyhow::anyhow!(text), "check the address in the enrolment file"));
        }
    }
    if !status.is_success() {
        let (text, hint) = match serde_json::from_slice::<Refused>(&body) {
            Ok(Refused { error }) => (format!("{} ({})", error.message, error.code), error.hint),
            Err(_) => (format!("status {status}"), "check the address in the enrolment file".to_owned()),
        };
        return Err(fail(anyhow::anyhow!("the cloud refused to enrol {}: {text}", enrolment.device), &hint));
    }
    serde_json::from_slice(&body)
        .context("understand the cloud's answer")
        .map_err(|e| fail(e, "compare the versions of agent and cloud"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_enrolment_uses_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = enrolment_key(dir.path()).unwrap().serialize_pem();
        assert_eq!(enrolment_key(dir.path()).unwrap().serialize_pem(), first);
        std::fs::write(key_path(dir.path()), "torn").unwrap();
        assert_ne!(enrolment_key(dir.path()).unwrap().serialize_pem(), first);
    }
}
