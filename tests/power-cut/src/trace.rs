//! A recording: the state directory as it was, and what was done to it since, act by act. Files and folders
//! are nodes (inodes), names lie in folders. Made by `record.rs`, changed by `faults.rs`, followed by
//! `disk.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// A file or folder, whatever its names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

/// The state directory.
pub const ROOT: Node = Node(0);

/// Content of a file, with its digest once it was asked for.
#[derive(Debug, Default)]
pub struct Content {
    /// The bytes.
    pub bytes: Vec<u8>,
    digest: OnceLock<[u8; 32]>,
}

impl Content {
    /// Takes bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, digest: OnceLock::new() })
    }

    /// Changes the bytes, of a copy where others hold them, too.
    pub fn change(shared: &mut Arc<Self>, change: impl FnOnce(&mut Vec<u8>)) {
        match Arc::get_mut(shared) {
            Some(content) => {
                content.digest = OnceLock::new();
                change(&mut content.bytes);
            }
            None => {
                let mut bytes = shared.bytes.clone();
                change(&mut bytes);
                *shared = Self::new(bytes);
            }
        }
    }

    /// SHA-256 of the bytes.
    pub fn digest(&self) -> &[u8; 32] {
        self.digest.get_or_init(|| Sha256::digest(&self.bytes).into())
    }
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Body {
    /// A file's bytes.
    File(Arc<Content>),
    /// A folder's names.
    Folder(Arc<BTreeMap<String, Node>>),
}

impl Body {
    /// An empty file.
    pub fn empty_file() -> Self {
        Self::File(Content::new(Vec::new()))
    }

    /// An empty folder.
    pub fn empty_folder() -> Self {
        Self::Folder(Arc::default())
    }
}

/// Something a thread did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The thread.
    pub thread: u32,
    /// Its process.
    pub process: u32,
    /// What it did.
    pub act: Act,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A new file or folder came into a folder.
    Create {
        /// The folder.
        folder: Node,
        /// The name.
        name: String,
        /// The new node.
        node: Node,
        /// Whether it is a folder.
        is_folder: bool,
    },
    /// A name moved, replacing what had the new name.
    Move {
        /// Old folder and name.
        from: (Node, String),
        /// New folder and name.
        to: (Node, String),
        /// What moved.
        node: Node,
    },
    /// A name went.
    Remove {
        /// The folder.
        folder: Node,
        /// The name.
        name: String,
    },
    /// Bytes were written.
    Write {
        /// The file.
        node: Node,
        /// Where.
        offset: u64,
        /// What.
        bytes: Arc<Vec<u8>>,
    },
    /// A file was cut or grew by zeros.
    Resize {
        /// The file.
        node: Node,
        /// Its new length.
        length: u64,
    },
    /// A sync of a file or folder began: it covers what was done before.
    SyncBegin {
        /// What is synced.
        node: Node,
    },
    /// The thread's sync ended well: what it covers is durable.
    SyncEnd {
        /// What was synced.
        node: Node,
    },
    /// A file was opened for reading.
    Open {
        /// The file.
        node: Node,
    },
    /// A process began a program.
    Start {
        /// Its arguments.
        args: Vec<String>,
    },
    /// A process wrote to its standard output.
    Said {
        /// What.
        bytes: Arc<Vec<u8>>,
    },
    /// A process ended.
    End {
        /// Its exit status; `None` when killed.
        status: Option<i32>,
    },
    /// The thread did something elsewhere: what it did before has been relied upon.
    Other,
}

/// A recording.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Nodes as they were, durable; [`ROOT`] is the first.
    pub before: Vec<Body>,
    /// What was done since, in order.
    pub events: Vec<Event>,
}

/// A folder's content by path, `/`-separated below the state directory.
#[derive(Debug, Clone, Default)]
pub struct Tree(pub BTreeMap<String, Item>);

/// What is at a path.
#[derive(Debug, Clone)]
pub enum Item {
    /// A folder.
    Folder,
    /// A file.
    File(Arc<Content>),
}

/// Whether a name below the state directory holds nothing that a cut could hurt: SQLite rebuilds `-shm`
/// (a shared memory map) at the first open, the lock file is empty, and a socket is made anew by each
/// start. Leaving them out keeps states from differing in nothing else.
pub fn is_ignored(name: &str) -> bool {
    name.ends_with("-shm") || name == "lock" || name == "admin.sock"
}

/// Whether a name is a SHA-256 in hex: slots and the files in them are named so.
pub fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Tree {
    /// Reads a folder.
    ///
    /// # Errors
    /// When something in it cannot be read.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        tree.read_below(root, "")?;
        Ok(tree)
    }

    fn read_below(&mut self, folder: &Path, prefix: &str) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a name is not text")?;
            if is_ignored(&name) {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                self.read_below(&entry.path(), &format!("{path}/"))?;
                self.0.insert(path, Item::Folder);
            } else {
                let bytes = std::fs::read(entry.path()).with_context(|| format!("read {path}"))?;
                self.0.insert(path, Item::File(Content::new(bytes)));
            }
        }
        Ok(())
    }

    /// Writes it into an empty folder.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn write(&self, root: &Path) -> anyhow::Result<()> {
        for (path, item) in &self.0 {
            let at = root.join(path);
            match item {
                Item::Folder => std::fs::create_dir(&at),
                Item::File(content) => std::fs::write(&at, &content.bytes),
            }
            .with_context(|| format!("make {}", at.display()))?;
        }
        Ok(())
    }

    /// The bytes of a file.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        match self.0.get(path)? {
            Item::File(content) => Some(&content.bytes),
            Item::Folder => None,
        }
    }

    /// A digest over names and contents: equal states have equal keys.
    pub fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (path, item) in &self.0 {
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path.as_bytes());
            match item {
                Item::Folder => hash.update([0]),
                Item::File(content) => {
                    hash.update([1]);
                    hash.update(content.digest());
                }
            }
        }
        hash.finalize().into()
    }

    /// Paths at which two trees differ.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let same = |path: &String| match (self.0.get(path), other.0.get(path)) {
            (Some(Item::Folder), Some(Item::Folder)) => true,
            (Some(Item::File(one)), Some(Item::File(two))) => one.bytes == two.bytes,
            _ => false,
        };
        let mut paths: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        paths.sort();
        paths.dedup();
        paths.into_iter().filter(|path| !same(path)).cloned().collect()
    }

    /// As nodes, [`ROOT`] first.
    pub fn nodes(&self) -> Vec<Body> {
        let mut folders: Vec<BTreeMap<String, Node>> = vec![BTreeMap::new()];
        let mut bodies = vec![Body::empty_folder()];
        let mut at = BTreeMap::from([(String::new(), 0_usize)]);
        // A folder sorts before what is in it, so that it is known by then.
        for (path, item) in &self.0 {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let node = bodies.len();
            if let Some(parent) = at.get(parent) {
                folders[*parent].insert(name.to_owned(), Node(node as u32));
            }
            folders.push(BTreeMap::new());
            bodies.push(match item {
                Item::Folder => Body::empty_folder(),
                Item::File(content) => Body::File(Arc::clone(content)),
            });
            at.insert(path.clone(), node);
        }
        for (body, names) in bodies.iter_mut().zip(folders) {
            if let Body::Folder(held) = body {
                *held = Arc::new(names);
            }
        }
        bodies
    }

    /// The tree that hangs on [`ROOT`].
    pub fn from_nodes(bodies: &[Body]) -> Self {
        let mut tree = Self::default();
        tree.add(bodies, ROOT, "", 0);
        tree
    }

    fn add(&mut self, bodies: &[Body], folder: Node, prefix: &str, depth: usize) {
        // A cut may leave a folder within itself only if the agent moved it there, which no one does.
        let Some(Body::Folder(names)) = bodies.get(folder.0 as usize).filter(|_| depth < 16) else { return };
        for (name, node) in names.iter() {
            let path = format!("{prefix}{name}");
            match bodies.get(node.0 as usize) {
                Some(Body::File(content)) => {
                    self.0.insert(path, Item::File(Arc::clone(content)));
                }
                Some(Body::Folder(_)) => {
                    self.add(bodies, *node, &format!("{path}/"), depth + 1);
                    self.0.insert(path, Item::Folder);
                }
                None => {}
            }
        }
    }
}
