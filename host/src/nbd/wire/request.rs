//! A request's header: 28 bytes compact, 32 extended (proto.md, "Request message").

use super::constants::{cmd, cmd_flag, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use super::{Framing, Reader};

/// Bytes of a compact header.
pub const COMPACT_BYTES: usize = 28;
/// Bytes of an extended header.
pub const EXTENDED_BYTES: usize = 32;

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// `NBD_CMD_*`; anything may come.
    pub command: u16,
    /// The client's mark on the request, opaque.
    pub cookie: u64,
    /// First byte of the export.
    pub offset: u64,
    /// How many bytes of the export, or of payload.
    pub length: u64,
}

/// The magic number was another: the stream can't be followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadMagic(pub u32);

impl Request {
    /// Takes a header from the front of `bytes`; `Ok(None)` when it is not all there.
    ///
    /// # Errors
    /// [`BadMagic`], as soon as it can be seen.
    pub fn decode(bytes: &[u8], framing: Framing) -> Result<Option<Self>, BadMagic> {
        let mut reader = Reader(bytes);
        let extended = framing == Framing::Extended;
        let expected = if extended {
            EXTENDED_REQUEST_MAGIC
        } else {
            REQUEST_MAGIC
        };
        match reader.u32() {
            Some(magic) if magic != expected => Err(BadMagic(magic)),
            _ => Ok(Self::fields(reader, extended)),
        }
    }

    fn fields(mut reader: Reader<'_>, extended: bool) -> Option<Self> {
        Some(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: match extended {
                true => reader.u64()?,
                false => u64::from(reader.u32()?),
            },
        })
    }

    /// The header's bytes. A length beyond 32 bits is cut in a compact one.
    pub fn encode(&self, framing: Framing) -> Vec<u8> {
        let extended = framing == Framing::Extended;
        let magic = if extended {
            EXTENDED_REQUEST_MAGIC
        } else {
            REQUEST_MAGIC
        };
        let mut bytes = Vec::with_capacity(framing.request_header_bytes());
        bytes.extend(magic.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        match extended {
            true => bytes.extend(self.length.to_be_bytes()),
            false => bytes.extend((self.length as u32).to_be_bytes()),
        }
        bytes
    }

    /// Whether all of `flags` are set.
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Bytes of payload behind the header. A write has one even where an extended header should
    /// say so with `NBD_CMD_FLAG_PAYLOAD_LEN` and does not, as qemu's client (8.2 to 10) does not.
    pub fn payload_bytes(&self, framing: Framing) -> u64 {
        let says_so = framing == Framing::Extended && self.has(cmd_flag::PAYLOAD_LEN);
        if self.command == cmd::WRITE || says_so {
            self.length
        } else {
            0
        }
    }

    /// Whether the request, once acknowledged, has changed the export.
    pub fn is_change(&self) -> bool {
        matches!(self.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES)
    }
}

/// The payload of a BLOCK_STATUS request: effect length and the contexts asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatusPayload {
    /// How much of the export.
    pub effect_length: u64,
    /// Context ids.
    pub contexts: Vec<u32>,
}

impl BlockStatusPayload {
    /// Takes the payload apart; `None` if it is not 8 + 4n bytes long.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let effect_length = reader.u64()?;
        if !reader.0.len().is_multiple_of(4) {
            return None;
        }
        let ids = std::iter::from_fn(|| reader.u32());
        Some(Self {
            effect_length,
            contexts: ids.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framing() -> impl Strategy<Value = Framing> {
        prop_oneof![
            Just(Framing::Simple),
            Just(Framing::Structured),
            Just(Framing::Extended)
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(
            framing in framing(), flags: u16, command: u16, cookie: u64, offset: u64, length: u64,
        ) {
            let length = if framing == Framing::Extended { length } else { length >> 32 };
            let request = Request { flags, command, cookie, offset, length };
            let bytes = request.encode(framing);
            prop_assert_eq!(bytes.len(), framing.request_header_bytes());
            prop_assert_eq!(Request::decode(&bytes, framing), Ok(Some(request)));
            prop_assert_eq!(Request::decode(&bytes[..bytes.len() - 1], framing), Ok(None));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>, framing in framing()) {
            if let Ok(Some(request)) = Request::decode(&bytes, framing) {
                prop_assert_eq!(&request.encode(framing)[..], &bytes[..framing.request_header_bytes()]);
            }
            let _ = BlockStatusPayload::decode(&bytes);
        }
    }

    #[test]
    fn w38_other_magics_are_told_at_once() {
        for magic in [0x1256_0953u32, EXTENDED_REQUEST_MAGIC, 0] {
            let decoded = Request::decode(&magic.to_be_bytes(), Framing::Simple);
            assert_eq!(decoded, Err(BadMagic(magic)));
        }
        assert_eq!(Request::decode(&[0x25, 0x60], Framing::Simple), Ok(None));
    }

    #[test]
    fn w77_block_status_payloads_are_8_and_4n_bytes() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
        let payload = BlockStatusPayload::decode(&bytes).unwrap();
        assert_eq!((payload.effect_length, payload.contexts), (9, vec![1]));
        for len in [0, 7, 9, 11] {
            assert_eq!(BlockStatusPayload::decode(&bytes[..len]), None);
        }
    }
}
