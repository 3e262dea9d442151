//! Where the repository stands, for people and as JSON: roles, what expires soon, what lacks signatures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use farlight_release::timestamp;
use farlight_release::tuf::Role;
use farlight_wire::Millis;
use serde::{Deserialize, Serialize};

use super::change::Progress;
use crate::cli::output;
use crate::cli::trust;

/// Days before an offline signature expires from which on that is warned of: time to find who has the keys.
const WARN_OFFLINE: u64 = 30;
/// The same for what the cloud signs by itself, which it does at half of at least seven days.
const WARN_ONLINE: u64 = 2;
const DAY: Millis = Millis::from_secs(86_400);

/// What the cloud says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Status {
    roles: BTreeMap<String, RoleStatus>,
    targets: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RoleStatus {
    version: u64,
    expires: u64,
    keys: usize,
    threshold: u64,
}

/// What a command of `farlight repo` answers.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    #[serde(flatten)]
    status: Status,
    /// What expires soon.
    warnings: Vec<String>,
    /// What lacks signatures, and is not published therefore.
    missing: Vec<Progress>,
    /// Where it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        let warnings = status.warnings(trust::now());
        Self { status, warnings, missing: Vec::new(), folder: None }
    }
}

impl Status {
    fn warnings(&self, now: Millis) -> Vec<String> {
        let warn = |(name, role): (&String, &RoleStatus)| {
            let online = [Role::Snapshot, Role::Timestamp].iter().any(|role| role.name() == name);
            let days = if online { WARN_ONLINE } else { WARN_OFFLINE };
            let left = Millis(role.expires).since(now);
            if role.version == 0 || left.0 >= days * DAY.0 {
                return None;
            }
            let cure = match name.as_str() {
                "root" => "run `farlight repo refresh --root --keys DIR`",
                _ if online => "the cloud should have signed it again: see its log",
                _ => "run `farlight repo refresh --keys DIR`",
            };
            let when = timestamp::format(Millis(role.expires));
            Some(if left.0 == 0 {
                format!("{name} expired at {when}: devices install nothing new; {cure}")
            } else {
                format!("{name} expires at {when}, in {} days; {cure}", left.0 / DAY.0)
            })
        };
        self.roles.iter().filter_map(warn).collect()
    }
}

impl Answer {
    /// One that says what lacks signatures.
    pub(super) fn waiting(status: Status, missing: Vec<Progress>, folder: PathBuf) -> Self {
        Self { missing, folder: Some(folder), ..status.into() }
    }

    /// Whether something lacks signatures.
    pub(super) fn is_waiting(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn text(&self) -> String {
        let rows: Vec<[String; 4]> = self
            .status
            .roles
            .iter()
            .map(|(name, at)| {
                let expires =
                    if at.version == 0 { "-".to_owned() } else { timestamp::format(Millis(at.expires)) };
                [name.clone(), at.version.to_string(), format!("{} of {}", at.threshold, at.keys), expires]
            })
            .collect();
        let mut text = output::table(["ROLE", "VERSION", "SIGN", "EXPIRES"], &rows);
        text.push_str(&format!("\n{} signed targets", self.status.targets));
        for warning in &self.warnings {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        text.push_str(&waiting_text(&self.missing));
        if let Some(folder) = &self.folder {
            let folder = folder.display();
            text.push_str(&format!(
                "\nnot published yet: carry {folder} to the other keys and run `farlight repo sign`"
            ));
        }
        text
    }
}

/// One line for each document that lacks signatures.
pub(in crate::cli) fn waiting_text(missing: &[Progress]) -> String {
    let line = |at: &Progress| {
        format!(
            "\n{}: {} of {} signatures by keys of the {}",
            at.role, at.signatures, at.threshold, at.signers
        )
    };
    missing.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_soon_is_warned_of_with_its_cure() {
        let now = Millis(100 * DAY.0);
        let role =
            |days: u64| RoleStatus { version: 1, expires: (100 + days) * DAY.0, keys: 1, threshold: 1 };
        let warnings = |name: &str, days| {
            let roles = BTreeMap::from([(name.to_owned(), role(days))]);
            Status { roles, targets: 0 }.warnings(now).join("")
        };
        assert_eq!(warnings("root", 30), "");
        assert!(warnings("root", 29).contains("refresh --root"));
        assert!(warnings("family", 29).contains("in 29 days"));
        assert_eq!(warnings("timestamp", 3), "");
        assert!(warnings("timestamp", 1).contains("log"));
        assert!(warnings("targets", 0).contains("expired"));
    }
}
