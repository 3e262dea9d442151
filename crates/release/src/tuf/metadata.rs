//! The four kinds of signed metadata as data. Unknown fields are kept, so that a document written by
//! another tool can be changed and signed again without losing any.

use std::collections::BTreeMap;

use farlight_wire::{Millis, ModelName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::delegation::Delegations;
use super::{Role, TufError, verify};
use crate::digest;

/// The specification version that is written; any 1.x is read.
pub const SPEC_VERSION: &str = "1.0.34";

pub(crate) type Extra = BTreeMap<String, Value>;

/// What the four kinds have in common.
pub trait Document: Serialize + DeserializeOwned {
    /// The role that signs it.
    const ROLE: Role;
    /// Its version, from 1.
    fn version(&self) -> u64;
    /// The date after which it no longer counts.
    fn expires(&self) -> Millis;
    /// The rules beyond the types; the text says which is broken.
    #[doc(hidden)]
    fn check(&self) -> Result<(), String>;
}

macro_rules! document {
    ($type:ident) => {
        impl Document for $type {
            const ROLE: Role = Role::$type;

            fn version(&self) -> u64 {
                self.version
            }

            fn expires(&self) -> Millis {
                self.expires
            }

            fn check(&self) -> Result<(), String> {
                if self.version == 0 {
                    return Err("version 0; versions begin at 1".to_owned());
                }
                let mut parts = self.spec_version.split('.');
                if parts.next() != Some("1") || !parts.all(|p| p.parse::<u32>().is_ok()) {
                    return Err(format!("spec_version {:?}; 1.x is supported", self.spec_version));
                }
                self.check_content()
            }
        }
    };
}

document!(Root);
document!(Timestamp);
document!(Snapshot);
document!(Targets);

/// Which keys speak for each role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Root {
    #[serde(rename = "_type")]
    pub(crate) kind: String,
    pub(crate) spec_version: String,
    /// From 1, each one more than its predecessor.
    pub version: u64,
    /// The date after which it no longer counts.
    #[serde(with = "stamp")]
    pub expires: Millis,
    /// Whether files carry their version or digest in their names.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// Key objects by key id.
    pub keys: BTreeMap<String, Value>,
    /// Keys and threshold of each role.
    pub roles: BTreeMap<String, RoleKeys>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// The keys that speak for one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Key ids.
    pub keyids: Vec<String>,
    /// How many distinct keys must sign.
    pub threshold: u64,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Root {
    fn check_content(&self) -> Result<(), String> {
        for role in Role::ALL {
            let keys = self.roles.get(role.name()).ok_or_else(|| format!("role {role} is missing"))?;
            if keys.threshold == 0 {
                return Err(format!("role {role} has threshold 0; at least 1 is needed"));
            }
        }
        Ok(())
    }
}

/// Which snapshot is the newest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timestamp {
    #[serde(rename = "_type")]
    pub(crate) kind: String,
    pub(crate) spec_version: String,
    /// From 1, rising.
    pub version: u64,
    /// The date after which it no longer counts.
    #[serde(with = "stamp")]
    pub expires: Millis,
    /// When it was signed: the least that the time can be for whoever trusts it. Others ignore it.
    #[serde(
        rename = "x-farlight-issued",
        with = "optional_stamp",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub issued: Option<Millis>,
    pub(crate) meta: BTreeMap<String, Meta>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Timestamp {
    fn check_content(&self) -> Result<(), String> {
        match self.meta.get(Role::Snapshot.file()) {
            Some(meta) => meta.check(),
            None => Err("meta lacks snapshot.json".to_owned()),
        }
    }

    /// What it says of the snapshot; `None` never occurs in a verified one.
    pub fn snapshot(&self) -> Option<&Meta> {
        self.meta.get(Role::Snapshot.file())
    }
}

/// Which targets metadata belongs together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    #[serde(rename = "_type")]
    pub(crate) kind: String,
    pub(crate) spec_version: String,
    /// From 1, rising.
    pub version: u64,
    /// The date after which it no longer counts.
    #[serde(with = "stamp")]
    pub expires: Millis,
    pub(crate) meta: BTreeMap<String, Meta>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Snapshot {
    fn check_content(&self) -> Result<(), String> {
        if !self.meta.contains_key(Role::Targets.file()) {
            return Err("meta lacks targets.json".to_owned());
        }
        self.meta.values().try_for_each(Meta::check)
    }

    /// What it says of the targets metadata; `None` never occurs in a verified one.
    pub fn targets(&self) -> Option<&Meta> {
        self.meta.get(Role::Targets.file())
    }

    /// What it says of the metadata of delegated roles, by name.
    pub fn roles(&self) -> impl Iterator<Item = (&str, &Meta)> {
        let delegated = self.meta.iter().filter(|(file, _)| *file != Role::Targets.file());
        delegated.filter_map(|(file, meta)| Some((file.strip_suffix(".json")?, meta)))
    }

    /// What it says of the metadata of a delegated role.
    pub fn role(&self, name: &str) -> Option<&Meta> {
        self.meta.get(&format!("{name}.json"))
    }
}

/// Version of a metadata file, with length and digests where they are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The version.
    pub version: u64,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Meta {
    pub(crate) fn of(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Some(Hashes::of(bytes)),
            extra: Extra::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 { Err("meta with version 0".to_owned()) } else { Ok(()) }
    }

    pub(crate) fn verify(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        if let Some(length) = self.length {
            verify_length(what, length, bytes)?;
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| hashes.verify(what, bytes))
    }
}

/// Digests of one file by algorithm, lower-case hex. SHA-256 and SHA-512 are checked, others ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes(BTreeMap<String, String>);

impl Hashes {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(BTreeMap::from([("sha256".to_owned(), digest::sha256(bytes))]))
    }

    /// The digest by the algorithm `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The digest that stands in file names: SHA-256 where there is one.
    pub fn file_name(&self) -> Option<&str> {
        self.get("sha256").or_else(|| self.get("sha512")).filter(|text| digest::is_lower_hex(text))
    }

    /// Compares every digest that is known here; one at least must be.
    pub(crate) fn verify(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        let refuse = |why: String| TufError::HashMismatch { what: what.to_owned(), why };
        let mut known = false;
        for (name, of) in [("sha256", digest::sha256 as fn(&[u8]) -> String), ("sha512", digest::sha512)] {
            if let Some(expected) = self.get(name) {
                known = true;
                let found = of(bytes);
                if found != *expected {
                    return Err(refuse(format!("{name} is {found}, signed is {expected:.128}")));
                }
            }
        }
        if known { Ok(()) } else { Err(refuse("no digest by SHA-256 or SHA-512 is signed".to_owned())) }
    }
}

pub(crate) fn verify_length(what: &str, length: u64, bytes: &[u8]) -> Result<(), TufError> {
    let found = bytes.len() as u64;
    if found > length {
        Err(TufError::TooLarge { what: what.to_owned(), length: found, limit: length })
    } else if found < length {
        Err(TufError::Truncated { what: what.to_owned(), found, expected: length })
    } else {
        Ok(())
    }
}

/// Which target files are genuine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    #[serde(rename = "_type")]
    pub(crate) kind: String,
    pub(crate) spec_version: String,
    /// From 1, rising.
    pub version: u64,
    /// The date after which it no longer counts.
    #[serde(with = "stamp")]
    pub expires: Millis,
    /// Target files by name.
    pub targets: BTreeMap<String, Target>,
    /// Further roles that may speak for targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// The oldest version of each model that an assignment may name.
    #[serde(rename = "x-farlight-floor", default)]
    pub floor: BTreeMap<ModelName, semver::Version>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Targets {
    /// Reads targets metadata without a look at its signatures: for what was verified once and whose role
    /// was revoked since. Not to be trusted.
    ///
    /// # Errors
    /// [`TufError`] when it is no targets metadata.
    pub fn peek(bytes: &[u8]) -> Result<Self, TufError> {
        let what = "targets metadata";
        verify::decode(what, &verify::open::<Self>(what, bytes)?)
    }

    fn check_content(&self) -> Result<(), String> {
        self.delegations.as_ref().map_or(Ok(()), Delegations::check)
    }
}

/// One target file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Bytes.
    pub length: u64,
    /// Digests.
    pub hashes: Hashes,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Target {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, hashes: Hashes::of(bytes), extra: Extra::new() }
    }

    /// SHA-256, lower-case hex, where it is given (this crate's signer always gives it).
    pub fn sha256(&self) -> Option<&str> {
        self.hashes.get("sha256")
    }

    /// Checks length and digests of the file `what`.
    ///
    /// # Errors
    /// [`TufError::TooLarge`], [`TufError::Truncated`] or [`TufError::HashMismatch`].
    pub fn verify(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        verify_length(what, self.length, bytes)?;
        self.hashes.verify(what, bytes)
    }
}

/// [`stamp`] for a field that may be missing.
mod optional_stamp {
    use farlight_wire::Millis;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::stamp::serialize(at, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Millis>, D::Error> {
        super::stamp::deserialize(deserializer).map(Some)
    }
}

/// TUF's time format for [`Millis`].
mod stamp {
    use farlight_wire::Millis;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::timestamp;

    pub(super) fn serialize<S: Serializer>(at: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&timestamp::format(*at))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        let text = String::deserialize(deserializer)?;
        timestamp::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("expires is not of the form YYYY-MM-DDTHH:MM:SSZ"))
    }
}
