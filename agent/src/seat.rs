//! What a request runs with, and the thread of its own on which a long model runs. Such a thread goes on to what waits without
//! asking anybody, and lets its answers go together with those of the model's other threads: each that leaves by itself
//! wakes the thread that writes it, which costs both of them their caches.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farlight_inference::{LoadError, Pipeline, Resident, Worker};
use tokio::runtime::Handle;

use crate::loaded::{Loaded, Ran, Work};
use crate::poll::Long;
use crate::queue::{Place, Reply, in_time};

/// Longest time that an answer which is ready waits for others, by what the model took lately. A model that takes longer lets
/// go of each at once: there is little to save.
const HOLD: Duration = Duration::from_millis(4);

/// What a request runs with: buffers, and a thread once the model is found to be a long one.
pub(crate) struct Seat {
    pub(crate) worker: Worker,
    thread: Option<Sender<Box<Job>>>,
}

impl Seat {
    /// A seat without a thread.
    ///
    /// # Errors
    /// When the engine refuses.
    pub(crate) fn new(pipeline: &Pipeline) -> Result<Self, LoadError> {
        Ok(Self { worker: pipeline.worker()?, thread: None })
    }
}

/// A request for the thread of a seat, which ends with the seat.
pub(crate) struct Job {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) seat: Seat,
    pub(crate) place: Place<Work, Ran>,
    pub(crate) work: Work,
    pub(crate) reply: Reply<Work, Ran>,
}

impl Job {
    /// Hands itself to the thread of its seat; comes back when there is none.
    pub(crate) fn on_its_thread(mut self: Box<Self>) -> Result<(), Box<Self>> {
        let thread = match self.seat.thread.clone() {
            Some(thread) => thread,
            None => {
                let (sender, jobs) = channel::<Box<Self>>();
                // It runs where the thread that starts it may run: on the cores of the configuration.
                let thread = std::thread::Builder::new().name("infer".into());
                let run = move || {
                    let _resident = Resident::here();
                    jobs.into_iter().for_each(Self::run);
                };
                if let Err(error) = thread.spawn(run) {
                    tracing::warn!(%error, "a model has no thread of its own");
                    return Err(self);
                }
                self.seat.thread.insert(sender).clone()
            }
        };
        thread.send(self).map_err(|unsent| {
            let mut job = unsent.0;
            job.seat.thread = None;
            job
        })
    }

    /// Runs the request, and then those that wait: who runs them here spares them two changes of threads. The place is
    /// free before the last of them is answered: a client that asks again at once finds it.
    pub(crate) fn run(self: Box<Self>) {
        let Self { loaded, mut seat, place, work, reply } = *self;
        let _long = Long::begin();
        let (queue, held) = (&loaded.queue, loaded.held.until_dropped());
        let mut next = Some((work, reply));
        let mut answers = Answers::default();
        while let Some((work, reply)) = next {
            let ran = loaded.run_group(&mut seat.worker, work, &mut answers);
            answers.add(reply, ran, Instant::now());
            next = queue.more(1).pop().map(|waiting| waiting.split());
            if next.is_some() {
                // Clients that ask again once they are answered are not to leave the other workers without work.
                let others_wait = queue.length() >= queue.policy().workers;
                let (now, run) = (Instant::now(), loaded.next_run());
                let wait = |all: &Answers| others_wait && all.can_wait(now, run);
                held.add(std::mem::take(&mut answers), wait);
            }
        }
        loaded.leave(seat);
        drop(place);
        held.add(answers, |_| false);
    }
}

/// Answers of one model's threads that are ready and wait for each other. Every thread that adds some looks at all after
/// its next run, and leaves none behind when it ends.
#[derive(Default)]
pub(crate) struct Held(Mutex<Answers>);

impl Held {
    /// Also when an engine panics, all are sent at the end.
    fn until_dropped(&self) -> Holding<'_> {
        Holding(self)
    }
}

/// A thread that adds answers to those that are held.
struct Holding<'a>(&'a Held);

impl Holding<'_> {
    /// Adds some, and sends all unless they can `wait`.
    fn add(&self, answers: Answers, wait: impl FnOnce(&Answers) -> bool) {
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.join(answers);
        if !wait(&all) {
            let mut leave = std::mem::take(&mut *all);
            drop(all);
            leave.send();
        }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.add(Answers::default(), |_| false);
    }
}

/// An answer and the way to who waits for it.
type Ready = (Reply<Work, Ran>, Ran);

/// Answers that are ready, by the event loop that waits for them. Those that are not sent are lost.
#[derive(Default)]
pub(crate) struct Answers {
    /// When they have to leave.
    until: Option<Instant>,
    homes: Vec<(Handle, Vec<Ready>)>,
}

impl Answers {
    /// One more, which is ready `now`.
    pub(crate) fn add(&mut self, to: Reply<Work, Ran>, ran: Ran, now: Instant) {
        let until = to.deadline().min(now + HOLD);
        self.until = Some(self.until.map_or(until, |others| others.min(until)));
        let home = to.home().clone();
        self.of_home(&home).push((to, ran));
    }

    /// Those of others as well.
    fn join(&mut self, others: Self) {
        self.until = self.until.into_iter().chain(others.until).min();
        for (home, answers) in others.homes {
            self.of_home(&home).extend(answers);
        }
    }

    fn of_home(&mut self, home: &Handle) -> &mut Vec<Ready> {
        let index = self.homes.iter().position(|(known, _)| known.id() == home.id()).unwrap_or_else(|| {
            self.homes.push((home.clone(), Vec::new()));
            self.homes.len() - 1
        });
        &mut self.homes[index].1
    }

    /// Whether they can wait for one more run that is expected to take so long.
    fn can_wait(&self, now: Instant, run: Duration) -> bool {
        self.until.is_none_or(|until| in_time(now, run, until))
    }

    /// Sends them all, and wakes each event loop once.
    pub(crate) fn send(&mut self) {
        self.until = None;
        for (home, answers) in self.homes.drain(..) {
            let send = |(to, ran): Ready| {
                // One whose sender is gone was run for nothing.
                let _ = to.done(ran);
            };
            match <[Ready; 1]>::try_from(answers) {
                Ok([only]) => send(only),
                Err(answers) => {
                    home.spawn(async move { answers.into_iter().for_each(send) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;
    use crate::queue::Turn;

    #[tokio::test]
    async fn an_answer_waits_for_others_of_a_quick_model_but_not_for_one_that_ends_after_its_deadline() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut answers = Answers::default();
        let add = |answers: &mut Answers, deadline, at| {
            let (reply, _turn) = Reply::here(now + ms(deadline));
            answers.add(reply, Ran::lost(now), now + ms(at));
        };
        add(&mut answers, 1_000, 0);
        assert!(answers.can_wait(now, ms(3)) && !answers.can_wait(now, ms(4)));
        // Others that are ready later do not let it wait longer.
        add(&mut answers, 1_000, 2);
        assert!(answers.can_wait(now + ms(2), ms(1)) && !answers.can_wait(now + ms(3), ms(1)));
        add(&mut answers, 3, 2);
        assert!(!answers.can_wait(now + ms(2), ms(1)));
        answers.send();
        assert!(answers.can_wait(now, ms(60_000)), "there is none");
    }

    #[test]
    fn what_is_held_leaves_with_the_first_that_cannot_wait_and_with_who_ends_or_panics() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let held = Held::default();
        let (mut turns, mut told) = (Vec::new(), Vec::new());
        let mut one = |holding: &Holding<'_>, wait: bool| {
            let (reply, turn) = runtime.block_on(async { Reply::here(Instant::now()) });
            let mut answers = Answers::default();
            answers.add(reply, Ran::lost(Instant::now()), Instant::now());
            holding.add(answers, |_| wait);
            turns.push(turn);
            runtime.block_on(tokio::task::yield_now());
            told.push(turns.iter_mut().filter_map(|turn| turn.try_recv().ok()).count());
        };
        let (first, second) = (held.until_dropped(), held.until_dropped());
        one(&first, true);
        one(&second, false);
        one(&first, true);
        one(&second, true);
        // Two leave with the first's end, and one when the second panics.
        drop(first);
        one(&second, true);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _holding = second;
            panic!("an engine");
        }));
        assert!(panicked.is_err());
        one(&held.until_dropped(), true);
        assert_eq!(told, [0, 2, 0, 0, 2, 1]);
    }

    #[test]
    fn every_event_loop_gets_its_answers_in_one_turn() {
        let mut answers = Answers::default();
        let mut loops = Vec::new();
        for count in [1, 3] {
            let runtime = Builder::new_current_thread().build().unwrap();
            let (replies, turns): (Vec<_>, Vec<_>) =
                runtime.block_on(async { (0..count).map(|_| Reply::here(Instant::now())).unzip() });
            loops.push((runtime, turns));
            replies
                .into_iter()
                .for_each(|reply| answers.add(reply, Ran::lost(Instant::now()), Instant::now()));
        }
        std::thread::spawn(move || answers.send()).join().unwrap();
        // An answer alone is there at once; several need one turn of their loop. One who is gone by then is no error.
        let (_runtime, only) = loops.remove(0);
        let (runtime, mut turns) = loops.remove(0);
        drop(turns.pop());
        runtime.block_on(tokio::task::yield_now());
        for mut turn in only.into_iter().chain(turns) {
            assert!(matches!(turn.try_recv(), Ok(Turn::Done(_))));
        }
    }
}
