//! What all connections of a server share: the exports, the memory budget, and who is there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::wake::Waker;
use crate::nbd::options::Exports;

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Memory for payloads, beyond the little that each connection has, in bytes.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            memory_bytes: 512 << 20,
        }
    }
}

/// Handshakes that may go on at the same time; the oldest makes room for a new one.
const MAX_HANDSHAKES: usize = 128;

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// What is offered.
    pub exports: Exports,
    /// Memory for payloads.
    pub budget: Budget,
    limits: Limits,
    draining: AtomicBool,
    guests: Mutex<Guests>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Guests {
    next_id: u64,
    all: BTreeMap<u64, Arc<Guest>>,
}

/// A connection as the others see it.
#[derive(Debug)]
pub struct Guest {
    id: u64,
    waker: Arc<Waker>,
    negotiating: AtomicBool,
    evicted: AtomicBool,
}

impl Guest {
    /// The handshake is over.
    pub fn negotiated(&self) {
        self.negotiating.store(false, Ordering::Release);
    }

    /// Whether this connection has to make room for another.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }
}

impl Shared {
    /// For a server that offers `exports`.
    pub fn new(exports: Exports, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            exports,
            budget: Budget::new(limits.memory_bytes),
            limits,
            draining: AtomicBool::new(false),
            guests: Mutex::default(),
            left: Condvar::new(),
        })
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server is going down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Takes a connection in; `None` when there are too many.
    pub fn enter(&self, waker: Arc<Waker>) -> Option<Arc<Guest>> {
        let mut guests = self.guests();
        if guests.all.len() >= self.limits.connections {
            return None;
        }
        let negotiating =
            |guest: &&Arc<Guest>| guest.negotiating.load(Ordering::Acquire) && !guest.is_evicted();
        if guests.all.values().filter(negotiating).count() >= MAX_HANDSHAKES {
            if let Some(oldest) = guests.all.values().find(negotiating) {
                oldest.evicted.store(true, Ordering::Release);
                oldest.waker.wake_thread();
            }
        }
        guests.next_id += 1;
        let guest = Arc::new(Guest {
            id: guests.next_id,
            waker,
            negotiating: AtomicBool::new(true),
            evicted: AtomicBool::new(false),
        });
        guests.all.insert(guest.id, guest.clone());
        Some(guest)
    }

    /// A connection has ended.
    pub fn leave(&self, guest: &Guest) {
        self.guests().all.remove(&guest.id);
        self.left.notify_all();
    }

    /// Asks everybody to finish and go.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        for guest in self.guests().all.values() {
            guest.waker.wake_thread();
        }
    }

    /// Waits until everybody is gone; how many are still there after `most`.
    pub fn wait_empty(&self, most: Duration) -> usize {
        let deadline = Instant::now() + most;
        let mut guests = self.guests();
        while !guests.all.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.left.wait_timeout(guests, left);
            guests = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        guests.all.len()
    }
}
