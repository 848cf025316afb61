//! A small NBD client that can send without waiting, be cut off, and say exactly what came back.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::server::Server;

/// Requests.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;

/// Flags of a request.
pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;

/// Errors of a reply.
pub(crate) const EIO: u32 = 5;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ESHUTDOWN: u32 = 108;

const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;

/// Either kind of socket.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn reader(&self) -> Box<dyn Read + Send> {
        match self {
            Self::Tcp(socket) => Box::new(socket.try_clone().expect("a second handle")),
            Self::Unix(socket) => Box::new(socket.try_clone().expect("a second handle")),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was answered to one request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// 0, or the error.
    pub(crate) error: u32,
    /// What was read, when it was a READ without error.
    pub(crate) data: Vec<u8>,
}

/// One connection in transmission phase.
pub(crate) struct Client {
    socket: Socket,
    reader: Box<dyn Read + Send>,
    structured: bool,
    next: u64,
    /// Requests that wait: what a READ wants.
    waiting: HashMap<u64, Option<(u64, usize)>>,
}

impl Client {
    /// A connection over the server's unix socket, with simple replies.
    pub(crate) fn unix(server: &Server) -> Self {
        let socket = UnixStream::connect(server.unix()).expect("the server accepts");
        Self::negotiate(Socket::Unix(socket), false).expect("a handshake")
    }

    /// The same with structured replies.
    pub(crate) fn structured(server: &Server) -> Self {
        let socket = UnixStream::connect(server.unix()).expect("the server accepts");
        Self::negotiate(Socket::Unix(socket), true).expect("a handshake")
    }

    /// A connection over TCP, which can end in a reset.
    pub(crate) fn tcp(server: &Server) -> io::Result<Self> {
        let socket = TcpStream::connect(server.tcp())?;
        socket.set_nodelay(true)?;
        Self::negotiate(Socket::Tcp(socket), false)
    }

    fn negotiate(socket: Socket, structured: bool) -> io::Result<Self> {
        let limit = Some(Duration::from_secs(40));
        match &socket {
            Socket::Tcp(tcp) => tcp.set_read_timeout(limit)?,
            Socket::Unix(unix) => unix.set_read_timeout(limit)?,
        }
        let reader = socket.reader();
        let mut client = Self {
            socket,
            reader,
            structured: false,
            next: 1,
            waiting: HashMap::new(),
        };
        let mut greeting = [0; 18];
        client.reader.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT", "the greeting");
        // Fixed newstyle, no zeroes.
        client.socket.write_all(&3_u32.to_be_bytes())?;
        if structured {
            client.option(OPT_STRUCTURED_REPLY, &[])?;
            client.structured = true;
        }
        let mut go = 4_u32.to_be_bytes().to_vec();
        go.extend_from_slice(b"disk\0\0");
        client.option(OPT_GO, &go)?;
        Ok(client)
    }

    /// Sends an option and reads until it is acknowledged.
    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = OPTION.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&length(data).to_be_bytes());
        bytes.extend_from_slice(data);
        self.socket.write_all(&bytes)?;
        loop {
            assert_eq!(self.u64()?, OPTION_REPLY, "the magic of an option reply");
            assert_eq!(self.u32()?, option, "a reply to this option");
            let kind = self.u32()?;
            let length = self.u32()?;
            self.bytes(length as usize)?;
            if kind == REP_ACK {
                return Ok(());
            }
            assert_eq!(
                kind & (1 << 31),
                0,
                "option {option} was refused: {kind:#x}"
            );
        }
    }

    /// Sends a request and gives its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let mut bytes = header(command, flags, cookie, offset, length);
        bytes.extend_from_slice(payload);
        let wanted = (command == READ).then_some((offset, length));
        self.waiting.insert(cookie, wanted);
        self.socket.write_all(&bytes)?;
        Ok(cookie)
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

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// The next reply, whichever request it answers.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        match self.u32()? {
            SIMPLE => {}
            STRUCTURED if self.structured => return self.receive_structured(),
            magic => panic!("{magic:#x} is not the magic of a reply"),
        }
        let error = self.u32()?;
        let cookie = self.u64()?;
        let wanted = self.waiting.remove(&cookie).expect("a cookie that we sent");
        assert!(
            wanted.is_none() || !self.structured,
            "a simple reply to a READ"
        );
        let data = match wanted {
            Some((_, length)) if error == 0 => self.bytes(length)?,
            _ => Vec::new(),
        };
        Ok(Reply {
            cookie,
            error,
            data,
        })
    }

    /// All chunks of one reply, whose first magic was read. In general chunks of several requests
    /// may alternate; tests that use this wait for each reply.
    fn receive_structured(&mut self) -> io::Result<Reply> {
        let mut error = 0;
        let mut data = Vec::new();
        loop {
            let head = self.bytes(8 + 4 + 4)?;
            let done = u16::from_be_bytes([head[0], head[1]]) & 1 == 1;
            let kind = u16::from_be_bytes([head[2], head[3]]);
            let cookie = u64::from_be_bytes(head[4..12].try_into().expect("8 bytes"));
            let length = u32::from_be_bytes(head[12..16].try_into().expect("4 bytes"));
            let chunk = self.bytes(length as usize)?;
            let wanted = self.waiting.get(&cookie).expect("a cookie that we sent");
            let mut put = |at: u64, bytes: &[u8]| {
                let (offset, length) = wanted.expect("data for a READ");
                data.resize(length, 0xdd);
                let at = usize::try_from(at - offset).expect("inside the request");
                data[at..at + bytes.len()].copy_from_slice(bytes);
            };
            match kind {
                0 => {}
                1 => put(be64(&chunk), &chunk[8..]),
                2 => {
                    let size = u32::from_be_bytes(chunk[8..12].try_into().expect("4 bytes"));
                    put(be64(&chunk), &vec![0; size as usize]);
                }
                _ if kind & (1 << 15) != 0 => {
                    error = u32::from_be_bytes(chunk[..4].try_into().expect("4 bytes"));
                }
                _ => panic!("chunk of unknown type {kind}"),
            }
            if done {
                self.waiting.remove(&cookie);
                if error != 0 {
                    data.clear();
                }
                return Ok(Reply {
                    cookie,
                    error,
                    data,
                });
            }
            assert_eq!(self.u32()?, STRUCTURED, "the magic of the next chunk");
        }
    }

    /// Sends one request and waits for its reply.
    fn ask(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> Reply {
        let cookie = self
            .send(command, flags, offset, length, payload)
            .expect("sent");
        let reply = self.receive().expect("a reply");
        assert_eq!(reply.cookie, cookie, "a reply to the only request");
        reply
    }

    /// READ: the bytes, or the error.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, u32> {
        let reply = self.ask(READ, 0, offset, length, &[]);
        match reply.error {
            0 => Ok(reply.data),
            error => Err(error),
        }
    }

    /// WRITE: 0 or the error.
    pub(crate) fn write(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> u32 {
        self.ask(WRITE, flags, offset, bytes.len(), bytes).error
    }

    /// FLUSH: 0 or the error.
    pub(crate) fn flush(&mut self) -> u32 {
        self.ask(FLUSH, 0, 0, 0, &[]).error
    }

    /// TRIM or WRITE_ZEROES: 0 or the error.
    pub(crate) fn zero(&mut self, command: u16, flags: u16, offset: u64, length: usize) -> u32 {
        self.ask(command, flags, offset, length, &[]).error
    }

    /// How many requests wait for a reply.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Ends the session as the protocol wants it.
    pub(crate) fn disconnect(mut self) {
        self.send(DISC, 0, 0, 0, &[]).expect("sent");
    }

    /// Ends it with a reset, when it is TCP; with an end of file otherwise.
    pub(crate) fn reset(self) {
        match &self.socket {
            Socket::Tcp(socket) => {
                let now = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(socket.as_fd(), now).expect("linger");
            }
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both).expect("shut down"),
        }
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.reader.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok((u64::from(self.u32()?) << 32) | u64::from(self.u32()?))
    }
}

/// A request's 28 bytes.
pub(crate) fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = REQUEST.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    let length = u32::try_from(length).expect("a length below 4 GiB");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"))
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a short option")
}
