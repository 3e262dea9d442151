//! A TUF repository whose every document is plain JSON that a case may bend before it is published.
//! Versions that were published stay; the requests of devices are written down.

use std::collections::BTreeMap;

use farlight_release::key::{KeyPair, PublicKey};
use farlight_release::{canonical, digest, timestamp};
use farlight_wire::Millis;
use serde_json::{Value, json};

/// When all cases happen.
pub(crate) const NOW: Millis = Millis(1_700_000_000_000);

/// So many days after [`NOW`].
pub(crate) fn day(days: i64) -> Millis {
    Millis(NOW.0.saturating_add_signed(days * 86_400_000))
}

/// The stamp of a time.
pub(crate) fn stamp(at: Millis) -> Value {
    timestamp::format(at).into()
}

/// A target file as it is served, and the digests under which it is.
#[derive(Clone)]
pub(crate) struct Artifact {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digests: Vec<String>,
}

/// The repository.
#[derive(Clone)]
pub(crate) struct Repository {
    /// What each role says, before it is signed.
    documents: BTreeMap<String, Value>,
    /// Whose signatures a document gets when it is published.
    pub(crate) signers: BTreeMap<String, Vec<KeyPair>>,
    /// Published versions of each role, the first one first.
    pub(crate) published: BTreeMap<String, Vec<Vec<u8>>>,
    pub(crate) artifacts: BTreeMap<String, Artifact>,
    /// Whether snapshot and timestamp carry lengths and digests.
    pub(crate) digests: bool,
    /// Metadata that was asked for: role as in the URL, version as in the URL.
    pub(crate) requests: Vec<(String, Option<u64>)>,
    /// Target files that were asked for: name, and digest in the URL.
    pub(crate) downloads: Vec<(String, String)>,
    keys: u8,
}

impl Repository {
    /// One key a role, version 1 of everything published.
    pub(crate) fn new() -> Self {
        let document = |kind: &str, rest: Value| {
            let mut document =
                json!({ "_type": kind, "spec_version": "1.0.34", "version": 1, "expires": stamp(day(30)) });
            document.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            (kind.to_owned(), document)
        };
        let roles = super::ALL.map(|role| (role.to_owned(), json!({ "keyids": [], "threshold": 1 })));
        let roles: Value = roles.into_iter().collect::<serde_json::Map<_, _>>().into();
        let mut new = Self {
            documents: BTreeMap::from([
                document("root", json!({ "consistent_snapshot": true, "keys": {}, "roles": roles })),
                document("timestamp", json!({ "meta": { "snapshot.json": { "version": 1 } } })),
                document("snapshot", json!({ "meta": {} })),
                document("targets", json!({ "targets": {} })),
            ]),
            signers: BTreeMap::new(),
            published: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            digests: false,
            requests: Vec::new(),
            downloads: Vec::new(),
            keys: 0,
        };
        for role in super::ALL {
            new.add_key(role);
        }
        new.publish(&["targets", "snapshot", "timestamp", "root"]);
        new
    }

    /// What a role says, to be changed.
    pub(crate) fn document(&mut self, role: &str) -> &mut Value {
        self.documents.get_mut(role).unwrap()
    }

    /// A key that nobody has yet.
    pub(crate) fn new_key(&mut self) -> KeyPair {
        self.keys += 1;
        KeyPair::from_seed(&[self.keys; 32])
    }

    /// The entry of a top-level role in the root.
    pub(crate) fn role(&mut self, role: &str) -> &mut Value {
        &mut self.document("root")["roles"][role]
    }

    /// Gives a top-level role one more key.
    pub(crate) fn add_key(&mut self, role: &str) -> KeyPair {
        let key = self.new_key();
        self.trust(role, &key.public(), key.public().to_object());
        self.signers.entry(role.to_owned()).or_default().push(key.clone());
        key
    }

    /// Lists a key, as this object, for a top-level role.
    pub(crate) fn trust(&mut self, role: &str, key: &PublicKey, object: Value) {
        let root = self.document("root");
        root["keys"][key.id()] = object;
        root["roles"][role]["keyids"].as_array_mut().unwrap().push(key.id().into());
    }

    /// Takes all keys from a top-level role.
    pub(crate) fn clear_keys(&mut self, role: &str) {
        self.role(role)["keyids"] = json!([]);
        self.signers.insert(role.to_owned(), Vec::new());
    }

    /// Replaces all keys of a top-level role by a threshold of new ones.
    pub(crate) fn rotate(&mut self, role: &str) {
        let threshold = self.role(role)["threshold"].as_u64().unwrap();
        self.clear_keys(role);
        for _ in 0..threshold {
            self.add_key(role);
        }
    }

    /// Signs what the roles say now and publishes it, each one version above the last.
    pub(crate) fn publish(&mut self, roles: &[&str]) {
        for role in roles {
            let again = self.published.contains_key(*role);
            let document = self.document(role);
            if again {
                document["version"] = (document["version"].as_u64().unwrap() + 1).into();
            }
            let version = document["version"].as_u64().unwrap();
            let document = document.clone();
            let bytes = sign(&document, &self.signers[*role]);
            let mut meta = json!({ "version": version });
            if self.digests {
                meta["length"] = bytes.len().into();
                meta["hashes"] = json!({ "sha256": digest::sha256(&bytes) });
            }
            match *role {
                "root" | "timestamp" => {}
                "snapshot" => self.document("timestamp")["meta"]["snapshot.json"] = meta,
                role => self.document("snapshot")["meta"][format!("{role}.json")] = meta,
            }
            self.published.entry((*role).to_owned()).or_default().push(bytes);
        }
    }

    /// Sets a role back to before its first version, to publish that anew.
    pub(crate) fn unpublish(&mut self, role: &str) {
        self.published.remove(role);
        self.document(role)["version"] = 1.into();
    }

    /// The newest version of a role as it is served, to be tampered with.
    pub(crate) fn newest(&mut self, role: &str) -> &mut Vec<u8> {
        self.published.get_mut(role).unwrap().last_mut().unwrap()
    }

    /// Changes the newest version of a role in its envelope, without signing it anew.
    pub(crate) fn tamper(&mut self, role: &str, change: impl FnOnce(&mut Value)) {
        let newest = self.newest(role);
        let mut document: Value = serde_json::from_slice(newest).unwrap();
        change(&mut document);
        *newest = serde_json::to_vec(&document).unwrap();
    }

    /// Lets `role` name a target, with its SHA-256.
    pub(crate) fn add_artifact(&mut self, role: &str, bytes: &[u8], path: &str) {
        self.add_artifact_with(role, bytes, path, json!({ "sha256": digest::sha256(bytes) }));
    }

    /// Lets `role` name a target, with these digests.
    pub(crate) fn add_artifact_with(&mut self, role: &str, bytes: &[u8], path: &str, hashes: Value) {
        let digests = hashes.as_object().unwrap().values();
        let digests = digests.map(|digest| digest.as_str().unwrap().to_owned()).collect();
        self.artifacts.insert(path.to_owned(), Artifact { bytes: bytes.to_vec(), digests });
        self.document(role)["targets"][path] = json!({ "length": bytes.len(), "hashes": hashes });
    }

    /// Lets `delegator` delegate to `role` with one new key, which is given back. Its document is made.
    pub(crate) fn delegate(&mut self, delegator: &str, role: &str, entry: Value) -> KeyPair {
        let key = self.new_key();
        let document = self.document(delegator);
        if document["delegations"].is_null() {
            document["delegations"] = json!({ "keys": {}, "roles": [] });
        }
        let delegations = &mut document["delegations"];
        delegations["keys"][key.public().id()] = key.public().to_object();
        let mut delegation =
            json!({ "name": role, "keyids": [key.public().id()], "threshold": 1, "terminating": false });
        delegation.as_object_mut().unwrap().extend(entry.as_object().unwrap().clone());
        delegations["roles"].as_array_mut().unwrap().push(delegation);
        self.signers.entry(role.to_owned()).or_default().push(key.clone());
        let empty = json!({ "_type": "targets", "spec_version": "1.0.34", "version": 1,
            "expires": stamp(day(30)), "targets": {} });
        self.documents.entry(role.to_owned()).or_insert(empty);
        key
    }

    /// What a device gets for this path below the repository's address.
    pub(crate) fn get(&mut self, path: &str) -> Option<Vec<u8>> {
        if let Some(name) = path.strip_prefix("targets/") {
            return self.get_artifact(name);
        }
        let name = path.strip_prefix("metadata/")?.strip_suffix(".json")?;
        let consistent = self.document("root")["consistent_snapshot"] == true;
        let (version, role) = match name.split_once('.') {
            Some((version, role)) if role == "root" || (consistent && name != "timestamp") => {
                (Some(version.parse::<u64>().ok()?), role)
            }
            _ => (None, name),
        };
        self.requests.push((role.to_owned(), version));
        let versions = self.published.get(&decode(role))?;
        match version {
            Some(version) => versions.get(usize::try_from(version).ok()?.checked_sub(1)?).cloned(),
            None => versions.last().cloned(),
        }
    }

    fn get_artifact(&mut self, path: &str) -> Option<Vec<u8>> {
        let (folder, file) = path.rsplit_once('/').map_or(("", path), |(folder, file)| (folder, file));
        let (digest, file) = file.split_once('.')?;
        let name = if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
        self.downloads.push((name.clone(), digest.to_owned()));
        let artifact = self.artifacts.get(&name)?;
        artifact.digests.iter().any(|known| known == digest).then(|| artifact.bytes.clone())
    }
}

/// An envelope around `document`, signed by each of `keys`.
pub(crate) fn sign(document: &Value, keys: &[KeyPair]) -> Vec<u8> {
    let message = canonical::to_vec(document).unwrap();
    let signatures: Vec<Value> =
        keys.iter().map(|key| json!({ "keyid": key.public().id(), "sig": key.sign(&message) })).collect();
    serde_json::to_vec_pretty(&json!({ "signed": document, "signatures": signatures })).unwrap()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match first {
            b'%' => {
                out.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
                rest = &after[2..];
            }
            byte => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(out).unwrap()
}
