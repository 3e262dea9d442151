//! Ed25519 keys: as TUF key objects (public) and as PKCS#8 PEM (private). Whoever makes a key brings
//! the random seed; files and their permissions are the shell's business.

#[cfg(feature = "foreign-keys")]
mod foreign;

use std::fmt;

use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki::der::pem::LineEnding};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use farlight_wire::codes::Code;
use serde_json::{Value, json};

use crate::{canonical, digest};

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a TUF key object of the one kind that is supported.
    #[error("not a key object with keytype and scheme ed25519 and keyval.public of 64 hex digits: {0}")]
    Unsupported(String),
    /// The point has small order: signatures by it prove nothing.
    #[error("the public key is weak (small order); make a new one with `farlight keys generate`")]
    Weak,
    /// Not a private key in PKCS#8 PEM.
    #[error("not an ed25519 private key in PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`): {0}")]
    Pem(String),
}

impl KeyError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Unsupported(_) => Code::KeyUnsupported,
            Self::Weak => Code::KeyWeak,
            Self::Pem(_) => Code::KeyMalformed,
        }
    }
}

/// A public key that is not weak.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`] when they are no point of the curve or one of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|e| KeyError::Unsupported(e.to_string()))?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(key)) }
    }

    /// Reads a TUF key object; further fields are ignored.
    ///
    /// # Errors
    /// [`KeyError`] when it is not an ed25519 key.
    pub fn from_object(object: &Value) -> Result<Self, KeyError> {
        let refuse = |what: &str| KeyError::Unsupported(what.to_owned());
        for field in ["keytype", "scheme"] {
            if object.get(field).and_then(Value::as_str) != Some("ed25519") {
                return Err(refuse(field));
            }
        }
        let public = object.get("keyval").and_then(|v| v.get("public")).and_then(Value::as_str);
        let mut bytes = [0; 32];
        hex::decode_to_slice(public.ok_or_else(|| refuse("keyval.public"))?, &mut bytes)
            .map_err(|_| refuse("keyval.public"))?;
        Self::from_bytes(&bytes)
    }

    /// The TUF key object.
    pub fn to_object(&self) -> Value {
        json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": hex::encode(self.as_bytes()) } })
    }

    /// The key id that is written for this key: SHA-256 of the canonical key object. A key id that is
    /// read from metadata is an opaque name and never compared with this.
    pub fn id(&self) -> String {
        // The object holds texts only, so that it always has a canonical form.
        digest::sha256(&canonical::to_vec(&self.to_object()).unwrap_or_default())
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether `signature` (hex) over `message` is this key's, by the strict rules: no malleability, no
    /// small-order components.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let mut bytes = [0; 64];
        hex::decode_to_slice(signature, &mut bytes).is_ok()
            && self.0.verify_strict(message, &Signature::from_bytes(&bytes)).is_ok()
    }
}

/// What a signature is verified with.
pub(crate) trait Verifier {
    /// Whether `signature` (as it stands in the document) over `message` is this key's.
    fn verifies(&self, message: &[u8], signature: &str) -> bool;
    /// What tells this key from every other, under whatever key id it is listed.
    fn identity(&self) -> [u8; 32];
}

impl Verifier for PublicKey {
    fn verifies(&self, message: &[u8], signature: &str) -> bool {
        Self::verifies(self, message, signature)
    }

    fn identity(&self) -> [u8; 32] {
        *self.as_bytes()
    }
}

/// A key that TUF metadata is verified with: ed25519, and in interoperability tests the kinds of others.
pub(crate) enum MetadataKey {
    Ed25519(PublicKey),
    #[cfg(feature = "foreign-keys")]
    Foreign(foreign::ForeignKey),
}

impl MetadataKey {
    /// Reads a TUF key object.
    ///
    /// # Errors
    /// [`KeyError`] when it is of a kind that is not supported.
    pub(crate) fn from_object(object: &Value) -> Result<Self, KeyError> {
        #[cfg(feature = "foreign-keys")]
        if let Some(key) = foreign::ForeignKey::from_object(object) {
            return Ok(Self::Foreign(key));
        }
        PublicKey::from_object(object).map(Self::Ed25519)
    }
}

impl Verifier for MetadataKey {
    fn verifies(&self, message: &[u8], signature: &str) -> bool {
        match self {
            Self::Ed25519(key) => key.verifies(message, signature),
            #[cfg(feature = "foreign-keys")]
            Self::Foreign(key) => key.verifies(message, signature),
        }
    }

    fn identity(&self) -> [u8; 32] {
        match self {
            Self::Ed25519(key) => key.identity(),
            #[cfg(feature = "foreign-keys")]
            Self::Foreign(key) => key.identity(),
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", hex::encode(self.as_bytes()))
    }
}

/// A private key with its public half. Its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct KeyPair(SigningKey);

impl KeyPair {
    /// The pair that belongs to 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads a private key from PKCS#8 PEM, as this crate, OpenSSL and others write it.
    ///
    /// # Errors
    /// [`KeyError::Pem`] when the text is not one.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem.trim()).map(Self).map_err(|e| KeyError::Pem(e.to_string()))
    }

    /// The private key as PKCS#8 PEM (version 1, which every tool reads).
    ///
    /// # Errors
    /// [`KeyError::Pem`] when the encoder refuses, which no valid key makes it do.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let bytes = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = bytes.to_pkcs8_pem(LineEnding::LF).map_err(|e| KeyError::Pem(e.to_string()))?;
        Ok(pem.to_string())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `message`; the signature as hex.
    pub fn sign(&self, message: &[u8]) -> String {
        hex::encode(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_pem_and_object() {
        let pair = KeyPair::from_seed(&[7; 32]);
        let again = KeyPair::from_pem(&pair.to_pem().unwrap()).unwrap();
        assert_eq!(again.public(), pair.public());
        assert_eq!(PublicKey::from_object(&pair.public().to_object()).unwrap(), pair.public());
        assert!(pair.public().verifies(b"m", &again.sign(b"m")));
        assert!(!pair.public().verifies(b"n", &again.sign(b"m")));
    }

    #[test]
    fn the_private_key_stays_out_of_debug_output() {
        let pair = KeyPair::from_seed(&[7; 32]);
        assert!(!format!("{pair:?}").contains(&hex::encode([7; 32])));
    }

    #[test]
    fn weak_and_foreign_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(KeyError::Weak));
        assert_eq!(PublicKey::from_bytes(&[0; 32]), Err(KeyError::Weak));
        for object in [
            json!({}),
            json!(null),
            json!({"keytype":"rsa","scheme":"ed25519","keyval":{"public":"00"}}),
            json!({"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"00"}}),
            json!({"keytype":"ed25519","scheme":"ed25519","keyval":{"public":7}}),
        ] {
            assert!(matches!(PublicKey::from_object(&object), Err(KeyError::Unsupported(_))), "{object}");
        }
    }

    #[test]
    fn malleable_signatures_are_refused() {
        // s + L in place of s: a lax verifier takes it for the same signature.
        let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
        let pair = KeyPair::from_seed(&[9; 32]);
        let mut signature = hex::decode(pair.sign(b"m")).unwrap();
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        assert!(!pair.public().verifies(b"m", &hex::encode(signature)));
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for pem in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "x"] {
            assert!(matches!(KeyPair::from_pem(pem), Err(KeyError::Pem(_))));
        }
    }
}
