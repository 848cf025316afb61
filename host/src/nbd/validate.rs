//! May this request run on this export? Pure: a request and what was negotiated, yes or an error
//! number with its reason.

use nbd_rs_plugin::CapabilityFlags;

use super::errno::Errno;
use super::wire::constants::{cmd, cmd_flag, flag};
use super::wire::request::Request;
use super::wire::Framing;
use crate::export::{Export, MAX_PAYLOAD_BYTES};

/// What was agreed with a client in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// How requests and replies are framed.
    pub framing: Framing,
    /// Whether `base:allocation` was chosen for this export.
    pub allocation: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub Errno, pub &'static str);

/// The transmission flags: what the whole chain can do, and what was negotiated.
pub fn transmission_flags(export: &Export, agreement: Agreement) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA;
    // One process owns the export and everything in it is shared by all connections.
    flags |= flag::CAN_MULTI_CONN;
    let mut when = |condition: bool, bits: u16| {
        if condition {
            flags |= bits;
        }
    };
    let writable = !export.is_read_only();
    when(!writable, flag::READ_ONLY);
    when(writable, flag::SEND_WRITE_ZEROES);
    when(
        writable && export.can(CapabilityFlags::PUNCH_HOLE),
        flag::SEND_TRIM,
    );
    when(
        writable && export.can(CapabilityFlags::FAST_ZERO),
        flag::SEND_FAST_ZERO,
    );
    when(export.can(CapabilityFlags::PREFETCH), flag::SEND_CACHE);
    when(agreement.framing.has_chunks(), flag::SEND_DF);
    let chooses = agreement.framing == Framing::Extended && agreement.allocation;
    when(chooses, flag::BLOCK_STATUS_PAYLOAD);
    flags
}

/// Judges a request by its header; `advertised` are the transmission flags that the client saw.
///
/// # Errors
/// The number and the reason to answer with.
pub fn validate(
    request: &Request,
    export: &Export,
    agreement: Agreement,
    advertised: u16,
) -> Result<(), Refusal> {
    let has = |bits: u16| advertised & bits != 0;
    check_flags(request, agreement, &has)?;
    if request.is_change() && export.is_read_only() {
        return Err(Refusal(Errno::Perm, "the export is read-only"));
    }
    let offered = match request.command {
        cmd::TRIM => has(flag::SEND_TRIM),
        cmd::CACHE => has(flag::SEND_CACHE),
        cmd::BLOCK_STATUS => agreement.allocation,
        _ => true,
    };
    if !offered {
        return Err(Refusal(Errno::Inval, "the command was not offered"));
    }
    if request.command == cmd::FLUSH {
        return match (request.offset, request.length) {
            (0, 0) => Ok(()),
            _ => Err(Refusal(Errno::Inval, "a flush has no offset and no length")),
        };
    }
    // With a payload the effect length of BLOCK_STATUS stands in it, and is judged there.
    if request.command == cmd::BLOCK_STATUS && request.has(cmd_flag::PAYLOAD_LEN) {
        return Ok(());
    }
    check_range(request.command, request.offset, request.length, export)?;
    check_length(request, agreement)
}

fn check_flags(
    request: &Request,
    agreement: Agreement,
    has: &dyn Fn(u16) -> bool,
) -> Result<(), Refusal> {
    let own = match request.command {
        cmd::READ => cmd_flag::DF,
        cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
        cmd::WRITE_ZEROES => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
        cmd::BLOCK_STATUS => cmd_flag::REQ_ONE,
        _ => return Err(Refusal(Errno::Inval, "unknown command")),
    };
    let mut allowed = own | cmd_flag::FUA;
    if !has(flag::SEND_DF) {
        allowed &= !cmd_flag::DF;
    }
    if !has(flag::SEND_FAST_ZERO) {
        allowed &= !cmd_flag::FAST_ZERO;
    }
    if agreement.framing == Framing::Extended {
        match request.command {
            cmd::WRITE => allowed |= cmd_flag::PAYLOAD_LEN,
            cmd::BLOCK_STATUS if has(flag::BLOCK_STATUS_PAYLOAD) => {
                allowed |= cmd_flag::PAYLOAD_LEN;
            }
            _ => {}
        }
    }
    if request.flags & !allowed != 0 {
        return Err(Refusal(
            Errno::Inval,
            "a flag that does not go with the command",
        ));
    }
    Ok(())
}

/// Judges where a request reaches; also for the effect length in a payload.
///
/// # Errors
/// As [`validate`].
pub fn check_range(command: u16, offset: u64, length: u64, export: &Export) -> Result<(), Refusal> {
    if offset
        .checked_add(length)
        .is_none_or(|end| end > export.size())
    {
        let errno = match command {
            cmd::WRITE | cmd::WRITE_ZEROES => Errno::Nospc,
            _ => Errno::Inval,
        };
        return Err(Refusal(errno, "beyond the end of the export"));
    }
    let minimum = u64::from(export.block_sizes().minimum);
    if !offset.is_multiple_of(minimum) || !length.is_multiple_of(minimum) {
        return Err(Refusal(
            Errno::Inval,
            "not aligned to the minimum block size",
        ));
    }
    if length == 0 && command == cmd::BLOCK_STATUS {
        return Err(Refusal(Errno::Inval, "a block status of no length"));
    }
    Ok(())
}

fn check_length(request: &Request, agreement: Agreement) -> Result<(), Refusal> {
    if request.length <= u64::from(MAX_PAYLOAD_BYTES) {
        return Ok(());
    }
    match request.command {
        cmd::READ if agreement.framing.has_chunks() => {
            Err(Refusal(Errno::Overflow, "longer than the largest payload"))
        }
        cmd::READ | cmd::WRITE => Err(Refusal(Errno::Inval, "longer than the largest payload")),
        _ => Ok(()),
    }
}
