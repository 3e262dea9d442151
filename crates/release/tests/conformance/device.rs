//! A device: what it stores between two starts of its client, and the two commands of the suite.

use std::collections::BTreeMap;

use farlight_release::tuf::{Client, Step, TARGETS, TufError};
use farlight_wire::Millis;
use serde_json::Value;

use super::repository::{NOW, Repository};

/// A device.
pub(crate) struct Device {
    /// Metadata by file name.
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
    /// Target files by name, in the order in which they were stored.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Device {
    /// A device that trusts version 1 of the root.
    pub(crate) fn new(repository: &Repository) -> Self {
        Self::trusting(&repository.published["root"][0])
    }

    /// A device that trusts this root.
    pub(crate) fn trusting(root: &[u8]) -> Self {
        Self { metadata: BTreeMap::from([("root.json".to_owned(), root.to_vec())]), files: Vec::new() }
    }

    /// Starts a client and refreshes; the code of the error otherwise.
    pub(crate) fn refresh(&mut self, repository: &mut Repository) -> Result<(), &'static str> {
        self.refresh_at(repository, NOW)
    }

    /// The same at another time.
    pub(crate) fn refresh_at(
        &mut self,
        repository: &mut Repository,
        now: Millis,
    ) -> Result<(), &'static str> {
        self.refreshed(&mut |path| repository.get(path), now).map(|_| ()).map_err(|e| e.code().as_str())
    }

    /// Starts a client, refreshes and downloads these targets in order.
    pub(crate) fn download(
        &mut self,
        repository: &mut Repository,
        names: &[&str],
    ) -> Result<(), &'static str> {
        self.download_from(&mut |path| repository.get(path), names, NOW).map_err(|e| e.code().as_str())
    }

    /// The same from anywhere.
    pub(crate) fn download_from(
        &mut self,
        get: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
        names: &[&str],
        now: Millis,
    ) -> Result<(), TufError> {
        let mut client = self.refreshed(get, now)?;
        for name in names {
            client.begin_lookup(name, now);
            self.drive(&mut client, get)?;
            let target = client.target(name)?;
            let stored = self.files.iter().find(|(stored, _)| stored == name);
            if stored.is_some_and(|(_, bytes)| target.verify(name, bytes).is_ok()) {
                continue;
            }
            let path = format!("{TARGETS}{}", client.target_file(name)?);
            let bytes = get(&path).ok_or(TufError::Missing { path })?;
            target.verify(name, &bytes)?;
            self.files.retain(|(stored, _)| stored != name);
            self.files.push(((*name).to_owned(), bytes));
        }
        Ok(())
    }

    fn refreshed(
        &mut self,
        get: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
        now: Millis,
    ) -> Result<Client, TufError> {
        let mut client = Client::load(&self.metadata)?;
        client.begin_refresh(now);
        self.drive(&mut client, get)?;
        Ok(client)
    }

    fn drive(
        &mut self,
        client: &mut Client,
        get: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
    ) -> Result<(), TufError> {
        while let Step::Fetch { path, .. } = client.next() {
            if let Some(keep) = client.supply(get(&path).as_deref())? {
                for name in &keep.forget {
                    self.metadata.remove(name);
                }
                self.metadata.insert(keep.name, keep.bytes);
            }
        }
        Ok(())
    }

    /// The version of a role that is stored.
    pub(crate) fn version(&self, role: &str) -> Option<u64> {
        let bytes = self.metadata.get(&format!("{role}.json"))?;
        serde_json::from_slice::<Value>(bytes).unwrap()["signed"]["version"].as_u64()
    }

    /// The stored roles with their versions, by name.
    pub(crate) fn versions(&self) -> Vec<(&str, u64)> {
        let roles = self.metadata.keys().map(|name| name.strip_suffix(".json").unwrap());
        roles.map(|role| (role, self.version(role).unwrap())).collect()
    }

    /// The contents of the target files, the last stored one last.
    pub(crate) fn contents(&self) -> Vec<&[u8]> {
        self.files.iter().map(|(_, bytes)| bytes.as_slice()).collect()
    }
}
