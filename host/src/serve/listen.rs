//! Sockets that clients come in by: TCP and unix, and the thread that accepts.

use std::fmt;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::{acceptfrom_with, SocketFlags};

use super::connection;
use super::guest_thread;
use super::shared::Shared;
use super::wake::Waker;
use crate::error::{Error, Kind, Result};

/// What a unix socket holds of replies, in bytes: a whole batch, so that the thread that sends it need
/// not sleep until the client has taken its first part. TCP sizes its own buffers.
const UNIX_SEND_BUFFER_BYTES: usize = connection::SEND_BYTES as usize;
/// After a failed accept (no more file descriptors, most likely) nothing is accepted for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err(Error::new(Kind::Invalid, "unix: needs a path")),
                false => Ok(Address::Unix(path.into())),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(text.to_owned()))
            }
            _ => Err(Error::new(
                Kind::Invalid,
                format!("{text:?} is neither HOST:PORT nor unix:/path"),
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket. A unix one removes its path when it goes.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Where it really listens: the port that was chosen, too.
    pub address: Address,
    remove: Option<PathBuf>,
}

impl Listener {
    /// Binds to `address`; a unix socket gets `mode`.
    ///
    /// # Errors
    /// If the address can't be had.
    pub fn bind(address: &Address, mode: u32) -> Result<Self> {
        let bound = match address {
            Address::Tcp(text) => Self::bind_tcp(text),
            Address::Unix(path) => Self::bind_unix(path, mode),
        };
        bound.map_err(|error| {
            let mut failed = Error::os(&error, format_args!("listening on {address}"));
            if error.kind() == io::ErrorKind::AddrInUse {
                failed
                    .message
                    .push_str("; --listen chooses another address");
            }
            failed
        })
    }

    fn bind_tcp(text: &str) -> io::Result<Self> {
        let addresses: Vec<_> = text.to_socket_addrs()?.collect();
        if addresses.iter().any(|address| !address.ip().is_loopback()) {
            tracing::warn!(
                "{text} can be reached from other machines, and there is no encryption: \
                 anybody who reaches it can read and write the exports"
            );
        }
        let listener = TcpListener::bind(&addresses[..])?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: Address::Tcp(listener.local_addr()?.to_string()),
            socket: listener.into(),
            remove: None,
        })
    }

    fn bind_unix(path: &Path, mode: u32) -> io::Result<Self> {
        remove_stale(path)?;
        // Nobody may come in between the bind and the chmod: the umask closes the door meanwhile.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket: listener.into(),
            address: Address::Unix(path.to_owned()),
            remove: Some(path.to_owned()),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.remove {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that nobody listens on any more; anything else stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if metadata.file_type().is_socket() {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return std::fs::remove_file(path);
            }
            _ => {}
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Accepts on all listeners until the waker is woken; each client gets a thread.
pub fn accept_until_woken(listeners: &[Listener], shared: &Arc<Shared>, waker: &Waker) {
    while !shared.is_draining() {
        if !waker.may_sleep() {
            continue;
        }
        let mut fds = vec![PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN)];
        fds.extend(
            listeners
                .iter()
                .map(|l| PollFd::new(&l.socket, PollFlags::IN)),
        );
        let polled = poll(&mut fds, None);
        let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        waker.awake(ready.remove(0));
        if polled.is_err() {
            continue;
        }
        for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            if let Err(error) = accept_one(listener, shared) {
                tracing::warn!("accepting on {}: {error}", listener.address);
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn accept_one(listener: &Listener, shared: &Arc<Shared>) -> io::Result<()> {
    use rustix::io::Errno as Os;
    let accepted = acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC);
    let (socket, peer) = match accepted {
        Ok(accepted) => accepted,
        // Gone before it was accepted, or nobody there after all.
        Err(Os::AGAIN | Os::INTR | Os::CONNABORTED) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match listener.address {
        Address::Tcp(_) => rustix::net::sockopt::set_tcp_nodelay(socket.as_fd(), true)?,
        // What the system allows less of is as good: it only takes more turns.
        Address::Unix(_) => {
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(
                socket.as_fd(),
                UNIX_SEND_BUFFER_BYTES,
            );
        }
    }
    let peer = match (&listener.address, peer) {
        (Address::Tcp(_), Some(peer)) => std::net::SocketAddr::try_from(peer)
            .map_or_else(|_| "?".to_owned(), |peer| peer.to_string()),
        _ => listener.address.to_string(),
    };
    guest_thread::spawn(socket, peer, shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_or_a_path() {
        for text in [
            "127.0.0.1:10809",
            "[::1]:0",
            "localhost:1",
            "unix:/run/x.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "10809", ":10809", "host:", "host:70000", "unix:"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address, 0o600).unwrap();
        assert!(Listener::bind(&address, 0o600).is_err());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut first = first;
        first.remove = None;
        drop(first);
        drop(Listener::bind(&address, 0o600).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(Listener::bind(&address, 0o600).is_err());
    }
}
