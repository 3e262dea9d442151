//! The runtime configuration as a release: thresholds, budgets, flags and the kill switch, signed, versioned,
//! rolled out and taken back like a model. Its name is always [`NAME`]; its target holds it whole.

pub mod route;

use std::collections::BTreeMap;

use farlight_wire::{ModelName, ReleaseId};
use serde::{Deserialize, Serialize};

pub use route::Route;

use crate::canonical::{self, Fractions};
use crate::manifest::{ManifestError, Requires};
use crate::tuf::{Client, Targets, VerifyError};
use crate::verified::Verified;

/// The name that configuration releases have instead of a model's.
pub const NAME: &str = "config";
/// Version of the format this build reads and writes.
pub const FORMAT: u32 = 1;
/// Most flags: they are for switches, not for data.
pub const MAX_FLAGS: usize = 256;
/// Longest name of a flag, and longest text as its value, in bytes.
pub const MAX_FLAG_TEXT: usize = 256;

/// The document of a configuration release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// [`NAME`] and the version.
    pub release: ReleaseId,
    /// What it says.
    pub runtime: Runtime,
    /// What it needs of a device.
    #[serde(default)]
    pub requires: Requires,
}

/// What can be changed while the agent runs. What is left out stays as the agent's own configuration and the
/// releases' manifests say; nothing here can exceed what the device's owner allowed there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Answers every inference request with 503.
    pub kill_switch: bool,
    /// By model.
    pub models: BTreeMap<ModelName, ModelRuntime>,
    /// What answers requests for a name, in place of the model of that name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<ModelName, Route>,
    /// For applications on the gateway, which read them at `GET /farlight/flags`.
    pub flags: BTreeMap<String, Flag>,
}

/// What can be changed of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelRuntime {
    /// Answers this model's requests with 503.
    pub disabled: bool,
    /// Withholds the class when the best score is below this, in place of the manifest's threshold; 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abstain_below: Option<f32>,
    /// Share of inputs kept as hard cases, thousandths, in place of the manifest's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_permille: Option<u16>,
    /// Share of inputs kept as random control, thousandths, in place of the manifest's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_permille: Option<u16>,
    /// Case bytes a day, in place of the manifest's; the device's own ceiling still holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case_bytes_per_day: Option<u64>,
}

/// The value of a flag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// On or off.
    Switch(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

fn invalid<T>(field: impl Into<String>, rule: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Invalid { field: field.into(), rule: rule.into() })
}

impl ConfigManifest {
    /// Reads and checks a document.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field and the rule it breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value = canonical::parse(bytes, Fractions::Allow)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        let manifest: Self =
            serde_json::from_value(value).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether every field keeps to its range.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field and the rule it breaks.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != FORMAT {
            return Err(ManifestError::Format { found: u64::from(self.format) });
        }
        if self.release.model.as_str() != NAME {
            return invalid("release", format!("must be named {NAME}/‹version›"));
        }
        for (model, settings) in &self.runtime.models {
            let field = |name: &str| format!("runtime.models.{model}.{name}");
            if settings.abstain_below.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return invalid(field("abstain_below"), "must be from 0 to 1");
            }
            let shares =
                [("hard_permille", settings.hard_permille), ("control_permille", settings.control_permille)];
            if let Some((name, _)) = shares.iter().find(|(_, share)| share.is_some_and(|share| share > 1000))
            {
                return invalid(field(name), "must be from 0 to 1000");
            }
        }
        if self.runtime.models.len() > farlight_wire::limits::MAX_MODELS {
            return invalid("runtime.models", "names too many models");
        }
        if self.runtime.routes.len() > farlight_wire::limits::MAX_MODELS {
            return invalid("runtime.routes", "names too many routes");
        }
        for (name, route) in &self.runtime.routes {
            route.check(&format!("runtime.routes.{name}"))?;
        }
        if self.runtime.flags.len() > MAX_FLAGS {
            return invalid("runtime.flags", format!("has more than {MAX_FLAGS} flags"));
        }
        for (name, value) in &self.runtime.flags {
            let long = matches!(value, Flag::Text(text) if text.len() > MAX_FLAG_TEXT);
            if name.is_empty() || name.len() > MAX_FLAG_TEXT || name.chars().any(char::is_control) || long {
                return invalid(
                    format!("runtime.flags.{name:.40}"),
                    format!("name and text must have 1 to {MAX_FLAG_TEXT} bytes"),
                );
            }
        }
        Ok(())
    }

    /// Reads a document that was verified before and lies in the slot named `sha256`.
    ///
    /// # Errors
    /// [`ManifestError::Digest`] when it is another one, or what [`Self::parse`] finds.
    pub fn reopen(bytes: &[u8], sha256: &str) -> Result<Verified<Self>, ManifestError> {
        if crate::digest::sha256(bytes) != sha256 {
            return Err(ManifestError::Digest);
        }
        Ok(Verified::new(Self::parse(bytes)?, bytes))
    }
}

impl Client {
    /// Verifies the bytes of a configuration release: permitted, and the signed ones; then reads and checks
    /// them.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_config(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<ConfigManifest>, VerifyError> {
        self.permits(release)?;
        self.found(&release.target_path())?.1.verify_config(release, bytes)
    }
}

impl Verified<Targets> {
    /// Verifies the bytes of a configuration release against its target in this role, then reads and checks
    /// them. The floor is not looked at: it limits what is assigned, not what is genuine.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_config(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<ConfigManifest>, VerifyError> {
        self.verify_target(&release.target_path(), bytes)?;
        let config = ConfigManifest::parse(bytes)?;
        if config.release != *release {
            let rule = format!("must be {release}, the release it is signed as");
            return Err(ManifestError::Invalid { field: "release".to_owned(), rule }.into());
        }
        Ok(Verified::new(config, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"format":1,"release":"config/1.0.0","runtime":{"kill_switch":false,
        "models":{"m":{"abstain_below":0.4,"hard_permille":10}},"flags":{"beta":true,"rate":2.5,"who":"x"}}}"#;

    fn refused(from: &str, to: &str) -> String {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD);
        ConfigManifest::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_document_is_read_and_each_wrong_field_is_named() {
        let manifest = ConfigManifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.runtime.flags["beta"], Flag::Switch(true));
        assert_eq!(manifest.runtime.flags["rate"], Flag::Number(2.5));
        let again = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(ConfigManifest::parse(&again).unwrap(), manifest);
        assert!(refused("0.4", "1.5").contains("abstain_below"));
        assert!(refused(":10", ":1001").contains("hard_permille"));
        assert!(refused("config/1.0.0", "m/1.0.0").contains("release"));
        assert!(refused("kill_switch", "kill_swich").contains("kill_swich"));
        assert!(refused("\"format\":1", "\"format\":2").contains('2'));
        assert!(refused("\"beta\":true", "\"beta\":true,\"beta\":false").contains("beta"));
        assert!(ConfigManifest::reopen(GOOD.as_bytes(), &"0".repeat(64)).is_err());
        assert!(ConfigManifest::reopen(GOOD.as_bytes(), &crate::digest::sha256(GOOD.as_bytes())).is_ok());
    }
}
