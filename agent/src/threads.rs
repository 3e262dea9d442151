//! The threads that answer requests. Each has an event loop of its own: a connection stays where it was accepted, and
//! so does the model that answers it, which keeps both in the caches of one core and wakes nobody else.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use farlight_inference::Resident;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::poll;

/// How long a release that was swapped out may stay in memory on a thread that nobody asks since.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// One for each core that answers.
pub struct Threads {
    loops: Vec<Handle>,
    next: AtomicUsize,
    end: watch::Sender<bool>,
}

impl Threads {
    /// Starts `count` threads, which run on these cores, or on all when none is named. While requests come quickly, each
    /// looks for the next so long before it rests.
    ///
    /// # Errors
    /// When a core is not there, or no thread can be started.
    pub fn start(count: usize, cores: &[usize], look: Duration) -> anyhow::Result<Self> {
        let set = set(cores)?;
        let (end, ended) = watch::channel(false);
        let mut threads = Self { loops: Vec::new(), next: AtomicUsize::new(0), end };
        for _ in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("make an event loop for requests")?;
            threads.loops.push(runtime.handle().clone());
            let mut ended = ended.clone();
            let thread = std::thread::Builder::new().name("serve".to_owned()).spawn(move || {
                if let Some(Err(error)) = set.map(|set| sched_setaffinity(Pid::from_raw(0), &set)) {
                    tracing::warn!(%error, "a thread for requests runs on any core");
                }
                let resident = Resident::here();
                runtime.block_on(async {
                    let ended = async {
                        let _ = ended.wait_for(|ended| *ended).await;
                    };
                    let mut ended = std::pin::pin!(ended);
                    let tidy = async {
                        while tokio::time::timeout(TIDY_EVERY, ended.as_mut()).await.is_err() {
                            resident.tidy();
                        }
                    };
                    poll::until(look, tidy).await;
                });
            });
            thread.context("start a thread for requests")?;
        }
        Ok(threads)
    }

    /// Runs a task on one of them, in turns.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match self.loops.get(turn % self.loops.len().max(1)) {
            Some(thread) => thread.spawn(task),
            None => tokio::spawn(task),
        }
    }

    /// Returns when each of them has done something: never, when one hangs.
    pub async fn turn(&self) {
        for thread in &self.loops {
            // One that ends with the agent does nothing more.
            let _ = thread.spawn(async {}).await;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Nobody waits for them: one that a model holds up must not hold up the end of the agent.
        let _ = self.end.send(true);
    }
}

/// The cores, once the kernel took them.
fn set(cores: &[usize]) -> anyhow::Result<Option<CpuSet>> {
    if cores.is_empty() {
        return Ok(None);
    }
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("inference.cores: core {core}"))?;
    }
    // Tried on a thread that ends, so that a core which is not there is found before anything is served.
    let tried = std::thread::spawn(move || sched_setaffinity(Pid::from_raw(0), &set)).join();
    let tried = tried.map_err(|_| anyhow::anyhow!("the thread that tried them panicked"))?;
    tried.with_context(|| format!("inference.cores: {cores:?} are not all there"))?;
    Ok(Some(set))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn tasks_are_dealt_out_in_turns_and_one_that_hangs_is_noticed() {
        let threads = Threads::start(2, &[], Duration::ZERO).unwrap();
        let id = || threads.spawn(async { std::thread::current().id() });
        let (first, second, third) = (id().await.unwrap(), id().await.unwrap(), id().await.unwrap());
        assert!(first != second && first == third);
        threads.turn().await;
        let (release, held) = channel::<()>();
        let hangs = threads.spawn(async move { held.recv() });
        let silent = tokio::time::timeout(Duration::from_millis(100), threads.turn()).await;
        assert!(silent.is_err());
        release.send(()).unwrap();
        assert!(hangs.await.unwrap().is_ok());
        threads.turn().await;
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let error = Threads::start(1, &[1_000], Duration::ZERO).err().unwrap();
        assert!(format!("{error:#}").contains("1000"), "{error:#}");
    }
}
