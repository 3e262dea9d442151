//! The queue of one model: how many requests run at once, which of those that wait is next, and which are told at
//! once that there is no time for them. A request that finds a free place takes no lock; who leaves a place hands it
//! to the first that waits, or keeps it and runs those that wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How the requests of one model are scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Requests that run at once.
    pub workers: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Longest time from arrival to the answer unless the request says otherwise.
    pub deadline: Duration,
    /// Most requests that are run together; 1 for one at a time.
    pub batch: usize,
    /// Longest time that a request waits for others to be run together with.
    pub window: Duration,
}

/// Which request is next: the lowest number first, then the oldest. The protocol's 0 is the default and comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u32);

impl Priority {
    /// The protocol's priority.
    pub fn new(priority: u32) -> Self {
        Self(priority.wrapping_sub(1))
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::new(0)
    }
}

/// Why a request was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may.
    Full,
    /// By what the model took lately, its turn would come after its deadline.
    Hopeless,
    /// Its deadline passed while it waited.
    Late,
    /// It would begin a stream that there is no room for.
    Streams,
    /// It went through a route of which no stage answered.
    Stages,
}

impl Refused {
    /// For people.
    pub fn why(self) -> &'static str {
        match self {
            Self::Full => "its queue is full",
            Self::Hopeless => "its queue is too long for the deadline",
            Self::Late => "the deadline passed while the request waited",
            Self::Streams => "too many streams are open, or an id is too long",
            Self::Stages => "no stage of its route answered",
        }
    }
}

/// A place to run in; leaving it lets the next one in.
pub struct Place<T, R>(Option<Arc<Queue<T, R>>>);

impl<T, R> Drop for Place<T, R> {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            queue.free.fetch_add(1, Ordering::SeqCst);
            queue.dispatch();
        }
    }
}

/// What becomes of a request that waited.
pub enum Turn<T, R> {
    /// It runs now, where it is.
    Run(Place<T, R>, T),
    /// Another ran it together with its own.
    Done(R),
}

/// A request that waits, with the way to its sender.
pub struct Waiting<T, R> {
    /// What is to be run.
    pub work: T,
    reply: Reply<T, R>,
}

impl<T, R> Waiting<T, R> {
    /// What is to be run, and the way to give its sender the result.
    pub fn split(self) -> (T, Reply<T, R>) {
        (self.work, self.reply)
    }
}

/// The way to who waits for the result of a request.
pub struct Reply<T, R> {
    to: oneshot::Sender<Turn<T, R>>,
    home: Handle,
    deadline: Instant,
}

impl<T, R> Reply<T, R> {
    /// A way to the task that asks and waits until `deadline`, and what comes over it.
    ///
    /// # Panics
    /// Where no event loop runs.
    pub fn here(deadline: Instant) -> (Self, oneshot::Receiver<Turn<T, R>>) {
        let (to, turn) = oneshot::channel();
        (Self { to, home: Handle::current(), deadline }, turn)
    }

    /// The event loop that its task runs on.
    pub fn home(&self) -> &Handle {
        &self.home
    }

    /// Until when its task waits.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Gives its sender the result; `false` when it is gone.
    pub fn done(self, result: R) -> bool {
        self.to.send(Turn::Done(result)).is_ok()
    }
}

/// Whether what is expected to take so long from `now` on ends before its deadline, even if it takes a quarter more.
pub fn in_time(now: Instant, expected: Duration, deadline: Instant) -> bool {
    now.checked_add(expected.saturating_mul(5) / 4).is_some_and(|end| end <= deadline)
}

type Key = (Priority, u64);

/// The queue of one model.
pub struct Queue<T, R> {
    policy: Policy,
    free: AtomicUsize,
    /// How many wait: written with the lock held, read without.
    length: AtomicUsize,
    /// What one request took lately, µs; 0 when none ran.
    cost_us: AtomicU64,
    waiting: Mutex<BTreeMap<Key, Waiting<T, R>>>,
    arrivals: AtomicU64,
}

impl<T, R> Queue<T, R> {
    /// An empty queue.
    pub fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            policy,
            free: AtomicUsize::new(policy.workers.max(1)),
            length: AtomicUsize::new(0),
            cost_us: AtomicU64::new(0),
            waiting: Mutex::default(),
            arrivals: AtomicU64::new(0),
        })
    }

    /// How it schedules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How many wait.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// What one request took lately; zero when none ran.
    pub fn cost(&self) -> Duration {
        Duration::from_micros(self.cost_us.load(Ordering::Relaxed))
    }

    /// Notes what `requests` that ran together took: a moving average over about eight.
    pub fn took(&self, time: Duration, requests: usize) {
        let one = (time.as_micros() as u64 / requests.max(1) as u64).max(1);
        let before = self.cost_us.load(Ordering::Relaxed);
        let after = if before == 0 { one } else { before - before / 8 + one / 8 };
        self.cost_us.store(after.max(1), Ordering::Relaxed);
    }

    /// Whether a request that runs now would be answered after its deadline, by what the model took lately.
    pub fn is_late(&self, deadline: Instant) -> bool {
        Instant::now() + self.cost() > deadline
    }

    /// How long a request waits that comes after `ahead` others, by what the model took lately.
    pub fn wait(&self, ahead: usize) -> Duration {
        let turns = ahead / self.policy.workers.max(1) + 1;
        self.cost().saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
    }

    /// A place at once, when one is free and nobody waits for it.
    pub fn enter(self: &Arc<Self>) -> Option<Place<T, R>> {
        if self.length.load(Ordering::SeqCst) > 0 {
            return None;
        }
        self.take().then(|| Place(Some(Arc::clone(self))))
    }

    fn take(&self) -> bool {
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(1)).is_ok()
    }

    /// Waits for a place, or for another to do the work. A request whose future is dropped leaves the queue.
    ///
    /// # Errors
    /// [`Refused`], at once where that is known at once.
    pub async fn turn(
        self: &Arc<Self>,
        work: T,
        priority: Priority,
        deadline: Instant,
    ) -> Result<Turn<T, R>, Refused> {
        let (reply, turn) = Reply::here(deadline);
        let key = (priority, self.arrivals.fetch_add(1, Ordering::Relaxed));
        {
            let mut waiting = self.lock();
            let ahead = match waiting.last_key_value() {
                Some((last, _)) if *last > key => waiting.range(..key).count(),
                _ => waiting.len(),
            };
            if ahead >= self.policy.queue {
                return Err(Refused::Full);
            }
            if !in_time(Instant::now(), self.wait(ahead).saturating_add(self.cost()), deadline) {
                return Err(Refused::Hopeless);
            }
            if waiting.len() >= self.policy.queue {
                // The last one makes room for one that comes before it.
                waiting.pop_last();
            }
            waiting.insert(key, Waiting { work, reply });
            self.length.store(waiting.len(), Ordering::SeqCst);
        }
        let leave = Leave { queue: self, key };
        // A place may have become free before the others could see that somebody waits.
        self.dispatch();
        let turn = tokio::time::timeout_at(deadline.into(), turn).await;
        drop(leave);
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            // Taken out by one that was pushed in before it, or by who found it too late to be run.
            Ok(Err(_)) if !self.is_late(deadline) => Err(Refused::Full),
            Ok(Err(_)) | Err(_) => Err(Refused::Late),
        }
    }

    /// Takes up to `most` requests out of the queue, to run them together with one's own or after it. Those that
    /// cannot be answered in time any more leave it, too, and their senders are told.
    pub fn more(&self, most: usize) -> Vec<Waiting<T, R>> {
        if most == 0 || self.length() == 0 {
            return Vec::new();
        }
        let mut waiting = self.lock();
        let taken = std::iter::from_fn(|| waiting.pop_first().map(|(_, waiting)| waiting));
        let taken = taken
            .filter(|next| !next.reply.to.is_closed() && !self.is_late(next.reply.deadline))
            .take(most)
            .collect();
        self.length.store(waiting.len(), Ordering::SeqCst);
        taken
    }

    /// Hands free places to those that wait.
    fn dispatch(self: &Arc<Self>) {
        while self.length.load(Ordering::SeqCst) > 0 && self.take() {
            let first = {
                let mut waiting = self.lock();
                let first = waiting.pop_first();
                self.length.store(waiting.len(), Ordering::SeqCst);
                first
            };
            let Some((_, Waiting { work, reply, .. })) = first else {
                self.free.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            if let Err(Turn::Run(mut place, _)) =
                reply.to.send(Turn::Run(Place(Some(Arc::clone(self))), work))
            {
                // Its sender is gone. The place is for the next one, here and not from within its drop.
                place.0 = None;
                self.free.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Waiting<T, R>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request out of the queue whose future is dropped or whose deadline passed.
struct Leave<'a, T, R> {
    queue: &'a Queue<T, R>,
    key: Key,
}

impl<T, R> Drop for Leave<'_, T, R> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        let left = waiting.remove(&self.key);
        self.queue.length.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn policy(workers: usize, queue: usize) -> Policy {
        Policy { workers, queue, deadline: LONG, batch: 4, window: Duration::ZERO }
    }

    fn soon() -> Instant {
        Instant::now() + LONG
    }

    /// Lets what was spawned run until it waits.
    async fn settle<T, R>(queue: &Queue<T, R>, length: usize) {
        while queue.length() != length {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn those_that_wait_run_by_priority_then_age() {
        let queue = Queue::<u32, ()>::new(policy(1, 10));
        let place = queue.enter().unwrap();
        assert!(queue.enter().is_none());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (length, (work, priority)) in [(1, 0), (2, 0), (3, 7), (4, 1)].into_iter().enumerate() {
            let (queue_of, order) = (Arc::clone(&queue), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                match queue_of.turn(work, Priority::new(priority), soon()).await {
                    Ok(Turn::Run(place, work)) => {
                        order.lock().unwrap().push(work);
                        drop(place);
                    }
                    _ => panic!("not run"),
                }
            }));
            settle(&queue, length + 1).await;
        }
        drop(place);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [4, 3, 1, 2]);
        assert!(queue.enter().is_some());
    }

    #[tokio::test]
    async fn what_cannot_be_in_time_is_refused_at_once_and_nothing_is_lost() {
        let queue = Queue::<u32, ()>::new(policy(1, 2));
        let place = queue.enter().unwrap();
        let late = queue.turn(1, Priority::default(), Instant::now()).await;
        assert_eq!(late.err(), Some(Refused::Hopeless));
        queue.took(Duration::from_secs(3600), 1);
        assert_eq!(queue.turn(1, Priority::default(), soon()).await.err(), Some(Refused::Hopeless));
        for _ in 0..100 {
            queue.took(Duration::from_micros(1), 1);
        }
        // One leaves by itself, one by its deadline, one is pushed out by another that comes before it.
        let gone = queue.turn(1, Priority::default(), soon());
        assert!(tokio::time::timeout(Duration::from_millis(1), gone).await.is_err());
        assert_eq!(queue.length(), 0);
        let deadline = tokio::time::Instant::now() + Duration::from_millis(50);
        let late = queue.turn(1, Priority::default(), deadline.into_std()).await;
        assert!(matches!(late.err(), Some(Refused::Late | Refused::Hopeless)));
        let spawn = |priority| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.turn(1, Priority::new(priority), soon()).await.err() })
        };
        let (first, second) = (spawn(0), spawn(0));
        settle(&queue, 2).await;
        assert_eq!(queue.turn(1, Priority::default(), soon()).await.err(), Some(Refused::Full));
        let third = spawn(1);
        assert_eq!(second.await.unwrap(), Some(Refused::Full));
        drop(place);
        assert_eq!((first.await.unwrap(), third.await.unwrap()), (None, None));
        assert!(queue.enter().is_some() && queue.length() == 0);
    }

    #[tokio::test]
    async fn one_runs_for_several() {
        let queue = Queue::<u32, u32>::new(policy(1, 10));
        let place = queue.enter().unwrap();
        let tasks: Vec<_> = (1..=5)
            .map(|work| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move {
                    match queue.turn(work, Priority::default(), soon()).await {
                        Ok(Turn::Done(result)) => result,
                        Ok(Turn::Run(_place, work)) => 1000 + work,
                        Err(_) => 0,
                    }
                })
            })
            .collect();
        settle(&queue, 5).await;
        let more = queue.more(3);
        assert_eq!(more.len(), 3);
        more.into_iter().for_each(|waiting| {
            let (work, reply) = waiting.split();
            assert!(reply.done(work * 10));
        });
        drop(place);
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap());
        }
        results.sort_unstable();
        assert_eq!(results, [10, 20, 30, 1004, 1005]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_place_is_lost_under_load() {
        let queue = Queue::<(), ()>::new(policy(2, 1000));
        let running = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for number in 0..2000 {
            let (queue, running) = (Arc::clone(&queue), Arc::clone(&running));
            tasks.push(tokio::spawn(async move {
                let place = match queue.enter() {
                    Some(place) => place,
                    None if number % 7 == 0 => {
                        // Gives up at once.
                        let turn = queue.turn((), Priority::default(), soon());
                        let _ = turn.now_or_never();
                        return;
                    }
                    None => match queue.turn((), Priority::new(number % 3), soon()).await {
                        Ok(Turn::Run(place, ())) => place,
                        Ok(Turn::Done(())) | Err(_) => return,
                    },
                };
                assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                drop(place);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(queue.length(), 0);
        let all = (queue.enter(), queue.enter());
        assert!(all.0.is_some() && all.1.is_some() && queue.enter().is_none());
    }
}
