//! What a release says: a model's manifest, or a configuration. The registry takes, records and serves both
//! alike; what only models have (drift, cases, training) asks for a manifest.

use farlight_release::Verified;
use farlight_release::config::{self, ConfigManifest};
use farlight_release::manifest::{Blob, Lineage, Manifest, ManifestError};
use farlight_release::tuf::{Targets, VerifyError};
use farlight_wire::ReleaseId;
use serde::Serialize;

/// The document of a release, verified.
#[derive(Debug, Clone)]
pub enum Document {
    /// Of a model.
    Model(Box<Verified<Manifest>>),
    /// A configuration.
    Config(Box<Verified<ConfigManifest>>),
}

/// A document as JSON, whichever it is.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Plain {
    /// Of a model.
    Model(Box<Manifest>),
    /// A configuration.
    Config(Box<ConfigManifest>),
}

impl Plain {
    /// Reads and checks a document, whichever it is. It proves nothing.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field and the rule it breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if claimed(bytes).is_some_and(|release| release.model.as_str() == config::NAME) {
            ConfigManifest::parse(bytes).map(|config| Self::Config(Box::new(config)))
        } else {
            Manifest::parse_checked(bytes).map(|manifest| Self::Model(Box::new(manifest)))
        }
    }

    /// The release.
    pub fn release(&self) -> &ReleaseId {
        match self {
            Self::Model(manifest) => &manifest.release,
            Self::Config(config) => &config.release,
        }
    }

    /// The files it names.
    pub fn blobs(&self) -> Vec<&Blob> {
        match self {
            Self::Model(manifest) => manifest.blobs().collect(),
            Self::Config(_) => Vec::new(),
        }
    }
}

/// Which release a document says it is, before anything is verified.
pub(super) fn claimed(bytes: &[u8]) -> Option<ReleaseId> {
    #[derive(serde::Deserialize)]
    struct Head {
        release: ReleaseId,
    }
    serde_json::from_slice::<Head>(bytes).ok().map(|head| head.release)
}

impl Document {
    /// Verifies the bytes of a release against its target in `role`, then reads and checks them.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify(role: &Verified<Targets>, release: &ReleaseId, bytes: &[u8]) -> Result<Self, VerifyError> {
        if release.model.as_str() == config::NAME {
            role.verify_config(release, bytes).map(|config| Self::Config(Box::new(config)))
        } else {
            role.verify_manifest(release, bytes).map(|manifest| Self::Model(Box::new(manifest)))
        }
    }

    /// The release.
    pub fn release(&self) -> &ReleaseId {
        match self {
            Self::Model(manifest) => &manifest.release,
            Self::Config(config) => &config.release,
        }
    }

    /// SHA-256 of its bytes.
    pub fn sha256(&self) -> &str {
        match self {
            Self::Model(manifest) => manifest.sha256(),
            Self::Config(config) => config.sha256(),
        }
    }

    /// Where it comes from; nowhere, for a configuration.
    pub fn lineage(&self) -> Lineage {
        match self {
            Self::Model(manifest) => manifest.lineage.clone(),
            Self::Config(_) => Lineage::default(),
        }
    }

    /// The files it names.
    pub fn blobs(&self) -> Vec<&Blob> {
        match self {
            Self::Model(manifest) => manifest.blobs().collect(),
            Self::Config(_) => Vec::new(),
        }
    }

    /// The model files among them.
    pub fn models(&self) -> impl Iterator<Item = &Blob> {
        let variants = match self {
            Self::Model(manifest) => &manifest.variants[..],
            Self::Config(_) => &[],
        };
        variants.iter().map(|variant| &variant.blob)
    }

    /// The manifest, where it is a model's.
    pub fn into_manifest(self) -> Option<Verified<Manifest>> {
        match self {
            Self::Model(manifest) => Some(*manifest),
            Self::Config(_) => None,
        }
    }

    /// As JSON.
    pub fn into_plain(self) -> Plain {
        match self {
            Self::Model(manifest) => Plain::Model(Box::new((*manifest).into_inner())),
            Self::Config(config) => Plain::Config(Box::new((*config).into_inner())),
        }
    }
}
