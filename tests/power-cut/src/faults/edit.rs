//! Finding places in a recording and changing it there: what `faults.rs` plants its faults with.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, ensure};
use farlight_device::pointer::{Pointer, Slot};

use crate::disk::Disk;
use crate::look::{Journal, Scratch};
use crate::trace::{Act, Body, Event, Node, Trace, is_digest};

/// Paths that nodes had when they got their first name.
pub(super) struct Paths(Vec<(Node, String, bool)>);

impl Paths {
    fn find(&self, node: Node, folders: bool) -> Option<&str> {
        let found = self.0.iter().find(|(at, _, is_folder)| *at == node && *is_folder == folders);
        found.map(|(_, path, _)| path.as_str())
    }

    pub(super) fn file(&self, node: Node) -> Option<&str> {
        self.find(node, false)
    }

    pub(super) fn folder(&self, node: Node) -> Option<&str> {
        self.find(node, true)
    }
}

pub(super) fn paths(trace: &Trace) -> Paths {
    let mut disk = Disk::new(trace);
    let mut paths = Vec::new();
    for at in 0..trace.before.len() {
        let node = Node(at as u32);
        if let Some(path) = disk.path_of_node(node) {
            paths.push((node, path, matches!(trace.before[at], Body::Folder(_))));
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

pub(super) fn position(trace: &Trace, from: usize, is: impl Fn(&Event) -> bool) -> Option<usize> {
    trace.events[from..].iter().position(is).map(|at| from + at)
}

pub(super) fn moved_to(event: &Event, name: &str) -> bool {
    matches!(&event.act, Act::Move { to, .. } if to.1 == name)
}

pub(super) fn is_slot_move(event: &Event) -> bool {
    matches!(&event.act, Act::Move { from, .. } if from.1.ends_with(".part"))
}

pub(super) fn is_self_test(event: &Event) -> bool {
    matches!(&event.act, Act::Start { args } if args.get(1).is_some_and(|arg| arg == "self-test"))
}

pub(super) fn is_agent_start(event: &Event) -> bool {
    matches!(&event.act, Act::Start { .. }) && !is_self_test(event)
}

pub(super) fn folder_of_move(trace: &Trace, at: usize) -> anyhow::Result<Node> {
    match &trace.events[at].act {
        Act::Move { to, .. } => Ok(to.0),
        _ => anyhow::bail!("event {at} is no move"),
    }
}

pub(super) fn moved_nodes(trace: &Trace, names: &[&str]) -> HashSet<Node> {
    let moved = |event: &Event| match &event.act {
        Act::Move { to, node, .. } if names.contains(&to.1.as_str()) => Some(*node),
        _ => None,
    };
    trace.events.iter().filter_map(moved).collect()
}

pub(super) fn after_sync(trace: &Trace, from: usize, folder: Node) -> anyhow::Result<usize> {
    let synced = |event: &Event| matches!(&event.act, Act::SyncEnd { node } if *node == folder);
    Ok(position(trace, from, synced).context("the folder is never synced")? + 1)
}

pub(super) fn drop_syncs(
    trace: &mut Trace,
    range: Range<usize>,
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
pub(super) fn pointer_group(trace: &Trace, from: usize) -> anyhow::Result<Vec<usize>> {
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

/// A release that is deleted.
pub(super) struct Deletion {
    /// The folder of all releases of its model.
    pub(super) folder: Node,
    /// Its digest.
    pub(super) digest: String,
    /// The events that delete it.
    pub(super) group: Vec<usize>,
}

/// The first deletion of a whole release; half ones that were left over do not count.
pub(super) fn deletion(trace: &Trace) -> anyhow::Result<Deletion> {
    let moved = |event: &Event| matches!(&event.act, Act::Move { from, to, .. } if to.1.starts_with(".trash-") && is_digest(&from.1));
    let at = position(trace, 0, moved).context("no release is deleted")?;
    let Act::Move { node: slot, from, to } = &trace.events[at].act else { anyhow::bail!("no move") };
    let gone = |event: &Event| matches!(&event.act, Act::Remove { folder, name } if *folder == to.0 && *name == to.1);
    let end = position(trace, at, gone).context("the trash is not deleted")?;
    let belongs = |event: &Event| match &event.act {
        Act::Move { node, .. } => node == slot,
        Act::Remove { folder, name } => folder == slot || (*folder, name) == (to.0, &to.1),
        Act::SyncBegin { node } | Act::SyncEnd { node } => *node == to.0,
        _ => false,
    };
    let group = (at..=end).filter(|at| belongs(&trace.events[*at])).collect();
    Ok(Deletion { folder: to.0, digest: from.1.clone(), group })
}

/// Pointers that are written: where their move is, what the pointer was before and what it is then.
pub(super) fn pointers(trace: &Trace) -> Vec<(usize, Pointer, Pointer)> {
    let mut disk = Disk::new(trace);
    let mut found = Vec::new();
    for (at, event) in trace.events.iter().enumerate() {
        let read = |disk: &Disk| match &event.act {
            Act::Move { to, .. } if to.1 == "active" => {
                let bytes = disk.file(disk.node_in(to.0, &to.1)?)?;
                Pointer::decode(bytes).ok()
            }
            _ => None,
        };
        let before = read(&disk).unwrap_or_default();
        disk.follow(event);
        if let Some(after) = read(&disk) {
            found.push((at, before, after));
        }
    }
    found
}

/// Whether a pointer names a slot.
pub(super) fn names(pointer: &Pointer, digest: &str) -> bool {
    pointer.active.iter().chain(&pointer.previous).any(|slot: &Slot| slot.digest == digest)
}

/// Deletes another release as well, right after the one that is deleted.
pub(super) fn delete_too(trace: &Trace, deletion: &Deletion, digest: &str) -> anyhow::Result<Trace> {
    let end = *deletion.group.last().context("nothing is deleted")?;
    let mut disk = Disk::new(trace);
    trace.events[..=end].iter().for_each(|event| {
        disk.follow(event);
    });
    let (folder, trash) = (deletion.folder, format!(".trash-{digest}"));
    let node = disk.node_in(folder, digest).context("the other release is not there")?;
    let mut acts = vec![
        Act::Move { from: (folder, digest.to_owned()), to: (folder, trash.clone()), node },
        Act::SyncBegin { node: folder },
        Act::SyncEnd { node: folder },
    ];
    acts.extend(disk.names_in(node).map(|name| Act::Remove { folder: node, name: name.clone() }));
    acts.push(Act::Remove { folder, name: trash });
    let Event { thread, process, .. } = trace.events[end];
    let mut changed = trace.clone();
    let events = acts.into_iter().map(|act| Event { thread, process, act });
    changed.events.splice(end + 1..end + 1, events);
    Ok(changed)
}

/// The first commit to `state.db` after which `is` holds: its writes to the write-ahead log and their sync.
pub(super) fn commit(
    trace: &Trace,
    paths: &Paths,
    is: impl Fn(&Journal) -> bool,
) -> anyhow::Result<Vec<usize>> {
    let log = |node: Node| paths.file(node) == Some("state.db-wal");
    let scratch = Scratch::new()?;
    let mut disk = Disk::new(trace);
    let mut end = None;
    for (at, event) in trace.events.iter().enumerate() {
        disk.follow(event);
        if matches!(&event.act, Act::SyncEnd { node } if log(*node))
            && let Some(database) = scratch.database(&disk.visible(), "state.db")?
            && is(&database.journal())
        {
            end = Some(at);
            break;
        }
    }
    let end = end.context("there is no such commit")?;
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
pub(super) fn shift(trace: &Trace, group: &[usize], to: usize) -> Trace {
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

/// Changes what is written into the pointer files.
pub(super) fn rewrite_pointers(trace: &mut Trace, change: impl Fn(Pointer) -> Pointer) -> anyhow::Result<()> {
    let files = moved_nodes(trace, &["active"]);
    let mut rewritten = 0;
    for event in &mut trace.events {
        if let Act::Write { node, bytes, .. } = &mut event.act
            && files.contains(node)
        {
            let pointer = Pointer::decode(bytes).context("a pointer is not written at once")?;
            *bytes = Arc::new(change(pointer).encode());
            rewritten += 1;
        }
    }
    ensure!(rewritten > 0, "no pointer is written");
    Ok(())
}

/// Replaces create, write, move by cutting and writing the file that is there; the syncs stay.
pub(super) fn in_place(trace: &mut Trace, name: &str) -> anyhow::Result<()> {
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
pub(super) fn held_before(trace: &Trace, events: &[Event], name: &(Node, String)) -> Option<Node> {
    let mut disk = Disk::new(trace);
    events.iter().for_each(|event| {
        disk.follow(event);
    });
    disk.node_in(name.0, &name.1)
}
