//! One request: judged, carried out, answered. The page to read first.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use nbd_rs_plugin::{Body, Bytes, Data, Extent, ExtentFlags, ReadFlags, Result, ZeroFlags};

use super::errno::Errno;
use super::options::ALLOCATION_ID;
use super::reply_queue::{LentReply, ReplyQueue, ReplyTo};
use super::validate::{check_range, transmission_flags, validate, Agreement, Refusal};
use super::wire::constants::{cmd, cmd_flag, state};
use super::wire::reply::ChunkOf;
use super::wire::request::{BlockStatusPayload, Request};
use super::wire::Framing;
use crate::backend::Answer;
use crate::export::{Change, Export, Lending, Requester};

/// Extents in one block status reply; the specification allows 2^20.
const MAX_EXTENTS: u32 = 1 << 16;
/// Reads from this size on are lent from a mapping where that can be done, in bytes.
const LEND_BYTES: u64 = 64 << 10;

/// A negotiated connection, as far as the protocol goes.
pub struct Session<R> {
    export: Arc<Export>,
    agreement: Agreement,
    /// The transmission flags that the client saw.
    advertised: u16,
    requester: Arc<R>,
}

/// What a request came to.
#[derive(Debug)]
pub enum Outcome {
    /// Bytes.
    Read(Result<Data>),
    /// A change, made or dropped.
    Change(Result<Change>),
    /// Done.
    Done(Result<()>),
    /// Extents.
    Extents(Result<Vec<Extent>>),
}

/// A request that has come to its end.
#[derive(Debug)]
pub struct Finished {
    /// The request.
    pub request: Request,
    /// What it came to.
    pub outcome: Outcome,
}

/// The future of a request that waits.
pub type InFlight = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// What became of a request that was started.
pub enum Started {
    /// It is answered, in the queue.
    Answered,
    /// It waits.
    Waits(InFlight),
    /// It was not carried out, since its connection is dead.
    Dropped(Request),
}

impl<R: Requester + 'static> Session<R> {
    /// On `export`, as agreed, for `requester`.
    pub fn new(export: Arc<Export>, agreement: Agreement, requester: Arc<R>) -> Self {
        Self {
            advertised: transmission_flags(&export, agreement),
            export,
            agreement,
            requester,
        }
    }

    /// How requests are framed.
    pub fn framing(&self) -> Framing {
        self.agreement.framing
    }

    /// Judges a request by its header, before its payload is read; a refusal is answered.
    pub fn admits(&self, request: &Request, replies: &mut ReplyQueue) -> bool {
        match validate(request, &self.export, self.agreement, self.advertised) {
            Ok(()) => true,
            Err(refusal) => {
                self.refuse(request, refusal, replies);
                false
            }
        }
    }

    /// Answers a request that is not carried out.
    pub fn refuse(&self, request: &Request, refusal: Refusal, replies: &mut ReplyQueue) {
        let Refusal(errno, text) = refusal;
        replies.error(self.reply_to(request), errno, text);
    }

    /// Carries out a request that was admitted.
    pub fn start(
        &self,
        request: Request,
        payload: Option<Bytes>,
        replies: &mut ReplyQueue,
    ) -> Started {
        // A BLOCK_STATUS of no length was refused, unless its length stands in a payload.
        let has_range = !matches!(request.command, cmd::FLUSH | cmd::BLOCK_STATUS);
        if request.length == 0 && has_range {
            replies.success(self.reply_to(&request));
            return Started::Answered;
        }
        match request.command {
            cmd::READ => self.read(request, replies),
            cmd::WRITE => self.write(request, payload, replies),
            cmd::TRIM | cmd::WRITE_ZEROES => self.zero(request, replies),
            cmd::FLUSH => self.settle(request, self.export.flush(), Outcome::Done, replies),
            cmd::CACHE => {
                let answer = self.export.prefetch(request.offset, request.length);
                self.settle(request, answer, Outcome::Done, replies)
            }
            cmd::BLOCK_STATUS => self.block_status(request, payload, replies),
            _ => {
                self.refuse(&request, Refusal(Errno::Inval, "unknown command"), replies);
                Started::Answered
            }
        }
    }

    fn read(&self, request: Request, replies: &mut ReplyQueue) -> Started {
        let Request { offset, length, .. } = request;
        let flags = ReadFlags::LEND_HOLES;
        let lending = match length >= LEND_BYTES {
            true => self.export.read_or_lend(offset, length, flags),
            false => Lending::Answer(self.export.read(offset, length, flags)),
        };
        let answer = match lending {
            Lending::Answer(answer) => answer,
            Lending::Lent(mapped, hold) => {
                let to = self.reply_to(&request);
                replies.lend(LentReply::new(to, offset, mapped, hold));
                return Started::Answered;
            }
        };
        self.settle(request, answer, Outcome::Read, replies)
    }

    fn write(&self, request: Request, payload: Option<Bytes>, replies: &mut ReplyQueue) -> Started {
        let Some(bytes) = payload else {
            let refusal = Refusal(Errno::Inval, "a write without its payload");
            self.refuse(&request, refusal, replies);
            return Started::Answered;
        };
        let fua = request.has(cmd_flag::FUA);
        let body = Body::One(bytes);
        let answer = self
            .export
            .write(request.offset, body, fua, &self.requester);
        self.settle(request, answer, Outcome::Change, replies)
    }

    fn zero(&self, request: Request, replies: &mut ReplyQueue) -> Started {
        let mut flags = ZeroFlags::NONE;
        for (bit, zero_flag) in [
            (cmd_flag::FUA, ZeroFlags::FUA),
            (cmd_flag::NO_HOLE, ZeroFlags::NO_HOLE),
            (cmd_flag::FAST_ZERO, ZeroFlags::FAST),
        ] {
            if request.has(bit) {
                flags = flags | zero_flag;
            }
        }
        if request.command == cmd::TRIM {
            flags = flags | ZeroFlags::TRIM;
        }
        let Request { offset, length, .. } = request;
        let answer = self.export.zero(offset, length, flags, &self.requester);
        self.settle(request, answer, Outcome::Change, replies)
    }

    /// The effect length stands in the header or in the payload; so may the context.
    fn block_status(
        &self,
        mut request: Request,
        payload: Option<Bytes>,
        replies: &mut ReplyQueue,
    ) -> Started {
        if request.has(cmd_flag::PAYLOAD_LEN) {
            let decoded = payload.as_deref().and_then(BlockStatusPayload::decode);
            let refusal = match decoded {
                Some(asked) if asked.contexts == [ALLOCATION_ID] => {
                    request.length = asked.effect_length;
                    let Request { offset, length, .. } = request;
                    check_range(request.command, offset, length, &self.export).err()
                }
                _ => Some(Refusal(Errno::Inval, "not a list of the chosen contexts")),
            };
            if let Some(refusal) = refusal {
                self.refuse(&request, refusal, replies);
                return Started::Answered;
            }
        }
        let limit = match request.has(cmd_flag::REQ_ONE) {
            true => 1,
            false => MAX_EXTENTS,
        };
        let answer = self.export.extents(request.offset, request.length, limit);
        self.settle(request, answer, Outcome::Extents, replies)
    }

    /// Answers now what is ready now.
    fn settle<T: Send + 'static>(
        &self,
        request: Request,
        answer: Answer<T>,
        outcome: fn(Result<T>) -> Outcome,
        replies: &mut ReplyQueue,
    ) -> Started {
        match answer {
            Answer::Ready(result) => self.finish(
                Finished {
                    request,
                    outcome: outcome(result),
                },
                replies,
            ),
            Answer::Later(later) => Started::Waits(Box::pin(async move {
                Finished {
                    request,
                    outcome: outcome(later.await),
                }
            })),
        }
    }

    /// Answers a request that has come to its end.
    pub fn finish(&self, finished: Finished, replies: &mut ReplyQueue) -> Started {
        let Finished { request, outcome } = finished;
        let to = self.reply_to(&request);
        let failed = match outcome {
            Outcome::Read(Ok(data)) => {
                replies.data(to, request.offset, data, request.has(cmd_flag::DF));
                None
            }
            Outcome::Extents(Ok(extents)) => {
                replies.chunk(self.extents_chunk(&request, &extents));
                None
            }
            Outcome::Change(Ok(Change::Dropped)) => return Started::Dropped(request),
            Outcome::Change(Ok(Change::Made)) | Outcome::Done(Ok(())) => {
                replies.success(to);
                None
            }
            Outcome::Read(Err(error)) | Outcome::Change(Err(error)) => Some(error),
            Outcome::Done(Err(error)) | Outcome::Extents(Err(error)) => Some(error),
        };
        if let Some(error) = failed {
            let mut errno = Errno::from(&error);
            if errno == Errno::Notsup && !request.has(cmd_flag::FAST_ZERO) {
                errno = Errno::Inval;
            }
            tracing::debug!(
                command = request.command,
                offset = request.offset,
                "{error}"
            );
            replies.error(to, errno, &error.message);
        }
        Started::Answered
    }

    fn extents_chunk(&self, request: &Request, extents: &[Extent]) -> Vec<u8> {
        let mut merged: Vec<(u64, u32)> = Vec::with_capacity(extents.len());
        for extent in extents {
            let status = status_bits(extent.flags);
            match merged.last_mut() {
                Some((len, last)) if *last == status => *len += extent.len,
                _ => merged.push((extent.len, status)),
            }
        }
        self.chunk_of(request)
            .block_status(true, ALLOCATION_ID, &merged)
    }

    fn chunk_of(&self, request: &Request) -> ChunkOf {
        ChunkOf {
            framing: self.agreement.framing,
            cookie: request.cookie,
            offset: request.offset,
        }
    }

    fn reply_to(&self, request: &Request) -> ReplyTo {
        match self.agreement.framing {
            Framing::Simple => ReplyTo::Simple(request.cookie),
            Framing::Structured | Framing::Extended => ReplyTo::Chunks(self.chunk_of(request)),
        }
    }

    /// Replaces what is lent in the queue by copies, and lets go of the holds.
    ///
    /// # Errors
    /// If a simple reply was cut short by it.
    pub fn unlend(
        &self,
        replies: &mut ReplyQueue,
    ) -> std::result::Result<(), super::reply_queue::CutShort> {
        replies.unlend(|hold, offset, len| {
            crate::runtime::block_on(self.export.read_held(hold, offset, len).wait())
        })
    }
}

fn status_bits(flags: ExtentFlags) -> u32 {
    let bit = |flag, bit| if flags.has(flag) { bit } else { 0 };
    bit(ExtentFlags::HOLE, state::HOLE) | bit(ExtentFlags::ZERO, state::ZERO)
}
