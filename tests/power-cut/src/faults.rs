//! Faults planted into a recording, as if the agent had forgotten a sync or done things in the wrong
//! order. They prove that the rig would see such a fault in the agent; the agent itself has no hooks.

mod edit;

use anyhow::Context;
use farlight_device::pointer::Pointer;
use farlight_wire::report::UpdateState;

use self::edit::{
    commit, delete_too, deletion, drop_syncs, folder_of_move, in_place, is_agent_start, is_self_test,
    is_slot_move, moved_nodes, moved_to, names, paths, pointer_group, pointers, position, rewrite_pointers,
    shift,
};
use crate::rules::Rule;
use crate::scenario::{Scenario, made_by_delta};
use crate::trace::{Act, Event, Node, Trace, is_digest};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The files of a release are not synced.
    FilesNotSynced,
    /// The file that was made by a delta is not synced.
    DeltaResultNotSynced,
    /// The folder of a release's files is not synced.
    SlotNotSynced,
    /// The folder of all releases of a model is not synced after a release was moved into it.
    ModelFolderNotSynced,
    /// The pointer file is not synced before it is moved.
    PointerNotSynced,
    /// The folder is not synced after the pointer was moved.
    PointerMoveNotSynced,
    /// The folder is not synced after the pointer was moved back.
    RevertNotSynced,
    /// The pointer moves on before the release it names is durable.
    PointerBeforeData,
    /// The pointer moves on before the release passed its self-test.
    PointerBeforeTest,
    /// The pointer is written in place.
    PointerInPlace,
    /// A release on trial gets as many starts as it wants.
    TrialsWithoutEnd,
    /// The end of an update is reported before the pointer holds it.
    ReportBeforePointer,
    /// A release is deleted before the pointer that no longer names it is durable.
    EarlyCollection,
    /// The release before the running one is deleted, too.
    GreedyCollection,
    /// A release is deleted before it is durable that its name is another.
    TrashMoveNotSynced,
    /// The self-test is counted only after the release was activated.
    AttemptCountedLate,
    /// A start on a release on trial is counted only after the release was loaded.
    TrialCountedLate,
    /// The trust store's folder is not synced.
    TrustMoveNotSynced,
    /// The trust store's file is not synced before it is moved.
    TrustNotSynced,
    /// The identity is not synced before it is moved.
    IdentityNotSynced,
    /// Commits to the databases are not synced (SQLite's `synchronous = NORMAL`).
    CommitsNotSynced,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 21] = [
        Self::FilesNotSynced,
        Self::DeltaResultNotSynced,
        Self::SlotNotSynced,
        Self::ModelFolderNotSynced,
        Self::PointerNotSynced,
        Self::PointerMoveNotSynced,
        Self::RevertNotSynced,
        Self::PointerBeforeData,
        Self::PointerBeforeTest,
        Self::PointerInPlace,
        Self::TrialsWithoutEnd,
        Self::ReportBeforePointer,
        Self::EarlyCollection,
        Self::GreedyCollection,
        Self::TrashMoveNotSynced,
        Self::AttemptCountedLate,
        Self::TrialCountedLate,
        Self::TrustMoveNotSynced,
        Self::TrustNotSynced,
        Self::IdentityNotSynced,
        Self::CommitsNotSynced,
    ];

    /// The scenarios whose recordings have a place for it.
    pub fn scenarios(self) -> &'static [Scenario] {
        match self {
            Self::FilesNotSynced
            | Self::SlotNotSynced
            | Self::ModelFolderNotSynced
            | Self::PointerNotSynced
            | Self::PointerMoveNotSynced
            | Self::PointerBeforeData
            | Self::PointerBeforeTest
            | Self::PointerInPlace
            | Self::TrialsWithoutEnd
            | Self::TrustMoveNotSynced
            | Self::TrustNotSynced
            | Self::CommitsNotSynced => &[Scenario::Update, Scenario::Delta, Scenario::Config],
            Self::ReportBeforePointer => {
                &[Scenario::Update, Scenario::Delta, Scenario::Config, Scenario::Rollback]
            }
            // A configuration is read back, in the agent's own process: there is no self-test to count.
            Self::AttemptCountedLate => &[Scenario::Update, Scenario::Delta],
            Self::DeltaResultNotSynced => &[Scenario::Delta],
            Self::RevertNotSynced => &[Scenario::Rollback],
            Self::EarlyCollection => &[Scenario::Collect, Scenario::Rollback, Scenario::Install],
            Self::GreedyCollection | Self::TrashMoveNotSynced => &[Scenario::Collect],
            Self::TrialCountedLate => &[Scenario::CrashLoop],
            Self::IdentityNotSynced => &[Scenario::Install],
        }
    }

    /// The rule that it must be seen to break.
    pub fn breaks(self) -> Rule {
        match self {
            Self::FilesNotSynced
            | Self::DeltaResultNotSynced
            | Self::SlotNotSynced
            | Self::ModelFolderNotSynced
            | Self::PointerBeforeData
            | Self::EarlyCollection
            | Self::GreedyCollection => Rule::Kept,
            Self::PointerBeforeTest => Rule::Tested,
            Self::PointerNotSynced
            | Self::PointerMoveNotSynced
            | Self::RevertNotSynced
            | Self::PointerInPlace => Rule::Pointer,
            Self::TrialsWithoutEnd => Rule::GivesUp,
            Self::ReportBeforePointer => Rule::Reports,
            Self::TrashMoveNotSynced => Rule::Slots,
            Self::AttemptCountedLate | Self::TrialCountedLate => Rule::Counted,
            Self::TrustMoveNotSynced | Self::TrustNotSynced => Rule::Trust,
            Self::IdentityNotSynced => Rule::Identity,
            Self::CommitsNotSynced => Rule::Rows,
        }
    }

    /// Plants it into a recording of one of its scenarios.
    ///
    /// # Errors
    /// When the recording has no place for it.
    pub fn plant(self, trace: &Trace) -> anyhow::Result<Trace> {
        let paths = paths(trace);
        let all = 0..trace.events.len();
        let of_release = |node: Node| paths.file(node).is_some_and(|path| path.contains(".part/"));
        let mut changed = trace.clone();
        match self {
            Self::FilesNotSynced => drop_syncs(&mut changed, all, of_release)?,
            Self::DeltaResultNotSynced => {
                let made = made_by_delta(trace).context("nothing is made by a delta")?;
                drop_syncs(&mut changed, all, |node| node == made)?;
            }
            Self::SlotNotSynced => {
                let part = |node: Node| paths.folder(node).is_some_and(|path| path.ends_with(".part"));
                drop_syncs(&mut changed, all, part)?;
            }
            Self::ModelFolderNotSynced => {
                // Up to the pointer's move: what is synced for the pointer comes too late for the release.
                let slot = position(trace, 0, is_slot_move).context("no release is fetched")?;
                let pointer =
                    position(trace, slot, |event| moved_to(event, "active")).context("no pointer")?;
                let folder = folder_of_move(trace, slot)?;
                drop_syncs(&mut changed, slot..pointer, |node| node == folder)?;
            }
            Self::PointerNotSynced => {
                let pointers = moved_nodes(trace, &["active"]);
                drop_syncs(&mut changed, all, |node| pointers.contains(&node))?;
            }
            Self::TrustNotSynced => {
                let copies = moved_nodes(trace, &["trust-a.json", "trust-b.json"]);
                drop_syncs(&mut changed, all, |node| copies.contains(&node))?;
            }
            Self::IdentityNotSynced => {
                let identity = moved_nodes(trace, &["identity.json"]);
                drop_syncs(&mut changed, all, |node| identity.contains(&node))?;
            }
            Self::PointerMoveNotSynced => {
                let first = position(trace, 0, |event| moved_to(event, "active")).context("no pointer")?;
                let folder = folder_of_move(trace, first)?;
                drop_syncs(&mut changed, first..trace.events.len(), |node| node == folder)?;
            }
            Self::RevertNotSynced => {
                let back = pointers(trace).into_iter().find(|(_, before, after)| {
                    before.trials.is_some() && after.trials.is_none() && before.active != after.active
                });
                let (back, ..) = back.context("no pointer goes back")?;
                let folder = folder_of_move(trace, back)?;
                drop_syncs(&mut changed, back..trace.events.len(), |node| node == folder)?;
            }
            Self::PointerBeforeData => {
                let group = pointer_group(trace, 0)?;
                let synced =
                    |event: &Event| matches!(&event.act, Act::SyncBegin { node } if of_release(*node));
                let file = position(trace, 0, synced).context("no file of a release is synced")?;
                changed = shift(trace, &group, file);
            }
            Self::PointerBeforeTest => {
                // The first look at the release under its name: whatever tests it comes later.
                let slot = position(trace, 0, is_slot_move).context("no release is fetched")?;
                let opened = |event: &Event| matches!(&event.act, Act::Open { node } if of_release(*node));
                let opened = position(trace, slot, opened).context("the release is not opened")?;
                changed = shift(trace, &pointer_group(trace, 0)?, opened);
            }
            Self::PointerInPlace => in_place(&mut changed, "active")?,
            Self::TrialsWithoutEnd => rewrite_pointers(&mut changed, |pointer| Pointer {
                trials: pointer.trials.map(|_| u8::MAX),
                ..pointer
            })?,
            Self::ReportBeforePointer => {
                let (_, _, first) = pointers(trace).into_iter().next().context("no pointer")?;
                let release = first.active.context("no release is activated")?.release;
                let ended = commit(trace, &paths, |journal| {
                    journal.updates.get(&release.model.to_string()).is_some_and(|update| {
                        update.release == release
                            && matches!(update.state, UpdateState::Confirmed | UpdateState::RolledBack)
                    })
                })?;
                let end = *ended.last().context("nothing is reported")?;
                let (pointer, ..) = pointers(trace)
                    .into_iter()
                    .rfind(|(at, ..)| *at < end)
                    .context("no pointer comes before the report")?;
                changed = shift(trace, &pointer_group(trace, pointer)?, end + 1);
            }
            Self::EarlyCollection => {
                let deletion = deletion(trace)?;
                let digest = &deletion.digest;
                let leaves =
                    |(_, before, after): &(usize, _, _)| names(before, digest) && !names(after, digest);
                let (pointer, ..) =
                    pointers(trace).into_iter().rfind(leaves).context("no pointer ever named it")?;
                changed = shift(trace, &deletion.group, pointer_group(trace, pointer)?[0]);
            }
            Self::GreedyCollection => {
                let deletion = deletion(trace)?;
                let earlier = pointers(trace).into_iter().rfind(|(at, ..)| *at < deletion.group[0]);
                let (_, _, pointer) = earlier.context("no pointer comes before the deletion")?;
                let previous = pointer.previous.context("there is no release before")?;
                changed = delete_too(trace, &deletion, &previous.digest)?;
            }
            Self::TrashMoveNotSynced => {
                let deletion = deletion(trace)?;
                let range = deletion.group[0]..deletion.group[deletion.group.len() - 1];
                drop_syncs(&mut changed, range, |node| node == deletion.folder)?;
            }
            Self::AttemptCountedLate => {
                let test = position(trace, 0, is_self_test).context("no self-test")?;
                let commit = commit(trace, &paths, |journal| !journal.attempts.is_empty())?;
                let pointer = pointer_group(trace, test)?;
                changed = shift(trace, &commit, pointer.last().context("no pointer")? + 1);
            }
            Self::TrialCountedLate => {
                // A start that finds a release on trial: its first pointer, then the release is opened.
                let start = trace.events.iter().rposition(is_agent_start).context("no start")?;
                let start =
                    trace.events[..start].iter().rposition(is_agent_start).context("one start only")?;
                let group = pointer_group(trace, start)?;
                let end = trace.events[group[0]..]
                    .iter()
                    .position(|event| matches!(event.act, Act::End { .. }))
                    .map_or(trace.events.len(), |at| group[0] + at);
                let is_blob = |path: &str| path.split('/').next_back().is_some_and(is_digest);
                let opened = |event: &Event| matches!(&event.act, Act::Open { node } if paths.file(*node).is_some_and(is_blob));
                let loaded =
                    trace.events[group[0]..end].iter().position(opened).context("nothing is loaded")?;
                changed = shift(trace, &group, group[0] + loaded + 2);
            }
            Self::TrustMoveNotSynced => {
                let moved =
                    |event: &Event| moved_to(event, "trust-a.json") || moved_to(event, "trust-b.json");
                let first = position(trace, 0, moved).context("no trust store is written")?;
                let folder = folder_of_move(trace, first)?;
                drop_syncs(&mut changed, first..trace.events.len(), |node| node == folder)?;
            }
            Self::CommitsNotSynced => {
                let logs = |node: Node| paths.file(node).is_some_and(|path| path.ends_with("-wal"));
                drop_syncs(&mut changed, all, logs)?;
            }
        }
        Ok(changed)
    }
}
