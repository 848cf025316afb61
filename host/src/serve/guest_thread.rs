//! The thread of one client: handshake, then requests, then gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::link::{Fate, Link};
use super::shared::{Guest, Shared};
use crate::nbd::handshake::{negotiate, Wire};
use crate::nbd::session::Session;

/// A handshake takes so long at the most.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Virtual memory of a thread's stack, in bytes; what is not used is not there.
const STACK_BYTES: usize = 512 << 10;

/// Starts the thread of a client that was just accepted; `peer` is its name in the log.
///
/// # Errors
/// When there are no more threads or file descriptors.
pub fn spawn(socket: OwnedFd, peer: String, shared: &Arc<Shared>) -> io::Result<()> {
    let link = Arc::new(Link::new(socket)?);
    let Some(guest) = shared.enter(link.waker().clone()) else {
        tracing::warn!("{peer}: turned away, too many connections");
        return Ok(());
    };
    let present = Present {
        guest,
        shared: shared.clone(),
    };
    std::thread::Builder::new()
        .name("client".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || serve(link, &peer, &present))?;
    Ok(())
}

/// A client that is there; when dropped, even by a panic, it has left.
struct Present {
    guest: Arc<Guest>,
    shared: Arc<Shared>,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.shared.leave(&self.guest);
    }
}

fn serve(link: Arc<Link>, peer: &str, present: &Present) {
    match serve_to_the_end(link, present) {
        Ok(()) => tracing::debug!("{peer}: disconnected"),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!("{peer}: disconnected, {error}");
        }
        Err(error) => tracing::debug!("{peer}: disconnected, {error}"),
    }
}

fn serve_to_the_end(link: Arc<Link>, present: &Present) -> io::Result<()> {
    let mut wire = HandshakeWire {
        link: &link,
        guest: &present.guest,
        shared: &present.shared,
        deadline: Instant::now() + HANDSHAKE_TIME,
    };
    let Some((export, agreement)) = negotiate(&mut wire, &present.shared.exports)? else {
        return Ok(());
    };
    present.guest.negotiated();
    let session = Session::new(export, agreement, link.clone());
    Connection::new(link, session, &present.shared, &present.guest).run()
}

/// The socket during the handshake.
struct HandshakeWire<'l> {
    link: &'l Link,
    guest: &'l Guest,
    shared: &'l Shared,
    deadline: Instant,
}

impl HandshakeWire<'_> {
    fn wait(&self, read: bool) -> io::Result<()> {
        let late = Instant::now() >= self.deadline;
        if late || self.guest.is_evicted() || self.link.fate() == Fate::Dead {
            let text = if late {
                "the handshake took too long"
            } else {
                "made room for another"
            };
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let ready = self.link.wait(read, !read, Some(self.deadline));
        // Woken by nothing from the socket while going down: the client is given up.
        if !ready.readable && !ready.writable && self.shared.is_draining() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Wire for HandshakeWire<'_> {
    fn read_exact(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.link.recv(bytes, false) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => bytes = &mut bytes[received..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(true)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.link.send(&[io::IoSlice::new(bytes)], false) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(false)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn going_down(&self) -> bool {
        self.shared.is_draining()
    }
}
