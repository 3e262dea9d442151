//! The assignment: which releases one device should run, signed by the cloud's online key. It selects
//! among what the release repository vouches for ([`Assignment::check_releases`]); it installs nothing.

use std::collections::{BTreeMap, BTreeSet};

use farlight_wire::codes::Code;
use farlight_wire::{DeviceId, IdError, Millis, Permille, ReleaseId, RolloutId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::envelope::{self, Envelope};
use crate::key::{KeyPair, PublicKey};
use crate::tuf::{Client, TufError};
use crate::verified::Verified;

/// Largest assignment in bytes: it must fit in one MQTT payload with room to spare.
pub const MAX_ASSIGNMENT: usize = 64 * 1024;
/// Most models in one assignment.
pub const MAX_MODELS: usize = farlight_wire::limits::MAX_MODELS;
const KIND: &str = "assignment";

/// What a device should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The device it is for.
    pub device: DeviceId,
    /// Rises with every new assignment for the device.
    pub sequence: u64,
    /// When it was signed.
    pub issued: Millis,
    /// From when it no longer counts. What runs already runs on.
    pub expires: Millis,
    /// One entry a model; a model that is not named is to be removed.
    pub models: Vec<ModelAssignment>,
}

/// What a device should run for one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAssignment {
    /// The release.
    pub release: ReleaseId,
    /// The rollout that chose it; reports carry it back.
    pub rollout: Option<RolloutId>,
    /// How the release proves itself.
    pub probation: Probation,
    /// How it proves itself before activation, on live inputs, deciding nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// An operator insists on a release that failed on the device before: it is tried once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry_failed: bool,
}

/// How a release proves itself in the shadow of the running one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// How long, at least.
    pub duration: Millis,
    /// How many inputs it must have seen by then.
    pub min_requests: u64,
    /// Share of inputs it sees.
    pub share: Permille,
    /// Share of one core it may use.
    pub cpu: Permille,
    /// Share of answers that must agree with the running release; 0 asks for none.
    pub agreement: Permille,
}

/// How a release proves itself after activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// How long, at least.
    pub duration: Millis,
    /// How many requests it must have served by then.
    pub min_requests: u64,
}

/// The last assignment a device accepted: what a new one must not fall behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Its sequence.
    pub sequence: u64,
    /// SHA-256 of the document ([`Verified::sha256`]).
    pub sha256: String,
}

/// Why an assignment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// Not an assignment.
    #[error("the assignment is malformed: {0}")]
    Malformed(String),
    /// Signed, and it names a release by what is no name.
    #[error("the assignment names no release: {0}")]
    Name(#[source] IdError),
    /// No signature by a key that may sign assignments.
    #[error("the assignment is not signed by any of the {keys} keys that may sign assignments")]
    UnknownKey {
        /// How many keys may sign.
        keys: usize,
    },
    /// A signature under the name of such a key that is not by it.
    #[error(
        "the assignment is not what was signed: the signature under an assignment key's name is not by it"
    )]
    Signature,
    /// For another device.
    #[error("the assignment is for device {found}, this is {expected}")]
    WrongDevice {
        /// This device.
        expected: DeviceId,
        /// The device it is for.
        found: DeviceId,
    },
    /// Older than the last one, or another one under the same number.
    #[error("the assignment has sequence {sequence}, and {last} was accepted before")]
    Replayed {
        /// Its sequence.
        sequence: u64,
        /// The sequence accepted before.
        last: u64,
    },
    /// Past its date.
    #[error("the assignment expired at {} ms, now is {} ms", .expires.0, .now.0)]
    Expired {
        /// Its date.
        expires: Millis,
        /// The time of the check.
        now: Millis,
    },
    /// It names a release that the release repository does not allow.
    #[error("the assignment names a release that is not allowed: {0}")]
    Release(#[source] TufError),
}

impl AssignmentError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) => Code::AssignmentMalformed,
            Self::Name(_) => Code::AssignmentName,
            Self::UnknownKey { .. } => Code::AssignmentUnknownKey,
            Self::Signature => Code::AssignmentSignature,
            Self::WrongDevice { .. } => Code::AssignmentWrongDevice,
            Self::Replayed { .. } => Code::AssignmentReplayed,
            Self::Expired { .. } => Code::AssignmentExpired,
            Self::Release(error) => error.code(),
        }
    }
}

/// The form that is signed.
#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(flatten)]
    assignment: Assignment,
}

/// Signs an assignment; the bytes of the document. The same input gives the same bytes.
///
/// # Errors
/// [`AssignmentError::Malformed`] when it breaks a limit.
pub fn sign(assignment: &Assignment, key: &KeyPair) -> Result<Vec<u8>, AssignmentError> {
    check(assignment)?;
    let payload = Payload { kind: KIND.to_owned(), assignment: assignment.clone() };
    let bytes = envelope::seal(&payload, &[key]).map_err(|e| AssignmentError::Malformed(e.to_string()))?;
    if bytes.len() > MAX_ASSIGNMENT { Err(too_large(bytes.len())) } else { Ok(bytes) }
}

/// Verifies an assignment for `device`: signed by one of `keys`, not expired at `now`, not behind
/// `last`. The last one again, byte for byte, is accepted: it is what a device hears after each reconnect.
///
/// # Errors
/// [`AssignmentError`] saying what does not hold.
pub fn verify(
    bytes: &[u8],
    keys: &[PublicKey],
    device: &DeviceId,
    now: Millis,
    last: Option<&Last>,
) -> Result<Verified<Assignment>, AssignmentError> {
    if bytes.len() > MAX_ASSIGNMENT {
        return Err(too_large(bytes.len()));
    }
    let envelope = Envelope::parse(bytes).map_err(|e| AssignmentError::Malformed(e.to_string()))?;
    let ids: Vec<String> = keys.iter().map(PublicKey::id).collect();
    let trusted: BTreeMap<&str, &PublicKey> = ids.iter().map(String::as_str).zip(keys).collect();
    if envelope.signers(&trusted).is_empty() {
        return Err(match envelope.is_forged(&trusted) {
            true => AssignmentError::Signature,
            false => AssignmentError::UnknownKey { keys: keys.len() },
        });
    }
    check_names(envelope.signed())?;
    let payload: Payload = serde_json::from_value(envelope.into_signed())
        .map_err(|e| AssignmentError::Malformed(e.to_string()))?;
    if payload.kind != KIND {
        return Err(AssignmentError::Malformed(format!("`_type` is {:.40?}, not {KIND:?}", payload.kind)));
    }
    let assignment = payload.assignment;
    check(&assignment)?;
    if assignment.device != *device {
        let (expected, found) = (device.clone(), assignment.device);
        return Err(AssignmentError::WrongDevice { expected, found });
    }
    let verified = Verified::new(assignment, bytes);
    if let Some(last) = last
        && (verified.sequence < last.sequence
            || (verified.sequence == last.sequence && verified.sha256() != last.sha256))
    {
        return Err(AssignmentError::Replayed { sequence: verified.sequence, last: last.sequence });
    }
    if now >= verified.expires {
        return Err(AssignmentError::Expired { expires: verified.expires, now });
    }
    Ok(verified)
}

/// Whether `key` signed this document. Says nothing of what is in it.
pub fn is_by(bytes: &[u8], key: &PublicKey) -> bool {
    let id = key.id();
    Envelope::parse(bytes)
        .is_ok_and(|envelope| !envelope.signers(&BTreeMap::from([(id.as_str(), key)])).is_empty())
}

impl Assignment {
    /// Whether the release repository vouches for every release that is named, at or above its floor.
    ///
    /// # Errors
    /// [`AssignmentError::Release`] with the first that it does not.
    pub fn check_releases(&self, repository: &Client) -> Result<(), AssignmentError> {
        self.models.iter().try_for_each(|model| {
            repository.permits(&model.release).map(|_| ()).map_err(AssignmentError::Release)
        })
    }
}

impl Verified<Assignment> {
    /// What to remember so that nothing older is accepted again.
    pub fn last(&self) -> Last {
        Last { sequence: self.sequence, sha256: self.sha256().to_owned() }
    }
}

fn check(assignment: &Assignment) -> Result<(), AssignmentError> {
    let refuse = |why: String| Err(AssignmentError::Malformed(why));
    if assignment.models.len() > MAX_MODELS {
        return refuse(format!("{} models, at most {MAX_MODELS}", assignment.models.len()));
    }
    let mut names = BTreeSet::new();
    match assignment.models.iter().find(|model| !names.insert(&model.release.model)) {
        Some(twice) => refuse(format!("model {} is named twice", twice.release.model)),
        None => Ok(()),
    }
}

/// Release names become paths: one that is no name is called so, before the document is read as a whole.
fn check_names(signed: &Value) -> Result<(), AssignmentError> {
    let models = signed.get("models").and_then(Value::as_array);
    let mut releases = models.into_iter().flatten().filter_map(|model| model.get("release")?.as_str());
    releases.try_for_each(|name| name.parse::<ReleaseId>().map(drop).map_err(AssignmentError::Name))
}

fn too_large(length: usize) -> AssignmentError {
    AssignmentError::Malformed(format!("{length} bytes, at most {MAX_ASSIGNMENT} are allowed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> KeyPair {
        KeyPair::from_seed(&[seed; 32])
    }

    fn assignment(sequence: u64) -> Assignment {
        Assignment {
            device: "gw-1".parse().unwrap(),
            sequence,
            issued: Millis(1),
            expires: Millis(1000),
            models: vec![ModelAssignment {
                release: "a/1.0.0".parse().unwrap(),
                rollout: Some("r-1".parse().unwrap()),
                probation: Probation { duration: Millis(5), min_requests: 3 },
                shadow: None,
                retry_failed: false,
            }],
        }
    }

    fn code(bytes: &[u8], device: &str, now: u64, last: Option<&Last>) -> &'static str {
        let keys = [key(8).public(), key(7).public()];
        verify(bytes, &keys, &device.parse().unwrap(), Millis(now), last)
            .map_or_else(|e| e.code().as_str(), |_| "yes")
    }

    #[test]
    fn each_wrong_assignment_is_refused_with_its_own_code() {
        let bytes = sign(&assignment(5), &key(7)).unwrap();
        let verified = verify(&bytes, &[key(7).public()], &"gw-1".parse().unwrap(), Millis(2), None).unwrap();
        assert_eq!(*verified, assignment(5));
        let last = verified.last();
        assert_eq!(code(&bytes, "gw-1", 2, Some(&last)), "yes");
        assert_eq!(code(&bytes, "gw-2", 2, None), "assignment.wrong_device");
        assert_eq!(code(&bytes, "gw-1", 1000, None), "assignment.expired");
        let forged = sign(&assignment(6), &key(66)).unwrap();
        assert_eq!(code(&forged, "gw-1", 2, None), "assignment.unknown_key");
        let text = String::from_utf8(bytes.clone()).unwrap();
        let changed = text.replace("\"sequence\":5", "\"sequence\":6");
        assert_eq!(code(changed.as_bytes(), "gw-1", 2, None), "assignment.signature");
        let mut climbing = serde_json::to_value(assignment(6)).unwrap();
        climbing["models"][0]["release"] = "../../a/1.0.0".into();
        climbing["_type"] = KIND.into();
        let climbing = envelope::seal(&climbing, &[&key(7)]).unwrap();
        assert_eq!(code(&climbing, "gw-1", 2, None), "assignment.bad_name");
        let older = sign(&assignment(4), &key(7)).unwrap();
        assert_eq!(code(&older, "gw-1", 2, Some(&last)), "assignment.replayed");
        let other = sign(&Assignment { models: vec![], ..assignment(5) }, &key(7)).unwrap();
        assert_eq!(code(&other, "gw-1", 2, Some(&last)), "assignment.replayed");
        let newer = sign(&assignment(6), &key(8)).unwrap();
        assert_eq!(code(&newer, "gw-1", 2, Some(&last)), "yes");
        let mut twice = assignment(7);
        twice.models.push(twice.models[0].clone());
        assert_eq!(sign(&twice, &key(7)).unwrap_err().code(), Code::AssignmentMalformed);
        assert_eq!(code(&vec![b' '; MAX_ASSIGNMENT + 1], "gw-1", 2, None), "assignment.malformed");
    }

    #[test]
    fn other_documents_by_the_same_key_are_no_assignments() {
        let other = serde_json::json!({ "_type": "timestamp", "device": "gw-1" });
        let bytes = envelope::seal(&other, &[&key(7)]).unwrap();
        assert_eq!(code(&bytes, "gw-1", 2, None), "assignment.malformed");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_ne!(code(&bytes, "gw-1", 2, None), "yes");
        }

        #[test]
        fn no_changed_byte_is_accepted_as_something_else(at: prop::sample::Index, to: u8) {
            let good = sign(&assignment(5), &key(7)).unwrap();
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(read) = verify(&bytes, &[key(7).public()], &"gw-1".parse().unwrap(), Millis(2), None) {
                prop_assert_eq!(&*read, &assignment(5));
            }
        }
    }
}
