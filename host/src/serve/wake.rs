//! Wakes a connection's thread: from a future that can go on, or to shut down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Wake;

use rustix::event::{eventfd, EventfdFlags};

const AWAKE: u8 = 0;
const WOKEN: u8 = 1;
const ASLEEP: u8 = 2;

/// An eventfd that is written only when the thread sleeps.
#[derive(Debug)]
pub struct Waker {
    event: OwnedFd,
    state: AtomicU8,
}

impl Waker {
    /// A waker for one thread.
    ///
    /// # Errors
    /// When there are no more file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: AtomicU8::new(AWAKE),
        })
    }

    /// Wakes the thread, or keeps it from falling asleep once.
    pub fn wake_thread(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            // Full means woken already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Whether the thread may sleep now: it then polls [`fd`](Self::fd) beside its socket.
    pub fn may_sleep(&self) -> bool {
        let fell_asleep =
            self.state
                .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        if fell_asleep.is_err() {
            self.state.store(AWAKE, Ordering::Release);
            return false;
        }
        true
    }

    /// The thread is up again; `readable` says whether [`fd`](Self::fd) was. A wake whose write
    /// comes late leaves the event readable: the next sleep ends early, and takes it away.
    pub(super) fn awake(&self, readable: bool) {
        self.state.store(AWAKE, Ordering::Release);
        if readable {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }

    /// Readable when the thread was woken from its sleep.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Wake for Waker {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_thread();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        self.wake_thread();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_is_not_lost() {
        let waker = Waker::new().unwrap();
        waker.wake_thread();
        assert!(!waker.may_sleep());
        assert!(waker.may_sleep());
        waker.wake_thread();
        waker.awake(true);
        assert!(rustix::io::read(waker.fd(), &mut [0; 8]).is_err());
    }

    #[test]
    fn a_wake_that_writes_late_ends_one_sleep_and_no_more() {
        let waker = Waker::new().unwrap();
        assert!(waker.may_sleep());
        waker.awake(false);
        rustix::io::write(waker.fd(), &1u64.to_ne_bytes()).unwrap();
        assert!(waker.may_sleep());
        waker.awake(true);
        assert!(rustix::io::read(waker.fd(), &mut [0; 8]).is_err());
    }
}
