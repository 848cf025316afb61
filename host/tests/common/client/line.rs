//! A socket to the server, and nothing about what goes over it.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::server::Server;

/// How long a test waits for bytes that must come, or be taken.
const PATIENCE: Duration = Duration::from_secs(40);

/// Either kind of socket.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that carries bytes.
pub(crate) struct Line {
    socket: Socket,
    reader: BufReader<Box<dyn Read + Send>>,
}

impl Line {
    /// To the server's unix socket.
    pub(crate) fn unix(server: &Server) -> io::Result<Self> {
        let socket = UnixStream::connect(server.unix())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let reader: Box<dyn Read + Send> = Box::new(socket.try_clone()?);
        Ok(Self {
            socket: Socket::Unix(socket),
            reader: BufReader::new(reader),
        })
    }

    /// To the server's TCP port; such a connection can end in a reset.
    pub(crate) fn tcp(server: &Server) -> io::Result<Self> {
        let socket = TcpStream::connect(server.tcp())?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let reader: Box<dyn Read + Send> = Box::new(socket.try_clone()?);
        Ok(Self {
            socket: Socket::Tcp(socket),
            reader: BufReader::new(reader),
        })
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket) => socket.write_all(bytes),
            Socket::Unix(socket) => socket.write_all(bytes),
        }
    }

    /// Sending gives up after this long, for a server that does not read.
    pub(crate) fn send_within(&self, limit: Duration) {
        let limit = Some(limit);
        match &self.socket {
            Socket::Tcp(socket) => socket.set_write_timeout(limit),
            Socket::Unix(socket) => socket.set_write_timeout(limit),
        }
        .expect("a timeout");
    }

    /// Receiving gives up after this long.
    pub(crate) fn receive_within(&self, limit: Duration) {
        let limit = Some(limit);
        match &self.socket {
            Socket::Tcp(socket) => socket.set_read_timeout(limit),
            Socket::Unix(socket) => socket.set_read_timeout(limit),
        }
        .expect("a timeout");
    }

    /// The next bytes, so many of them.
    pub(crate) fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The next two bytes, big-endian.
    pub(crate) fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// The next four.
    pub(crate) fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// The next eight.
    pub(crate) fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything up to the end of the connection, in order or by a reset.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) if is_end(&error) => Ok(bytes),
            Err(error) => Err(error),
        }
    }

    /// Asserts that the server hangs up without another byte.
    pub(crate) fn ends(&mut self) {
        let rest = self.rest().expect("the server must hang up");
        assert!(rest.is_empty(), "it said {rest:02x?} before it hung up");
    }

    /// Asserts that the server neither says anything nor hangs up for so long.
    pub(crate) fn stays_silent(&mut self, so_long: Duration) {
        self.receive_within(so_long);
        let mut byte = [0];
        let error = self.reader.read(&mut byte).map(|count| (count, byte));
        let error = error.expect_err("it said something, or hung up");
        let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
        assert!(late.contains(&error.kind()), "{error}");
        self.receive_within(PATIENCE);
    }

    /// Sends no more, and still listens.
    pub(crate) fn half_close(&self) {
        match &self.socket {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
        .expect("shut down");
    }

    /// Ends it with a reset, when it is TCP; with an end of file otherwise.
    pub(crate) fn reset(self) {
        match &self.socket {
            Socket::Tcp(socket) => {
                let now = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(socket.as_fd(), now).expect("linger");
            }
            Socket::Unix(socket) => {
                // The server may have hung up already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Whether the connection is over.
pub(crate) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}
