//! Releases as targets: which ones may be assigned, what their manifests hold, and who signs assignments.

use farlight_wire::codes::Code;
use farlight_wire::{ModelName, ReleaseId};
use serde_json::Value;

use super::client::Client;
use super::metadata::{Target, Targets};
use super::{ASSIGNMENT_KEYS, TufError};
use crate::canonical::{self, Fractions};
use crate::key::PublicKey;
use crate::manifest::{Manifest, ManifestError};
use crate::verified::Verified;

/// Most assignment keys that are read: the one in use and a few of a rotation.
const MAX_ASSIGNMENT_KEYS: usize = 16;

/// Why a manifest was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The signed metadata does not vouch for it.
    #[error(transparent)]
    Tuf(#[from] TufError),
    /// It is genuine, and this build cannot use it.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl VerifyError {
    /// A stable code for reports and responses.
    pub fn code(&self) -> Code {
        match self {
            Self::Tuf(error) => error.code(),
            Self::Manifest(error) => error.code(),
        }
    }
}

impl Client {
    /// The oldest version of `model` that an assignment may name, by the top-level role.
    pub fn floor(&self, model: &ModelName) -> Option<&semver::Version> {
        self.targets().ok()?.floor.get(model)
    }

    /// Whether `release` is a signed target and not below its model's floor, neither the top-level role's
    /// nor that of the role that speaks for it. It must have been looked up ([`Client::begin_lookup`])
    /// since the last refresh, unless the top-level role names it.
    ///
    /// # Errors
    /// [`TufError::BelowFloor`], or as [`Client::target`].
    pub fn permits(&self, release: &ReleaseId) -> Result<&Target, TufError> {
        self.targets()?.check_floor(release)?;
        let (target, role) = self.found(&release.target_path())?;
        role.check_floor(release)?;
        Ok(target)
    }

    /// Verifies the bytes of a release's manifest: permitted, and the signed ones; then reads and checks it.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_manifest(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<Manifest>, VerifyError> {
        self.permits(release)?;
        self.found(&release.target_path())?.1.verify_manifest(release, bytes)
    }

    /// Verifies the bytes of [`ASSIGNMENT_KEYS`] and reads the keys which may sign assignments. Only the
    /// top-level role may name them. Keys of unknown kinds are skipped.
    ///
    /// # Errors
    /// [`TufError`] when the bytes are not the signed ones or hold no usable key.
    pub fn assignment_keys(&self, bytes: &[u8]) -> Result<Vec<PublicKey>, TufError> {
        let refuse =
            |why: &str| TufError::Malformed { what: ASSIGNMENT_KEYS.to_owned(), why: why.to_owned() };
        let target = self.targets()?.targets.get(ASSIGNMENT_KEYS);
        let target = target.ok_or_else(|| TufError::UnknownTarget { path: ASSIGNMENT_KEYS.to_owned() })?;
        target.verify(ASSIGNMENT_KEYS, bytes)?;
        let document = canonical::parse(bytes, Fractions::Refuse).map_err(|e| refuse(&e.to_string()))?;
        let objects =
            document.get("keys").and_then(Value::as_array).ok_or_else(|| refuse("no list `keys`"))?;
        let keys: Vec<_> = objects
            .iter()
            .take(MAX_ASSIGNMENT_KEYS)
            .filter_map(|object| PublicKey::from_object(object).ok())
            .collect();
        if keys.is_empty() { Err(refuse("no usable key")) } else { Ok(keys) }
    }
}

impl Targets {
    /// Whether this role signs the target `path` with these bytes.
    pub(crate) fn verify_target(&self, path: &str, bytes: &[u8]) -> Result<(), TufError> {
        let target = self.targets.get(path);
        target.ok_or_else(|| TufError::UnknownTarget { path: path.to_owned() })?.verify(path, bytes)
    }

    /// Whether `release` is not below this role's floor of its model.
    ///
    /// # Errors
    /// [`TufError::BelowFloor`].
    pub fn check_floor(&self, release: &ReleaseId) -> Result<(), TufError> {
        match self.floor.get(&release.model) {
            Some(floor) if release.version < *floor => {
                Err(TufError::BelowFloor { release: release.clone(), floor: floor.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl Verified<Targets> {
    /// Verifies the bytes of a release's manifest against its target in this role, then reads and checks
    /// it. The floor is not looked at: it limits what is assigned, not what is genuine.
    ///
    /// # Errors
    /// [`VerifyError`] saying what does not hold.
    pub fn verify_manifest(
        &self,
        release: &ReleaseId,
        bytes: &[u8],
    ) -> Result<Verified<Manifest>, VerifyError> {
        self.verify_target(&release.target_path(), bytes)?;
        let manifest = Manifest::parse_checked(bytes)?;
        if manifest.release != *release {
            let rule = format!("must be {release}, the release it is signed as");
            return Err(ManifestError::Invalid { field: "release".to_owned(), rule }.into());
        }
        Ok(Verified::new(manifest, bytes))
    }
}
