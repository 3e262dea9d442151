//! The closed list of the agent's own error codes, as reported to the cloud and shown to people. Codes of
//! metadata, assignments, manifests and chunks come from `farlight-release` (`tuf.*`, `assignment.*`,
//! `manifest.*`, `fetch.chunk_mismatch`, `fetch.length`).

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $hint:literal;)*) => {
        /// An error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])* $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text of the code: `phase.what`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What a person can do about it.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint,)* }
            }
        }
    };
}

codes! {
    /// The network or server failed until the deadline.
    FetchUnreachable = "fetch.unreachable", "check the network and the repository address; the update is tried again on the next assignment";
    /// The server answered with a status that will not change.
    FetchRefused = "fetch.refused", "publish the release completely, then assign it again";
    /// Not enough free space for the release.
    FetchNoSpace = "fetch.no_space", "free space in the state directory";
    /// A file could not be written.
    StorageFailed = "storage.failed", "check the state directory's file system and permissions";
    /// What is on disk is not what was verified.
    VerifyMismatch = "verify.mismatch", "check the storage medium";
    /// The release asks for another agent, architecture or label.
    Incompatible = "verify.incompatible", "assign a release that fits this device";
    /// The engine cannot load it.
    SelfTestLoad = "self_test.load", "build the release for the engine of this agent";
    /// A golden vector differs.
    SelfTestGolden = "self_test.golden_mismatch", "this device's engine computes it differently; choose another variant";
    /// Over the memory or latency budget, or not finished in time.
    SelfTestBudget = "self_test.over_budget", "raise the budgets in the recipe or use a smaller model";
    /// The self-test process died.
    SelfTestCrashed = "self_test.crashed", "the model brings the engine down on this device; see the last log lines";
    /// Failing requests on probation.
    ProbationErrors = "probation.errors", "see the agent's log for the failing requests";
    /// NaN or infinite outputs on probation.
    ProbationNonFinite = "probation.non_finite", "check normalisation and training of the release";
    /// Nearly every answer is the same class.
    ProbationDegenerate = "probation.degenerate", "check normalisation and labels of the release";
    /// It abstains far more than the previous release.
    ProbationAbstains = "probation.abstains", "check calibration and the abstain threshold";
    /// Far slower than the previous release.
    ProbationLatency = "probation.latency", "use a smaller variant";
    /// The agent restarted too often on it.
    ProbationCrashes = "probation.crash_loop", "see the agent's log before its restarts";
    /// Too little traffic until the deadline to say that it is good.
    ProbationInconclusive = "probation.inconclusive", "send traffic or lower min_requests of the rollout";
    /// It was tried and failed here before.
    KnownBad = "update.known_bad", "a newer assignment must ask for it again";
    /// Started too often without coming to an end.
    TooManyAttempts = "update.too_many_attempts", "the device restarts during the update; look at its power and log";
    /// The deadline of the whole update passed.
    Deadline = "update.deadline", "the device was too slow or offline too long; assign it again";
    /// Another assignment took its place.
    Superseded = "update.superseded", "nothing to do";
    /// The trust store is unreadable: no new installs until the device is enrolled again.
    TrustLost = "trust.lost", "enrol the device again; what runs keeps running";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        texts.sort_unstable();
        let n = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), n);
    }
}
