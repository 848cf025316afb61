//! What a client asked for in the transmission phase, as far as its bytes can be understood.

use std::collections::BTreeMap;

use super::{Cursor, Framing};

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
const DISC: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const CACHE: u16 = 5;
pub(super) const WRITE_ZEROES: u16 = 6;
pub(super) const BLOCK_STATUS: u16 = 7;

pub(super) const FUA: u16 = 1 << 0;
pub(super) const DF: u16 = 1 << 2;
pub(super) const REQ_ONE: u16 = 1 << 3;
pub(super) const PAYLOAD_LEN: u16 = 1 << 5;

/// Longer payloads end the connection, in bytes.
const MAX_COMPACT_PAYLOAD: u64 = 64 << 20;
const MAX_EXTENDED_PAYLOAD: u64 = 32 << 20;

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) payload: &'a [u8],
    /// Its payload is all there.
    pub(super) whole: bool,
}

impl Request<'_> {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_change(&self) -> bool {
        matches!(self.command, WRITE | TRIM | WRITE_ZEROES)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    /// In the order in which they were sent.
    pub(super) requests: Vec<Request<'a>>,
    /// Index by cookie.
    pub(super) by_cookie: BTreeMap<u64, usize>,
    /// A cookie stands on two requests.
    pub(super) repeats_a_cookie: bool,
    /// The client said that it leaves.
    pub(super) says_goodbye: bool,
    /// The client broke the rules: the connection is cut there.
    pub(super) broken: bool,
}

pub(super) fn parse(mut sent: Cursor<'_>, framing: Framing) -> Asked<'_> {
    let mut asked = Asked::default();
    let extended = framing == Framing::Extended;
    let expected: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    loop {
        match sent.u32() {
            Ok(magic) if magic == expected => {}
            Ok(_) => asked.broken = true,
            Err(_) => return asked,
        }
        if asked.broken {
            return asked;
        }
        let Some((cookie, mut request)) = header(&mut sent, extended) else {
            return asked;
        };
        if request.command == DISC {
            asked.says_goodbye = true;
            return asked;
        }
        let announced = extended && request.has(PAYLOAD_LEN);
        if request.command == WRITE || announced {
            let most = if extended {
                MAX_EXTENDED_PAYLOAD
            } else {
                MAX_COMPACT_PAYLOAD
            };
            if request.length > most {
                asked.broken = true;
                return asked;
            }
            match sent.take(request.length) {
                Ok(payload) => request.payload = payload,
                Err(_) => request.whole = false,
            }
        }
        let at = asked.requests.len();
        asked.repeats_a_cookie |= asked.by_cookie.insert(cookie, at).is_some();
        let whole = request.whole;
        asked.requests.push(request);
        if !whole {
            return asked;
        }
    }
}

fn header<'a>(sent: &mut Cursor<'_>, extended: bool) -> Option<(u64, Request<'a>)> {
    let (flags, command, cookie) = (sent.u16().ok()?, sent.u16().ok()?, sent.u64().ok()?);
    let offset = sent.u64().ok()?;
    let length = match extended {
        true => sent.u64().ok()?,
        false => sent.u32().ok()?.into(),
    };
    let request = Request {
        flags,
        command,
        offset,
        length,
        payload: &[],
        whole: true,
    };
    Some((cookie, request))
}
