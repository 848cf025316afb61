//! What the server answered in the transmission phase: each reply in the framing that was agreed
//! on, to a request that was sent, once, and with the shape that goes with its command.

use super::handshake::ALLOCATION_ID;
use super::requests::{Asked, Request, BLOCK_STATUS, DF, PAYLOAD_LEN, READ, REQ_ONE};
use super::{rule, Agreed, Cursor, Framing, Wrong};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const DONE: u16 = 1;
const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const STATUS_EXT: u16 = 6;
const ERROR: u16 = (1 << 15) + 1;

/// EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN. Never ENOMEM.
const ERRNOS: [u32; 7] = [1, 5, 22, 28, 75, 95, 108];

/// What a request was answered with so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// Nothing more may come.
    pub(super) done: bool,
    /// An error number.
    pub(super) errno: Option<u32>,
    /// Bytes that were read, from the request's offset on.
    pub(super) data: Vec<u8>,
    /// Ranges of `data` that came, as offset and length.
    pieces: Vec<(u64, u64)>,
    /// Extents: length and state.
    pub(super) extents: Option<Vec<(u64, u64)>>,
}

/// Answers in the order of the requests, and how many bytes are left of a reply that is not whole.
pub(super) fn parse(
    mut received: Cursor<'_>,
    asked: &Asked<'_>,
    agreed: Agreed,
) -> Result<(Vec<Answer>, usize), String> {
    let mut answers = vec![Answer::default(); asked.requests.len()];
    while !received.0.is_empty() {
        let before = received;
        let parsed = match agreed.framing {
            Framing::Simple => simple(&mut received, asked, &mut answers),
            _ => chunk(&mut received, asked, agreed, &mut answers),
        };
        match parsed {
            Ok(()) => {}
            Err(Wrong::Cut) => return Ok((answers, before.0.len())),
            Err(Wrong::Rule(text)) => return Err(text),
        }
    }
    Ok((answers, 0))
}

fn find<'q, 'a>(
    cookie: u64,
    asked: &'q Asked<'a>,
    answers: &'q mut [Answer],
) -> Result<(&'q Request<'a>, &'q mut Answer), Wrong> {
    match asked.by_cookie.get(&cookie) {
        Some(at) if answers[*at].done => rule(format!("a second reply to request {at}")),
        Some(at) => Ok((&asked.requests[*at], &mut answers[*at])),
        None => rule(format!(
            "a reply with cookie {cookie:#x}, which nobody sent"
        )),
    }
}

fn simple(
    received: &mut Cursor<'_>,
    asked: &Asked<'_>,
    answers: &mut [Answer],
) -> Result<(), Wrong> {
    let magic = received.u32()?;
    if magic != SIMPLE_MAGIC {
        return rule(format!("magic {magic:#x} instead of a simple reply's"));
    }
    let (errno, cookie) = (received.u32()?, received.u64()?);
    let (request, answer) = find(cookie, asked, answers)?;
    match errno {
        0 if request.command == READ => answer.data = received.take(request.length)?.to_vec(),
        0 => {}
        errno => set_error(answer, errno)?,
    }
    answer.done = true;
    Ok(())
}

fn set_error(answer: &mut Answer, errno: u32) -> Result<(), Wrong> {
    if !ERRNOS.contains(&errno) {
        return rule(format!("error number {errno}"));
    }
    answer.errno = Some(errno);
    Ok(())
}

fn chunk(
    received: &mut Cursor<'_>,
    asked: &Asked<'_>,
    agreed: Agreed,
    answers: &mut [Answer],
) -> Result<(), Wrong> {
    let extended = agreed.framing == Framing::Extended;
    let magic = received.u32()?;
    if magic
        != if extended {
            EXTENDED_MAGIC
        } else {
            STRUCTURED_MAGIC
        }
    {
        return rule(format!("magic {magic:#x} instead of a chunk's"));
    }
    let (flags, kind, cookie) = (received.u16()?, received.u16()?, received.u64()?);
    let (offset, length) = match extended {
        true => (Some(received.u64()?), received.u64()?),
        false => (None, received.u32()?.into()),
    };
    let mut payload = Cursor(received.take(length)?);
    let (request, answer) = find(cookie, asked, answers)?;
    if offset.is_some_and(|offset| offset != request.offset) || flags & !DONE != 0 {
        return rule("a chunk's header that does not fit its request");
    }
    answer.done = flags & DONE != 0;
    match content(kind, &mut payload, request, agreed, answer) {
        Ok(()) if payload.0.is_empty() => {}
        Ok(()) => return rule(format!("a chunk of type {kind} that is too long")),
        Err(Wrong::Cut) => return rule(format!("a chunk of type {kind} that is too short")),
        Err(wrong) => return Err(wrong),
    }
    match answer.done {
        true => complete(request, answer),
        false => Ok(()),
    }
}

fn content(
    kind: u16,
    payload: &mut Cursor<'_>,
    request: &Request<'_>,
    agreed: Agreed,
    answer: &mut Answer,
) -> Result<(), Wrong> {
    let extended = agreed.framing == Framing::Extended;
    match kind {
        NONE if answer.done => {}
        OFFSET_DATA if request.command == READ => {
            let offset = payload.u64()?;
            let data = std::mem::take(&mut payload.0);
            put(request, answer, offset, data)?;
        }
        OFFSET_HOLE if request.command == READ => {
            let (offset, length) = (payload.u64()?, payload.u32()?);
            if request.has(DF) {
                return rule("a hole where one piece of data was asked for");
            }
            put(request, answer, offset, &vec![0; length as usize])?;
        }
        STATUS | STATUS_EXT if request.command == BLOCK_STATUS && agreed.allocation => {
            if answer.extents.is_some() || extended != (kind == STATUS_EXT) {
                return rule("a block status of the wrong kind");
            }
            answer.extents = Some(extents(payload, extended)?);
        }
        ERROR => {
            let errno = payload.u32()?;
            set_error(answer, errno)?;
            let length = payload.u16()?;
            let text = payload.take(length.into())?;
            if text.len() > 4096 || std::str::from_utf8(text).is_err() {
                return rule("an error's text that is none");
            }
        }
        _ => {
            return rule(format!(
                "a chunk of type {kind} for command {}",
                request.command
            ))
        }
    }
    Ok(())
}

/// Data that was read: inside what was asked for, each byte once.
fn put(request: &Request<'_>, answer: &mut Answer, offset: u64, data: &[u8]) -> Result<(), Wrong> {
    let length = data.len() as u64;
    let end = offset.checked_add(length);
    let inside =
        offset >= request.offset && end.is_some_and(|end| end <= request.offset + request.length);
    if !inside || data.is_empty() {
        return rule(format!(
            "{length} bytes at {offset}, which nobody asked for"
        ));
    }
    let apart = |(at, len): &(u64, u64)| offset + length <= *at || at + len <= offset;
    if !answer.pieces.iter().all(apart) || request.has(DF) && !answer.pieces.is_empty() {
        return rule("bytes that came before");
    }
    answer.pieces.push((offset, length));
    answer.data.resize(request.length as usize, 0);
    answer.data[(offset - request.offset) as usize..][..data.len()].copy_from_slice(data);
    Ok(())
}

fn extents(payload: &mut Cursor<'_>, extended: bool) -> Result<Vec<(u64, u64)>, Wrong> {
    if payload.u32()? != ALLOCATION_ID {
        return rule("a context that was not chosen");
    }
    let mut extents = Vec::new();
    let count = if extended { Some(payload.u32()?) } else { None };
    while !payload.0.is_empty() {
        extents.push(match extended {
            true => (payload.u64()?, payload.u64()?),
            false => (payload.u32()?.into(), payload.u32()?.into()),
        });
    }
    match count {
        Some(count) if count as usize != extents.len() => rule("a count of extents that lies"),
        _ => Ok(extents),
    }
}

/// What must be there when a reply is over.
fn complete(request: &Request<'_>, answer: &Answer) -> Result<(), Wrong> {
    if answer.errno.is_some() {
        return Ok(());
    }
    let came: u64 = answer.pieces.iter().map(|(_, length)| length).sum();
    if request.command == READ && came != request.length {
        return rule(format!("{came} bytes for a read of {}", request.length));
    }
    if request.command != BLOCK_STATUS {
        return Ok(());
    }
    let effect = match request.has(PAYLOAD_LEN) {
        true => Cursor(request.payload).u64().unwrap_or(0),
        false => request.length,
    };
    let extents = answer.extents.as_deref().unwrap_or(&[]);
    let total: u64 = extents.iter().map(|(length, _)| length).sum();
    let fits = match request.has(REQ_ONE) {
        true => extents.len() == 1 && total <= effect,
        false => !extents.is_empty() && total <= effect,
    };
    let odd = |(length, state): &(u64, u64)| *length == 0 || *state > 3;
    if !fits || extents.iter().any(odd) {
        return rule(format!("extents {extents:?} of {effect} bytes"));
    }
    Ok(())
}
