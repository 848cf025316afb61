//! What the answers mean together: what must succeed did, what must fail did, all that was whole
//! was answered, and reads saw what was written.

use super::replies::Answer;
use super::requests::{
    Asked, Request, BLOCK_STATUS, CACHE, FLUSH, FUA, PAYLOAD_LEN, READ, TRIM, WRITE, WRITE_ZEROES,
};
use super::{Agreed, Cursor, ExportName};
use crate::play::{initial_contents, Played, FROZEN_BYTES};

const MAX_PAYLOAD_BYTES: u64 = 32 << 20;
const EPERM: u32 = 1;
const KNOWN_FLAGS: u16 = (1 << 6) - 1;

/// Checks the answers of one session.
pub(super) fn check(
    played: &Played,
    asked: &Asked<'_>,
    answers: &[Answer],
    agreed: Agreed,
) -> Result<(), String> {
    let read_to_the_end = played.to_the_end && !asked.broken;
    for (at, (request, answer)) in asked.requests.iter().zip(answers).enumerate() {
        let told = |text: &str| {
            let Request {
                flags,
                command,
                offset,
                length,
                ..
            } = request;
            Err(format!(
                "request {at} (command {command}, flags {flags:#x}, {length} bytes at {offset}): \
                 {text}; errno {:?}",
                answer.errno
            ))
        };
        // A change whose client leaves without a word may be dropped (contract C3).
        let may_be_dropped = request.is_change() && !asked.says_goodbye;
        if !answer.done {
            if read_to_the_end && request.whole && !may_be_dropped {
                return told("never answered");
            }
            continue;
        }
        let succeeded = answer.errno.is_none();
        if succeeded && (!request.whole || must_fail(request, agreed)) {
            return told("must not succeed");
        }
        let faults = played.program.failing_reads || played.program.failing_syncs > 0;
        if !succeeded && !faults && request.whole && must_succeed(request, agreed) {
            return told("must succeed");
        }
        let refused_change = request.is_change() && agreed.export == ExportName::Frozen;
        let is_plain = request.flags & !FUA == 0;
        if refused_change && is_plain && answer.errno != Some(EPERM) {
            return told("must be answered with EPERM");
        }
    }
    check_contents(asked, answers, agreed)
}

fn in_range(offset: u64, length: u64, agreed: Agreed) -> bool {
    let end = offset.checked_add(length);
    end.is_some_and(|end| end <= agreed.export.size())
}

fn must_fail(request: &Request<'_>, agreed: Agreed) -> bool {
    let in_payload = request.command == BLOCK_STATUS && request.has(PAYLOAD_LEN);
    let read_only = agreed.export == ExportName::Frozen;
    request.command > BLOCK_STATUS
        || request.flags & !KNOWN_FLAGS != 0
        || read_only && request.is_change()
        || !in_payload && !in_range(request.offset, request.length, agreed)
        || matches!(request.command, READ | WRITE) && request.length > MAX_PAYLOAD_BYTES
        || request.command == BLOCK_STATUS && !agreed.allocation
}

fn must_succeed(request: &Request<'_>, agreed: Agreed) -> bool {
    let writable = agreed.export == ExportName::Disk;
    let inside = in_range(request.offset, request.length, agreed);
    let plain = request.flags & !FUA == 0;
    plain
        && match request.command {
            READ | CACHE => inside,
            WRITE | TRIM | WRITE_ZEROES => inside && writable,
            FLUSH => request.offset == 0 && request.length == 0,
            BLOCK_STATUS => inside && request.length > 0 && agreed.allocation,
            _ => false,
        }
}

/// Effects on one byte come in the order of the requests. A read sees all that were asked for
/// before it; since nobody waits here, it may also see some that were asked for after it.
fn check_contents(asked: &Asked<'_>, answers: &[Answer], agreed: Agreed) -> Result<(), String> {
    let mut contents = match agreed.export {
        ExportName::Disk => initial_contents().to_vec(),
        ExportName::Frozen => vec![0; FROZEN_BYTES as usize],
    };
    let changes = asked.requests.iter().any(Request::is_change);
    for (at, (request, answer)) in asked.requests.iter().zip(answers).enumerate() {
        let succeeded = answer.done && answer.errno.is_none();
        // Made or not, nobody knows: what comes behind can't be told.
        if request.is_change() && !succeeded && !must_fail(request, agreed) {
            return Ok(());
        }
        if !succeeded {
            continue;
        }
        let later = &asked.requests[at + 1..];
        match request.command {
            READ if !is_explained(request, answer, contents.clone(), later) => {
                return Err(format!("request {at} read what never was there"));
            }
            // Not ordered with changes that are under way.
            BLOCK_STATUS if !changes => check_states(request, answer, &contents)?,
            _ => apply(request, &mut contents),
        }
    }
    Ok(())
}

/// Makes a change, if it is one that can be made.
fn apply(request: &Request<'_>, contents: &mut [u8]) {
    let Some(end) = request.offset.checked_add(request.length) else {
        return;
    };
    let Some(range) = contents.get_mut(request.offset as usize..end as usize) else {
        return;
    };
    match request.command {
        WRITE if request.whole => range.copy_from_slice(request.payload),
        // This volume, in memory, zeroes what is trimmed.
        WRITE_ZEROES | TRIM => range.fill(0),
        _ => {}
    }
}

/// Whether each byte that was read was there, when the request came or later.
fn is_explained(
    request: &Request<'_>,
    answer: &Answer,
    mut contents: Vec<u8>,
    later: &[Request<'_>],
) -> bool {
    let offset = request.offset as usize;
    let range = offset..offset + request.length as usize;
    if answer.data == contents[range.clone()] {
        return true;
    }
    let mut explained = vec![0; answer.data.len().div_ceil(UNIT_BYTES)];
    mark(&mut explained, &answer.data, &contents[range.clone()]);
    later
        .iter()
        .filter(|other| other.is_change())
        .any(|change| {
            apply(change, &mut contents);
            mark(&mut explained, &answer.data, &contents[range.clone()])
        })
}

/// Bytes that one number tells of.
const UNIT_BYTES: usize = 64;

/// Marks the bytes that were read as they are there, a bit for each; whether all are marked now.
fn mark(explained: &mut [u64], read: &[u8], there: &[u8]) -> bool {
    let units = read.chunks(UNIT_BYTES).zip(there.chunks(UNIT_BYTES));
    for (bits, (read, there)) in explained.iter_mut().zip(units) {
        let all = u64::MAX >> (UNIT_BYTES - read.len());
        if *bits == all {
            continue;
        }
        if read == there {
            *bits = all;
            continue;
        }
        for (at, (read, there)) in read.iter().zip(there).enumerate() {
            *bits |= u64::from(read == there) << at;
        }
    }
    let missing = |(bits, read): (&u64, &[u8])| *bits != u64::MAX >> (UNIT_BYTES - read.len());
    !explained.iter().zip(read.chunks(UNIT_BYTES)).any(missing)
}

fn check_states(request: &Request<'_>, answer: &Answer, contents: &[u8]) -> Result<(), String> {
    let mut rest = Cursor(&contents[request.offset as usize..]);
    for (length, state) in answer.extents.iter().flatten() {
        let bytes = rest.take(*length).unwrap_or_default();
        if state & 2 != 0 && bytes.iter().any(|byte| *byte != 0) {
            return Err(format!("{length} bytes said to be zeros are none"));
        }
    }
    Ok(())
}
