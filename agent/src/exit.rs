//! Exit codes of `farlight-agent`. They are an API: the systemd unit names `CONFIG` in
//! `RestartPreventExitStatus=`.

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or stopped by a signal.
    Ok = 0,
    /// Failed while running.
    Failure = 1,
    /// Wrong arguments (from the argument parser).
    Usage = 2,
    /// The configuration is wrong: restarting does not help.
    Config = 3,
    /// The device is not enrolled, or its identity is unreadable.
    Identity = 4,
    /// A file, folder or port cannot be used.
    Resource = 5,
}

/// An error with the exit code it leads to and a hint for people.
#[derive(Debug)]
pub struct Fatal {
    /// The exit code.
    pub code: ExitCode,
    /// What went wrong.
    pub error: anyhow::Error,
    /// What to do.
    pub hint: Option<String>,
}

impl Fatal {
    /// An error with its code and a hint.
    pub fn new(code: ExitCode, error: impl Into<anyhow::Error>, hint: impl Into<String>) -> Self {
        Self { code, error: error.into(), hint: Some(hint.into()) }
    }
}

impl From<anyhow::Error> for Fatal {
    fn from(error: anyhow::Error) -> Self {
        Self { code: ExitCode::Failure, error, hint: None }
    }
}

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error: {:#}", self.error)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
