//! Looking for the next request instead of going to rest. A thread that rests has to be woken, and its core with it, which
//! takes longer than a small model. So a thread that answered goes on looking for a moment, as a kernel does before it halts
//! a processor (`Documentation/virt/guest-halt-polling.rst` of Linux), but only while requests come as quickly as that
//! moment passes, and while nobody else has use for the core.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Quick requests in a row after which a thread begins to look.
const QUICK: u32 = 16;
/// Two looks follow each other in a few microseconds. When so much time passed, another thread had the core.
const AWAY: Duration = Duration::from_micros(50);

/// Threads of long models that run now: the cores are theirs.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static POLL: Rc<Poll> = Rc::new(Poll::default());
}

/// A long model runs on a thread of its own until this is dropped.
pub(crate) struct Long(());

impl Long {
    pub(crate) fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that arrived then is answered now, on this thread.
pub(crate) fn answered(arrived: Instant) {
    POLL.with(|poll| poll.answered(arrived, Instant::now()));
}

/// Has this thread look for the next request whenever that pays, at most for so long; returns what `rest` does.
pub(crate) async fn until<T>(limit: Duration, rest: impl Future<Output = T>) -> T {
    let poll = POLL.with(Rc::clone);
    poll.limit.set(limit);
    tokio::select! {
        never = poll.look(Instant::now, || RUNNING.load(Ordering::Relaxed) > 0) => match never {},
        ended = rest => ended,
    }
}

/// What a thread that answers knows of its requests.
#[derive(Default)]
struct Poll {
    /// How long it looks; never when zero.
    limit: Cell<Duration>,
    /// When the last request was answered.
    last: Cell<Option<Instant>>,
    /// Requests in a row that came within the limit after the answer before, and were answered within it.
    quick: Cell<u32>,
    wake: Notify,
}

impl Poll {
    fn answered(&self, arrived: Instant, now: Instant) {
        let within = |from: Instant, to: Instant| to.saturating_duration_since(from) < self.limit.get();
        let last = self.last.replace(Some(now));
        let quick = last.is_some_and(|last| within(last, arrived)) && within(arrived, now);
        self.quick.set(if quick { self.quick.get().saturating_add(1) } else { 0 });
        if self.quick.get() == QUICK {
            self.wake.notify_one();
        }
    }

    /// Looks again and again from the last of [`QUICK`] requests on until none came within the limit.
    async fn look(&self, now: impl Fn() -> Instant, busy: impl Fn() -> bool) -> std::convert::Infallible {
        loop {
            self.wake.notified().await;
            let mut before = now();
            loop {
                // The event loop asks the kernel what there is, does it, and comes back without a rest.
                tokio::task::yield_now().await;
                let now = now();
                if busy() || !self.pays(before, now) {
                    break;
                }
                before = now;
            }
            self.quick.set(0);
        }
    }

    /// Whether to look once more after a look that began at `before`.
    fn pays(&self, before: Instant, now: Instant) -> bool {
        let since = |then| now.saturating_duration_since(then);
        // A request that was answered meanwhile took that time.
        self.last.get().is_some_and(|last| {
            self.quick.get() >= QUICK && since(last) < self.limit.get() && since(last.max(before)) < AWAY
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Wake, Waker};

    use super::*;

    const LIMIT: Duration = Duration::from_micros(250);

    /// Counts how often the event loop is asked to come back.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A thread with its time.
    struct Thread {
        poll: Rc<Poll>,
        now: Rc<Cell<Instant>>,
        busy: Rc<Cell<bool>>,
        looking: Pin<Box<dyn Future<Output = std::convert::Infallible>>>,
        count: Arc<Count>,
    }

    impl Thread {
        fn new(limit: Duration) -> Self {
            let (poll, now) = (Rc::new(Poll::default()), Rc::new(Cell::new(Instant::now())));
            poll.limit.set(limit);
            let busy = Rc::new(Cell::new(false));
            let looking = Box::pin({
                let (poll, now, busy) = (Rc::clone(&poll), Rc::clone(&now), Rc::clone(&busy));
                async move { poll.look(|| now.get(), || busy.get()).await }
            });
            let mut thread = Self { poll, now, busy, looking, count: Arc::default() };
            assert!(!thread.looks(0));
            thread
        }

        /// A request comes so many microseconds after what was before it, and takes so many.
        fn answer(&self, gap: u64, took: u64) {
            let arrived = self.now.get() + Duration::from_micros(gap);
            self.now.set(arrived + Duration::from_micros(took));
            self.poll.answered(arrived, self.now.get());
        }

        /// Whether a look so many microseconds later is followed by another.
        fn looks(&mut self, after: u64) -> bool {
            self.now.set(self.now.get() + Duration::from_micros(after));
            let before = self.count.0.load(Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&self.count));
            assert!(self.looking.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            self.count.0.load(Ordering::Relaxed) > before
        }

        /// One that looks, after as many quick requests as it takes; the first has none before it.
        fn looking() -> Self {
            let mut thread = Self::new(LIMIT);
            for _ in 0..=QUICK {
                assert!(!thread.looks(0));
                thread.answer(100, 50);
            }
            assert!(thread.looks(0));
            thread
        }
    }

    #[test]
    fn a_thread_looks_while_requests_come_quickly_and_rests_when_none_came() {
        let mut thread = Thread::looking();
        for _ in 0..100 {
            assert!((0..20).all(|_| thread.looks(10)));
            thread.answer(5, 45);
        }
        assert!((0..24).all(|_| thread.looks(10)));
        assert!(!thread.looks(10), "none came for 250 µs");
        // The next one alone is not enough.
        thread.answer(0, 10);
        assert!(!thread.looks(0));
    }

    #[test]
    fn requests_that_come_slowly_or_take_long_do_not_make_it_look() {
        for (gap, took) in [(250, 10), (10, 250), (33_000, 50)] {
            let mut thread = Thread::new(LIMIT);
            for index in 0..1_000 {
                // Bursts that are too short are none.
                if index % QUICK == 0 {
                    thread.answer(gap, took)
                } else {
                    thread.answer(100, 50)
                }
                assert!(!thread.looks(1), "{gap} µs apart, {took} µs long");
            }
        }
        let mut never = Thread::new(Duration::ZERO);
        for _ in 0..1_000 {
            never.answer(0, 0);
            assert!(!never.looks(0));
        }
    }

    #[test]
    fn it_rests_when_another_thread_has_use_for_the_core() {
        let mut thread = Thread::looking();
        assert!(!thread.looks(51), "nothing ran here for 51 µs");
        let mut thread = Thread::looking();
        thread.answer(5, 150);
        assert!(thread.looks(5), "a request was answered meanwhile");
        thread.busy.set(true);
        assert!(!thread.looks(1));
    }

    #[tokio::test]
    async fn an_event_loop_does_not_rest_while_it_looks() {
        let turns = Cell::new(0);
        let mut rest = Box::pin(async {
            // Another process may take the core just then: what counts is that it happens.
            for _ in 0..1_000 {
                (0..=QUICK).for_each(|_| answered(Instant::now()));
                let before = turns.get();
                tokio::time::sleep(Duration::from_millis(2)).await;
                if turns.get() > before + 20 {
                    return true;
                }
            }
            false
        });
        let counted = std::future::poll_fn(|context| {
            turns.set(turns.get() + 1);
            rest.as_mut().poll(context)
        });
        assert!(until(Duration::from_millis(1), counted).await);
    }
}
