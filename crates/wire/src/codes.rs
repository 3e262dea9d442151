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
    /// Release metadata has a JSON key twice, which readers understand differently.
    TufDuplicateKey = "tuf.duplicate_key", Never, "look at what serves the repository: none of our tools writes that";
    /// Release metadata is longer than allowed (endless data).
    TufTooLarge = "tuf.too_large", Never, "look at what serves the repository: it sends more than was signed";
    /// Release metadata is of another role than the one asked for.
    TufWrongType = "tuf.wrong_type", Never, "look at what serves the repository: it answers with the wrong file";
    /// No signature on the metadata is by a key that its role names.
    TufUnknownKey = "tuf.unknown_key", Never, "sign with a key of the role; if you did, the device follows another root";
    /// A signature on the metadata stands under a named key and is not by it: changed or forged.
    TufSignature = "tuf.signature", Never, "publish the signed file again, and look at who can change what the repository serves";
    /// Good signatures on the metadata, but fewer than its role asks for.
    TufBelowThreshold = "tuf.below_threshold", Never, "sign with more keys of the role";
    /// An older root in the place of the next one.
    TufRollbackRoot = "tuf.rollback_root", Never, "the repository went back: restore its newest state";
    /// An older timestamp than the one that is trusted already.
    TufRollbackTimestamp = "tuf.rollback_timestamp", Never, "the repository went back, or a mirror lags: restore the newest state";
    /// A new timestamp that names an older snapshot than before.
    TufRollbackSnapshot = "tuf.rollback_snapshot", Never, "the repository went back: restore its newest state, and look at the timestamp key";
    /// A new snapshot that names older metadata of a role than before.
    TufRollbackTargets = "tuf.rollback_targets", Never, "the repository went back: restore its newest state, and look at the online keys";
    /// A genuine file of another state of the repository than the one that was announced.
    TufMixAndMatch = "tuf.mix_and_match", Never, "publish again; a mirror may have copied half of it";
    /// Metadata is past its date (freeze), or the clock is wrong.
    TufExpired = "tuf.expired", Later, "renew it with farlight repo refresh, and check the device's clock";
    /// Metadata, or what it names, ends before its signed length.
    TufTruncated = "tuf.truncated", Never, "the file was cut on the way; look at mirrors and proxies";
    /// The digest of metadata, or of what it names, differs from what was signed.
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
    /// The assignment names a release by what is no name and could lead elsewhere.
    AssignmentName = "assignment.bad_name", Never, "look at the cloud: it signed what none of its own tools writes";
    /// No signature on the assignment is by a key that the repository vouches for: unknown or revoked.
    AssignmentUnknownKey = "assignment.unknown_key", Never, "publish the cloud's assignment key; if it is, the message was forged";
    /// The signature on the assignment stands under a known key and is not by it: changed or forged.
    AssignmentSignature = "assignment.signature", Never, "look at the broker: somebody changes messages";
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
    FetchRefused = "fetch.refused", Never, "look at the server's access rules and log, then assign the release again";
    /// No source has a file that the signed metadata names.
    FetchMissing = "fetch.missing", Never, "publish the release completely, then assign it again";
    /// The list of an offline bundle is missing, malformed, or names no release that was asked for.
    FetchBundle = "fetch.bundle", Never, "make the bundle with farlight release export";
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
    /// A source offers a file that is longer than signed.
    FetchLength = "fetch.length", Never, "the file was extended on the way; look at mirrors and proxies";
    /// A file goes on beyond its signed length (endless data).
    FetchTooLong = "fetch.too_long", Never, "look at what serves the files: it sends more than was signed";
    /// A file ends before its signed length.
    FetchTruncated = "fetch.truncated", Never, "the file was cut on the way; look at mirrors and proxies";
    /// A file of an offline bundle is a link or leads outside of it.
    FetchOutside = "fetch.outside_bundle", Never, "make the bundle with farlight release export; it holds plain files only";
    /// A file could not be written.
    StorageFailed = "storage.failed", Later, "check the state directory's file system and permissions";

    /// A delta does not fit the file it is for, or cannot be read.
    DeltaMalformed = "delta.malformed", Never, "nothing to do: the whole file is fetched instead";
    /// A part of a delta expands beyond the length that it declares (decompression bomb).
    DeltaBomb = "delta.bomb", Never, "find out who signed the release: no tool of ours makes such a delta";

    /// What is on disk is not what was verified.
    VerifyMismatch = "verify.mismatch", Later, "check the storage medium";
    /// The release asks for another version of the agent.
    AgentVersion = "verify.agent_version", Never, "update the agent, or assign a release that fits it";
    /// The release asks for another processor.
    Architecture = "verify.architecture", Never, "assign a release that fits this device";
    /// The release asks for a label that this device does not have.
    Label = "verify.label", Never, "assign a release that fits this device, or correct its labels";

    /// A model file is no ONNX model, or damaged.
    ModelMalformed = "model.malformed", Never, "export the model as ONNX and build the release again";
    /// A model file is larger, deeper or of more parts than is read.
    ModelOverLimits = "model.over_limits", Never, "use a smaller model; the message says which limit it passes";

    /// The engine cannot load it.
    SelfTestLoad = "self_test.load", Never, "build the release for the engine of this agent";
    /// A golden vector differs.
    SelfTestGolden = "self_test.golden_mismatch", Never, "this device's engine computes it differently; choose another variant";
    /// It was measured to need more memory or time an inference than its budget.
    SelfTestBudget = "self_test.over_budget", Never, "raise the budgets in the recipe or use a smaller model";
    /// It asked for more memory than the self-test may have.
    SelfTestMemory = "self_test.memory_limit", Never, "use a smaller model; the limit is its budget and what the agent itself needs";
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

    /// A key of a kind that is not read.
    KeyUnsupported = "key.unsupported", Never, "make ed25519 keys with farlight keys generate";
    /// A public key whose signatures prove nothing.
    KeyWeak = "key.weak", Never, "make a new key with farlight keys generate";
    /// Not a private key in PKCS#8 PEM.
    KeyMalformed = "key.malformed", Never, "name a file that farlight keys generate made";

    /// What was uploaded does not hold together.
    RegistryRefused = "registry.refused", Never, "make it again with farlight release or farlight repo";
    /// The id is no release, or no digest of a blob.
    RegistryId = "registry.bad_id", Never, "name a release as MODEL/VERSION, a blob by its digest";
    /// A release names a blob that was not uploaded.
    RegistryMissingBlob = "registry.missing_blob", Later, "farlight release publish uploads the blobs first";
    /// A published release would change.
    RegistryImmutable = "registry.immutable", Never, "publish under another version";
    /// The repository has another root already.
    RegistryInitialised = "registry.initialised", Never, "use the keys that the repository was begun with";
    /// The repository has no root yet.
    RegistryNotInitialised = "registry.not_initialised", Later, "run farlight repo init --keys DIR";
    /// The registry has no such release.
    RegistryUnknown = "registry.unknown_release", Later, "see farlight release list";

    /// The engine cannot run the model that is to be released.
    ReleaseNotRunnable = "release.not_runnable", Never, "replace the operators and shapes named in the model, or correct the recipe's input";
    /// The model fails on the data that it is evaluated with.
    ReleaseRun = "release.run", Never, "check that the evaluation data is what the recipe says";
    /// The model answers NaN or infinity on the data that it is evaluated with.
    ReleaseNonFinite = "release.non_finite", Never, "check normalisation and training of the model";
    /// The model misses the accuracy that its recipe asks for.
    ReleaseGate = "release.gate", Never, "train it further, or change gate.min_accuracy in the recipe";
    /// No release of this name is published.
    ReleaseUnknown = "release.unknown", Later, "farlight release list shows what is";
    /// The release is withdrawn or below the floor of its model.
    ReleaseNotPermitted = "release.not_permitted", Never, "devices would refuse it; choose a release at or above the floor";
    /// There is no such rollout.
    RolloutUnknown = "rollout.unknown", Never, "farlight rollout status shows them";
    /// A setting of the rollout breaks a rule.
    RolloutSettings = "rollout.settings", Never, "correct the setting that the message names";
    /// The rollout is in a state that does not allow it.
    RolloutState = "rollout.state", Never, "farlight rollout status shows its state";
    /// Another rollout of the model is under way.
    RolloutConflict = "rollout.conflict", Later, "wait for it, or end it: farlight rollout abort";
    /// Nothing of the model ran on the device before.
    RollBackNothing = "rollback.nothing", Never, "name the release to go back to";
    /// The release to go back to is of another model.
    RollBackModel = "rollback.model", Never, "name a release of the model";
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
        matches!(self.phase(), "self_test" | "shadow" | "probation" | "manifest" | "model")
            && !matches!(self, Self::ShadowInconclusive | Self::ManifestDigest)
            || matches!(self, Self::TooManyAttempts | Self::DeltaBomb)
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
