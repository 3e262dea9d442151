//! The closed list of error codes of model delivery, used by agent, API, command line and documents. A code
//! is `phase.what`; each says whether trying again can help and what a person can do. `docs/errors.md` is
//! made from this list, and a test holds the two together.

use std::fmt::Write as _;

/// Whether the same attempt may succeed later without anybody's help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It may: the agent tries again by itself, or the next assignment does.
    Later,
    /// It will not: something has to be changed first.
    Never,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $again:ident, $hint:literal;)*) => {
        /// An error code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*),)* }.trim()
            }

            /// What a person can do about it.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint,)* }
            }

            /// Whether trying again can help.
            pub fn again(self) -> Again {
                match self { $(Self::$name => Again::$again,)* }
            }
        }
    };
}

codes! {
    /// Release metadata is not what the TUF specification says.
    TufMalformed = "tuf.malformed", Never, "publish the repository again with farlight; do not edit its files";
    /// Release metadata is longer than allowed (endless data).
    TufTooLarge = "tuf.too_large", Never, "look at what serves the repository: it sends more than was signed";
    /// Release metadata is of another role than the one asked for.
    TufWrongType = "tuf.wrong_type", Never, "look at what serves the repository: it answers with the wrong file";
    /// Too few valid signatures: forged, or below the threshold.
    TufSignature = "tuf.signature", Never, "sign with enough keys of the role; if you did, somebody changed the file";
    /// Older metadata than what is trusted already.
    TufRollback = "tuf.rollback", Never, "the repository went back: restore its newest state";
    /// Metadata of different states of the repository.
    TufMixAndMatch = "tuf.mix_and_match", Never, "publish again; a mirror may have copied half of it";
    /// Metadata is past its date (freeze), or the clock is wrong.
    TufExpired = "tuf.expired", Later, "renew it with farlight repo refresh, and check the device's clock";
    /// Digest or length differ from what was signed.
    TufHashMismatch = "tuf.hash_mismatch", Never, "the file was changed on the way; look at mirrors and proxies";
    /// The repository lacks a file that it announced.
    TufMissing = "tuf.missing", Later, "publish completely; a mirror may lag behind";
    /// No signed target has this name.
    TufUnknownTarget = "tuf.unknown_target", Later, "sign and publish the release before assigning it";
    /// No metadata was fetched yet.
    TufIncomplete = "tuf.incomplete", Later, "nothing to do: the next refresh brings it";
    /// Stored metadata was damaged.
    TufDamaged = "tuf.damaged", Never, "enrol the device again; what runs keeps running";
    /// The metadata client was used out of order.
    TufNotAsked = "tuf.not_asked", Never, "report this as a defect";
    /// The delegations of the repository are too many or too deep.
    TufDelegations = "tuf.delegations", Never, "use fewer delegated roles";

    /// The manifest is longer than allowed.
    ManifestTooLarge = "manifest.too_large", Never, "shorten labels and profile of the release";
    /// The manifest is not valid JSON of its form, or has a key twice.
    ManifestMalformed = "manifest.malformed", Never, "build the release with farlight release build";
    /// The manifest has a format this agent does not know.
    ManifestFormat = "manifest.format", Never, "update the agent first";
    /// The manifest is not the one its slot is named after.
    ManifestDigest = "manifest.digest", Later, "check the storage medium; it is fetched again";
    /// A field of the manifest breaks a rule.
    ManifestInvalid = "manifest.invalid", Never, "correct the recipe and build again";

    /// The assignment cannot be read.
    AssignmentMalformed = "assignment.malformed", Never, "compare the versions of agent and cloud";
    /// The assignment is not signed by a key that the repository vouches for.
    AssignmentSignature = "assignment.signature", Never, "publish the cloud's assignment key; if it is, the message was forged";
    /// The assignment is for another device.
    AssignmentWrongDevice = "assignment.wrong_device", Never, "look at the broker's access rules: somebody moves messages";
    /// The assignment is older than the last one.
    AssignmentReplayed = "assignment.replayed", Never, "look at the broker: it or somebody replays messages";
    /// The assignment is past its date.
    AssignmentExpired = "assignment.expired", Later, "nothing to do when the cloud is up: it signs a fresh one; else check clocks";
    /// The release is below the signed floor of its model.
    BelowFloor = "assignment.below_floor", Never, "assign a release at or above the floor";

    /// The network or server failed.
    FetchUnreachable = "fetch.unreachable", Later, "check the network and the repository address; it is tried again";
    /// The server answered with a status that will not change.
    FetchRefused = "fetch.refused", Never, "publish the release completely, then assign it again";
    /// The server sends so slowly that it never ends.
    FetchTooSlow = "fetch.too_slow", Later, "another source is tried; look at the server or the link";
    /// More bytes came than the whole update may cost.
    FetchBudget = "fetch.over_budget", Never, "the link or a source is broken: too much had to be fetched again";
    /// Not enough free space for the release.
    FetchNoSpace = "fetch.no_space", Later, "free space in the state directory";
    /// The description of a file in the manifest does not hold together.
    FetchDescription = "fetch.description", Never, "build the release again";
    /// A chunk differs from its signed digest.
    FetchChunkMismatch = "fetch.chunk_mismatch", Never, "the file was changed on the way; look at mirrors and proxies";
    /// More or fewer bytes than signed.
    FetchLength = "fetch.length", Never, "the file was cut or extended on the way; look at mirrors and proxies";
    /// A file of an offline bundle is a link or leads outside of it.
    FetchOutside = "fetch.outside_bundle", Never, "make the bundle with farlight release export; it holds plain files only";
    /// A file could not be written.
    StorageFailed = "storage.failed", Later, "check the state directory's file system and permissions";

    /// A delta does not fit the file it is for, or cannot be read.
    DeltaMalformed = "delta.malformed", Never, "nothing to do: the whole file is fetched instead";

    /// What is on disk is not what was verified.
    VerifyMismatch = "verify.mismatch", Later, "check the storage medium";
    /// The release asks for another agent, architecture or label.
    Incompatible = "verify.incompatible", Never, "assign a release that fits this device";

    /// The engine cannot load it.
    SelfTestLoad = "self_test.load", Never, "build the release for the engine of this agent";
    /// A golden vector differs.
    SelfTestGolden = "self_test.golden_mismatch", Never, "this device's engine computes it differently; choose another variant";
    /// Over the memory, latency or time budget.
    SelfTestBudget = "self_test.over_budget", Never, "raise the budgets in the recipe or use a smaller model";
    /// The self-test did not end in time.
    SelfTestTimeout = "self_test.timeout", Never, "use a smaller model, or raise update.self_test_seconds";
    /// The self-test process died.
    SelfTestCrashed = "self_test.crashed", Never, "the model brings the engine down on this device; see the last log lines";
    /// A configuration release does not hold together on this device.
    SelfTestConfig = "self_test.config", Never, "correct the configuration and release it again";

    /// The candidate failed on live inputs that it answered in the shadow.
    ShadowErrors = "shadow.errors", Never, "see the agent's log for the failing requests";
    /// The candidate gave NaN or infinite outputs in the shadow.
    ShadowNonFinite = "shadow.non_finite", Never, "check normalisation and training of the release";
    /// The candidate agrees with what runs less than the rollout asks for.
    ShadowDisagrees = "shadow.disagrees", Never, "look at its evaluation, or lower the agreement asked for";
    /// Too little traffic to judge the candidate in the shadow.
    ShadowInconclusive = "shadow.inconclusive", Later, "send traffic, or lower the requests asked for";

    /// Failing requests on probation.
    ProbationErrors = "probation.errors", Never, "see the agent's log for the failing requests";
    /// NaN or infinite outputs on probation.
    ProbationNonFinite = "probation.non_finite", Never, "check normalisation and training of the release";
    /// Nearly every answer is the same class.
    ProbationDegenerate = "probation.degenerate", Never, "check normalisation and labels of the release";
    /// It abstains far more than the previous release.
    ProbationAbstains = "probation.abstains", Never, "check calibration and the abstain threshold";
    /// Far slower than the previous release.
    ProbationLatency = "probation.latency", Never, "use a smaller variant";
    /// The agent restarted too often on it: crashes, or a watchdog that ended it.
    ProbationCrashes = "probation.crash_loop", Never, "see the agent's log before its restarts";
    /// Too little traffic until the deadline to say that it is good.
    ProbationInconclusive = "probation.inconclusive", Later, "send traffic or lower min_requests of the rollout";

    /// This very release failed here before.
    KnownBad = "update.known_bad", Never, "release a corrected version, or insist: farlight rollout create --retry-failed";
    /// Started too often without coming to an end.
    TooManyAttempts = "update.too_many_attempts", Never, "the device restarts during the update; look at its power and log";
    /// A phase of the update passed its deadline.
    Deadline = "update.deadline", Later, "the device was too slow, paused or offline too long; assign it again";
    /// Another wish took its place, or it was called off.
    Superseded = "update.superseded", Later, "nothing to do";
    /// The previous release could not be brought back in time; the next start tries again.
    RollBackStuck = "rollback.stuck", Later, "restart the agent; check the storage medium";
    /// The trust store is unreadable: no new installs until the device is enrolled again.
    TrustLost = "trust.lost", Never, "enrol the device again; what runs keeps running";
}

impl Code {
    /// The code with this text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }

    /// The phase it belongs to: the part before the dot.
    pub fn phase(self) -> &'static str {
        self.as_str().split('.').next().unwrap_or_default()
    }

    /// Whether a release is to blame for an update that ended so: it is then not tried again here until an
    /// operator insists. What the network, the clock, the storage or another wish ended is not held
    /// against it.
    pub fn blames_release(self) -> bool {
        matches!(self.phase(), "self_test" | "shadow" | "probation" | "manifest")
            && !matches!(self, Self::ShadowInconclusive | Self::ManifestDigest)
            || matches!(self, Self::TooManyAttempts)
    }
}

/// The table of all codes as Markdown, as it stands in `docs/errors.md`.
pub fn table() -> String {
    let mut out = String::from("| code | meaning | tried again | what to do |\n|---|---|---|---|\n");
    for code in Code::ALL {
        let again = match code.again() {
            Again::Later => "yes",
            Again::Never => "no",
        };
        let _ = writeln!(out, "| `{}` | {} | {again} | {} |", code.as_str(), code.meaning(), code.hint());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_found_by_their_text() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            assert!(!code.meaning().is_empty() && !code.hint().is_empty());
            assert_ne!(code.phase(), code.as_str());
        }
        assert_eq!(Code::parse("nothing.known"), None);
    }

    #[test]
    fn the_document_holds_the_table() {
        let document = include_str!("../../../docs/errors.md");
        assert!(
            document.contains(&table()),
            "docs/errors.md is not the list of codes; it should hold:\n{}",
            table()
        );
    }
}
