//! The handshake, followed option by option.

use super::{rule, Agreed, Cursor, ExportName, Framing, Wrong};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const ERROR: u32 = 1 << 31;
const ERR_UNSUP: u32 = ERROR + 1;
const ERR_UNKNOWN: u32 = ERROR + 6;

/// The server takes so many options, and data so long, in bytes; it may refuse beyond.
const MAX_OPTIONS: usize = 64;
const MAX_OPTION_BYTES: u32 = 1 << 20;
const MAX_NAME_BYTES: usize = 4096;
/// The id that `base:allocation` was given.
pub(super) const ALLOCATION_ID: u32 = 1;

struct State {
    no_zeroes: bool,
    framing: Framing,
    allocation_for: Option<ExportName>,
}

/// What an option came to.
enum Step {
    Next,
    Transmission(ExportName),
    End,
}

/// Follows the handshake to its end; what was agreed on if the transmission phase began.
pub(super) fn follow(
    sent: &mut Cursor<'_>,
    received: &mut Cursor<'_>,
) -> Result<Option<Agreed>, Wrong> {
    let (magic, option_magic, flags) = (received.u64()?, received.u64()?, received.u16()?);
    if (magic, option_magic, flags) != (NBDMAGIC, IHAVEOPT, 3) {
        return rule("not the greeting of a fixed-newstyle server");
    }
    let Ok(client_flags) = sent.u32() else {
        return Ok(None);
    };
    if client_flags & !3 != 0 {
        return Ok(None);
    }
    let mut state = State {
        no_zeroes: client_flags & 2 != 0,
        framing: Framing::Simple,
        allocation_for: None,
    };
    for _ in 0..MAX_OPTIONS {
        let Some((option, data)) = next_option(sent, client_flags & 1 != 0) else {
            return Ok(None);
        };
        match state.answered(option, data, received)? {
            Step::Next => {}
            Step::End => return Ok(None),
            Step::Transmission(export) => {
                return Ok(Some(Agreed {
                    framing: state.framing,
                    export,
                    allocation: state.allocation_for == Some(export),
                }))
            }
        }
    }
    Ok(None)
}

/// The next option that must be answered, if there is one.
fn next_option<'a>(sent: &mut Cursor<'a>, fixed: bool) -> Option<(u32, &'a [u8])> {
    let (magic, option, length) = (sent.u64().ok()?, sent.u32().ok()?, sent.u32().ok()?);
    if magic != IHAVEOPT || length > MAX_OPTION_BYTES || !fixed && option != EXPORT_NAME {
        return None;
    }
    Some((option, sent.take(length.into()).ok()?))
}

impl State {
    fn answered(
        &mut self,
        option: u32,
        data: &[u8],
        received: &mut Cursor<'_>,
    ) -> Result<Step, Wrong> {
        if option == EXPORT_NAME {
            return self.export_name(data, received);
        }
        let mut answer = Answer::default();
        let last = loop {
            let (kind, reply) = reply(option, received)?;
            if kind == ACK || kind & ERROR != 0 {
                break final_reply(kind, reply)?;
            }
            answer.add(option, kind, reply)?;
        };
        if last == ACK {
            return self.acknowledged(option, data, &answer);
        }
        self.refused(option, data, last)
    }

    /// No error can be told: there is an answer, or the end.
    fn export_name(&self, data: &[u8], received: &mut Cursor<'_>) -> Result<Step, Wrong> {
        let known = ExportName::find(data).filter(|_| data.len() <= MAX_NAME_BYTES);
        let Some(export) = known.filter(|_| self.framing != Framing::Extended) else {
            return Ok(Step::End);
        };
        check_size_and_flags(received.u64()?, received.u16()?, export)?;
        if !self.no_zeroes && received.take(124)?.iter().any(|byte| *byte != 0) {
            return rule("zeroes that are none");
        }
        Ok(Step::Transmission(export))
    }

    fn acknowledged(&mut self, option: u32, data: &[u8], answer: &Answer) -> Result<Step, Wrong> {
        match option {
            ABORT => return Ok(Step::End),
            LIST if data.is_empty() && answer.servers == 2 => {}
            STRUCTURED_REPLY if data.is_empty() && self.framing != Framing::Extended => {
                self.framing = Framing::Structured;
            }
            EXTENDED_HEADERS if data.is_empty() => self.framing = Framing::Extended,
            INFO | GO => {
                let export = info_request(data).and_then(ExportName::find);
                let (Some(export), Some((size, flags))) = (export, answer.size_and_flags) else {
                    return rule("an acknowledged request that makes no sense");
                };
                check_size_and_flags(size, flags, export)?;
                if option == GO {
                    return Ok(Step::Transmission(export));
                }
            }
            LIST_META_CONTEXT | SET_META_CONTEXT => {
                let Some((name, queries)) = meta_request(data) else {
                    return rule("an acknowledged list of queries that makes no sense");
                };
                let Some(export) = ExportName::find(name) else {
                    return rule("contexts of an export that does not exist");
                };
                let exact = queries.iter().any(|query| *query == b"base:allocation");
                let all = queries.is_empty() || queries.iter().any(|query| *query == b"base:");
                let expected = exact || option == LIST_META_CONTEXT && all;
                if expected != answer.allocation || self.framing == Framing::Simple {
                    return rule("not the contexts that were asked for");
                }
                if option == SET_META_CONTEXT {
                    self.allocation_for = exact.then_some(export);
                }
            }
            _ => return rule(format!("option {option} was acknowledged")),
        }
        Ok(Step::Next)
    }

    fn refused(&mut self, option: u32, data: &[u8], error: u32) -> Result<Step, Wrong> {
        if option == SET_META_CONTEXT {
            self.allocation_for = None;
        }
        let known = |name: Option<&[u8]>| name.is_some_and(|name| ExportName::find(name).is_some());
        let good = match option {
            ABORT => true,
            LIST | EXTENDED_HEADERS => data.is_empty(),
            STRUCTURED_REPLY => data.is_empty() && self.framing != Framing::Extended,
            INFO | GO => known(info_request(data)),
            LIST_META_CONTEXT | SET_META_CONTEXT => {
                self.framing != Framing::Simple && known(meta_request(data).map(|(name, _)| name))
            }
            _ if error == ERR_UNSUP => false,
            _ => return rule("an unknown option must be answered with ERR_UNSUP"),
        };
        if good {
            return rule(format!("option {option} was refused with {error:#x}"));
        }
        if matches!(option, INFO | GO) && info_request(data).is_some() != (error == ERR_UNKNOWN) {
            return rule(format!("the wrong error for option {option}: {error:#x}"));
        }
        Ok(Step::Next)
    }
}

fn reply<'a>(option: u32, received: &mut Cursor<'a>) -> Result<(u32, Cursor<'a>), Wrong> {
    if received.u64()? != REPLY_MAGIC {
        return rule("no magic before a reply");
    }
    let (echo, kind, length) = (received.u32()?, received.u32()?, received.u32()?);
    if echo != option {
        return rule(format!("a reply to option {echo}, when {option} was asked"));
    }
    Ok((kind, Cursor(received.take(length.into())?)))
}

fn final_reply(kind: u32, data: Cursor<'_>) -> Result<u32, Wrong> {
    if kind == ACK && !data.0.is_empty() {
        return rule("an acknowledgement with data");
    }
    if data.0.len() > MAX_NAME_BYTES || std::str::from_utf8(data.0).is_err() {
        return rule("an error's text that is none");
    }
    Ok(kind)
}

/// What came before the last reply to an option.
#[derive(Default)]
struct Answer {
    servers: usize,
    size_and_flags: Option<(u64, u16)>,
    allocation: bool,
}

impl Answer {
    fn add(&mut self, option: u32, kind: u32, mut data: Cursor<'_>) -> Result<(), Wrong> {
        // Inside one reply nothing may be missing.
        let inner = self.add_fields(option, kind, &mut data);
        match inner {
            Err(Wrong::Cut) => rule("a reply shorter than its fields"),
            Ok(()) if !data.0.is_empty() => rule("a reply longer than its fields"),
            other => other,
        }
    }

    fn add_fields(&mut self, option: u32, kind: u32, data: &mut Cursor<'_>) -> Result<(), Wrong> {
        match (option, kind) {
            (LIST, REP_SERVER) => {
                let length = data.u32()?;
                let name = data.take(length.into())?;
                if name.is_empty() || ExportName::find(name).is_none() {
                    return rule("a list that names what does not exist");
                }
                self.servers += 1;
            }
            (INFO | GO, REP_INFO) => self.info(data)?,
            (LIST_META_CONTEXT | SET_META_CONTEXT, REP_META_CONTEXT) => {
                let id = data.u32()?;
                let chosen = option == SET_META_CONTEXT;
                let name = std::mem::take(&mut data.0);
                if name != b"base:allocation" || chosen && id != ALLOCATION_ID || self.allocation {
                    return rule("a context that was not asked for");
                }
                self.allocation = true;
            }
            _ => return rule(format!("a reply of type {kind:#x} to option {option}")),
        }
        Ok(())
    }

    fn info(&mut self, data: &mut Cursor<'_>) -> Result<(), Wrong> {
        match data.u16()? {
            0 => self.size_and_flags = Some((data.u64()?, data.u16()?)),
            1 | 2 if std::str::from_utf8(data.0).is_ok() => data.0 = &[],
            3 => {
                let sizes = [data.u32()?, data.u32()?, data.u32()?];
                let powers = sizes[..2].iter().all(|size| size.is_power_of_two());
                if !powers || !sizes.is_sorted() {
                    return rule(format!("block sizes {sizes:?}"));
                }
            }
            other => return rule(format!("information of kind {other}")),
        }
        Ok(())
    }
}

fn check_size_and_flags(size: u64, flags: u16, export: ExportName) -> Result<(), Wrong> {
    let read_only = flags & 2 != 0;
    if size != export.size() || flags & 1 == 0 || read_only != (export == ExportName::Frozen) {
        return rule(format!("{export:?} of {size} bytes with flags {flags:#x}"));
    }
    Ok(())
}

/// The name, if the data of INFO or GO is well formed.
fn info_request(data: &[u8]) -> Option<&[u8]> {
    let mut data = Cursor(data);
    let length = data.u32().ok()?;
    let name = data.take(length.into()).ok()?;
    let count = data.u16().ok()?;
    (data.0.len() == usize::from(count) * 2 && name.len() <= MAX_NAME_BYTES).then_some(name)
}

/// Name and queries, if the data of a metadata option is well formed.
fn meta_request(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut data = Cursor(data);
    let length = data.u32().ok()?;
    let name = data.take(length.into()).ok()?;
    let count = data.u32().ok()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let length = data.u32().ok()?;
        queries.push(data.take(length.into()).ok()?);
    }
    let short = |string: &&[u8]| string.len() <= MAX_NAME_BYTES;
    let fits = data.0.is_empty() && short(&name) && queries.iter().all(short);
    fits.then_some((name, queries))
}
