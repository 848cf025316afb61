//! Bytes to values and back; nothing else. No socket, no file, no clock.

pub mod constants;
pub mod option;
pub mod reply;
pub mod request;

use constants::{EXTENDED_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};

/// How requests and replies are framed, as it was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended headers both ways.
    Extended,
}

impl Framing {
    /// Bytes of a request's header.
    pub fn request_header_bytes(self) -> usize {
        match self {
            Framing::Simple | Framing::Structured => request::COMPACT_BYTES,
            Framing::Extended => request::EXTENDED_BYTES,
        }
    }

    /// Whether replies come in chunks.
    pub fn has_chunks(self) -> bool {
        self != Framing::Simple
    }

    fn chunk_magic(self) -> u32 {
        match self {
            Framing::Extended => EXTENDED_REPLY_MAGIC,
            Framing::Simple | Framing::Structured => STRUCTURED_REPLY_MAGIC,
        }
    }
}

/// Takes numbers from the front of a byte string; `None` at its end.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u16::from_be_bytes(*head))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u32::from_be_bytes(*head))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u64::from_be_bytes(*head))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
