//! What is sent down to a device besides acknowledgements: its desired state and commands.

use serde::{Deserialize, Serialize};

/// The newest desired-state version.
pub type Desired = DesiredV1;
/// The newest command version.
pub type Command = CommandV1;

/// The desired state: the signed assignment, exactly as signed, to be verified before it is parsed
/// (`farlight_release::assignment`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredV1 {
    /// The signed document, JSON.
    pub assignment: Vec<u8>,
}

/// A command. Commands never install anything: that takes a signed assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandV1 {
    /// Identifies the command in its result.
    pub id: String,
    /// What to do.
    pub action: Action,
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Look for new release metadata and the desired state now.
    Refresh,
    /// Close the current window and send what is waiting now.
    Flush,
    /// Activate nothing for so many seconds. Downloads go on, and rolling back never waits.
    PauseUpdates {
        /// How long; at most 31 days.
        seconds: u64,
    },
    /// End a pause.
    ResumeUpdates,
    /// Collect what helps people to see what is wrong, and send it as a report.
    Diagnostics,
}
