//! Turns a log of system calls into a recording of the state directory. It follows descriptors, offsets
//! and names, and refuses what it cannot follow: a recording that misses something proves nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};

use crate::strace::{self, Call, Item, Reader};
use crate::trace::{Act, Body, Event, Node, ROOT, Trace, Tree, is_ignored};

/// Reads the log of one or more lives of the agent on the state directory `root`, which held `before`.
///
/// # Errors
/// When a line is not understood, or a call changes the directory in a way the model does not know.
pub fn read(log: &str, root: &Path, before: &Tree) -> anyhow::Result<Trace> {
    let bodies = before.nodes();
    let mut recorder = Recorder {
        root: root.to_str().context("the state directory's path is not text")?.to_owned(),
        names: bodies.iter().map(names).collect(),
        lengths: bodies.iter().map(length).collect(),
        files: HashMap::new(),
        offsets: Vec::new(),
        processes: HashMap::new(),
        main: 0,
        syncing: HashMap::new(),
        quiet: None,
        events: Vec::new(),
    };
    let mut reader = Reader::default();
    for (number, line) in log.lines().enumerate() {
        let at = || format!("line {} of the log", number + 1);
        match reader.line(line).with_context(at)? {
            None => {}
            Some(Item::Begin { thread, name, args }) => {
                recorder.begin(thread, &name, &args).with_context(at)?;
            }
            Some(Item::Call(call)) => {
                recorder.call(&call).with_context(|| format!("{}: {} {:?}", at(), call.name, shown(&call)))?
            }
            Some(Item::End { thread, status }) => recorder.end(thread, status),
        }
    }
    Ok(Trace { before: bodies, events: recorder.events })
}

fn shown(call: &Call) -> Vec<String> {
    call.args.iter().map(|arg| strace::path(arg).unwrap_or_else(|_| arg.chars().take(40).collect())).collect()
}

fn names(body: &Body) -> Option<BTreeMap<String, Node>> {
    match body {
        Body::Folder(names) => Some((**names).clone()),
        Body::File(_) => None,
    }
}

fn length(body: &Body) -> u64 {
    match body {
        Body::File(content) => content.bytes.len() as u64,
        Body::Folder(_) => 0,
    }
}

/// An open file or folder of the state directory.
#[derive(Debug, Clone, Copy)]
struct File {
    node: Node,
    /// Which offset it moves; shared by duplicates.
    offset: usize,
    append: bool,
    /// Whether each write is synced.
    sync: bool,
}

/// Where a path leads.
enum Place {
    Outside,
    Root,
    Inside { folder: Node, name: String, node: Option<Node> },
}

struct Recorder {
    root: String,
    /// Names of each node that is a folder.
    names: Vec<Option<BTreeMap<String, Node>>>,
    lengths: Vec<u64>,
    files: HashMap<(u32, i32), File>,
    offsets: Vec<u64>,
    /// Processes of the threads that are not of the agent itself: a thread is the agent's until it
    /// begins another program.
    processes: HashMap<u32, u32>,
    main: u32,
    syncing: HashMap<u32, Node>,
    /// The thread whose last event was [`Act::Other`]: one after another says nothing new.
    quiet: Option<u32>,
    events: Vec<Event>,
}

impl Recorder {
    fn process(&self, thread: u32) -> u32 {
        self.processes.get(&thread).copied().unwrap_or(self.main)
    }

    fn push(&mut self, thread: u32, act: Act) {
        if act == Act::Other && self.quiet == Some(thread) {
            return;
        }
        self.quiet = (act == Act::Other).then_some(thread);
        let process = self.process(thread);
        self.events.push(Event { thread, process, act });
    }

    fn end(&mut self, thread: u32, status: Option<i32>) {
        self.syncing.remove(&thread);
        if self.process(thread) == thread {
            self.push(thread, Act::End { status });
        }
    }

    fn begin(&mut self, thread: u32, name: &str, args: &[String]) -> anyhow::Result<()> {
        if ["fsync", "fdatasync"].contains(&name)
            && let Some(file) = self.file(thread, args.first().context("no descriptor")?)?
        {
            self.syncing.insert(thread, file.node);
            self.push(thread, Act::SyncBegin { node: file.node });
        }
        Ok(())
    }

    /// The file behind a descriptor, if it is one of ours.
    fn file(&self, thread: u32, arg: &str) -> anyhow::Result<Option<File>> {
        let descriptor = strace::descriptor(arg)?;
        let known = self.files.get(&(self.process(thread), descriptor.number)).copied();
        let inside = descriptor.path.as_deref().is_some_and(|path| self.below(path).is_some());
        let ignored = descriptor.path.as_deref().is_some_and(is_ignored_path);
        ensure!(
            known.is_some() || !inside || ignored || descriptor.deleted,
            "a descriptor of {:?} that was not seen to be opened",
            descriptor.path
        );
        Ok(known)
    }

    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.root)?.strip_prefix('/')
    }

    fn place(&self, thread: u32, folder: Option<&str>, path: &str) -> anyhow::Result<Place> {
        let text = strace::path(path)?;
        let absolute = if text.starts_with('/') {
            text
        } else {
            let base = match folder {
                Some(folder) => strace::descriptor(folder)?.path,
                None => None,
            };
            // Without a folder it is the working directory, which is not the state directory.
            let Some(base) = base else { return Ok(Place::Outside) };
            format!("{base}/{text}")
        };
        if absolute.trim_end_matches('/') == self.root {
            return Ok(Place::Root);
        }
        let Some(below) = self.below(&absolute) else { return Ok(Place::Outside) };
        if is_ignored_path(below) {
            return Ok(Place::Outside);
        }
        let mut at = ROOT;
        let mut parts = below.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            ensure!(part != ".." && part != ".", "a path with {part:?}");
            let names = self.names[at.0 as usize].as_ref();
            let names = names.with_context(|| format!("thread {thread}: no folder in {below}"))?;
            let node = names.get(part).copied();
            if parts.peek().is_none() {
                return Ok(Place::Inside { folder: at, name: part.to_owned(), node });
            }
            at = node.with_context(|| format!("thread {thread}: {part} of {below} is not there"))?;
        }
        Ok(Place::Root)
    }

    fn call(&mut self, call: &Call) -> anyhow::Result<()> {
        let thread = call.thread;
        if call.name == "execve" {
            return if call.result == 0 { self.execute(call) } else { Ok(()) };
        }
        let arg = |at: usize| call.args.get(at).map(String::as_str).context("too few arguments");
        if call.result < 0 {
            self.syncing.remove(&thread);
            self.push(thread, Act::Other);
            return Ok(());
        }
        match call.name.as_str() {
            "open" => self.open(call, None, arg(0)?, arg(1)?),
            "creat" => self.open(call, None, arg(0)?, "O_WRONLY|O_CREAT|O_TRUNC"),
            "openat" => self.open(call, Some(arg(0)?), arg(1)?, arg(2)?),
            "close" => {
                let number = strace::descriptor(arg(0)?)?.number;
                self.files.remove(&(self.process(thread), number));
                Ok(())
            }
            "dup" | "dup2" | "dup3" => self.duplicate(call),
            "fcntl" if arg(1)?.starts_with("F_DUPFD") => self.duplicate(call),
            "lseek" | "read" | "readv" => {
                if let Some(file) = self.file(thread, arg(0)?)? {
                    let offset = &mut self.offsets[file.offset];
                    let result = call.result as u64;
                    *offset = if call.name == "lseek" { result } else { *offset + result };
                }
                self.push(thread, Act::Other);
                Ok(())
            }
            "write" => self.write(call, strace::bytes, None),
            "writev" => self.write(call, strace::buffers, None),
            "pwrite64" => self.write(call, strace::bytes, Some(arg(3)?)),
            "pwritev" | "pwritev2" => self.write(call, strace::buffers, Some(arg(3)?)),
            "ftruncate" => {
                let file = self.file(thread, arg(0)?)?;
                self.resize(thread, file.map(|file| file.node), arg(1)?)
            }
            "truncate" => match self.place(thread, None, arg(0)?)? {
                Place::Inside { node, .. } => self.resize(thread, node, arg(1)?),
                Place::Root | Place::Outside => self.elsewhere(thread),
            },
            "fallocate" => self.allocate(call),
            "fsync" | "fdatasync" => self.sync(call),
            "rename" => self.rename(thread, (None, arg(0)?), (None, arg(1)?)),
            "renameat" => self.rename(thread, (Some(arg(0)?), arg(1)?), (Some(arg(2)?), arg(3)?)),
            "renameat2" => {
                ensure!(["0", "RENAME_NOREPLACE"].contains(&arg(4)?), "a rename that exchanges");
                self.rename(thread, (Some(arg(0)?), arg(1)?), (Some(arg(2)?), arg(3)?))
            }
            "mkdir" => self.make_folder(thread, None, arg(0)?),
            "mkdirat" => self.make_folder(thread, Some(arg(0)?), arg(1)?),
            "unlink" | "rmdir" => self.remove(thread, None, arg(0)?),
            "unlinkat" => self.remove(thread, Some(arg(0)?), arg(1)?),
            "link" => self.foreign(thread, &[(None, arg(0)?), (None, arg(1)?)]),
            "symlink" => self.foreign(thread, &[(None, arg(1)?)]),
            "linkat" => self.foreign(thread, &[(Some(arg(0)?), arg(1)?), (Some(arg(2)?), arg(3)?)]),
            "symlinkat" => self.foreign(thread, &[(Some(arg(1)?), arg(2)?)]),
            "copy_file_range" | "splice" | "sendfile" => {
                let to = if call.name == "sendfile" { 0 } else { 2 };
                ensure!(self.file(thread, arg(to)?)?.is_none(), "bytes that the log does not show");
                self.elsewhere(thread)
            }
            "sync" | "syncfs" | "openat2" | "io_uring_setup" => bail!("the model does not know this call"),
            // Sends, locks, hints to the kernel.
            _ => self.elsewhere(thread),
        }
    }

    fn elsewhere(&mut self, thread: u32) -> anyhow::Result<()> {
        self.push(thread, Act::Other);
        Ok(())
    }

    fn foreign(&mut self, thread: u32, paths: &[(Option<&str>, &str)]) -> anyhow::Result<()> {
        for (folder, path) in paths {
            ensure!(matches!(self.place(thread, *folder, path)?, Place::Outside), "a link");
        }
        self.elsewhere(thread)
    }

    fn execute(&mut self, call: &Call) -> anyhow::Result<()> {
        let thread = call.thread;
        let args = strace::strings(call.args.get(1).context("no arguments")?)?;
        // The first program of a life is the agent; what it begins are processes of their own.
        let is_child = self.main != 0 && self.alive(self.main);
        if !is_child {
            self.main = thread;
            self.processes.clear();
            self.files.clear();
        }
        self.processes.insert(thread, thread);
        self.files.retain(|(process, _), _| *process != thread);
        self.push(thread, Act::Start { args });
        Ok(())
    }

    fn alive(&self, process: u32) -> bool {
        let ended = |event: &Event| event.process == process && matches!(event.act, Act::End { .. });
        !self.events.iter().rev().any(ended)
    }

    fn open(&mut self, call: &Call, folder: Option<&str>, path: &str, flags: &str) -> anyhow::Result<()> {
        let thread = call.thread;
        let has = |flag: &str| flags.split('|').any(|part| part == flag);
        let node = match self.place(thread, folder, path)? {
            Place::Outside => return self.elsewhere(thread),
            Place::Root => ROOT,
            Place::Inside { folder, name, node: None } => {
                ensure!(has("O_CREAT"), "opened what is not there");
                ensure!(!has("O_TMPFILE"), "a file without a name");
                self.create(thread, folder, name, false)
            }
            Place::Inside { node: Some(node), .. } => {
                if has("O_TRUNC") && self.lengths[node.0 as usize] > 0 {
                    self.resize(thread, Some(node), "0")?;
                }
                node
            }
        };
        let is_folder = self.names[node.0 as usize].is_some();
        if !is_folder && !has("O_WRONLY") {
            self.push(thread, Act::Open { node });
        }
        self.offsets.push(0);
        let file = File {
            node,
            offset: self.offsets.len() - 1,
            append: has("O_APPEND"),
            sync: has("O_SYNC") || has("O_DSYNC"),
        };
        self.files.insert((self.process(thread), i32::try_from(call.result)?), file);
        Ok(())
    }

    fn create(&mut self, thread: u32, folder: Node, name: String, is_folder: bool) -> Node {
        let node = Node(self.names.len() as u32);
        self.names.push(is_folder.then(BTreeMap::new));
        self.lengths.push(0);
        self.set_name(folder, &name, Some(node));
        self.push(thread, Act::Create { folder, name, node, is_folder });
        node
    }

    fn set_name(&mut self, folder: Node, name: &str, node: Option<Node>) {
        if let Some(names) = &mut self.names[folder.0 as usize] {
            match node {
                Some(node) => names.insert(name.to_owned(), node),
                None => names.remove(name),
            };
        }
    }

    fn duplicate(&mut self, call: &Call) -> anyhow::Result<()> {
        let old = self.file(call.thread, call.args.first().context("no descriptor")?)?;
        let key = (self.process(call.thread), i32::try_from(call.result)?);
        match old {
            Some(file) => self.files.insert(key, file),
            None => self.files.remove(&key),
        };
        self.elsewhere(call.thread)
    }

    fn write(
        &mut self,
        call: &Call,
        read: impl Fn(&str) -> anyhow::Result<Vec<u8>>,
        at: Option<&str>,
    ) -> anyhow::Result<()> {
        let (thread, written) = (call.thread, call.result as usize);
        let target = call.args.first().context("no descriptor")?;
        let data = call.args.get(1).context("no data")?;
        let Some(file) = self.file(thread, target)? else {
            let is_child = self.process(thread) != self.main;
            if is_child && strace::descriptor(target)?.number == 1 {
                let bytes = Arc::new(read(data)?);
                self.push(thread, Act::Said { bytes });
                return Ok(());
            }
            return self.elsewhere(thread);
        };
        let mut bytes = read(data)?;
        bytes.truncate(written);
        ensure!(bytes.len() == written, "data that the log does not show");
        let length = &mut self.lengths[file.node.0 as usize];
        let offset = match at {
            Some(at) => u64::try_from(strace::integer(at)?)?,
            None if file.append => *length,
            None => self.offsets[file.offset],
        };
        let end = offset + written as u64;
        *length = (*length).max(end);
        if at.is_none() {
            self.offsets[file.offset] = end;
        }
        self.push(thread, Act::Write { node: file.node, offset, bytes: Arc::new(bytes) });
        if file.sync {
            self.push(thread, Act::SyncBegin { node: file.node });
            self.push(thread, Act::SyncEnd { node: file.node });
        }
        Ok(())
    }

    fn resize(&mut self, thread: u32, node: Option<Node>, length: &str) -> anyhow::Result<()> {
        let Some(node) = node else { return self.elsewhere(thread) };
        let length = u64::try_from(strace::integer(length)?)?;
        self.lengths[node.0 as usize] = length;
        self.push(thread, Act::Resize { node, length });
        Ok(())
    }

    fn allocate(&mut self, call: &Call) -> anyhow::Result<()> {
        let number = |at: usize| strace::integer(call.args.get(at).context("too few arguments")?);
        let Some(file) = self.file(call.thread, call.args.first().context("no descriptor")?)? else {
            return self.elsewhere(call.thread);
        };
        if call.args.get(1).is_some_and(|mode| mode == "FALLOC_FL_KEEP_SIZE") {
            // Room alone: neither bytes nor length.
            return self.elsewhere(call.thread);
        }
        ensure!(number(1).is_ok_and(|mode| mode == 0), "an allocation that changes bytes");
        let end = number(2)? + number(3)?;
        let length = self.lengths[file.node.0 as usize].max(u64::try_from(end)?);
        self.resize(call.thread, Some(file.node), &length.to_string())
    }

    fn sync(&mut self, call: &Call) -> anyhow::Result<()> {
        let thread = call.thread;
        let node = match self.syncing.remove(&thread) {
            Some(node) => node,
            None => {
                let Some(file) = self.file(thread, call.args.first().context("no descriptor")?)? else {
                    // A sync of what is ignored is no sign that anything was relied upon.
                    return Ok(());
                };
                self.push(thread, Act::SyncBegin { node: file.node });
                file.node
            }
        };
        self.push(thread, Act::SyncEnd { node });
        Ok(())
    }

    fn rename(
        &mut self,
        thread: u32,
        from: (Option<&str>, &str),
        to: (Option<&str>, &str),
    ) -> anyhow::Result<()> {
        let (from, to) = (self.place(thread, from.0, from.1)?, self.place(thread, to.0, to.1)?);
        let (from, to, node) = match (from, to) {
            (Place::Outside, Place::Outside) => return self.elsewhere(thread),
            (
                Place::Inside { folder: old, name: old_name, node: Some(node) },
                Place::Inside { folder: new, name: new_name, .. },
            ) => ((old, old_name), (new, new_name), node),
            _ => bail!("a rename into or out of the state directory"),
        };
        self.set_name(from.0, &from.1, None);
        self.set_name(to.0, &to.1, Some(node));
        self.push(thread, Act::Move { from, to, node });
        Ok(())
    }

    fn make_folder(&mut self, thread: u32, folder: Option<&str>, path: &str) -> anyhow::Result<()> {
        match self.place(thread, folder, path)? {
            Place::Inside { folder, name, node: None } => {
                self.create(thread, folder, name, true);
                Ok(())
            }
            Place::Inside { .. } | Place::Root => bail!("made what was there"),
            Place::Outside => self.elsewhere(thread),
        }
    }

    fn remove(&mut self, thread: u32, folder: Option<&str>, path: &str) -> anyhow::Result<()> {
        match self.place(thread, folder, path)? {
            Place::Inside { folder, name, node: Some(_) } => {
                self.set_name(folder, &name, None);
                self.push(thread, Act::Remove { folder, name });
                Ok(())
            }
            Place::Inside { .. } | Place::Root => bail!("removed what was not there"),
            Place::Outside => self.elsewhere(thread),
        }
    }
}

fn is_ignored_path(path: &str) -> bool {
    is_ignored(path.rsplit('/').next().unwrap_or(path))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
