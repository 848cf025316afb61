//! Replies on their way out: headers and payloads in order, sent with one vectored write, straight
//! from the memory they were read into or lent from.

use std::collections::VecDeque;
use std::io::IoSlice;

use nbd_rs_plugin::{Bytes, Data, Mapped, Piece, Result};

use super::errno::Errno;
use super::wire::reply::{self, ChunkOf, Header};
use crate::export::range_lock::RangeGuard;
use crate::export::Locks;

/// Slices of one vectored write.
pub const MAX_SLICES: usize = 256;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Something to send.
#[derive(Debug)]
enum Segment {
    Header(Header),
    Small(Vec<u8>),
    Bytes(Bytes),
    Zeros(u64),
    Lent(Box<LentReply>),
}

/// A whole reply whose payload is lent from a mapping, and may fail while it is being sent.
#[derive(Debug)]
pub struct LentReply {
    to: ReplyTo,
    offset: u64,
    head: Header,
    mapped: Mapped,
    tail: Option<Header>,
    /// Keeps writers off the range.
    hold: RangeGuard<Locks>,
}

/// How a reply is framed.
#[derive(Debug, Clone, Copy)]
pub enum ReplyTo {
    /// Simple, with this cookie.
    Simple(u64),
    /// In chunks.
    Chunks(ChunkOf),
}

impl LentReply {
    /// The reply to a read at `offset`.
    pub fn new(to: ReplyTo, offset: u64, mapped: Mapped, hold: RangeGuard<Locks>) -> Self {
        let (head, tail) = match to {
            ReplyTo::Simple(cookie) => (reply::simple(cookie, None), None),
            // Not the last chunk: sending it may still fail.
            ReplyTo::Chunks(chunk) => {
                let head = chunk.data(false, offset, mapped.len() as u64);
                (head, Some(chunk.none()))
            }
        };
        Self {
            to,
            offset,
            head,
            mapped,
            tail,
            hold,
        }
    }

    fn tail(&self) -> &[u8] {
        self.tail.as_ref().map_or(&[], Header::as_slice)
    }

    fn len(&self) -> u64 {
        (self.head.as_slice().len() + self.mapped.len() + self.tail().len()) as u64
    }
}

impl Segment {
    fn len(&self) -> u64 {
        match self {
            Segment::Header(header) => header.as_slice().len() as u64,
            Segment::Small(bytes) => bytes.len() as u64,
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Zeros(len) => *len,
            Segment::Lent(lent) => lent.len(),
        }
    }
}

/// The queue of one connection.
#[derive(Debug, Default)]
pub struct ReplyQueue {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent already.
    sent: u64,
    bytes: u64,
    lent: usize,
}

/// A simple reply had begun when its payload failed: the connection must end (proto.md,
/// `NBD_CMD_READ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutShort;

impl ReplyQueue {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Segments that wait.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    fn push(&mut self, segment: Segment) {
        let len = segment.len();
        if len > 0 {
            self.bytes += len;
            self.segments.push_back(segment);
        }
    }

    /// Success without a payload.
    pub fn success(&mut self, to: ReplyTo) {
        self.push(Segment::Header(match to {
            ReplyTo::Simple(cookie) => reply::simple(cookie, None),
            ReplyTo::Chunks(chunk) => chunk.none(),
        }));
    }

    /// An error; the text goes along where there is room for one.
    pub fn error(&mut self, to: ReplyTo, errno: Errno, text: &str) {
        self.push(match to {
            ReplyTo::Simple(cookie) => Segment::Header(reply::simple(cookie, Some(errno))),
            ReplyTo::Chunks(chunk) => Segment::Small(chunk.error(errno, text)),
        });
    }

    /// A whole chunk that is encoded already.
    pub fn chunk(&mut self, bytes: Vec<u8>) {
        self.push(Segment::Small(bytes));
    }

    /// What was read from `offset` on. With `whole`, one chunk only, zeros spelt out.
    pub fn data(&mut self, to: ReplyTo, offset: u64, data: Data, whole: bool) {
        match to {
            ReplyTo::Simple(cookie) => {
                self.push(Segment::Header(reply::simple(cookie, None)));
                self.pieces(data);
            }
            ReplyTo::Chunks(chunk) if whole || data.pieces().len() == 1 && !starts_hole(&data) => {
                self.push(Segment::Header(chunk.data(true, offset, data.len())));
                self.pieces(data);
            }
            ReplyTo::Chunks(chunk) => self.chunks(chunk, offset, data),
        }
    }

    fn pieces(&mut self, data: Data) {
        match data {
            Data::One(piece) => self.piece(piece),
            Data::Many(pieces) => pieces.into_iter().for_each(|piece| self.piece(piece)),
        }
    }

    fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Bytes(bytes) => self.push(Segment::Bytes(bytes)),
            Piece::Hole(len) => self.push(Segment::Zeros(len)),
            // Lent pieces come through `lend`; the guard lets none pass that was not asked for.
            Piece::Mapped(mapped) => self.push(Segment::Zeros(mapped.len() as u64)),
        }
    }

    fn chunks(&mut self, chunk: ChunkOf, offset: u64, data: Data) {
        let end = offset + data.len();
        let mut at = offset;
        let pieces = match data {
            Data::One(piece) => vec![piece],
            Data::Many(pieces) => pieces.into(),
        };
        for piece in pieces {
            let len = piece.len();
            let done = at + len == end;
            match piece {
                Piece::Hole(_) => self.push(Segment::Header(chunk.hole(done, at, len as u32))),
                piece => {
                    self.push(Segment::Header(chunk.data(done, at, len)));
                    self.piece(piece);
                }
            }
            at += len;
        }
    }

    /// A reply whose payload is lent.
    pub fn lend(&mut self, reply: LentReply) {
        self.lent += 1;
        self.push(Segment::Lent(Box::new(reply)));
    }

    /// Whether anything that waits is lent.
    pub fn has_lent(&self) -> bool {
        self.lent > 0
    }

    /// The next slices to send, into `slices`; how many there are.
    pub fn slices<'q>(&'q self, slices: &mut [IoSlice<'q>; MAX_SLICES]) -> usize {
        let mut filler = Filler {
            slices,
            used: 0,
            skip: self.sent as usize,
        };
        for segment in &self.segments {
            let fits = match segment {
                Segment::Header(header) => filler.add(header.as_slice()),
                Segment::Small(bytes) => filler.add(bytes),
                Segment::Bytes(bytes) => filler.add(bytes),
                Segment::Zeros(len) => filler.zeros(*len as usize),
                Segment::Lent(lent) => {
                    filler.add(lent.head.as_slice())
                        && filler.add_mapped(&lent.mapped)
                        && filler.add(lent.tail())
                }
            };
            if !fits {
                break;
            }
        }
        filler.used
    }

    /// Says that so many bytes were sent.
    pub fn advance(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.sent += bytes;
        while let Some(first) = self.segments.front() {
            let len = first.len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(Segment::Lent(_)) = self.segments.pop_front() {
                self.lent -= 1;
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Replaces every lent payload by what `read` gives for it, an error included, and so lets go
    /// of the mappings and the holds.
    ///
    /// # Errors
    /// [`CutShort`] if a simple reply had begun and its payload can't be had.
    pub fn unlend(
        &mut self,
        mut read: impl FnMut(&RangeGuard<Locks>, u64, u64) -> Result<Data>,
    ) -> std::result::Result<(), CutShort> {
        let sent = self.sent;
        let old = std::mem::take(&mut self.segments);
        self.clear();
        let mut begun = sent;
        for segment in old {
            match segment {
                Segment::Lent(lent) => {
                    let (offset, len) = (lent.offset, lent.mapped.len() as u64);
                    let result = read(&lent.hold, offset, len);
                    self.unlent(*lent, result, begun > 0)?;
                }
                other => self.push(other),
            }
            begun = 0;
        }
        self.advance(sent);
        Ok(())
    }

    fn unlent(
        &mut self,
        lent: LentReply,
        result: Result<Data>,
        begun: bool,
    ) -> std::result::Result<(), CutShort> {
        let head = Segment::Header(lent.head);
        let len = lent.mapped.len() as u64;
        match (result, lent.to) {
            (Ok(data), _) => {
                self.push(head);
                self.pieces(data);
                if let Some(tail) = lent.tail {
                    self.push(Segment::Header(tail));
                }
            }
            (Err(error), to) if !begun => {
                self.error(to, Errno::from(&error), &error.message);
            }
            (Err(_), ReplyTo::Simple(_)) => return Err(CutShort),
            (Err(error), ReplyTo::Chunks(chunk)) => {
                // The chunk that was announced is completed before its error.
                self.push(head);
                self.push(Segment::Zeros(len));
                let errno = Errno::from(&error);
                self.push(Segment::Small(chunk.error(errno, &error.message)));
            }
        }
        Ok(())
    }
}

fn starts_hole(data: &Data) -> bool {
    matches!(data.pieces().first(), Some(Piece::Hole(_)))
}

/// Fills slices, passing over what is sent already.
struct Filler<'s, 'q> {
    slices: &'s mut [IoSlice<'q>; MAX_SLICES],
    used: usize,
    skip: usize,
}

impl<'q> Filler<'_, 'q> {
    fn add(&mut self, bytes: &'q [u8]) -> bool {
        self.add_slice(IoSlice::new(bytes))
    }

    fn add_mapped(&mut self, mapped: &'q Mapped) -> bool {
        self.add_slice(mapped.as_io_slice())
    }

    /// Whether there was room. The bytes themselves are not touched.
    fn add_slice(&mut self, mut slice: IoSlice<'q>) -> bool {
        let passed = self.skip.min(slice.len());
        self.skip -= passed;
        slice.advance(passed);
        if slice.is_empty() {
            return true;
        }
        if self.used == MAX_SLICES {
            return false;
        }
        self.slices[self.used] = slice;
        self.used += 1;
        true
    }

    fn zeros(&mut self, mut len: usize) -> bool {
        while len > 0 {
            let part = len.min(ZEROS.len());
            if !self.add(&ZEROS[..part]) {
                return false;
            }
            len -= part;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory;
    use crate::export::Export;
    use crate::layout::raw::Raw;
    use crate::nbd::wire::Framing;
    use nbd_rs_plugin::{Error, Kind, ObjectFlags, ObjectMode};
    use std::sync::Arc;

    const CHUNK: ReplyTo = ReplyTo::Chunks(ChunkOf {
        framing: Framing::Structured,
        cookie: 9,
        offset: 0,
    });

    fn export() -> Arc<Export> {
        let (chain, _) = memory::chain(vec![0; 4096]);
        let layout = crate::runtime::block_on(async {
            let mode = ObjectMode::new(ObjectFlags::WRITE);
            let object = chain.open_object("", mode).await.unwrap();
            Raw::new(chain, object).await.unwrap()
        });
        Arc::new(Export::new(
            "x".into(),
            String::new(),
            Arc::new(layout),
            false,
        ))
    }

    /// A reply to a read of 8 bytes, its payload lent from memory that stays.
    fn lent(export: &Arc<Export>, to: ReplyTo) -> LentReply {
        let owner = Arc::new(*b"lent....");
        // SAFETY: the array lives in the owner.
        let mapped = unsafe { Mapped::from_raw_parts(owner.as_ptr(), 8, owner.clone()) };
        LentReply::new(to, 0, mapped, export.hold(0..8))
    }

    /// Sends everything, at most `step` bytes at a time.
    fn sent(queue: &mut ReplyQueue, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !queue.is_empty() {
            let before = out.len();
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = queue.slices(&mut slices);
            for slice in &slices[..count] {
                let room = step - (out.len() - before);
                out.extend(&slice[..slice.len().min(room)]);
            }
            let moved = out.len() - before;
            queue.advance(moved as u64);
        }
        assert_eq!((queue.bytes(), queue.has_lent()), (0, false));
        out
    }

    fn fill(queue: &mut ReplyQueue, export: &Arc<Export>) {
        queue.success(ReplyTo::Simple(1));
        let pieces = vec![
            Piece::Hole(70_000),
            Piece::Bytes(Bytes::from(b"abc".to_vec())),
        ];
        queue.data(CHUNK, 0, Data::Many(pieces.clone().into()), false);
        queue.data(CHUNK, 0, Data::Many(pieces.into()), true);
        queue.lend(lent(export, CHUNK));
        queue.error(CHUNK, Errno::Io, "text");
    }

    #[test]
    fn what_is_sent_does_not_depend_on_how_much_the_socket_takes() {
        let export = export();
        let mut queue = ReplyQueue::default();
        fill(&mut queue, &export);
        let whole = sent(&mut queue, usize::MAX);
        // Success; a hole chunk, a data chunk; one whole chunk; a lent one with its end; an error.
        let chunks = 16 + 32 + (28 + 3) + (28 + 70_003) + (28 + 8 + 20) + (20 + 6 + 4);
        assert_eq!(whole.len(), chunks);
        for step in [1, 7, 4096] {
            fill(&mut queue, &export);
            assert_eq!(sent(&mut queue, step), whole, "{step} bytes at a time");
        }
    }

    #[test]
    fn a_lent_payload_that_is_read_after_all_changes_nothing_on_the_wire() {
        let export = export();
        let mut queue = ReplyQueue::default();
        for cut in [0, 1, 16, 30, 36, 50] {
            queue.lend(lent(&export, CHUNK));
            queue.lend(lent(&export, ReplyTo::Simple(2)));
            let whole = sent(&mut queue, usize::MAX);
            queue.lend(lent(&export, CHUNK));
            queue.lend(lent(&export, ReplyTo::Simple(2)));
            queue.advance(cut);
            let read = |_: &_, _, _| Ok(Bytes::from(b"lent....".to_vec()).into());
            queue.unlend(read).unwrap();
            assert!(!queue.has_lent());
            assert_eq!(sent(&mut queue, 5), whole[cut as usize..]);
        }
    }

    #[test]
    fn w60_w61_a_lent_payload_that_fails_is_an_error_or_the_end() {
        let export = export();
        let fail = |_: &_, _, _| Err(Error::new(Kind::Io, "gone"));
        let mut queue = ReplyQueue::default();

        queue.lend(lent(&export, ReplyTo::Simple(2)));
        queue.unlend(fail).unwrap();
        let simple_error = reply::simple(2, Some(Errno::Io));
        assert_eq!(sent(&mut queue, 9), simple_error.as_slice());

        queue.lend(lent(&export, ReplyTo::Simple(2)));
        queue.advance(1);
        assert_eq!(queue.unlend(fail), Err(CutShort));
        queue.clear();

        // The chunk that was announced is completed with zeros, and the error follows.
        queue.lend(lent(&export, CHUNK));
        let head = sent(&mut queue, usize::MAX)[..28].to_vec();
        queue.lend(lent(&export, CHUNK));
        queue.advance(3);
        queue.unlend(fail).unwrap();
        let ReplyTo::Chunks(chunk) = CHUNK else {
            unreachable!()
        };
        let expected = [&head[..], &[0; 8], &chunk.error(Errno::Io, "gone")].concat();
        assert_eq!(sent(&mut queue, 4), expected[3..]);
    }
}
