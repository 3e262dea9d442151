//! Random secrets that are handed out once and kept only as SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use sha2::{Digest, Sha256};

/// Bytes of a secret: 256 bits, so that a plain SHA-256 of it cannot be searched.
const SECRET_BYTES: usize = 32;

/// A fresh secret as text, safe in URLs and headers.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A fresh one from the system's random numbers.
    pub fn generate() -> Self {
        let mut bytes = [0_u8; SECRET_BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// SHA-256 of a secret, hex: what is stored.
pub fn digest(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether `secret` has this digest, compared in constant time.
pub fn matches_digest(secret: &str, expected: &str) -> bool {
    let actual = digest(secret);
    actual.len() == expected.len()
        && actual.bytes().zip(expected.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
