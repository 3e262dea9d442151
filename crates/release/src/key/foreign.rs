//! ECDSA P-256 and RSA-PSS verification, so that the TUF conformance suite and repositories of other
//! tools can be run against this client. Feature `foreign-keys`; no product enables it.

use ed25519_dalek::pkcs8::spki::SubjectPublicKeyInfoRef;
use ed25519_dalek::pkcs8::spki::der::Document;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::Value;

use super::Verifier;
use crate::digest;

/// A key of a kind that only others use.
pub(crate) struct ForeignKey {
    key: UnparsedPublicKey<Vec<u8>>,
    identity: [u8; 32],
}

impl ForeignKey {
    /// Reads a TUF key object; `None` when it is of no kind that is known here.
    pub(crate) fn from_object(object: &Value) -> Option<Self> {
        let text = |field: &str| object.get(field).and_then(Value::as_str);
        let algorithm: &'static dyn VerificationAlgorithm = match (text("keytype")?, text("scheme")?) {
            // The second key type is an older spelling.
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => &ECDSA_P256_SHA256_ASN1,
            ("rsa", "rsassa-pss-sha256") => &RSA_PSS_2048_8192_SHA256,
            _ => return None,
        };
        let public = object.get("keyval")?.get("public")?.as_str()?;
        let bytes = match hex::decode(public) {
            // An older form: the point itself.
            Ok(point) => point,
            Err(_) => {
                let (_, document) = Document::from_pem(public.trim()).ok()?;
                let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes()).ok()?;
                info.subject_public_key.as_bytes()?.to_vec()
            }
        };
        let identity = digest::sha256_bytes(&bytes);
        Some(Self { key: UnparsedPublicKey::new(algorithm, bytes), identity })
    }
}

impl Verifier for ForeignKey {
    fn verifies(&self, message: &[u8], signature: &str) -> bool {
        hex::decode(signature).is_ok_and(|signature| self.key.verify(message, &signature).is_ok())
    }

    fn identity(&self) -> [u8; 32] {
        self.identity
    }
}
