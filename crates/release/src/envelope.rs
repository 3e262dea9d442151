//! The signed envelope that TUF metadata and assignments share: `{"signatures": […], "signed": {…}}`,
//! signatures over the canonical form of `signed`. Parsing proves nothing; `signers` does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::canonical::{self, Fractions, JsonError};
use crate::key::{KeyPair, Verifier};

/// Most signatures in one document: bounds the work a hostile file can cause.
pub(crate) const MAX_SIGNATURES: usize = 128;

/// Why bytes are no envelope.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvelopeError {
    /// No strict JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// JSON of another form.
    #[error("{0}")]
    Form(String),
}

/// A document in its envelope, not yet verified.
pub(crate) struct Envelope {
    signatures: Vec<(String, String)>,
    signed: Value,
    message: Vec<u8>,
}

impl Envelope {
    /// Takes an envelope apart.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let refuse = |why: String| Err(EnvelopeError::Form(why));
        let document = canonical::parse(bytes, Fractions::Refuse)?;
        let Value::Object(mut document) = document else { return refuse("not a JSON object".to_owned()) };
        let Some(signed @ Value::Object(_)) = document.remove("signed") else {
            return refuse("`signed` is missing or not an object".to_owned());
        };
        let Some(Value::Array(list)) = document.remove("signatures") else {
            return refuse("`signatures` is missing or not a list".to_owned());
        };
        if list.len() > MAX_SIGNATURES {
            return refuse(format!("{} signatures, at most {MAX_SIGNATURES} are read", list.len()));
        }
        let mut signatures = Vec::with_capacity(list.len());
        let mut keyids = BTreeSet::new();
        for entry in list {
            let text = |field| entry.get(field).and_then(Value::as_str).map(str::to_owned);
            match (text("keyid"), text("sig")) {
                // TUF 4.2.1: a key id is unique among the signatures, or else somebody counts twice.
                (Some(keyid), _) if !keyids.insert(keyid.clone()) => {
                    return refuse(format!("two signatures by the key id {keyid:.80}"));
                }
                (Some(keyid), Some(sig)) => signatures.push((keyid, sig)),
                _ => return refuse("a signature without `keyid` and `sig` texts".to_owned()),
            }
        }
        let message = canonical::to_vec(&signed)?;
        Ok(Self { signatures, signed, message })
    }

    /// The keys among `trusted` (by key id) that signed this document, each counted once however many
    /// signatures or key ids stand for it.
    pub(crate) fn signers<K: Verifier>(&self, trusted: &BTreeMap<&str, &K>) -> BTreeSet<[u8; 32]> {
        let mut valid = BTreeSet::new();
        for (keyid, signature) in &self.signatures {
            if let Some(key) = trusted.get(keyid.as_str())
                && !valid.contains(&key.identity())
                && key.verifies(&self.message, signature)
            {
                valid.insert(key.identity());
            }
        }
        valid
    }

    /// Whether a signature claims to be by one of `keys` and is not: a damaged document, where a
    /// document that is merely signed by others is a foreign one.
    pub(crate) fn is_forged<K: Verifier>(&self, keys: &BTreeMap<&str, &K>) -> bool {
        self.signatures.iter().any(|(keyid, signature)| {
            keys.get(keyid.as_str()).is_some_and(|key| !key.verifies(&self.message, signature))
        })
    }

    pub(crate) fn signed(&self) -> &Value {
        &self.signed
    }

    pub(crate) fn into_signed(self) -> Value {
        self.signed
    }

    /// Adds the signature of `key` in place of an earlier one by it.
    pub(crate) fn add_signature(&mut self, key: &KeyPair) {
        let id = key.public().id();
        self.signatures.retain(|(keyid, _)| *keyid != id);
        self.signatures.push((id, key.sign(&self.message)));
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, JsonError> {
        let signatures: Vec<Value> =
            self.signatures.iter().map(|(keyid, sig)| json!({ "keyid": keyid, "sig": sig })).collect();
        let document = Map::from_iter([
            ("signatures".to_owned(), Value::Array(signatures)),
            ("signed".to_owned(), self.signed.clone()),
        ]);
        canonical::to_vec(&Value::Object(document))
    }
}

/// Signs `payload` with each of `keys`; the document is itself in canonical form.
pub(crate) fn seal<T: Serialize>(payload: &T, keys: &[&KeyPair]) -> Result<Vec<u8>, JsonError> {
    let signed = serde_json::to_value(payload).map_err(|e| JsonError::Syntax(e.to_string()))?;
    let message = canonical::to_vec(&signed)?;
    let mut envelope = Envelope { signatures: Vec::new(), signed, message };
    for key in keys {
        envelope.add_signature(key);
    }
    envelope.to_bytes()
}
