//! A gate that shuts after so many changes, for a client that dies at just that point.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::http::Request;

/// What becomes of the change at which the gate shuts. Its client never hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Nothing.
    Lost,
    /// It is done at once.
    Done,
    /// It is done when [`crate::Server::deliver`] says so.
    Late,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Open,
    /// So many more pass; then it shuts.
    Counting(usize, Last),
    Shut,
}

/// The gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    late: Mutex<Late>,
    delivered: Condvar,
}

/// A change that is late.
#[derive(Debug, Default, PartialEq, Eq)]
enum Late {
    #[default]
    None,
    /// It waits for its delivery.
    OnItsWay,
    /// It is being done.
    Delivered,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    pub(crate) fn shut_after(&self, count: usize, last: Last) {
        *self.late() = Late::None;
        self.set(State::Counting(count, last));
    }

    fn late(&self) -> MutexGuard<'_, Late> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is late done, and comes back when it is.
    pub(crate) fn deliver(&self) {
        let mut late = self.late();
        if *late == Late::OnItsWay {
            *late = Late::Delivered;
        }
        self.delivered.notify_all();
        drop(self.delivered.wait_while(late, |late| *late != Late::None));
    }

    /// Waits for the delivery of what is late, and does it.
    pub(crate) fn be_late(&self, act: impl FnOnce()) {
        let waits = |late: &mut Late| *late == Late::OnItsWay;
        drop(self.delivered.wait_while(self.late(), waits));
        act();
        *self.late() = Late::None;
        self.delivered.notify_all();
    }

    pub(crate) fn open(&self) {
        self.set(State::Open);
    }

    /// Waits until it is shut, but not longer than that.
    pub(crate) fn is_shut_within(&self, limit: Duration) -> bool {
        let open = |state: &mut State| !matches!(state, State::Shut);
        let waited = self.changed.wait_timeout_while(self.state(), limit, open);
        matches!(
            *waited.unwrap_or_else(PoisonError::into_inner).0,
            State::Shut
        )
    }

    /// What is to be done with a request: it passes (`None`), or is held.
    pub(crate) fn arrive(&self, request: &Request) -> Option<Last> {
        if matches!(request.method.as_str(), "GET" | "HEAD") {
            return None;
        }
        let mut state = self.state();
        match *state {
            State::Open => None,
            State::Counting(0, last) => {
                *state = State::Shut;
                if last == Last::Late {
                    *self.late() = Late::OnItsWay;
                }
                self.changed.notify_all();
                Some(last)
            }
            State::Counting(count, last) => {
                *state = State::Counting(count - 1, last);
                None
            }
            State::Shut => Some(Last::Lost),
        }
    }

    /// Waits until it opens.
    pub(crate) fn wait(&self) {
        let shut = |state: &mut State| matches!(state, State::Shut);
        drop(self.changed.wait_while(self.state(), shut));
    }
}
