//! Headers of replies: simple, structured chunks, extended chunks (proto.md, "Simple reply
//! message", "Structured reply chunk message").

use super::constants::{reply, MAX_STRING_BYTES, SIMPLE_REPLY_MAGIC};
use super::Framing;
use crate::nbd::errno::Errno;

/// Bytes of a simple reply's header.
pub const SIMPLE_BYTES: usize = 16;
/// The longest header: an extended chunk with the offset of its data and a hole's length.
pub const MAX_HEADER_BYTES: usize = 48;

/// A few bytes of header, kept in place.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER_BYTES],
    len: u8,
}

impl Header {
    fn new() -> Self {
        Self {
            bytes: [0; MAX_HEADER_BYTES],
            len: 0,
        }
    }

    fn put<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        let at = usize::from(self.len);
        self.bytes[at..at + N].copy_from_slice(&bytes);
        self.len += N as u8;
        self
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The header of a simple reply; `errno` 0 means success.
pub fn simple(cookie: u64, errno: Option<Errno>) -> Header {
    Header::new()
        .put(SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(errno.map_or(0, |errno| errno as u32).to_be_bytes())
        .put(cookie.to_be_bytes())
}

/// What a chunk belongs to.
#[derive(Debug, Clone, Copy)]
pub struct ChunkOf {
    /// Structured or extended.
    pub framing: Framing,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset (extended headers repeat it).
    pub offset: u64,
}

impl ChunkOf {
    /// The header of a chunk with `length` bytes of payload.
    pub fn header(self, kind: u16, done: bool, length: u64) -> Header {
        let flags = if done { reply::FLAG_DONE } else { 0 };
        let header = Header::new()
            .put(self.framing.chunk_magic().to_be_bytes())
            .put(flags.to_be_bytes())
            .put(kind.to_be_bytes())
            .put(self.cookie.to_be_bytes());
        match self.framing {
            Framing::Extended => header
                .put(self.offset.to_be_bytes())
                .put(length.to_be_bytes()),
            Framing::Simple | Framing::Structured => header.put((length as u32).to_be_bytes()),
        }
    }

    /// The last chunk, with nothing in it.
    pub fn none(self) -> Header {
        self.header(reply::NONE, true, 0)
    }

    /// The header of a data chunk, up to its data.
    pub fn data(self, done: bool, offset: u64, len: u64) -> Header {
        self.header(reply::OFFSET_DATA, done, 8 + len)
            .put(offset.to_be_bytes())
    }

    /// A whole hole chunk. `len` fits 32 bits: payloads are smaller.
    pub fn hole(self, done: bool, offset: u64, len: u32) -> Header {
        self.header(reply::OFFSET_HOLE, done, 12)
            .put(offset.to_be_bytes())
            .put(len.to_be_bytes())
    }

    /// A whole error chunk, the last one, with a text.
    pub fn error(self, errno: Errno, text: &str) -> Vec<u8> {
        let text = cut(text);
        let mut bytes = self.header(reply::ERROR, true, 6 + text.len() as u64);
        bytes = bytes.put((errno as u32).to_be_bytes());
        bytes = bytes.put((text.len() as u16).to_be_bytes());
        [bytes.as_slice(), text.as_bytes()].concat()
    }

    /// A whole block status chunk for one context, the last one if `done`.
    pub fn block_status(self, done: bool, context: u32, extents: &[(u64, u32)]) -> Vec<u8> {
        let count = extents.len() as u64;
        let mut bytes;
        if self.framing == Framing::Extended {
            let header = self.header(reply::BLOCK_STATUS_EXT, done, 8 + 16 * count);
            bytes = header.as_slice().to_vec();
            bytes.extend(context.to_be_bytes());
            bytes.extend((count as u32).to_be_bytes());
            for (len, status) in extents {
                bytes.extend(len.to_be_bytes());
                bytes.extend(u64::from(*status).to_be_bytes());
            }
        } else {
            let header = self.header(reply::BLOCK_STATUS, done, 4 + 8 * count);
            bytes = header.as_slice().to_vec();
            bytes.extend(context.to_be_bytes());
            for (len, status) in extents {
                bytes.extend((*len as u32).to_be_bytes());
                bytes.extend(status.to_be_bytes());
            }
        }
        bytes
    }
}

/// At most as much as a string of the protocol may have, at a character's boundary.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkOf = ChunkOf {
        framing: Framing::Structured,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1000,
    };

    #[test]
    fn headers_are_laid_out_as_the_specification_says() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(simple(7, Some(Errno::Io)).as_slice()),
            "67446698000000050000000000000007"
        );
        assert_eq!(
            hex(CHUNK.data(true, 0x1000, 3).as_slice()),
            "668e33ef0001000101020304050607080000000b0000000000001000"
        );
        assert_eq!(
            hex(CHUNK.hole(false, 0x1000, 512).as_slice()),
            "668e33ef0000000201020304050607080000000c000000000000100000000200"
        );
        let extended = ChunkOf {
            framing: Framing::Extended,
            ..CHUNK
        };
        assert_eq!(
            hex(extended.none().as_slice()),
            "6e8a278c00010000010203040506070800000000000010000000000000000000"
        );
        assert_eq!(
            hex(&extended.block_status(true, 1, &[(1 << 32, 3)])[16..]),
            "0000000000001000000000000000001800000001000000010000000100000000".to_owned()
                + "0000000000000003"
        );
        assert!(extended.hole(true, 0, 1).as_slice().len() <= MAX_HEADER_BYTES);
    }

    #[test]
    fn w75_error_texts_are_cut_at_4096_bytes() {
        let chunk = CHUNK.error(Errno::Io, &"ä".repeat(4000));
        assert_eq!(chunk.len(), 20 + 6 + 4096);
    }
}
