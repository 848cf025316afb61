//! Every byte of the server against what its client had sent. Written from the specification
//! (doc/proto.md and its extension for extended headers); nothing of the server's own code is
//! used. Where the server promises more than the specification, that is checked as well.

mod handshake;
mod replies;
mod requests;
mod volume;

use crate::play::{Played, DISK_BYTES, FROZEN_BYTES};

/// What was agreed on in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agreed {
    framing: Framing,
    export: ExportName,
    /// `base:allocation` was chosen for this export.
    allocation: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

/// The exports that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExportName {
    Disk,
    Frozen,
}

impl ExportName {
    fn find(name: &[u8]) -> Option<Self> {
        match name {
            b"" | b"disk" => Some(ExportName::Disk),
            b"frozen" => Some(ExportName::Frozen),
            _ => None,
        }
    }

    fn size(self) -> u64 {
        match self {
            ExportName::Disk => DISK_BYTES,
            ExportName::Frozen => FROZEN_BYTES,
        }
    }
}

/// Checks a whole session.
///
/// # Errors
/// The first thing that the server did wrong.
pub fn check(played: &Played) -> Result<(), String> {
    let mut sent = Cursor(&played.sent);
    let mut received = Cursor(&played.received);
    let agreed = match handshake::follow(&mut sent, &mut received) {
        // What was received ends in the middle: fine if the client did not read on.
        Err(Wrong::Cut) if !played.to_the_end => return Ok(()),
        Err(Wrong::Cut) => return Err("the server's bytes end in the middle".to_owned()),
        Err(Wrong::Rule(text)) => return Err(format!("handshake: {text}")),
        Ok(agreed) => agreed,
    };
    let Some(agreed) = agreed else {
        return match received.0.len() {
            0 => Ok(()),
            more => Err(format!("{more} bytes that nothing was sent for")),
        };
    };
    let asked = requests::parse(sent, agreed.framing);
    if asked.repeats_a_cookie {
        // Opaque marks that are the same can't be told apart, by nobody.
        return Ok(());
    }
    let answers = match replies::parse(received, &asked, agreed) {
        Ok((answers, rest)) => {
            // A client that broke the rules is cut off, in the middle of a reply if need be.
            let cut_is_fine = !played.to_the_end || asked.broken;
            if rest > 0 && !cut_is_fine {
                return Err(format!("{rest} bytes of a reply that is not whole"));
            }
            answers
        }
        Err(text) => return Err(text),
    };
    volume::check(played, &asked, &answers, agreed)
}

/// Why bytes of the server are not right.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// They end too early.
    Cut,
    /// They break a rule.
    Rule(String),
}

fn rule<T>(text: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Rule(text.into()))
}

/// Takes numbers from the front, as they stand on the wire.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Wrong> {
        let len = usize::try_from(len).map_err(|_| Wrong::Cut)?;
        let (head, tail) = self.0.split_at_checked(len).ok_or(Wrong::Cut)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let bytes = self.take(N as u64)?;
        bytes.try_into().map_err(|_| Wrong::Cut)
    }

    fn u16(&mut self) -> Result<u16, Wrong> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
