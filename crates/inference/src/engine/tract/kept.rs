//! States of tract that a thread uses again. tract keeps scratch space of a state on every thread that ran it, and a
//! state that ends gives back only that of the thread where it ends. So a state stays on one thread, only threads that
//! say so keep any, and they let go of those whose graph is gone.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tract_onnx::prelude::{TractResult, TypedSimplePlan, TypedSimpleState};

/// Most states that one thread keeps: more models than a gateway answers with, each with a few kilobytes.
const MOST: usize = 16;

thread_local! {
    static KEPT: RefCell<Option<States>> = const { RefCell::new(None) };
}

/// Graphs that are gone, ever: what a thread compares to know whether it has to look.
static GONE: AtomicU64 = AtomicU64::new(0);

struct States {
    gone: u64,
    /// The one used last is at the end.
    list: Vec<(Weak<Mark>, TypedSimpleState)>,
}

/// Tells one graph from the others, and when it is gone.
#[derive(Default)]
pub(super) struct Mark;

impl Drop for Mark {
    fn drop(&mut self) {
        GONE.fetch_add(1, Ordering::Release);
    }
}

/// While it is there, graphs that run on this thread keep what they need from one run to the next. It belongs to a
/// thread that lasts and answers many requests.
pub struct Resident(PhantomData<*const ()>);

impl Resident {
    /// Makes this thread one that keeps states. A second one on the same thread ends with the first.
    #[must_use]
    pub fn here() -> Self {
        KEPT.with_borrow_mut(|kept| {
            kept.get_or_insert(States { gone: GONE.load(Ordering::Acquire), list: Vec::new() });
        });
        Self(PhantomData)
    }

    /// Lets go of what belongs to graphs that are gone. Each run does so, too; for a thread that nobody asks.
    pub fn tidy(&self) {
        KEPT.with_borrow_mut(|kept| kept.as_mut().map(States::tidy));
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(Option::take);
    }
}

impl States {
    fn tidy(&mut self) {
        let gone = GONE.load(Ordering::Acquire);
        if gone != self.gone {
            self.gone = gone;
            self.list.retain(|(mark, _)| mark.strong_count() > 0);
        }
    }
}

/// Calls `run` with a state of the plan: one that this thread kept, or a new one. A run that fails or panics leaves
/// none behind.
pub(super) fn with_state<T>(
    mark: &Arc<Mark>,
    plan: &Arc<TypedSimplePlan>,
    run: impl FnOnce(&mut TypedSimpleState) -> TractResult<T>,
) -> TractResult<T> {
    let found = KEPT.with_borrow_mut(|kept| {
        let states = kept.as_mut()?;
        states.tidy();
        let index = states.list.iter().rposition(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(mark)));
        Some(index.map(|index| states.list.remove(index).1))
    });
    let mut state = match found.flatten() {
        Some(state) => state,
        None => plan.spawn()?,
    };
    let result = run(&mut state)?;
    // What an operator carries from one run to the next would go from one request to another.
    if state.op_states.iter().any(Option::is_some) {
        return Ok(result);
    }
    KEPT.with_borrow_mut(|kept| {
        if let Some(states) = kept {
            if states.list.len() >= MOST {
                states.list.remove(0);
            }
            states.list.push((Arc::downgrade(mark), state));
        }
    });
    Ok(result)
}
