//! A connection's socket, and what is known of the client's being there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno as Os;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{recv, sendmsg, RecvFlags, SendAncillaryBuffer, SendFlags};

use super::wake::Waker;
use crate::export::Requester;

const UNKNOWN: u8 = 0;
const ORDERLY: u8 = 1;
const DEAD: u8 = 2;

/// What is known of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It may be there.
    Unknown,
    /// It said that it leaves: what it asked for before is carried out.
    Orderly,
    /// It is gone without a word: no change that it asked for starts any more (contract C3).
    Dead,
}

/// A socket with its waker.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    waker: Arc<Waker>,
    fate: AtomicU8,
    /// Changes that wait to hear of the fate of a client that hung up.
    asking: Mutex<Vec<task::Waker>>,
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready {
    /// There may be bytes, or the end of the stream.
    pub readable: bool,
    /// There is room to send.
    pub writable: bool,
}

impl Link {
    /// Takes the socket over.
    ///
    /// # Errors
    /// When there are no more file descriptors.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket,
            waker: Arc::new(Waker::new()?),
            fate: AtomicU8::new(UNKNOWN),
            asking: Mutex::default(),
        })
    }

    /// The waker of the connection's thread.
    pub(super) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// What is known of the client.
    pub(super) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            ORDERLY => Fate::Orderly,
            DEAD => Fate::Dead,
            _ => Fate::Unknown,
        }
    }

    /// Settles it, once.
    pub(super) fn settle(&self, fate: Fate) {
        let fate = match fate {
            Fate::Unknown => return,
            Fate::Orderly => ORDERLY,
            Fate::Dead => DEAD,
        };
        let _ = self
            .fate
            .compare_exchange(UNKNOWN, fate, Ordering::AcqRel, Ordering::Acquire);
        let asking = std::mem::take(&mut *self.asking());
        asking.into_iter().for_each(task::Waker::wake);
    }

    fn asking(&self) -> MutexGuard<'_, Vec<task::Waker>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether changes wait until the fate is settled.
    pub(super) fn is_fate_asked(&self) -> bool {
        self.fate() == Fate::Unknown && !self.asking().is_empty()
    }

    /// Whether the other end is shut, in at least its sending direction.
    pub(super) fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => fds[0].revents().intersects(gone),
            Err(_) => false,
        }
    }

    /// Bounds how long [`recv`](Self::recv) and [`send`](Self::send) may block.
    ///
    /// # Errors
    /// When the socket is no socket any more.
    pub(super) fn set_patience(&self, receiving: Duration, sending: Duration) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(receiving))?;
        set_socket_timeout(&self.socket, Timeout::Send, Some(sending))?;
        Ok(())
    }

    /// Receives; 0 at the end of the stream. `WouldBlock` when there is nothing (yet).
    ///
    /// # Errors
    /// What the socket says.
    pub(super) fn recv(&self, bytes: &mut [u8], block: bool) -> io::Result<usize> {
        let flags = if block {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match recv(&self.socket, &mut *bytes, flags) {
                Ok((len, _)) => return Ok(len),
                Err(Os::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends what it can of `slices`. `WouldBlock` when there is no room (in time).
    ///
    /// # Errors
    /// What the socket says; `EFAULT` if a lent slice could not be read.
    pub(super) fn send(&self, slices: &[io::IoSlice<'_>], block: bool) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        if !block {
            flags |= SendFlags::DONTWAIT;
        }
        loop {
            match sendmsg(
                &self.socket,
                slices,
                &mut SendAncillaryBuffer::default(),
                flags,
            ) {
                Err(Os::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }

    /// Sleeps until the socket is ready for what is wanted, the thread is woken, or `deadline`.
    pub(super) fn wait(&self, read: bool, write: bool, deadline: Option<Instant>) -> Ready {
        if !self.waker.may_sleep() {
            return Ready::default();
        }
        let mut wanted = PollFlags::empty();
        if read {
            wanted |= PollFlags::IN | PollFlags::RDHUP;
        }
        if write {
            wanted |= PollFlags::OUT;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let waker = self.waker.fd();
        let mut fds = [
            PollFd::from_borrowed_fd(waker, PollFlags::IN),
            PollFd::new(&self.socket, wanted),
        ];
        // With nothing wanted of the socket its hang-up would be reported without end.
        let watched = if wanted.is_empty() { 1 } else { 2 };
        let polled = poll(&mut fds[..watched], timeout.as_ref());
        let events = match polled {
            Ok(_) if watched == 2 => fds[1].revents(),
            _ => PollFlags::empty(),
        };
        let woken = !fds[0].revents().is_empty();
        self.waker.awake(woken);
        let over = PollFlags::HUP | PollFlags::ERR;
        Ready {
            readable: read && events.intersects(PollFlags::IN | PollFlags::RDHUP | over),
            writable: write && events.intersects(PollFlags::OUT | over),
        }
    }
}

impl Requester for Link {
    fn poll_gone(&self, cx: &mut task::Context<'_>) -> Poll<bool> {
        match self.fate() {
            Fate::Unknown if self.hung_up() => {
                self.asking().push(cx.waker().clone());
                Poll::Pending
            }
            fate => Poll::Ready(fate == Fate::Dead),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
