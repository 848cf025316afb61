//! What the host lends a plugin: memory, threads that may block, timers, tasks.

use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_ffi::FutureExt;

use crate::abi::{HostRef, Job};
use crate::{Buf, Error, Kind, Result};

/// The host, as a plugin sees it. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Host(HostRef);

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    /// Takes the host's table, and forwards this library's `tracing` and `log` events to it.
    pub fn attach(table: HostRef) -> Self {
        crate::log_forward::install(table);
        Self(table)
    }

    /// A buffer of `len` bytes from the host's pool; its first contents are arbitrary.
    pub fn buf(&self, len: usize) -> Buf {
        (self.0.buf())(len)
    }

    /// Waits.
    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send {
        let millis = u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        (self.0.sleep())(millis)
    }

    /// Drives `future` in the background, to its end.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        (self.0.spawn())(future.into_ffi());
    }

    /// Runs `work` on a thread that may block. It starts at the first poll, and runs to its end
    /// even if the future is dropped then.
    pub fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send {
        let host = self.0;
        let mut work = Some(work);
        let slot = Arc::new(Slot::new());
        std::future::poll_fn(move |cx| {
            if let Some(work) = work.take() {
                // Registered before the start: a fast job must find the waker.
                let _ = slot.poll(cx.waker());
                let fill = Fill(slot.clone());
                (host.blocking())(Job::new(move || fill.with(work)));
                return Poll::Pending;
            }
            slot.poll(cx.waker())
        })
    }
}

/// Where a blocking job leaves its result.
struct Slot<T>(Mutex<SlotState<T>>);

enum SlotState<T> {
    Empty,
    Waiting(Waker),
    Done(Result<T>),
    Taken,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Self(Mutex::new(SlotState::Empty))
    }

    fn poll(&self, waker: &Waker) -> Poll<Result<T>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            SlotState::Waiting(known) => known.clone_from(waker),
            SlotState::Empty => *state = SlotState::Waiting(waker.clone()),
            SlotState::Done(_) | SlotState::Taken => {
                return match std::mem::replace(&mut *state, SlotState::Taken) {
                    SlotState::Done(result) => Poll::Ready(result),
                    _ => Poll::Ready(Err(Error::new(Kind::Panic, "polled after its end"))),
                };
            }
        }
        Poll::Pending
    }

    fn fill(&self, result: Result<T>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let SlotState::Done(_) | SlotState::Taken = &*state {
            return;
        }
        let before = std::mem::replace(&mut *state, SlotState::Done(result));
        drop(state);
        if let SlotState::Waiting(waker) = before {
            waker.wake();
        }
    }
}

/// Fills the slot even if the job is discarded or panics.
struct Fill<T>(Arc<Slot<T>>);

impl<T> Fill<T> {
    fn with(self, work: impl FnOnce() -> Result<T>) {
        if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
            self.0.fill(result);
        }
    }
}

impl<T> Drop for Fill<T> {
    fn drop(&mut self) {
        self.0.fill(Err(Error::new(
            Kind::Panic,
            "the blocking work did not end",
        )));
    }
}
