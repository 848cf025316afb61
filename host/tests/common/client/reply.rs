//! Replies as values: chunks as they came, and whole replies put together from them.

use std::io;

use super::constants::*;
use super::line::Line;
use super::Framing;

/// One chunk, or a simple reply's header, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    /// The request's offset, which only extended headers repeat.
    pub(crate) offset: Option<u64>,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// Reads one whose magic was read already.
    pub(crate) fn receive(line: &mut Line, framing: Framing) -> io::Result<Self> {
        let flags = line.u16()?;
        assert_eq!(flags & !1, 0, "unknown flags of a chunk: {flags:#x}");
        let kind = line.u16()?;
        let cookie = line.u64()?;
        let (offset, length) = match framing {
            Framing::Extended => (Some(line.u64()?), line.u64()?),
            Framing::Simple | Framing::Structured => (None, u64::from(line.u32()?)),
        };
        assert!(length <= (32 << 20) + 8, "a chunk of {length} bytes");
        Ok(Self {
            done: flags & 1 == 1,
            kind,
            cookie,
            offset,
            payload: line.bytes(length as usize)?,
        })
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
    /// What a BLOCK_STATUS found: length and status.
    pub(crate) extents: Vec<(u64, u64)>,
    /// How many chunks it came in, 0 for a simple reply, and how many of them had content.
    pub(crate) chunks: usize,
    pub(crate) contents: usize,
    /// What the error said for a person.
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn new(cookie: u64) -> Self {
        Self {
            cookie,
            error: 0,
            data: Vec::new(),
            extents: Vec::new(),
            chunks: 0,
            contents: 0,
            text: String::new(),
        }
    }
}

/// A request that waits, with what has come of its reply.
pub(crate) struct Waiting {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) length: usize,
    pub(crate) reply: Reply,
    /// Ranges of a READ that have come.
    covered: Vec<(u64, u64)>,
}

impl Waiting {
    pub(crate) fn new(cookie: u64, command: u16, flags: u16, offset: u64, length: usize) -> Self {
        Self {
            command,
            flags,
            offset,
            length,
            reply: Reply::new(cookie),
            covered: Vec::new(),
        }
    }

    /// Takes a chunk in, checked against what the specification allows.
    pub(crate) fn take(&mut self, chunk: &Chunk, framing: Framing) {
        let payload = &chunk.payload[..];
        if let Some(offset) = chunk.offset {
            assert_eq!(offset, self.offset, "an extended header repeats the offset");
        }
        self.reply.chunks += 1;
        match chunk.kind {
            NONE => {
                assert!(chunk.done, "an empty chunk that is not the last");
                assert!(payload.is_empty(), "an empty chunk with a payload");
            }
            OFFSET_DATA => {
                assert!(payload.len() > 8, "a data chunk without data");
                self.put(be64(payload), &payload[8..]);
            }
            OFFSET_HOLE => {
                assert_eq!(payload.len(), 12, "the length of a hole chunk");
                let size = be32(&payload[8..]);
                assert_ne!(size, 0, "a hole of no length");
                self.put(be64(payload), &vec![0; size as usize]);
            }
            STATUS | STATUS_EXT => self.status(chunk.kind, payload, framing),
            ERROR | ERROR_OFFSET => {
                self.reply.error = be32(payload);
                assert_ne!(self.reply.error, 0, "an error chunk without an error");
                let length = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
                assert!(length <= 4096, "a text of {length} bytes");
                let text = &payload[6..6 + length];
                self.reply.text = String::from_utf8(text.to_vec()).expect("a text for a person");
                let tail = if chunk.kind == ERROR { 0 } else { 8 };
                assert_eq!(payload.len(), 6 + length + tail, "an error chunk's length");
            }
            kind => panic!("a chunk of unknown type {kind}"),
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        assert_eq!(self.command, READ, "data for another request than READ");
        self.reply.contents += 1;
        let end = at + bytes.len() as u64;
        assert!(
            at >= self.offset && end <= self.offset + self.length as u64,
            "data outside the request: {at}..{end}"
        );
        let overlaps = |(from, to): &(u64, u64)| at < *to && *from < end;
        assert!(!self.covered.iter().any(overlaps), "data that came before");
        self.covered.push((at, end));
        self.reply.data.resize(self.length, 0xdd);
        let at = (at - self.offset) as usize;
        self.reply.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn status(&mut self, kind: u16, payload: &[u8], framing: Framing) {
        assert_eq!(self.command, BLOCK_STATUS, "a status of another request");
        self.reply.contents += 1;
        assert_eq!(be32(payload), 1, "the id of base:allocation");
        let descriptors: Vec<(u64, u64)> = match (kind, framing) {
            (STATUS, Framing::Structured) => payload[4..]
                .chunks(8)
                .map(|one| (u64::from(be32(one)), u64::from(be32(&one[4..]))))
                .collect(),
            (STATUS_EXT, Framing::Extended) => {
                let count = be32(&payload[4..]) as usize;
                assert_eq!(payload.len(), 8 + 16 * count, "the number of descriptors");
                let pairs = payload[8..].chunks(16);
                pairs.map(|one| (be64(one), be64(&one[8..]))).collect()
            }
            (kind, framing) => panic!("a chunk of type {kind} with {framing:?}"),
        };
        assert!(!descriptors.is_empty(), "a status without extents");
        for (length, status) in &descriptors {
            assert_ne!(*length, 0, "an extent of no length");
            assert_eq!(status & !(HOLE | ZERO), 0, "unknown bits of a status");
        }
        self.reply.extents = descriptors;
    }

    /// The whole reply, when its last chunk has come.
    pub(crate) fn whole(mut self) -> Reply {
        if self.reply.error != 0 {
            self.reply.data.clear();
            return self.reply;
        }
        if self.command == READ {
            let covered: u64 = self.covered.iter().map(|(from, to)| to - from).sum();
            assert_eq!(covered, self.length as u64, "a READ that is not all there");
        }
        if self.command == READ && self.flags & DF != 0 {
            assert!(self.reply.contents <= 1, "a READ with DF in several chunks");
        }
        if self.command == BLOCK_STATUS {
            assert_eq!(self.reply.contents, 1, "one status chunk for one context");
        }
        self.reply
    }
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes"))
}

pub(crate) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("8 bytes"))
}
