//! Exit codes of `farlight-cloud`: an interface that service units and scripts rely on.

use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Ended as asked.
    Success,
    /// Something failed at run time; a restart may help.
    Failure,
    /// Wrong usage or configuration; a restart cannot help.
    Usage,
    /// The port is taken or the data folder or database cannot be used.
    Unavailable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Unavailable => 3,
        })
    }
}
