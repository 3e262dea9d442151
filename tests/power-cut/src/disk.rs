//! A disk under the strict POSIX model: what was done is visible at once, but durable only by a sync. Bytes
//! of a file need a sync of the file; a name (created, moved or removed) needs a sync of its folder, and a
//! sync of the new file does not bring its name. Until then each of these may or may not survive a cut,
//! in any combination; a move is atomic, a write may be torn between sectors.

use std::collections::HashMap;
use std::sync::Arc;

use crate::trace::{Act, Body, Content, Event, Node, ROOT, Trace, Tree};

/// Bytes that a device writes whole.
pub const SECTOR: u64 = 512;

/// A change that is not durable yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A name in a folder stands for this node, or for nothing.
    Name {
        /// The folder.
        folder: Node,
        /// The name.
        name: String,
        /// What it stands for.
        node: Option<Node>,
    },
    /// A name moved.
    Move {
        /// Old folder and name.
        from: (Node, String),
        /// New folder and name.
        to: (Node, String),
        /// What moved.
        node: Node,
    },
    /// Bytes of a file.
    Write {
        /// The file.
        node: Node,
        /// Where.
        offset: u64,
        /// What.
        bytes: Arc<Vec<u8>>,
    },
    /// Length of a file.
    Resize {
        /// The file.
        node: Node,
        /// Its new length.
        length: u64,
    },
}

/// How much of a change survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// Of a write: its first so many sectors.
    Head(u64),
    /// Of a write: the length it gives the file, and none of its bytes.
    Length,
}

/// Which pending changes survive a cut, in their order.
pub type Choice = Vec<Option<Part>>;

#[derive(Debug, Clone)]
struct Pending {
    stamp: u64,
    change: Change,
}

/// The disk.
#[derive(Debug, Clone)]
pub struct Disk {
    visible: Vec<Body>,
    durable: Vec<Body>,
    pending: Vec<Pending>,
    /// Syncs under way: what they will make durable is what was pending when they began.
    syncs: HashMap<(u32, Node), u64>,
    stamp: u64,
}

impl Change {
    fn is_covered_by_sync_of(&self, synced: Node) -> bool {
        match self {
            Self::Name { folder, .. } => *folder == synced,
            // Both names change at once: the folder that gets the new one says when.
            Self::Move { to, .. } => to.0 == synced,
            Self::Write { node, .. } | Self::Resize { node, .. } => *node == synced,
        }
    }

    /// Sectors that a write touches.
    pub fn sectors(&self) -> u64 {
        match self {
            Self::Write { offset, bytes, .. } if !bytes.is_empty() => {
                (offset + bytes.len() as u64 - 1) / SECTOR - offset / SECTOR + 1
            }
            _ => 0,
        }
    }

    fn apply(&self, part: Part, bodies: &mut [Body]) {
        match self {
            Self::Name { folder, name, node } => set_name(bodies, *folder, name, *node),
            Self::Move { from, to, node } => {
                set_name(bodies, from.0, &from.1, None);
                set_name(bodies, to.0, &to.1, Some(*node));
            }
            Self::Write { node, offset, bytes } => {
                let end = offset + bytes.len() as u64;
                let kept = match part {
                    Part::Whole => end,
                    Part::Head(sectors) => ((offset / SECTOR + sectors) * SECTOR).clamp(*offset, end),
                    Part::Length => *offset,
                };
                let kept = &bytes[..(kept - offset) as usize];
                change_bytes(bodies, *node, |file| {
                    let (from, to) = (*offset as usize, *offset as usize + kept.len());
                    let length = if part == Part::Length { end as usize } else { to };
                    if file.len() < length {
                        file.resize(length, 0);
                    }
                    file[from..to].copy_from_slice(kept);
                });
            }
            Self::Resize { node, length } => {
                change_bytes(bodies, *node, |file| file.resize(*length as usize, 0));
            }
        }
    }
}

fn set_name(bodies: &mut [Body], folder: Node, name: &str, node: Option<Node>) {
    if let Some(Body::Folder(names)) = bodies.get_mut(folder.0 as usize) {
        let names = Arc::make_mut(names);
        match node {
            Some(node) => names.insert(name.to_owned(), node),
            None => names.remove(name),
        };
    }
}

fn change_bytes(bodies: &mut [Body], node: Node, change: impl FnOnce(&mut Vec<u8>)) {
    if let Some(Body::File(content)) = bodies.get_mut(node.0 as usize) {
        Content::change(content, change);
    }
}

impl Disk {
    /// A disk on which everything is durable.
    pub fn new(trace: &Trace) -> Self {
        Self {
            visible: trace.before.clone(),
            durable: trace.before.clone(),
            pending: Vec::new(),
            syncs: HashMap::new(),
            stamp: 0,
        }
    }

    /// Follows one event; whether it changed what a cut may leave.
    pub fn follow(&mut self, event: &Event) -> bool {
        let change = match &event.act {
            Act::Create { folder, name, node, is_folder } => {
                self.make(*node, *is_folder);
                Change::Name { folder: *folder, name: name.clone(), node: Some(*node) }
            }
            Act::Move { from, to, node } => Change::Move { from: from.clone(), to: to.clone(), node: *node },
            Act::Remove { folder, name } => Change::Name { folder: *folder, name: name.clone(), node: None },
            Act::Write { node, offset, bytes } => {
                Change::Write { node: *node, offset: *offset, bytes: Arc::clone(bytes) }
            }
            Act::Resize { node, length } => Change::Resize { node: *node, length: *length },
            Act::SyncBegin { node } => {
                self.syncs.insert((event.thread, *node), self.stamp);
                return false;
            }
            Act::SyncEnd { node } => {
                let covered = self.syncs.remove(&(event.thread, *node)).unwrap_or(0);
                return self.settle(*node, covered);
            }
            Act::Open { .. } | Act::Start { .. } | Act::Said { .. } | Act::End { .. } | Act::Other => {
                return false;
            }
        };
        change.apply(Part::Whole, &mut self.visible);
        self.stamp += 1;
        self.pending.push(Pending { stamp: self.stamp, change });
        true
    }

    fn make(&mut self, node: Node, is_folder: bool) {
        let body = if is_folder { Body::empty_folder() } else { Body::empty_file() };
        for bodies in [&mut self.visible, &mut self.durable] {
            // Nodes are numbered in order; one whose creation a planted fault moved leaves room before it.
            while bodies.len() <= node.0 as usize {
                bodies.push(Body::empty_file());
            }
            bodies[node.0 as usize] = body.clone();
        }
    }

    fn settle(&mut self, node: Node, upto: u64) -> bool {
        let (covered, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.stamp <= upto && pending.change.is_covered_by_sync_of(node));
        self.pending = left;
        covered.iter().for_each(|pending| pending.change.apply(Part::Whole, &mut self.durable));
        !covered.is_empty()
    }

    /// Changes that a cut now may or may not leave.
    pub fn pending(&self) -> Vec<&Change> {
        self.pending.iter().map(|pending| &pending.change).collect()
    }

    /// What processes see.
    pub fn visible(&self) -> Tree {
        Tree::from_nodes(&self.visible)
    }

    /// The path of a name in a folder, as processes see it.
    pub fn path_of(&self, folder: Node, name: &str) -> Option<String> {
        let mut found = None;
        self.walk(ROOT, "", &mut |at, path| {
            if at == folder {
                found = Some(format!("{path}{name}"));
            }
        });
        found
    }

    /// The path of a node, as processes see it.
    pub fn path_of_node(&self, node: Node) -> Option<String> {
        let mut found = None;
        self.walk(ROOT, "", &mut |folder, path| {
            if let Some(Body::Folder(names)) = self.visible.get(folder.0 as usize)
                && let Some((name, _)) = names.iter().find(|(_, at)| **at == node)
            {
                found = Some(format!("{path}{name}"));
            }
        });
        found
    }

    /// The node of a name in a folder, as processes see it.
    pub fn node_in(&self, folder: Node, name: &str) -> Option<Node> {
        match self.visible.get(folder.0 as usize) {
            Some(Body::Folder(names)) => names.get(name).copied(),
            _ => None,
        }
    }

    /// Names in a folder, as processes see them.
    pub fn names_in(&self, folder: Node) -> impl Iterator<Item = &String> {
        match self.visible.get(folder.0 as usize) {
            Some(Body::Folder(names)) => Some(names.keys()),
            _ => None,
        }
        .into_iter()
        .flatten()
    }

    /// Bytes of a file, as processes see them.
    pub fn file(&self, node: Node) -> Option<&[u8]> {
        match self.visible.get(node.0 as usize)? {
            Body::File(content) => Some(&content.bytes),
            Body::Folder(_) => None,
        }
    }

    /// Calls `each` with every folder and its path, which ends in `/` below the root.
    fn walk(&self, folder: Node, path: &str, each: &mut impl FnMut(Node, &str)) {
        each(folder, path);
        let Some(Body::Folder(names)) = self.visible.get(folder.0 as usize) else { return };
        for (name, node) in names.iter() {
            if matches!(self.visible.get(node.0 as usize), Some(Body::Folder(_))) {
                self.walk(*node, &format!("{path}{name}/"), each);
            }
        }
    }

    /// What a cut leaves that keeps these of the pending changes.
    pub fn after_cut(&self, choice: &Choice) -> Tree {
        let mut bodies = self.durable.clone();
        for (pending, part) in self.pending.iter().zip(choice) {
            if let Some(part) = part {
                pending.change.apply(*part, &mut bodies);
            }
        }
        Tree::from_nodes(&bodies)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Node = Node(1);
    const B: Node = Node(2);

    fn disk() -> Disk {
        Disk::new(&Trace { before: vec![Body::empty_folder()], events: vec![] })
    }

    fn by(thread: u32, act: Act) -> Event {
        Event { thread, process: 1, act }
    }

    fn create(node: Node, name: &str) -> Act {
        Act::Create { folder: ROOT, name: name.into(), node, is_folder: false }
    }

    fn write(node: Node, offset: u64, bytes: &[u8]) -> Act {
        Act::Write { node, offset, bytes: Arc::new(bytes.to_vec()) }
    }

    fn follow(disk: &mut Disk, acts: Vec<Act>) {
        acts.into_iter().for_each(|act| {
            disk.follow(&by(1, act));
        });
    }

    fn sync(node: Node) -> Vec<Act> {
        vec![Act::SyncBegin { node }, Act::SyncEnd { node }]
    }

    fn nothing_kept(disk: &Disk) -> Tree {
        disk.after_cut(&vec![None; disk.pending().len()])
    }

    fn all_kept(disk: &Disk) -> Tree {
        disk.after_cut(&vec![Some(Part::Whole); disk.pending().len()])
    }

    #[test]
    fn a_synced_file_without_a_synced_name_is_lost() {
        let mut disk = disk();
        follow(&mut disk, vec![create(A, "a"), write(A, 0, b"data")]);
        follow(&mut disk, sync(A));
        assert!(nothing_kept(&disk).0.is_empty());
        assert_eq!(all_kept(&disk).file("a"), Some(&b"data"[..]));
        follow(&mut disk, sync(ROOT));
        assert_eq!(nothing_kept(&disk).file("a"), Some(&b"data"[..]));
        assert!(disk.pending().is_empty());
    }

    #[test]
    fn a_synced_name_without_a_synced_file_is_empty_or_torn() {
        let mut disk = disk();
        follow(&mut disk, vec![create(A, "a")]);
        follow(&mut disk, sync(ROOT));
        follow(&mut disk, vec![write(A, 0, &[7; 1300])]);
        assert_eq!(nothing_kept(&disk).file("a"), Some(&b""[..]));
        assert_eq!(disk.after_cut(&vec![Some(Part::Head(1))]).file("a"), Some(&[7; 512][..]));
        assert_eq!(disk.after_cut(&vec![Some(Part::Length)]).file("a"), Some(&[0; 1300][..]));
        assert_eq!(disk.pending()[0].sectors(), 3);
    }

    #[test]
    fn a_move_replaces_at_once_or_not_at_all() {
        let mut disk = disk();
        follow(&mut disk, vec![create(A, "active"), write(A, 0, b"old")]);
        follow(&mut disk, [sync(A), sync(ROOT)].concat());
        follow(&mut disk, vec![create(B, "new"), write(B, 0, b"new")]);
        follow(&mut disk, sync(B));
        follow(
            &mut disk,
            vec![Act::Move { from: (ROOT, "new".into()), to: (ROOT, "active".into()), node: B }],
        );
        assert_eq!(nothing_kept(&disk).file("active"), Some(&b"old"[..]));
        let moved = disk.after_cut(&vec![None, Some(Part::Whole)]);
        assert_eq!((moved.file("active"), moved.0.len()), (Some(&b"new"[..]), 1));
    }

    #[test]
    fn a_sync_covers_only_what_was_done_before_it_began() {
        let mut disk = disk();
        follow(&mut disk, vec![create(A, "a")]);
        follow(&mut disk, sync(ROOT));
        follow(&mut disk, vec![write(A, 0, b"1")]);
        disk.follow(&by(1, Act::SyncBegin { node: A }));
        disk.follow(&by(2, write(A, 1, b"2")));
        disk.follow(&by(1, Act::SyncEnd { node: A }));
        assert_eq!(nothing_kept(&disk).file("a"), Some(&b"1"[..]));
        assert_eq!(all_kept(&disk).file("a"), Some(&b"12"[..]));
    }

    proptest! {
        /// Whatever is done: keeping all gives what processes see, and after syncing everything any cut does.
        #[test]
        fn all_kept_is_what_is_seen(acts in prop::collection::vec((0_u8..5, 1_u32..5, 0_u64..2000, 0_usize..1500), 1..40)) {
            let mut disk = disk();
            let mut made = std::collections::BTreeSet::new();
            for (kind, node, offset, length) in acts {
                let (node, name) = (Node(node), format!("f{node}"));
                let act = match kind {
                    _ if made.insert(node) => create(node, &name),
                    0 | 1 => write(node, offset, &vec![length as u8; length]),
                    2 => Act::Resize { node, length: offset },
                    3 => Act::SyncEnd { node },
                    _ => Act::Move { from: (ROOT, name.clone()), to: (ROOT, format!("g{}", offset % 3)), node },
                };
                if matches!(act, Act::SyncEnd { .. }) {
                    disk.follow(&by(1, Act::SyncBegin { node }));
                }
                disk.follow(&by(1, act));
                prop_assert!(all_kept(&disk).differences(&disk.visible()).is_empty());
            }
            made.insert(ROOT);
            made.iter().for_each(|node| follow(&mut disk, sync(*node)));
            prop_assert!(disk.pending().is_empty());
            prop_assert!(nothing_kept(&disk).differences(&disk.visible()).is_empty());
        }
    }
}
