//! The frame around every metadata object: whose it is, which one, who wrote it when, and a
//! checksum over all of it. Pure; `docs/volume-format.md` shows the bytes.
//!
//! All layouts over objects use it.

use super::uuid::Uuid;
use crate::error::{Error, Kind, Result};

/// First bytes of every metadata object.
pub(in crate::layout) const MAGIC: &[u8; 6] = b"nbd-rs";
/// The version of the format that this program writes, and the newest that it reads.
pub(super) const VERSION: u8 = 1;
/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 56;
/// Bytes behind it: the checksum.
const CHECKSUM_BYTES: usize = 4;
/// Bytes of a frame besides its payload.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + CHECKSUM_BYTES;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum What {
    Volume = b'V',
    Owner = b'O',
    Index = b'I',
    Page = b'P',
    Journal = b'J',
    Identity = b'D',
    Changes = b'C',
    Pack = b'B',
    Trailer = b'T',
    Map = b'M',
    Root = b'K',
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            What::Volume => "volume record",
            What::Owner => "owner record",
            What::Index => "index of state pages",
            What::Page => "state page",
            What::Journal => "journal record",
            What::Identity => "record of a backend's identity",
            What::Changes => "record of changes",
            What::Pack => "pack of units",
            What::Trailer => "trailer of a shard",
            What::Map => "map page",
            What::Root => "checkpoint",
        }
    }
}

/// Who wrote an object, and which of his writes it was. A greater stamp is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Stamp {
    /// Counts the owners of the volume.
    pub(super) epoch: u64,
    /// Counts this owner's writes.
    pub(super) sequence: u64,
}

/// A metadata object, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) what: What,
    pub(super) uuid: Uuid,
    /// Which of several: the number of a page, else 0.
    pub(super) number: u64,
    pub(super) stamp: Stamp,
    pub(super) flags: u32,
    pub(super) payload: &'a [u8],
}

pub(in crate::layout) fn corrupt(text: impl AsRef<str>) -> Error {
    Error::new(Kind::Corrupt, text)
}

fn newer(what: What, version: u8, doubt: &str) -> Error {
    let name = what.name();
    let text = format!("the {name} is of format version {version} and this program knows {VERSION}: use a newer nbd-rs{doubt}");
    Error::new(Kind::Unsupported, text)
}

impl<'a> Frame<'a> {
    /// As bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.push(self.what as u8);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.uuid.0);
        for word in [self.number, self.stamp.epoch, self.stamp.sequence] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.payload);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads an object that should be a `what`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a newer version; [`Kind::Corrupt`] for anything that is not what
    /// [`encode`](Self::encode) writes.
    pub(super) fn decode(what: What, bytes: &'a [u8]) -> Result<Self> {
        let name = what.name();
        if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES || !bytes.starts_with(MAGIC) {
            return Err(corrupt(format!("this is no {name}")));
        }
        let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
        let sound = u32_at(checksum, 0) == crc32c::crc32c(covered);
        // A newer version may have its checksum elsewhere; it is only said, never decided on.
        if bytes[7] > VERSION {
            let doubt = if sound { "" } else { " (or it is damaged)" };
            return Err(newer(what, bytes[7], doubt));
        }
        if !sound {
            return Err(corrupt(format!("the {name} is damaged (checksum)")));
        }
        if bytes[6] != what as u8 || bytes[7] != VERSION {
            return Err(corrupt(format!("this is no {name}")));
        }
        let payload = &covered[HEADER_BYTES..];
        if u32_at(bytes, 52) as usize != payload.len() {
            return Err(corrupt(format!("the {name} has a wrong length")));
        }
        Ok(Self {
            what,
            uuid: Uuid(array_at(bytes, 8)),
            number: u64_at(bytes, 24),
            stamp: Stamp {
                epoch: u64_at(bytes, 32),
                sequence: u64_at(bytes, 40),
            },
            flags: u32_at(bytes, 48),
            payload,
        })
    }

    /// How many bytes the frame has that should begin here, by its header alone. Nothing is proved by
    /// that but that so many are worth to be fetched.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), if no `what` begins here.
    pub(super) fn bytes(what: What, header: &[u8]) -> Result<u64> {
        let name = what.name();
        if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) || header[6] != what as u8 {
            return Err(corrupt(format!("this is no {name}")));
        }
        match header[7] {
            VERSION => Ok(u64::from(u32_at(header, 52)) + OVERHEAD_BYTES as u64),
            0 => Err(corrupt(format!("this is no {name}"))),
            version => Err(newer(what, version, "")),
        }
    }

    /// The same, of this volume and with this number.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is another's.
    pub(super) fn decode_of(what: What, uuid: Uuid, number: u64, bytes: &'a [u8]) -> Result<Self> {
        let frame = Self::decode(what, bytes)?;
        if frame.uuid != uuid || frame.number != number {
            return Err(corrupt(format!(
                "a {} of another volume or place ({}, {})",
                what.name(),
                frame.uuid,
                frame.number
            )));
        }
        Ok(frame)
    }
}

pub(in crate::layout) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(in crate::layout) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(in crate::layout) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Frame<'_> {
        Frame {
            what: What::Page,
            uuid: Uuid([7; 16]),
            number: 3,
            stamp: Stamp {
                epoch: 1,
                sequence: 2,
            },
            flags: 1,
            payload,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            payload in prop::collection::vec(any::<u8>(), 0..300),
            number in any::<u64>(), epoch in any::<u64>(), sequence in any::<u64>(), flags in any::<u32>(),
        ) {
            let mut frame = frame(&payload);
            (frame.number, frame.flags) = (number, flags);
            frame.stamp = Stamp { epoch, sequence };
            let bytes = frame.encode();
            prop_assert_eq!(Frame::decode(What::Page, &bytes).unwrap(), frame);
        }

        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Frame::decode(What::Page, &bytes).is_err());
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let bytes = frame(b"payload").encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(What::Page, &damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Frame::decode(What::Page, &bytes[..len]).is_err(), "{len}");
        }
        assert!(Frame::decode(What::Page, &[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn c26_another_kind_volume_place_or_version_is_refused() {
        let bytes = frame(b"").encode();
        assert!(Frame::decode(What::Owner, &bytes).is_err());
        assert!(Frame::decode_of(What::Page, Uuid([7; 16]), 3, &bytes).is_ok());
        assert!(Frame::decode_of(What::Page, Uuid([8; 16]), 3, &bytes).is_err());
        assert!(Frame::decode_of(What::Page, Uuid([7; 16]), 4, &bytes).is_err());
        let mut newer = bytes;
        newer[7] = VERSION + 1;
        let error = Frame::decode(What::Page, &newer).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("use a newer nbd-rs"), "{error}");
    }
}
