//! What waits for one model: bounded by number and size. One reader, one writer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most values that wait: 16 MiB.
const MAX_VALUES: usize = 4 << 20;

/// An input, or what is to be said in its place.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Its id.
    pub(super) id: String,
    /// The topic that it came from; empty where there are none.
    pub(super) topic: String,
    /// The input, or why there is none.
    pub(super) input: Result<Arc<Vec<f32>>, String>,
    /// Times of the first and last sample, milliseconds, when it is a window.
    pub(super) window: Option<(f64, f64)>,
}

impl Question {
    fn size(&self) -> usize {
        self.input.as_ref().map_or(0, |input| input.len())
    }
}

#[derive(Debug, Default)]
struct Waiting {
    questions: VecDeque<Question>,
    values: usize,
    closed: bool,
}

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    length: usize,
    filled: Notify,
    emptied: Notify,
}

impl Queue {
    /// A queue of at most `length` questions, at least 1.
    pub(super) fn new(length: usize) -> Self {
        let (filled, emptied) = (Notify::new(), Notify::new());
        Self { waiting: Mutex::default(), length: length.max(1), filled, emptied }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more fits. A single one always does.
    fn fits(&self, waiting: &Waiting, question: &Question) -> bool {
        let small = waiting.values.saturating_add(question.size()) <= MAX_VALUES;
        waiting.questions.is_empty() || (waiting.questions.len() < self.length && small)
    }

    fn add(&self, mut waiting: MutexGuard<'_, Waiting>, question: Question) {
        waiting.values += question.size();
        waiting.questions.push_back(question);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Adds a question in place of the oldest ones that leave no room; how many.
    pub(super) fn push(&self, question: Question) -> usize {
        let mut waiting = self.lock();
        let mut dropped = 0;
        while !self.fits(&waiting, &question)
            && let Some(oldest) = waiting.questions.pop_front()
        {
            waiting.values -= oldest.size();
            dropped += 1;
        }
        self.add(waiting, question);
        dropped
    }

    /// Adds a question as soon as there is room.
    pub(super) async fn push_patiently(&self, question: Question) {
        loop {
            let emptied = self.emptied.notified();
            {
                let waiting = self.lock();
                if self.fits(&waiting, &question) {
                    return self.add(waiting, question);
                }
            }
            emptied.await;
        }
    }

    /// The oldest question; waits for one. `None` when the queue is closed and empty.
    pub(super) async fn pop(&self) -> Option<Question> {
        loop {
            let filled = self.filled.notified();
            {
                let mut waiting = self.lock();
                if let Some(question) = waiting.questions.pop_front() {
                    waiting.values -= question.size();
                    drop(waiting);
                    self.emptied.notify_one();
                    return Some(question);
                }
                if waiting.closed {
                    return None;
                }
            }
            filled.await;
        }
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(id: usize, size: usize) -> Question {
        let input = Ok(Arc::new(vec![0.0; size]));
        Question { id: id.to_string(), topic: String::new(), input, window: None }
    }

    #[tokio::test]
    async fn the_oldest_make_room_and_a_large_one_is_alone() {
        let queue = Queue::new(3);
        let dropped: usize = (0..5).map(|id| queue.push(question(id, 10))).sum();
        assert_eq!(dropped, 2);
        assert_eq!(queue.pop().await.unwrap().id, "2");
        assert_eq!(queue.push(question(5, MAX_VALUES + 1)), 2);
        assert_eq!(queue.push(question(6, 1)), 1);
        queue.close();
        assert_eq!(queue.pop().await.unwrap().id, "6");
        assert!(queue.pop().await.is_none());
        assert_eq!(queue.lock().values, 0);
    }

    #[tokio::test]
    async fn who_waits_loses_nothing() {
        let queue = Arc::new(Queue::new(2));
        let writer = Arc::clone(&queue);
        let writing = tokio::spawn(async move {
            for id in 0..100 {
                writer.push_patiently(question(id, 1)).await;
            }
            writer.close();
        });
        let mut expected = 0;
        while let Some(question) = queue.pop().await {
            assert_eq!(question.id, expected.to_string());
            expected += 1;
        }
        assert_eq!(expected, 100);
        writing.await.unwrap();
    }
}
