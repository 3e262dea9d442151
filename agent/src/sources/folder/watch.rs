//! What the kernel tells of a folder (inotify): which files were closed after writing or renamed into it. It tells
//! nothing about network file systems and about the time before the start; there a file settles instead.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::mem::{self, MaybeUninit};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::sync::Notify;

/// Most names kept until they are taken; beyond, files settle.
const MAX_NAMES: usize = 10_000;
/// Bytes of events read at once; one takes at most 272.
const BUFFER: usize = 16 * 1024;

/// A watched folder.
#[derive(Debug)]
pub(super) struct Watch(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    names: Mutex<HashSet<OsString>>,
    news: Notify,
}

impl Watch {
    /// Watches a folder; where that is not possible it says so and is silent.
    pub(super) fn new(folder: &Path) -> Self {
        let told = Arc::new(Told::default());
        match open(folder) {
            Ok(events) => {
                let told = Arc::downgrade(&told);
                // A thread of its own, which nobody waits for: a read that waits cannot be called off.
                std::thread::spawn(move || listen(&events, &told));
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "not watched: files have to settle");
            }
        }
        Self(told)
    }

    /// The names told to be complete since the last time.
    pub(super) fn take(&self) -> HashSet<OsString> {
        mem::take(&mut *self.0.names.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something is told, at most `limit`.
    pub(super) async fn changed(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.0.news.notified()).await;
    }
}

fn open(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, folder, flags)?;
    Ok(events)
}

/// Hands on what is told until nobody wants it any more.
fn listen(events: &OwnedFd, told: &Weak<Told>) {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                tracing::warn!(%error, "a folder is no longer watched: files have to settle");
                return;
            }
        };
        let Some(told) = told.upgrade() else { return };
        let complete = event.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
        if let Some(name) = event.file_name().filter(|_| complete) {
            let mut names = told.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() < MAX_NAMES {
                names.insert(OsStr::from_bytes(name.to_bytes()).to_owned());
            }
        }
        told.news.notify_one();
    }
}
