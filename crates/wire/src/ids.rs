//! Names and numbers that identify things, parsed once. A value of these types is always valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct IdError {
    /// What was being parsed, for example `device id`.
    pub kind: &'static str,
    /// The text as received, cut to 80 characters.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

const NAME_RULE: &str =
    "use 1 to 64 of a-z, 0-9, '-', '_' and '.', starting with a letter or a digit, without '..'";

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=64).contains(&bytes.len())
        && (bytes[0].is_ascii_lowercase() || bytes[0].is_ascii_digit())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
        && !text.contains("..")
}

fn refuse(kind: &'static str, text: &str, rule: &'static str) -> IdError {
    IdError { kind, text: text.chars().take(80).collect(), rule }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Parses a name: 1 to 64 characters of `a-z 0-9 - _ .`, starting with a letter or digit.
            ///
            /// # Errors
            /// [`IdError`] when the text breaks that rule.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if is_name(&text) { Ok(Self(text)) } else { Err(refuse($kind, &text, NAME_RULE)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
    };
}

name!(
    /// A device, for example `gw-0042`; also the common name of its certificate.
    DeviceId,
    "device id"
);
name!(
    /// A fleet: the set of devices one team runs together.
    FleetId,
    "fleet id"
);
name!(
    /// A model, for example `watch-gestures`.
    ModelName,
    "model name"
);
name!(
    /// A rollout of one release to a fleet.
    RolloutId,
    "rollout id"
);

/// A release of a model: `watch-gestures/1.0.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseId {
    /// The model that is released.
    pub model: ModelName,
    /// Its semantic version.
    pub version: semver::Version,
}

impl ReleaseId {
    /// Joins a model name and a version.
    pub fn new(model: ModelName, version: semver::Version) -> Self {
        Self { model, version }
    }

    /// The TUF target path of this release's manifest: `‹model›/‹version›.json`.
    pub fn target_path(&self) -> String {
        format!("{}/{}.json", self.model, self.version)
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model, self.version)
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        const RULE: &str = "write ‹model›/‹version›, for example watch-gestures/1.0.0";
        let (model, version) = text.split_once('/').ok_or_else(|| refuse("release id", text, RULE))?;
        if version.len() > 64 {
            return Err(refuse("release id", text, RULE));
        }
        let version = version.parse().map_err(|_| refuse("release id", text, RULE))?;
        Ok(Self { model: model.parse()?, version })
    }
}

impl TryFrom<String> for ReleaseId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ReleaseId> for String {
    fn from(id: ReleaseId) -> String {
        id.to_string()
    }
}

/// Milliseconds: since the Unix epoch for a stamp, or a duration; the field's name says which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// This stamp moved later by `duration`.
    pub fn plus(self, duration: Self) -> Self {
        Self(self.0.saturating_add(duration.0))
    }

    /// So many whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }
}

/// The number of a record in its stream, from 1, rising, never reused within an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// A share in thousandths, 0 to 1000. Integers, so that a fleet divides without rounding doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Permille(u16);

impl Permille {
    /// The whole: 1000 ‰.
    pub const ALL: Self = Self(1000);

    /// A share of `value` thousandths.
    ///
    /// # Errors
    /// [`IdError`] above 1000.
    pub fn new(value: u16) -> Result<Self, IdError> {
        if value <= 1000 {
            Ok(Self(value))
        } else {
            Err(refuse("permille", &value.to_string(), "use 0 to 1000"))
        }
    }

    /// The thousandths, 0 to 1000.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Permille {
    type Error = IdError;
    fn try_from(value: u16) -> Result<Self, IdError> {
        Self::new(value)
    }
}

impl From<Permille> for u16 {
    fn from(value: Permille) -> u16 {
        value.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "gw-0042", "0.a_b", &"x".repeat(64)] {
            assert!(DeviceId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a/b", "a+", "a#", "a..b", "ä", " a", &"x".repeat(65)] {
            assert!(DeviceId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn release_ids_round_trip() {
        let id: ReleaseId = "watch-gestures/1.2.3-rc.1".parse().unwrap();
        assert_eq!(id.to_string(), "watch-gestures/1.2.3-rc.1");
        assert_eq!(id.target_path(), "watch-gestures/1.2.3-rc.1.json");
        for bad in ["", "a", "a/", "a/1", "/1.0.0", "a/b/1.0.0", "../1.0.0"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad}");
        }
    }
}
