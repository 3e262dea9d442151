//! How a command fails: one exit code a cause (an interface scripts rely on), a message that says what
//! was tried on what, and a hint that says what to do.

use std::fmt;
use std::process::ExitCode;

use farlight_wire::codes::Code;

/// The exit codes of `farlight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// It did not work out, for a reason of its own (the message says which).
    Failure = 1,
    /// Wrong arguments or profile.
    Usage = 2,
    /// A local file or folder cannot be read or written, or does not hold what it should.
    File = 3,
    /// The cloud cannot be reached.
    Unreachable = 4,
    /// The cloud refused the request.
    Refused = 5,
    /// A signature, digest or version does not hold: nothing was changed.
    Verification = 6,
}

/// The table that `--help` shows.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 failure, 2 wrong arguments or profile, 3 local file, \
    4 cloud unreachable, 5 refused by the cloud, 6 signature or digest does not hold";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    exit: Exit,
    code: String,
    message: String,
    hint: Option<String>,
}

impl CliError {
    /// A failure with this exit code, stable dotted code and message.
    pub fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { exit, code: code.into(), message: message.into(), hint: None }
    }

    /// A failure of the command itself.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Exit::Failure, "cli.failure", message)
    }

    /// Wrong arguments or profile.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "cli.usage", message)
    }

    /// A local file that cannot be used.
    pub fn file(message: impl Into<String>) -> Self {
        Self::new(Exit::File, "cli.file", message)
    }

    /// A refusal of model delivery, by its code of the closed list, with the hint that stands there.
    pub fn delivery(exit: Exit, code: Code, message: impl Into<String>) -> Self {
        Self::new(exit, code.as_str(), message).hint(code.hint())
    }

    /// Something that was signed does not hold.
    pub fn verification(code: Code, message: impl Into<String>) -> Self {
        Self::delivery(Exit::Verification, code, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        self
    }

    /// How the process is to end.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The stable dotted code; the cloud's own when it refused.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What was tried, on what, and what went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}
