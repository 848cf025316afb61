//! One fetch for everybody who waits for the same bytes.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use nbd_rs_plugin::{Bytes, Error, Kind, Piece, Result};

use crate::index::Version;

/// What a fetch brought: consecutive bytes of one version of an object.
#[derive(Debug)]
pub struct Fetched {
    /// The version; none if the store did not say which.
    pub version: Option<Version>,
    /// Where the bytes begin in the object.
    pub start: u64,
    /// The bytes in order, without gaps.
    pub pieces: Vec<Bytes>,
}

impl Fetched {
    /// Behind the last byte.
    pub fn end(&self) -> u64 {
        self.start
            + self
                .pieces
                .iter()
                .map(|piece| piece.len() as u64)
                .sum::<u64>()
    }

    /// Appends these bytes, which must be here, to `answer`: shared, not copied.
    pub fn append(&self, bytes: &Range<u64>, answer: &mut Vec<Piece>) {
        let mut at = self.start;
        for piece in &self.pieces {
            let end = at + piece.len() as u64;
            let part = bytes.start.max(at)..bytes.end.min(end);
            if part.start < part.end {
                let inside = (part.start - at) as usize..(part.end - at) as usize;
                answer.push(Piece::Bytes(piece.clone().slice(inside)));
            }
            at = end;
        }
    }
}

/// A fetch under way. It belongs to nobody: a task of the host's drives it to its end.
#[derive(Debug, Default)]
pub struct Flight {
    state: Mutex<State>,
    wide: bool,
}

#[derive(Debug)]
enum State {
    Flying(Vec<Waker>),
    Landed(Result<Arc<Fetched>>),
}

impl Default for State {
    fn default() -> Self {
        State::Flying(Vec::new())
    }
}

impl Flight {
    /// One that brings more than its readers asked for.
    pub fn wide() -> Self {
        Self {
            wide: true,
            ..Self::default()
        }
    }

    /// Whether it brings more than its readers asked for: then its failure is not theirs.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// Waits for the end.
    pub fn wait(self: Arc<Self>) -> Wait {
        Wait(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn land(&self, result: Result<Fetched>) {
        let mut state = self.state();
        if let State::Flying(wakers) = &mut *state {
            let wakers = std::mem::take(wakers);
            *state = State::Landed(result.map(Arc::new));
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// See [`Flight::wait`].
#[derive(Debug)]
pub struct Wait(Arc<Flight>);

impl Future for Wait {
    type Output = Result<Arc<Fetched>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self.0.state() {
            State::Landed(result) => Poll::Ready(result.clone()),
            State::Flying(wakers) => {
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// Lands a flight, also if the task that flies it panics or is dropped.
#[derive(Debug)]
pub struct Pilot(Arc<Flight>);

impl Pilot {
    /// Takes over a flight.
    pub fn new(flight: Arc<Flight>) -> Self {
        Self(flight)
    }

    /// Ends the flight, and wakes everybody who waits.
    pub fn land(self, result: Result<Fetched>) {
        self.0.land(result);
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        // Nothing happens if it landed.
        self.0
            .land(Err(Error::new(Kind::Io, "the fetch did not end")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_without_its_pilot_is_an_error_for_all() {
        let flight = Arc::new(Flight::default());
        let mut waits = [flight.clone().wait(), flight.clone().wait()];
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut waits[0]).poll(&mut cx).is_pending());
        drop(Pilot::new(flight));
        for wait in &mut waits {
            let Poll::Ready(result) = Pin::new(wait).poll(&mut cx) else {
                panic!("still waiting");
            };
            assert_eq!(result.unwrap_err().kind, Kind::Io);
        }
    }

    #[test]
    fn parts_of_what_was_fetched_are_shared_not_copied() {
        let piece = |text: &[u8]| Bytes::from(text.to_vec());
        let fetched = Fetched {
            version: None,
            start: 10,
            pieces: vec![piece(b"abc"), piece(b"defg"), piece(b"h")],
        };
        assert_eq!(fetched.end(), 18);
        let mut answer = Vec::new();
        fetched.append(&(12..18), &mut answer);
        let lens: Vec<u64> = answer.iter().map(Piece::len).collect();
        assert_eq!(lens, [1, 4, 1]);
        let Piece::Bytes(bytes) = &answer[1] else {
            panic!()
        };
        assert_eq!(bytes.as_ptr(), fetched.pieces[1].as_ptr());
    }
}
