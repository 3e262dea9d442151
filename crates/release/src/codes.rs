//! Every code that an error of this crate gives is in the closed list of `farlight-wire`. Each list below
//! has one value a variant; a variant of `TufError` that is not listed does not compile.

use farlight_wire::codes::Code;
use farlight_wire::{DeviceId, Millis, ReleaseId};

use crate::assignment::AssignmentError;
use crate::blob::FetchError;
use crate::manifest::ManifestError;
use crate::tuf::TufError;

fn text() -> String {
    String::new()
}

fn release() -> ReleaseId {
    "a/1.0.0".parse().unwrap()
}

fn device() -> DeviceId {
    "gw-1".parse().unwrap()
}

fn tuf() -> Vec<TufError> {
    use TufError as E;
    vec![
        E::Malformed { what: text(), why: text() },
        E::TooLarge { what: text(), length: 1, limit: 0 },
        E::WrongType { what: text(), found: text() },
        E::Signature { what: text(), signers: "", valid: 0, threshold: 1 },
        E::Rollback { what: text(), trusted: 2, offered: 1 },
        E::MixAndMatch { what: text(), expected: 2, found: 1 },
        E::Expired { what: text(), expires: Millis(0), now: Millis(0) },
        E::HashMismatch { what: text(), why: text() },
        E::Missing { path: text() },
        E::UnknownTarget { path: text() },
        E::Unlisted { role: text() },
        E::TooManyDelegations { path: text(), limit: 1 },
        E::BelowFloor { release: release(), floor: "2.0.0".parse().unwrap() },
        E::Incomplete,
        E::Damaged { what: text(), why: text() },
        E::NotAsked,
    ]
}

/// Fails to compile when a variant is new: then list it above, and its code in `farlight-wire`.
fn listed(error: &TufError) {
    use TufError as E;
    match error {
        E::Malformed { .. }
        | E::TooLarge { .. }
        | E::WrongType { .. }
        | E::Signature { .. }
        | E::Rollback { .. }
        | E::MixAndMatch { .. }
        | E::Expired { .. }
        | E::HashMismatch { .. }
        | E::Missing { .. }
        | E::UnknownTarget { .. }
        | E::Unlisted { .. }
        | E::TooManyDelegations { .. }
        | E::BelowFloor { .. }
        | E::Incomplete
        | E::Damaged { .. }
        | E::NotAsked => {}
    }
}

fn manifest() -> Vec<ManifestError> {
    use ManifestError as E;
    vec![
        E::TooLarge { length: 1 },
        E::Malformed(text()),
        E::Format { found: 2 },
        E::Digest,
        E::Invalid { field: text(), rule: text() },
    ]
}

fn fetch() -> Vec<FetchError> {
    use FetchError as E;
    vec![
        E::Description { id: text(), why: "" },
        E::ChunkMismatch { id: text(), chunk: 0, offset: 0 },
        E::Length { id: text(), expected: 1, found: 0 },
    ]
}

fn assignment() -> Vec<AssignmentError> {
    use AssignmentError as E;
    vec![
        E::Malformed(text()),
        E::Signature { keys: 1 },
        E::WrongDevice { expected: device(), found: device() },
        E::Replayed { sequence: 1, last: 2 },
        E::Expired { expires: Millis(0), now: Millis(0) },
        E::Release(TufError::Incomplete),
    ]
}

#[test]
fn every_code_is_in_the_closed_list() {
    tuf().iter().for_each(listed);
    let codes = tuf()
        .iter()
        .map(TufError::code)
        .chain(manifest().iter().map(ManifestError::code))
        .chain(fetch().iter().map(FetchError::code))
        .chain(assignment().iter().map(AssignmentError::code))
        .collect::<Vec<_>>();
    for code in codes {
        assert_eq!(Code::parse(code).map(Code::as_str), Some(code));
    }
}
