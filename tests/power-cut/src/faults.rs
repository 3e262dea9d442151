//! Faults planted into a recording, as if the agent had forgotten a sync or done things in the wrong
//! order. They prove that the rig would see such a fault in the agent; the agent itself has no hooks.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, ensure};

use crate::disk::Disk;
use crate::look::Scratch;
use crate::rules::Rule;
use crate::scenario::Scenario;
use crate::trace::{Act, Event, Node, Trace};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The files of a release are not synced.
    FilesNotSynced,
    /// The folder of a release's files is not synced.
    SlotNotSynced,
    /// The folder of all releases of a model is not synced after a release was moved into it.
    ModelFolderNotSynced,
    /// The pointer file is not synced before it is moved.
    PointerNotSynced,
    /// The folder is not synced after the pointer was moved.
    PointerMoveNotSynced,
    /// The pointer moves on before the release it names is durable.
    PointerBeforeData,
    /// The pointer is written in place.
    PointerInPlace,
    /// The previous release is deleted before its successor is confirmed.
    EarlyCollection,
    /// The self-test is counted only after the release was activated.
    AttemptCountedLate,
    /// A start on a release on trial is counted only after the release was loaded.
    TrialCountedLate,
    /// The trust store's folder is not synced.
    TrustMoveNotSynced,
    /// The trust store's file is not synced before it is moved.
    TrustNotSynced,
    /// Commits to the databases are not synced (SQLite's `synchronous = NORMAL`).
    CommitsNotSynced,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 13] = [
        Self::FilesNotSynced,
        Self::SlotNotSynced,
        Self::ModelFolderNotSynced,
        Self::PointerNotSynced,
        Self::PointerMoveNotSynced,
        Self::PointerBeforeData,
        Self::PointerInPlace,
        Self::EarlyCollection,
        Self::AttemptCountedLate,
        Self::TrialCountedLate,
        Self::TrustMoveNotSynced,
        Self::TrustNotSynced,
        Self::CommitsNotSynced,
    ];

    /// The scenario whose recording has a place for it.
    pub fn scenario(self) -> Scenario {
        match self {
            Self::EarlyCollection => Scenario::Collect,
            Self::TrialCountedLate => Scenario::CrashLoop,
            _ => Scenario::Update,
        }
    }

    /// The rule that it must be seen to break.
    pub fn breaks(self) -> Rule {
        match self {
            Self::FilesNotSynced
            | Self::SlotNotSynced
            | Self::ModelFolderNotSynced
            | Self::PointerBeforeData
            | Self::EarlyCollection => Rule::Kept,
            Self::PointerNotSynced | Self::PointerMoveNotSynced | Self::PointerInPlace => Rule::Pointer,
            Self::AttemptCountedLate | Self::TrialCountedLate => Rule::Counted,
            Self::TrustMoveNotSynced | Self::TrustNotSynced => Rule::Trust,
            Self::CommitsNotSynced => Rule::Rows,
        }
    }

    /// Plants it into a recording of its scenario.
    ///
    /// # Errors
    /// When the recording has no place for it.
    pub fn plant(self, trace: &Trace) -> anyhow::Result<Trace> {
        let paths = paths(trace);
        let is_blob = |path: &str| path.split('/').next_back().is_some_and(|name| name.len() == 64);
        let moved_to = |event: &Event, name: &str| matches!(&event.act, Act::Move { to, .. } if to.1 == name);
        let mut changed = trace.clone();
        match self {
            Self::FilesNotSynced => {
                let blobs = |node: Node| paths.file(node).is_some_and(is_blob);
                drop_syncs(&mut changed, 0..trace.events.len(), blobs)?;
            }
            Self::SlotNotSynced => {
                let part = |node: Node| paths.folder(node).is_some_and(|path| path.ends_with(".part"));
                drop_syncs(&mut changed, 0..trace.events.len(), part)?;
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
                drop_syncs(&mut changed, 0..trace.events.len(), |node| pointers.contains(&node))?;
            }
            Self::TrustNotSynced => {
                let copies = moved_nodes(trace, &["trust-a.json", "trust-b.json"]);
                drop_syncs(&mut changed, 0..trace.events.len(), |node| copies.contains(&node))?;
            }
            Self::PointerMoveNotSynced => {
                let first = position(trace, 0, |event| moved_to(event, "active")).context("no pointer")?;
                let folder = folder_of_move(trace, first)?;
                drop_syncs(&mut changed, first..trace.events.len(), |node| node == folder)?;
            }
            Self::PointerBeforeData => {
                let group = pointer_group(trace, 0)?;
                let blob = position(trace, 0, |event| {
                    matches!(&event.act, Act::SyncBegin { node } if paths.file(*node).is_some_and(is_blob))
                })
                .context("no file of a release is synced")?;
                changed = shift(trace, &group, blob);
            }
            Self::PointerInPlace => in_place(&mut changed, "active")?,
            Self::EarlyCollection => {
                let first = pointer_group(trace, 0)?;
                let begin = first.last().context("no pointer")?;
                let confirm = pointer_group(trace, begin + 1)?;
                let collected = trash_group(trace, *confirm.last().context("no pointer")?)?;
                changed = shift(trace, &collected, *confirm.first().context("no pointer")?);
            }
            Self::AttemptCountedLate => {
                let test = position(trace, 0, is_self_test).context("no self-test")?;
                let commit = attempt_commit(trace, &paths)?;
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
                drop_syncs(&mut changed, 0..trace.events.len(), logs)?;
            }
        }
        Ok(changed)
    }
}

/// Paths that nodes had when they got their first name.
struct Paths(Vec<(Node, String, bool)>);

impl Paths {
    fn find(&self, node: Node, folders: bool) -> Option<&str> {
        let found = self.0.iter().find(|(at, _, is_folder)| *at == node && *is_folder == folders);
        found.map(|(_, path, _)| path.as_str())
    }

    fn file(&self, node: Node) -> Option<&str> {
        self.find(node, false)
    }

    fn folder(&self, node: Node) -> Option<&str> {
        self.find(node, true)
    }
}

fn paths(trace: &Trace) -> Paths {
    let mut disk = Disk::new(trace);
    let mut paths = Vec::new();
    for at in 0..trace.before.len() {
        let node = Node(at as u32);
        if let Some(path) = disk.path_of_node(node) {
            paths.push((node, path, matches!(trace.before[at], crate::trace::Body::Folder(_))));
        }
    }
    for event in &trace.events {
        disk.follow(event);
        if let Act::Create { node, is_folder, .. } = &event.act
            && let Some(path) = disk.path_of_node(*node)
        {
            paths.push((*node, path, *is_folder));
        }
    }
    Paths(paths)
}

fn position(trace: &Trace, from: usize, is: impl Fn(&Event) -> bool) -> Option<usize> {
    trace.events[from..].iter().position(is).map(|at| from + at)
}

fn is_slot_move(event: &Event) -> bool {
    matches!(&event.act, Act::Move { from, .. } if from.1.ends_with(".part"))
}

fn is_self_test(event: &Event) -> bool {
    matches!(&event.act, Act::Start { args } if args.get(1).is_some_and(|arg| arg == "self-test"))
}

fn is_agent_start(event: &Event) -> bool {
    matches!(&event.act, Act::Start { .. }) && !is_self_test(event)
}

fn folder_of_move(trace: &Trace, at: usize) -> anyhow::Result<Node> {
    match &trace.events[at].act {
        Act::Move { to, .. } => Ok(to.0),
        _ => anyhow::bail!("event {at} is no move"),
    }
}

fn moved_nodes(trace: &Trace, names: &[&str]) -> HashSet<Node> {
    let moved = |event: &Event| match &event.act {
        Act::Move { to, node, .. } if names.contains(&to.1.as_str()) => Some(*node),
        _ => None,
    };
    trace.events.iter().filter_map(moved).collect()
}

fn after_sync(trace: &Trace, from: usize, folder: Node) -> anyhow::Result<usize> {
    let synced = |event: &Event| matches!(&event.act, Act::SyncEnd { node } if *node == folder);
    Ok(position(trace, from, synced).context("the folder is never synced")? + 1)
}

fn drop_syncs(
    trace: &mut Trace,
    range: std::ops::Range<usize>,
    of: impl Fn(Node) -> bool,
) -> anyhow::Result<()> {
    let mut dropped = 0;
    for event in &mut trace.events[range] {
        if matches!(&event.act, Act::SyncBegin { node } | Act::SyncEnd { node } if of(*node)) {
            event.act = Act::SyncBegin { node: Node(u32::MAX) };
            dropped += 1;
        }
    }
    ensure!(dropped > 0, "there is no such sync");
    Ok(())
}

/// The events that replace a pointer, the first time after `from`: from its creation to its folder's sync.
fn pointer_group(trace: &Trace, from: usize) -> anyhow::Result<Vec<usize>> {
    let moved = |event: &Event| matches!(&event.act, Act::Move { to, .. } if to.1 == "active");
    let at = position(trace, from, moved).context("no pointer is written")?;
    let Act::Move { to, node: file, .. } = &trace.events[at].act else { anyhow::bail!("no move") };
    let end = after_sync(trace, at, to.0)?;
    let thread = trace.events[at].thread;
    let belongs = |event: &Event| {
        event.thread == thread
            && match &event.act {
                Act::Create { node, .. } | Act::Write { node, .. } | Act::Move { node, .. } => node == file,
                Act::SyncBegin { node } | Act::SyncEnd { node } => node == file || *node == to.0,
                _ => false,
            }
    };
    let begin = trace.events[..at]
        .iter()
        .rposition(|event| matches!(&event.act, Act::Create { node, .. } if node == file))
        .context("the pointer's file is not created")?;
    Ok((begin..end).filter(|at| belongs(&trace.events[*at])).collect())
}

/// The events that delete a release, the first time after `from`.
fn trash_group(trace: &Trace, from: usize) -> anyhow::Result<Vec<usize>> {
    let moved = |event: &Event| matches!(&event.act, Act::Move { to, .. } if to.1.starts_with(".trash-"));
    let at = position(trace, from, moved).context("nothing is collected")?;
    let Act::Move { node: slot, to, .. } = &trace.events[at].act else { anyhow::bail!("no move") };
    let gone = |event: &Event| matches!(&event.act, Act::Remove { folder, name } if *folder == to.0 && *name == to.1);
    let end = position(trace, at, gone).context("the trash is not deleted")?;
    let belongs = |event: &Event| match &event.act {
        Act::Move { node, .. } => node == slot,
        Act::Remove { folder, name } => folder == slot || (*folder, name) == (to.0, &to.1),
        Act::SyncBegin { node } | Act::SyncEnd { node } => *node == to.0,
        _ => false,
    };
    Ok((at..=end).filter(|at| belongs(&trace.events[*at])).collect())
}

/// The commit to `state.db` that counts the first self-test: its writes to the write-ahead log and their
/// sync.
fn attempt_commit(trace: &Trace, paths: &Paths) -> anyhow::Result<Vec<usize>> {
    let log = |node: Node| paths.file(node) == Some("state.db-wal");
    let scratch = Scratch::new()?;
    let mut disk = Disk::new(trace);
    let mut end = None;
    for (at, event) in trace.events.iter().enumerate() {
        disk.follow(event);
        if matches!(&event.act, Act::SyncEnd { node } if log(*node))
            && let Some(database) = scratch.database(&disk.visible(), "state.db")?
            && !database.journal().attempts.is_empty()
        {
            end = Some(at);
            break;
        }
    }
    let end = end.context("no self-test is counted")?;
    let thread = trace.events[end].thread;
    let mut group = vec![end];
    for at in (0..end).rev().filter(|at| trace.events[*at].thread == thread) {
        match &trace.events[at].act {
            Act::SyncBegin { node } | Act::Write { node, .. } if log(*node) => group.push(at),
            _ => break,
        }
    }
    group.reverse();
    Ok(group)
}

/// Moves events to before the one that is at `to` now.
fn shift(trace: &Trace, group: &[usize], to: usize) -> Trace {
    let moved: HashSet<usize> = group.iter().copied().collect();
    let mut events = Vec::with_capacity(trace.events.len());
    for (at, event) in trace.events.iter().enumerate() {
        if at == to {
            events.extend(group.iter().map(|at| trace.events[*at].clone()));
        }
        if !moved.contains(&at) {
            events.push(event.clone());
        }
    }
    if to >= trace.events.len() {
        events.extend(group.iter().map(|at| trace.events[*at].clone()));
    }
    Trace { before: trace.before.clone(), events }
}

/// Replaces create, write, move by cutting and writing the file that is there; the syncs stay.
fn in_place(trace: &mut Trace, name: &str) -> anyhow::Result<()> {
    let mut disk = Disk::new(trace);
    let mut replaced = 0;
    let mut events: Vec<Event> = Vec::with_capacity(trace.events.len());
    for event in trace.events.clone() {
        disk.follow(&event);
        let Act::Move { to, node, .. } = &event.act else {
            events.push(event);
            continue;
        };
        let Some(target) = (to.1 == name).then(|| held_before(trace, &events, to)).flatten() else {
            events.push(event);
            continue;
        };
        // What was written to the new file is written to the old one, where the move was.
        let mut bytes = Vec::new();
        events.retain(|earlier| match &earlier.act {
            Act::Create { node: made, .. } | Act::SyncBegin { node: made } | Act::SyncEnd { node: made } => {
                made != node
            }
            Act::Write { node: written, bytes: some, .. } if written == node => {
                bytes.extend_from_slice(some);
                false
            }
            _ => true,
        });
        let by = |act| Event { thread: event.thread, process: event.process, act };
        events.push(by(Act::Resize { node: target, length: 0 }));
        events.push(by(Act::Write { node: target, offset: 0, bytes: Arc::new(bytes) }));
        events.push(by(Act::SyncBegin { node: target }));
        events.push(by(Act::SyncEnd { node: target }));
        replaced += 1;
    }
    ensure!(replaced > 0, "nothing is replaced");
    trace.events = events;
    Ok(())
}

/// What a name stands for after some events.
fn held_before(trace: &Trace, events: &[Event], name: &(Node, String)) -> Option<Node> {
    let mut disk = Disk::new(trace);
    events.iter().for_each(|event| {
        disk.follow(event);
    });
    disk.node_in(name.0, &name.1)
}
