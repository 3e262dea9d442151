//! What must hold after a cut at each moment of a recording, found from what the agent did and not from
//! what it meant: something counts as relied upon as soon as the thread that wrote it does anything but
//! sync it, because from then on others may have acted on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use farlight_device::pointer::Pointer;
use farlight_release::config;
use serde_json::Value;

use crate::disk::Disk;
use crate::look::{self, DATABASES, Rows, Scratch, Trusted};
use crate::trace::{Act, Event, Node, ROOT, Trace, Tree, is_digest};

/// What must hold after a cut.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Required {
    /// Each model's pointer has at least this sequence.
    pub pointers: BTreeMap<String, u64>,
    /// Models of which a release was confirmed and that were not taken from the device: they must answer.
    pub serving: BTreeSet<String>,
    /// Releases (manifest digests) that passed their self-test here: nothing else may answer.
    pub tested: BTreeSet<String>,
    /// Releases (digests) that were confirmed: what the device ends on without network.
    pub confirmed: BTreeSet<String>,
    /// Self-tests begun of each release (digest) that has not been confirmed.
    pub tests_begun: BTreeMap<String, u32>,
    /// Starts of the agent on each release (digest) on trial.
    pub starts: BTreeMap<String, u32>,
    /// Versions in the trust store; `None` before there is one.
    pub trust: Option<Trusted>,
    /// Whether the device knows who it is.
    pub is_enrolled: bool,
    /// Rows of each database.
    pub rows: BTreeMap<String, Arc<Rows>>,
}

impl Required {
    /// What a cut left is the least that the next one may leave.
    pub fn left(&mut self, tree: &Tree) {
        for (model, pointer) in look::pointers(tree) {
            if let Some(pointer) = pointer {
                self.pointers.insert(model, pointer.sequence);
            }
        }
        self.trust = look::trusted(tree).or(self.trust.take());
    }
}

/// What must hold, moment by moment.
#[derive(Debug)]
pub struct Evidence {
    /// Distinct requirements.
    pub required: Vec<Required>,
    /// Which of them holds after each event.
    pub after: Vec<usize>,
}

/// Written, and not yet relied upon.
enum Owed {
    Pointer(String, Pointer),
    Trust(Trusted),
    Identity,
    Commit(String, Arc<Rows>),
}

struct Follower<'a> {
    disk: Disk,
    scratch: &'a Scratch,
    may_remove: bool,
    now: Required,
    owed: Vec<(u32, Owed)>,
    /// Rows of each database as processes see them.
    visible: BTreeMap<String, Arc<Rows>>,
    /// By thread the node whose frame header that ends a transaction it wrote: its page comes next. Two
    /// threads may commit to two databases at once.
    committing: HashMap<u32, Node>,
    /// Releases (digests) on trial when the current life began, until its first look at them.
    on_trial: HashSet<String>,
    agent: u32,
    testing: BTreeMap<u32, String>,
}

/// Finds what must hold. `may_remove`: the recording takes models from the device on purpose.
///
/// # Errors
/// When a copy of a database cannot be written.
pub fn find(trace: &Trace, may_remove: bool, scratch: &Scratch) -> anyhow::Result<Evidence> {
    let mut follower = Follower {
        disk: Disk::new(trace),
        scratch,
        may_remove,
        now: Required::default(),
        owed: Vec::new(),
        visible: BTreeMap::new(),
        committing: HashMap::new(),
        on_trial: HashSet::new(),
        agent: 0,
        testing: BTreeMap::new(),
    };
    follower.begin()?;
    let mut evidence = Evidence { required: vec![follower.now.clone()], after: Vec::new() };
    for event in &trace.events {
        follower.follow(event)?;
        if evidence.required.last() != Some(&follower.now) {
            evidence.required.push(follower.now.clone());
        }
        evidence.after.push(evidence.required.len() - 1);
    }
    Ok(evidence)
}

impl Follower<'_> {
    /// What the recording begins with is durable and relied upon.
    fn begin(&mut self) -> anyhow::Result<()> {
        let tree = self.disk.visible();
        for (model, pointer) in look::pointers(&tree) {
            if let Some(pointer) = pointer {
                let known = pointer.active.iter().chain(&pointer.previous);
                self.now.tested.extend(known.map(|slot| slot.digest.clone()));
                self.written(&model, &pointer);
                self.relied(Owed::Pointer(model, pointer));
            }
        }
        self.now.trust = look::trusted(&tree);
        self.now.is_enrolled = tree.file("identity.json").is_some();
        for database in DATABASES {
            if let Some(found) = self.scratch.database(&tree, database)? {
                self.visible.insert(database.to_owned(), Arc::new(found.rows));
                self.now.rows.insert(database.to_owned(), Arc::clone(&self.visible[database]));
            }
        }
        Ok(())
    }

    fn follow(&mut self, event: &Event) -> anyhow::Result<()> {
        if !matches!(event.act, Act::SyncBegin { .. } | Act::SyncEnd { .. }) {
            let (mine, others): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.owed).into_iter().partition(|(thread, _)| *thread == event.thread);
            self.owed = others;
            mine.into_iter().for_each(|(_, owed)| self.relied(owed));
        }
        self.disk.follow(event);
        match &event.act {
            Act::Move { to, .. } => self.moved(event.thread, to),
            Act::Write { node, offset, bytes } => self.wrote(event.thread, *node, *offset, bytes)?,
            Act::Open { node } if event.process == self.agent => self.opened(*node),
            Act::Start { args } => self.started(event.process, args),
            Act::Said { bytes } => self.said(event.process, bytes),
            _ => {}
        }
        Ok(())
    }

    fn moved(&mut self, thread: u32, to: &(Node, String)) {
        let Some(path) = self.disk.path_of(to.0, &to.1) else { return };
        let tree = self.disk.visible();
        let bytes = tree.file(&path).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let owed = match parts[..] {
            ["models", model, "active"] => {
                let Ok(pointer) = Pointer::decode(bytes) else { return };
                self.written(model, &pointer);
                Owed::Pointer(model.to_owned(), pointer)
            }
            ["trust-a.json" | "trust-b.json"] => {
                let Some(trusted) = look::trust_copy(bytes) else { return };
                Owed::Trust(trusted)
            }
            ["identity.json"] => Owed::Identity,
            _ => return,
        };
        self.owed.push((thread, owed));
    }

    /// From here on a cut may leave this pointer.
    fn written(&mut self, model: &str, pointer: &Pointer) {
        match &pointer.active {
            Some(active) if pointer.trials.is_none() => {
                self.now.confirmed.insert(active.digest.clone());
                self.now.tests_begun.remove(&active.digest);
            }
            Some(_) => {}
            None if self.may_remove => {
                self.now.serving.remove(model);
            }
            None => {}
        }
    }

    fn relied(&mut self, owed: Owed) {
        match owed {
            Owed::Pointer(model, pointer) => {
                if pointer.active.is_some() && pointer.trials.is_none() {
                    self.now.serving.insert(model.clone());
                }
                self.now.pointers.insert(model, pointer.sequence);
            }
            Owed::Trust(trusted) => self.now.trust = Some(trusted),
            Owed::Identity => self.now.is_enrolled = true,
            Owed::Commit(database, rows) => {
                self.now.rows.insert(database.clone(), rows);
                self.forget_deleted(&database);
            }
        }
    }

    /// A row that is no longer to be seen may be gone after a cut, too.
    fn forget_deleted(&mut self, database: &str) {
        if let (Some(required), Some(visible)) = (self.now.rows.get_mut(database), self.visible.get(database))
            && !required.is_subset(visible)
        {
            *required = Arc::new(required.intersection(visible).cloned().collect());
        }
    }

    /// Follows SQLite's write-ahead log: a frame is a header of 24 bytes and a page, and the header of
    /// the last frame of a transaction carries the size of the database, which is not 0 (SQLite file
    /// format, section 4.1).
    fn wrote(&mut self, thread: u32, node: Node, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.len() == 24 && offset >= 32 {
            let size = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            match size {
                0 => self.committing.remove(&thread),
                _ => self.committing.insert(thread, node),
            };
            return Ok(());
        }
        if self.committing.remove(&thread) != Some(node) {
            return Ok(());
        }
        let tree = self.disk.visible();
        for database in DATABASES {
            if self.disk.node_in(ROOT, &format!("{database}-wal")) == Some(node)
                && let Some(found) = self.scratch.database(&tree, database)?
            {
                let rows = Arc::new(found.rows);
                self.visible.insert(database.to_owned(), Arc::clone(&rows));
                self.forget_deleted(database);
                self.owed.push((thread, Owed::Commit(database.to_owned(), rows)));
            }
        }
        Ok(())
    }

    fn started(&mut self, process: u32, args: &[String]) {
        if args.get(1).is_some_and(|arg| arg == "self-test") {
            let Some(digest) = args.get(3) else { return };
            self.testing.insert(process, digest.clone());
            *self.now.tests_begun.entry(digest.clone()).or_default() += 1;
            return;
        }
        self.agent = process;
        let pointers = look::pointers(&self.disk.visible()).into_values().flatten();
        let on_trial = pointers.filter(|pointer| pointer.trials.is_some());
        self.on_trial = on_trial.filter_map(|pointer| Some(pointer.active?.digest)).collect();
    }

    fn opened(&mut self, node: Node) {
        let Some(path) = self.disk.path_of_node(node) else { return };
        let ["models", model, digest, file] = path.split('/').collect::<Vec<_>>()[..] else { return };
        let is_config = model == config::NAME;
        if is_config && is_digest(digest) {
            // A configuration runs nothing: reading it back from its slot, which checks it, is its self-test.
            self.now.tested.insert(digest.to_owned());
        }
        // The agent looks at a release that was on trial when its life began: that life is one of its trials.
        if (is_config || file != "manifest.json") && self.on_trial.remove(digest) {
            *self.now.starts.entry(digest.to_owned()).or_default() += 1;
        }
    }

    fn said(&mut self, process: u32, bytes: &[u8]) {
        let Some(digest) = self.testing.get(&process) else { return };
        let outcome: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if outcome.get("failure").is_some_and(Value::is_null) {
            self.now.tested.insert(digest.clone());
        }
    }
}
