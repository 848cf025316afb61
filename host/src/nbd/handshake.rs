//! The handshake, from the greeting to the transmission phase: bounded in time, bytes and options.

use std::io;
use std::sync::Arc;

use super::options::{error, Exports, Negotiation, Next};
use super::validate::Agreement;
use super::wire::constants::{handshake, opt, rep, MAX_STRING_BYTES};
use super::wire::option::{greeting, OptionHeader, HEADER_BYTES};
use crate::export::Export;

/// The longest data of an option that is looked at, in bytes. A legal GO has 135,172.
const MAX_OPTION_BYTES: u32 = 256 << 10;
/// Longer data than this is not even read over, in bytes.
const MAX_DRAINED_BYTES: u32 = 1 << 20;
/// Options that a client may send before it gets to work, and as many more for each export:
/// listing clients (qemu-nbd --list) ask two or three things about every one.
const MAX_OPTIONS: usize = 32;

/// The socket during the handshake: whole reads and writes, within the time that is left.
pub trait Wire {
    /// Reads exactly `bytes.len()` bytes.
    ///
    /// # Errors
    /// At the end of the stream, or of the time.
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// As for reading.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Whether the server is going down: options are then answered with that.
    fn going_down(&self) -> bool;
}

/// Greets and negotiates. `None` when the client left in peace.
///
/// # Errors
/// When the client broke the rules or the line; the text is for the log.
pub fn negotiate(
    wire: &mut dyn Wire,
    exports: &Exports,
) -> io::Result<Option<(Arc<Export>, Agreement)>> {
    let offered = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    wire.write_all(&greeting(offered))?;
    let mut flags = [0; 4];
    wire.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(offered) != 0 {
        return Err(broken(format!("unknown client flags {flags:#x}")));
    }
    let fixed = flags & u32::from(handshake::FIXED_NEWSTYLE) != 0;
    let no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
    let mut negotiation = Negotiation::new(exports, no_zeroes);
    for _ in 0..MAX_OPTIONS * (1 + exports.0.len()) {
        match one_option(wire, &mut negotiation, fixed)? {
            Next::Reply(reply) => wire.write_all(&reply)?,
            Next::Transmission(reply, export, agreement) => {
                wire.write_all(&reply)?;
                return Ok(Some((export, agreement)));
            }
            Next::End(reply) => {
                // The client may be gone already; that is as good.
                let _ = wire.write_all(&reply);
                return Ok(None);
            }
        }
    }
    Err(broken("too many options".to_owned()))
}

fn one_option(
    wire: &mut dyn Wire,
    negotiation: &mut Negotiation<'_>,
    fixed: bool,
) -> io::Result<Next> {
    let mut header = [0; HEADER_BYTES];
    wire.read_exact(&mut header)?;
    let Some(header) = OptionHeader::decode(&header) else {
        return Err(broken("no option where one must stand".to_owned()));
    };
    let OptionHeader { option, length } = header;
    if !fixed && option != opt::EXPORT_NAME {
        return Err(broken("an option without fixed newstyle".to_owned()));
    }
    if length > MAX_DRAINED_BYTES {
        return Err(broken(format!("an option of {length} bytes")));
    }
    if option == opt::EXPORT_NAME && length as usize > MAX_STRING_BYTES {
        return Err(broken(format!("an export name of {length} bytes")));
    }
    if length > MAX_OPTION_BYTES || !is_known(option) {
        drain(wire, length)?;
        negotiation.unread(option);
        return Ok(Next::Reply(match is_known(option) {
            true => error(option, rep::ERR_TOO_BIG, "too much data"),
            false => error(option, rep::ERR_UNSUP, "unknown option"),
        }));
    }
    let mut data = vec![0; length as usize];
    wire.read_exact(&mut data)?;
    if wire.going_down() && option != opt::ABORT {
        return Ok(Next::End(error(
            option,
            rep::ERR_SHUTDOWN,
            "the server is going down",
        )));
    }
    Ok(negotiation.answer(option, &data))
}

fn is_known(option: u32) -> bool {
    matches!(
        option,
        opt::EXPORT_NAME
            | opt::ABORT
            | opt::LIST
            | opt::INFO
            | opt::GO
            | opt::STRUCTURED_REPLY
            | opt::LIST_META_CONTEXT
            | opt::SET_META_CONTEXT
            | opt::EXTENDED_HEADERS
    )
}

fn drain(wire: &mut dyn Wire, mut length: u32) -> io::Result<()> {
    let mut scratch = [0; 4096];
    while length > 0 {
        let part = length.min(scratch.len() as u32);
        wire.read_exact(&mut scratch[..part as usize])?;
        length -= part;
    }
    Ok(())
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
