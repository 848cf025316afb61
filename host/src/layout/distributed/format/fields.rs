//! Fields of an object's payload, written and read in order.

use nbd_rs_commit_log::{Epoch, Position};

use super::{Hash, Named, Version};
use crate::error::Result;
use crate::layout::frame::{array_at, corrupt, Frame, Stamp, What, OVERHEAD_BYTES};
use crate::layout::uuid::Uuid;

/// Bytes of a version.
pub(super) const VERSION_BYTES: usize = 24;
/// Bytes of an object besides the fields behind its version.
pub(super) const SEALED_BYTES: usize = OVERHEAD_BYTES + 8;

/// The payload of an object that is being made.
#[derive(Debug)]
pub(super) struct Writer {
    version: Version,
    bytes: Vec<u8>,
}

impl Writer {
    /// Of the object with this version. The frame has room for all of it but the owner's random
    /// part, which comes first in the payload.
    pub(super) fn new(version: Version) -> Self {
        let bytes = version.epoch.owner.to_le_bytes().to_vec();
        Self { version, bytes }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, number: u8) {
        self.bytes.push(number);
    }

    pub(super) fn u16(&mut self, number: u16) {
        self.bytes(&number.to_le_bytes());
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// How many of something follow: fewer than 2^32.
    pub(super) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn version(&mut self, version: Version) {
        self.u64(version.epoch.counter);
        self.u64(version.epoch.owner);
        self.u64(version.seq);
    }

    pub(super) fn named(&mut self, named: Named) {
        self.version(named.version);
        self.bytes(&named.hash.0);
    }

    pub(super) fn sums(&mut self, sums: &[u32]) {
        self.bytes.reserve(sums.len() * 4);
        sums.iter().for_each(|&sum| self.u32(sum));
    }

    /// The whole object.
    pub(super) fn seal(self, what: What, volume: Uuid, number: u64) -> Vec<u8> {
        let frame = Frame {
            what,
            uuid: volume,
            number,
            stamp: Stamp {
                epoch: self.version.epoch.counter,
                sequence: self.version.seq,
            },
            flags: 0,
            payload: &self.bytes,
        };
        frame.encode()
    }
}

/// What is left to read of a payload. All errors say that the object makes no sense.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    what: What,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Opens an object of this volume and with this number; its version, and what is behind it.
    pub(super) fn open(
        what: What,
        volume: Uuid,
        number: u64,
        bytes: &'a [u8],
    ) -> Result<(Version, Self)> {
        Self::read(Frame::decode_of(what, volume, number, bytes)?)
    }

    /// Opens an object of which only the kind is known; its volume and number, and what is behind.
    pub(super) fn open_any(what: What, bytes: &'a [u8]) -> Result<(Uuid, u64, Version, Self)> {
        let frame = Frame::decode(what, bytes)?;
        let (volume, number) = (frame.uuid, frame.number);
        let (version, fields) = Self::read(frame)?;
        Ok((volume, number, version, fields))
    }

    fn read(frame: Frame<'a>) -> Result<(Version, Self)> {
        let (what, rest) = (frame.what, frame.payload);
        let mut fields = Self { what, rest };
        let owner = fields.u64()?;
        let version = Version {
            epoch: Epoch {
                counter: frame.stamp.epoch,
                owner,
            },
            seq: frame.stamp.sequence,
        };
        fields.require(frame.flags == 0)?;
        Ok((version, fields))
    }

    pub(super) fn require(&self, holds: bool) -> Result<()> {
        match holds {
            true => Ok(()),
            false => Err(corrupt(format!("the {} makes no sense", self.what.name()))),
        }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        self.require(len <= self.rest.len())?;
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(array_at(self.bytes(N)?, 0))
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid> {
        Ok(Uuid(self.array()?))
    }

    pub(super) fn hash(&mut self) -> Result<Hash> {
        Ok(Hash(self.array()?))
    }

    /// How many of something follow that takes `each` bytes at least: no more than there is room for.
    pub(super) fn count(&mut self, each: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        self.require(count <= self.rest.len() / each)?;
        Ok(count)
    }

    pub(super) fn version(&mut self) -> Result<Version> {
        let Position { epoch, seq } = self.position()?;
        Ok(Version { epoch, seq })
    }

    pub(super) fn position(&mut self) -> Result<Position> {
        let (counter, owner) = (self.u64()?, self.u64()?);
        let epoch = Epoch { counter, owner };
        let seq = self.u64()?;
        Ok(Position { epoch, seq })
    }

    pub(super) fn named(&mut self) -> Result<Named> {
        let (version, hash) = (self.version()?, self.hash()?);
        Ok(Named { version, hash })
    }

    pub(super) fn sums(&mut self, count: usize) -> Result<Vec<u32>> {
        self.require(count <= self.rest.len() / 4)?;
        let words = self.bytes(count * 4)?.chunks_exact(4);
        Ok(words
            .map(|word| u32::from_le_bytes(array_at(word, 0)))
            .collect())
    }

    /// Whether something is left.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<()> {
        self.require(self.is_empty())
    }
}
