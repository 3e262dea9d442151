//! The service's own certificate authority: made at first start, signs the server's and the devices'
//! certificates. Its key never leaves `DIR/ca/`.

use std::path::Path;
use std::time::Duration;

use farlight_wire::{DeviceId, Millis};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::{self, Access, FileError};

/// How long a device's certificate is valid: longer than a gateway's life in the field, because a
/// device that was in a box for two years must still be able to come back.
const DEVICE_VALIDITY: Duration = Duration::from_secs(20 * 366 * 86_400);
/// Largest certificate request in bytes.
const MAX_CSR: usize = 16 * 1024;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate or key on disk or in memory is not usable.
    #[error("{operation}: {source}; restore DIR/ca from a backup")]
    Certificate {
        /// What was tried.
        operation: &'static str,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate request from outside is not usable.
    #[error("certificate request: {0}")]
    Request(String),
}

/// The certificate authority.
pub struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// A certificate with its key, for a TLS server.
pub struct ServerIdentity {
    /// The chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

fn certificate(operation: &'static str) -> impl FnOnce(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError::Certificate { operation, source }
}

impl Authority {
    /// Opens the authority in a folder, making it at first start.
    ///
    /// # Errors
    /// [`AuthorityError`] when files cannot be read or written or are damaged.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        files::folder(folder)?;
        let (key_path, certificate_path) = (folder.join("ca.key"), folder.join("ca.pem"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (ca_pem, key) = match (files::read(&certificate_path)?, files::read(&key_path)?) {
            (Some(pem), Some(key)) => {
                (text(pem), KeyPair::from_pem(&text(key)).map_err(certificate("read ca.key"))?)
            }
            // The certificate is written last: without it the key has signed nothing.
            (None, _) => {
                let key = KeyPair::generate().map_err(certificate("make the CA key"))?;
                let pem =
                    ca_params().self_signed(&key).map_err(certificate("make the CA certificate"))?.pem();
                files::replace(&key_path, key.serialize_pem().as_bytes(), Access::Private)?;
                files::replace(&certificate_path, pem.as_bytes(), Access::Public)?;
                (pem, key)
            }
            (Some(_), None) => {
                return Err(AuthorityError::File(FileError {
                    operation: "read",
                    path: key_path,
                    source: std::io::ErrorKind::NotFound.into(),
                }));
            }
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(certificate("read ca.pem"))?;
        Ok(Self { ca_pem, issuer })
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The CA certificate, DER.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] when `ca.pem` is not PEM; it was read before, so this is rare.
    pub fn ca_der(&self) -> Result<CertificateDer<'static>, AuthorityError> {
        CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|e| AuthorityError::Request(format!("ca.pem: {e}")))
    }

    /// A fresh certificate for our listeners with these names.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] when a name cannot be put into a certificate.
    pub fn server(&self, hosts: &[String]) -> Result<ServerIdentity, AuthorityError> {
        let mut params = CertificateParams::new(hosts).map_err(certificate("server certificate names"))?;
        params.distinguished_name.push(DnType::CommonName, "farlight-cloud");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(certificate("make the server key"))?;
        let leaf =
            params.signed_by(&key, &self.issuer).map_err(certificate("sign the server certificate"))?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|e| AuthorityError::Request(format!("server key: {e}")))?;
        Ok(ServerIdentity { chain: vec![leaf.der().clone()], key })
    }

    /// Signs a device's certificate. Of the request only the key is taken: the common name is the
    /// device's id, and nothing else in it is believed.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] for a request that is no request or whose signature is wrong.
    pub fn device(
        &self,
        request: &DeviceRequest,
        device: &DeviceId,
        now: Millis,
    ) -> Result<String, AuthorityError> {
        let mut csr = CertificateSigningRequestParams::from_pem(&request.pem)
            .map_err(|e| AuthorityError::Request(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now.0) + DEVICE_VALIDITY;
        csr.params = params;
        let leaf = csr.signed_by(&self.issuer).map_err(certificate("sign a device certificate"))?;
        Ok(leaf.pem())
    }
}

/// A certificate request that was parsed and whose signature holds.
pub struct DeviceRequest {
    pem: String,
    /// SHA-256 of the public key, hex: tells a repeated request from another one.
    pub key_sha256: String,
}

impl DeviceRequest {
    /// Parses a request, PEM.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] when it is too large, not PEM, not a request or wrongly signed.
    pub fn parse(pem: &str) -> Result<Self, AuthorityError> {
        use rcgen::PublicKeyData;
        if pem.len() > MAX_CSR {
            return Err(AuthorityError::Request(format!("larger than {MAX_CSR} bytes")));
        }
        let csr = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|e| AuthorityError::Request(e.to_string()))?;
        let key_sha256 = {
            use sha2::{Digest, Sha256};
            hex::encode(Sha256::digest(csr.public_key.der_bytes()))
        };
        Ok(Self { pem: pem.to_owned(), key_sha256 })
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Farlight device authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
