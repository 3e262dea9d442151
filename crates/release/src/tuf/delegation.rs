//! Delegations: which further roles a role trusts, with which keys, for which target paths. The order of
//! appearance is their priority; the search over them is in `lookup.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metadata::{Extra, Targets};
use super::verify::{self, Authority};
use super::{MAX_DELEGATED, Role, TufError};
use crate::digest;
use crate::verified::Verified;

/// Most roles one role may delegate to: a fleet has tens of model families, a hash-bin tree some hundreds.
pub const MAX_ROLES: usize = 1024;
/// Longest role name in bytes: percent-encoded it still is a file name (255 bytes) with its version.
pub const MAX_ROLE_NAME: usize = 64;
/// Longest path pattern in bytes: bounds the work of one match.
const MAX_PATTERN: usize = 1024;

/// The roles that a role delegates to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delegations {
    /// Key objects by key id.
    pub keys: BTreeMap<String, Value>,
    /// The roles, most trusted first.
    pub roles: Vec<DelegatedRole>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

/// One role that is delegated to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// Its name.
    pub name: String,
    /// Key ids.
    pub keyids: Vec<String>,
    /// How many distinct keys must sign.
    pub threshold: u64,
    /// Whether no later role is asked for a target that this one may speak for.
    pub terminating: bool,
    /// Patterns of the target paths it may speak for. Exactly one of this and `path_hash_prefixes` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Prefixes of SHA-256 (hex) of the target paths it may speak for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash_prefixes: Option<Vec<String>>,
    #[serde(flatten)]
    pub(crate) extra: Extra,
}

impl Delegations {
    /// The rules beyond the types; the text says which is broken.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.roles.len() > MAX_ROLES {
            return Err(format!("{} delegated roles, at most {MAX_ROLES}", self.roles.len()));
        }
        let mut names = BTreeSet::new();
        self.roles.iter().try_for_each(|role| {
            role.check()?;
            match names.insert(&role.name) {
                true => Ok(()),
                false => Err(format!("two delegations to the role {:?}", role.name)),
            }
        })
    }

    /// The role of this name.
    pub fn role(&self, name: &str) -> Option<&DelegatedRole> {
        self.roles.iter().find(|role| role.name == name)
    }

    /// The usable keys of the role `name`, as [`super::TrustedRoot::keys`].
    pub fn keys(&self, name: &str) -> BTreeSet<[u8; 32]> {
        let role = self.role(name);
        let authority =
            role.map(|role| Authority::new(&self.keys, &role.keyids, role.threshold, "delegating role"));
        authority.iter().flat_map(Authority::keys).map(crate::key::Verifier::identity).collect()
    }

    /// The roles that may speak for `path`, most trusted first, up to and with the first terminating one,
    /// and whether there is one.
    pub fn of(&self, path: &str) -> (Vec<&DelegatedRole>, bool) {
        let mut roles = Vec::new();
        for role in self.roles.iter().filter(|role| role.covers(path)) {
            roles.push(role);
            if role.terminating {
                return (roles, true);
            }
        }
        (roles, false)
    }
}

impl DelegatedRole {
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if name.is_empty() || name.len() > MAX_ROLE_NAME {
            return Err(format!("a delegated role's name has 1 to {MAX_ROLE_NAME} bytes"));
        }
        // They would be stored and listed under the same name.
        if Role::ALL.iter().any(|role| role.name() == name) {
            return Err(format!("a delegation to {name:?}, which is a top-level role"));
        }
        if self.threshold == 0 {
            return Err(format!("the role {name:?} has threshold 0; at least 1 is needed"));
        }
        match (&self.paths, &self.path_hash_prefixes) {
            (Some(paths), None) if paths.iter().all(|path| path.len() <= MAX_PATTERN) => Ok(()),
            (Some(_), None) => Err(format!("the role {name:?} has a pattern of over {MAX_PATTERN} bytes")),
            (None, Some(_)) => Ok(()),
            _ => Err(format!("the role {name:?} needs either `paths` or `path_hash_prefixes`")),
        }
    }

    /// Whether it may speak for the target `path`.
    pub fn covers(&self, path: &str) -> bool {
        if let Some(prefixes) = &self.path_hash_prefixes {
            let hash = digest::sha256(path.as_bytes());
            return prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()));
        }
        self.paths.iter().flatten().any(|pattern| matches(pattern, path))
    }

    /// The name under which the snapshot lists it.
    pub fn listed(&self) -> String {
        format!("{}.json", self.name)
    }
}

impl Verified<Targets> {
    /// Verifies metadata of the role `name` as this role delegates to it: type, signatures, form. Version
    /// and expiry are the caller's to judge.
    ///
    /// # Errors
    /// [`TufError`] saying which rule it breaks; [`TufError::Signature`] too when there is no delegation.
    pub fn verify_role(&self, name: &str, bytes: &[u8]) -> Result<Self, TufError> {
        const SIGNERS: &str = "delegating role";
        let what = role_metadata(name);
        let length = bytes.len() as u64;
        if length > MAX_DELEGATED {
            return Err(TufError::TooLarge { what, length, limit: MAX_DELEGATED });
        }
        let envelope = verify::open::<Targets>(&what, bytes)?;
        let delegations = self.delegations.as_ref();
        let entry = delegations.and_then(|all| Some((all, all.roles.iter().find(|r| r.name == name)?)));
        let authority = match entry {
            Some((all, role)) => Authority::new(&all.keys, &role.keyids, role.threshold, SIGNERS),
            None => Authority::nobody(SIGNERS),
        };
        authority.check(&what, &envelope)?;
        Ok(Self::new(verify::decode(&what, &envelope)?, bytes))
    }
}

/// How errors call the metadata of a delegated role.
pub(super) fn role_metadata(name: &str) -> String {
    format!("metadata of the role {name:?}")
}

/// A role's name as the stem of a file name and URL: RFC 3986 percent-encoding of all but unreserved
/// characters. It holds no separator, and with `.json` after it is neither `.` nor `..`.
pub fn encode_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The inverse of [`encode_name`]; `None` for what it never writes.
pub(super) fn decode_name(name: &str) -> Option<String> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after.get(2..)?;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    let decoded = String::from_utf8(out).ok()?;
    (encode_name(&decoded) == name).then_some(decoded)
}

/// Whether a path pattern covers a path. Both are cut at `/`: a wildcard never reaches over one.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) => {
                let pattern: Vec<char> = pattern.chars().collect();
                let name: Vec<char> = name.chars().collect();
                if !matches_name(&pattern, &name) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// One path segment against one pattern segment: `*`, `?` and `[…]` as in glob(7). Only the last `*` is
/// ever taken back, which is enough and keeps the work at length × length.
fn matches_name(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        let step = match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match class(&pattern[at..], name[from]) {
                Some((length, true)) => Some(length),
                Some((_, false)) => None,
                // No closing bracket: it stands for itself.
                None => (name[from] == '[').then_some(1),
            },
            Some(other) => (*other == name[from]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(length), _) => {
                at += length;
                from += 1;
            }
            (None, Some((begin, taken))) => {
                star = Some((begin, taken + 1));
                at = begin + 1;
                from = taken + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

/// A bracket expression at the start of `pattern`: its length and whether it takes `letter`.
fn class(pattern: &[char], letter: char) -> Option<(usize, bool)> {
    let negated = pattern.get(1) == Some(&'!');
    let begin = if negated { 2 } else { 1 };
    // A bracket that comes first is a member.
    let end = (begin + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    let mut members = &pattern[begin..end];
    let mut found = false;
    while let Some(first) = members.first() {
        match members {
            [low, '-', high, ..] => {
                found |= (*low..=*high).contains(&letter);
                members = &members[3..];
            }
            _ => {
                found |= *first == letter;
                members = &members[1..];
            }
        }
    }
    Some((end + 1, found != negated))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_glob_does_within_one_segment() {
        for (pattern, yes, no) in [
            ("*.tgz", &["foo.tgz", ".tgz"][..], &["a/foo.tgz", "foo.tgz2", "FOO.TGZ"][..]),
            ("foo-?.tgz", &["foo-1.tgz"], &["foo-.tgz", "foo-12.tgz", "foo-/.tgz"]),
            ("releases/*/*", &["releases/x/y", "releases//y"], &["releases/x", "releases/x/y/z"]),
            ("a*b*c", &["abc", "aXbXbYc", "abcbc"], &["abcd", "ac"]),
            ("[abc]x", &["ax", "cx"], &["dx", "x"]),
            ("[!a-c]x", &["dx", "-x"], &["ax", "bx"]),
            ("[]x]", &["]", "x"], &["[", "a"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("a[", &["a["], &["a", "ab"]),
            ("", &[""], &["a", "/"]),
            ("**", &["", "abc"], &["a/b"]),
            ("ü?", &["üß"], &["ü"]),
        ] {
            for path in yes {
                assert!(matches(pattern, path), "{pattern} {path}");
            }
            for path in no {
                assert!(!matches(pattern, path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn hash_prefixes_choose_by_the_paths_digest() {
        let hash = digest::sha256(b"a/1.json");
        let role = |prefix: &str| DelegatedRole {
            name: "bin".to_owned(),
            keyids: Vec::new(),
            threshold: 1,
            terminating: true,
            paths: None,
            path_hash_prefixes: Some(vec![prefix.to_owned()]),
            extra: Extra::new(),
        };
        assert!(role(&hash[..2]).covers("a/1.json"));
        assert!(role("").covers("a/1.json"));
        assert!(!role(&format!("{}x", &hash[..2])).covers("a/1.json"));
    }

    proptest! {
        #[test]
        fn names_survive_encoding_and_are_safe_file_names(name in ".{1,20}") {
            let encoded = encode_name(&name);
            prop_assert!(!encoded.contains('/') && encoded.is_ascii());
            prop_assert_eq!(decode_name(&encoded), Some(name));
        }

        #[test]
        fn no_pattern_takes_long_or_panics(pattern in "[*?a\\[\\]!-]{0,60}", name in "[ab]{0,60}") {
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn a_pattern_without_wildcards_matches_itself_alone(name in "[a-z/]{0,20}", other in "[a-z/]{0,20}") {
            prop_assert!(matches(&name, &name));
            prop_assert_eq!(matches(&name, &other), name == other);
        }
    }
}
