//! A small NBD client that can send without waiting, break the rules, be cut off, and say exactly
//! what came back. It shares no line with the server, and holds every reply to the specification.

// Each suite uses a part of it.
#![allow(dead_code)]

pub(crate) mod constants;
pub(crate) mod handshake;
pub(crate) mod line;
pub(crate) mod reply;

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use crate::server::Server;
pub(crate) use constants::*;
use handshake::Handshake;
use line::Line;
use reply::{Chunk, Reply, Waiting};

/// How requests and replies look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// Extended headers both ways.
    Extended,
}

/// All of them.
pub(crate) const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

/// One connection in transmission phase.
pub(crate) struct Client {
    pub(crate) line: Line,
    framing: Framing,
    next: u64,
    waiting: HashMap<u64, Waiting>,
}

impl Client {
    pub(crate) fn new(line: Line, framing: Framing) -> Self {
        Self {
            line,
            framing,
            next: 1,
            waiting: HashMap::new(),
        }
    }

    /// A connection over the server's unix socket, with simple replies.
    pub(crate) fn unix(server: &Server) -> Self {
        Self::over_unix(server, Framing::Simple)
    }

    /// The same with structured replies.
    pub(crate) fn structured(server: &Server) -> Self {
        Self::over_unix(server, Framing::Structured)
    }

    /// The same in any framing.
    pub(crate) fn over_unix(server: &Server, framing: Framing) -> Self {
        let line = Line::unix(server).expect("the server accepts");
        let handshake = Handshake::begin(line).expect("a greeting");
        handshake.go(framing, b"disk").expect("a handshake")
    }

    /// A connection over TCP, which can end in a reset.
    pub(crate) fn tcp(server: &Server) -> io::Result<Self> {
        Handshake::begin(Line::tcp(server)?)?.go(Framing::Simple, b"disk")
    }

    /// How it speaks.
    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Sends a request and gives its cookie. A WRITE with extended headers says that it has a
    /// payload, as it must.
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
        let flags = match (self.framing, command) {
            (Framing::Extended, WRITE) if length > 0 => flags | PAYLOAD_LEN,
            _ => flags,
        };
        self.send_as(cookie, command, flags, offset, length, payload)?;
        Ok(cookie)
    }

    /// Sends a request exactly so, under this cookie.
    pub(crate) fn send_as(
        &mut self,
        cookie: u64,
        command: u16,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut bytes = request(self.framing, command, flags, cookie, offset, length as u64);
        bytes.extend_from_slice(payload);
        let waiting = Waiting::new(cookie, command, flags, offset, length);
        self.waiting.insert(cookie, waiting);
        self.line.send(&bytes)
    }

    /// Sending gives up after this long, for a server that does not read.
    pub(crate) fn send_within(&self, limit: Duration) {
        self.line.send_within(limit);
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.line.send(bytes)
    }

    /// The next whole reply, whichever request it answers; chunks of several may alternate.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        loop {
            match (self.line.u32()?, self.framing) {
                (SIMPLE, Framing::Simple | Framing::Structured) => return self.receive_simple(),
                (STRUCTURED, Framing::Structured) | (EXTENDED, Framing::Extended) => {}
                (magic, framing) => panic!("{magic:#x} begins no reply with {framing:?}"),
            }
            let chunk = Chunk::receive(&mut self.line, self.framing)?;
            let waiting = self.waiting.get_mut(&chunk.cookie);
            let waiting = waiting.expect("a cookie that we sent");
            waiting.take(&chunk, self.framing);
            if chunk.done {
                let waiting = self.waiting.remove(&chunk.cookie).expect("just seen");
                return Ok(waiting.whole());
            }
        }
    }

    fn receive_simple(&mut self) -> io::Result<Reply> {
        let error = self.line.u32()?;
        let cookie = self.line.u64()?;
        let waiting = self.waiting.remove(&cookie).expect("a cookie that we sent");
        assert!(
            waiting.command != READ || self.framing == Framing::Simple,
            "a simple reply to a READ"
        );
        let mut reply = Reply::new(cookie);
        reply.error = error;
        if waiting.command == READ && error == 0 {
            reply.data = self.line.bytes(waiting.length)?;
        }
        Ok(reply)
    }

    /// Sends one request and waits for its reply.
    pub(crate) fn ask(
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

    /// BLOCK_STATUS: the extents, or the error.
    pub(crate) fn extents(
        &mut self,
        flags: u16,
        offset: u64,
        length: usize,
    ) -> Result<Vec<(u64, u64)>, u32> {
        let reply = self.ask(BLOCK_STATUS, flags, offset, length, &[]);
        match reply.error {
            0 => Ok(reply.extents),
            error => Err(error),
        }
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
        self.line.reset();
    }
}

/// A compact request's 28 bytes.
pub(crate) fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: usize) -> Vec<u8> {
    request(
        Framing::Simple,
        command,
        flags,
        cookie,
        offset,
        length as u64,
    )
}

/// A request's header: 28 bytes compact, 32 extended.
pub(crate) fn request(
    framing: Framing,
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u64,
) -> Vec<u8> {
    let extended = framing == Framing::Extended;
    let magic = if extended { EXTENDED_REQUEST } else { REQUEST };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    if extended {
        bytes.extend_from_slice(&length.to_be_bytes());
    } else {
        let length = u32::try_from(length).expect("a length below 4 GiB");
        bytes.extend_from_slice(&length.to_be_bytes());
    }
    bytes
}
