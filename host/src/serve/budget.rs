//! Memory for payloads, shared by all connections. Each connection has a little of its own; what
//! goes beyond that is leased from the common budget, and given back when the work is done.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a connection may use without asking, in bytes.
const OWN_BYTES: u64 = 256 << 10;
/// Leases are taken in steps of this, in bytes.
const STEP_BYTES: u64 = 1 << 20;

/// The common budget.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    free_bytes: u64,
    waiting: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self {
            state: Mutex::new(State {
                free_bytes: bytes,
                waiting: 0,
            }),
            freed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for memory.
    pub fn is_short(&self) -> bool {
        self.state().waiting > 0
    }

    fn try_take(&self, bytes: u64) -> bool {
        let mut state = self.state();
        let fits = state.free_bytes >= bytes;
        if fits {
            state.free_bytes -= bytes;
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        let mut state = self.state();
        state.free_bytes += bytes;
        if state.waiting > 0 {
            self.freed.notify_all();
        }
    }

    /// Waits until something may be free, or for `most`.
    pub fn wait(&self, most: Duration) {
        let mut state = self.state();
        state.waiting += 1;
        let (mut state, _) = self
            .freed
            .wait_timeout(state, most)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
    }
}

/// What one connection uses.
#[derive(Debug)]
pub struct Account<'b> {
    budget: &'b Budget,
    used_bytes: u64,
    leased_bytes: u64,
}

impl<'b> Account<'b> {
    /// An account that uses nothing yet.
    pub fn new(budget: &'b Budget) -> Self {
        Self {
            budget,
            used_bytes: 0,
            leased_bytes: 0,
        }
    }

    /// Takes so many bytes, or nothing if the budget can't give them now.
    pub fn try_use(&mut self, bytes: u64) -> bool {
        let wanted = self.used_bytes + bytes;
        let has = OWN_BYTES + self.leased_bytes;
        if wanted > has {
            let lease = (wanted - has).next_multiple_of(STEP_BYTES);
            if !self.budget.try_take(lease) {
                return false;
            }
            self.leased_bytes += lease;
        }
        self.used_bytes = wanted;
        true
    }

    /// Says that so many bytes are not used any more.
    pub fn release(&mut self, bytes: u64) {
        self.used_bytes -= bytes;
        if self.used_bytes == 0 && self.leased_bytes > 0 {
            self.budget
                .give_back(std::mem::take(&mut self.leased_bytes));
        }
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if self.leased_bytes > 0 {
            self.budget.give_back(self.leased_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_free_and_the_rest_is_leased() {
        let budget = Budget::new(4 << 20);
        let mut first = Account::new(&budget);
        let mut second = Account::new(&budget);
        assert!(first.try_use(OWN_BYTES));
        assert!(first.try_use(4 << 20));
        assert!(!second.try_use(OWN_BYTES + 1));
        assert!(second.try_use(OWN_BYTES));
        first.release(4 << 20);
        assert!(!second.try_use(1));
        first.release(OWN_BYTES);
        assert!(second.try_use(1));
        drop(second);
        assert!(first.try_use(4 << 20));
    }
}
