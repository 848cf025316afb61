//! A record: who wrote it and in which order, what it changes, and a checksum of every block.
//!
//! The journal's ring holds records one behind the other; a log on a store may hold each as an
//! object. The bytes are the same.

use std::ops::Range;

use super::{
    array_at, begin, check_start, check_sum, is_zero, put, put_u64, seal, u32_at, u64_at, Bad,
    BLOCK_BYTES,
};
use crate::change::{Change, What};
use crate::uuid::Uuid;

const WHAT: u8 = b'R';
const FIXED_BYTES: usize = 128;
const RESERVED: Range<usize> = 96..FIXED_BYTES;
const EXTENT_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;

/// Most extents in one record.
pub const MAX_EXTENTS: usize = 256;
/// Most data in one record: 32 MiB, the longest request.
pub const MAX_DATA_BLOCKS: usize = (32 << 20) / BLOCK_BYTES;
/// Blocks of the longest header.
pub const MAX_HEADER_BLOCKS: usize = header_blocks(MAX_EXTENTS, MAX_DATA_BLOCKS);

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordKind(pub u8);

impl RecordKind {
    /// Nothing: it only takes a number, or room.
    pub const NOOP: RecordKind = RecordKind(0);
    /// Changes to the volume, all of them or none.
    pub const WRITE: RecordKind = RecordKind(1);
    /// Kinds from here on belong to others who use the format; the journal has none of them.
    pub const OTHERS: u8 = 16;
}

/// Who wrote a record, and which of his it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// The volume that it changes.
    pub volume: Uuid,
    /// The journal that it was written to, or the owner who wrote it to a log.
    pub writer: Uuid,
    /// Counts the owners of the volume.
    pub epoch: u64,
    /// Counts the records, without a gap, from 1.
    pub seq: u64,
    /// All records up to this one were durable when this one was written.
    pub durable_seq: u64,
    /// The hash of the record before, where somebody chains them; zeros in the journal.
    pub previous: [u8; 16],
}

/// What an extent says about its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExtentKind {
    /// The range has the bytes of the next data blocks.
    Data = 1,
    /// The range reads as zeros.
    Zero = 2,
    /// The range reads as zeros and gives its space back.
    Trim = 3,
    /// No range: bytes for whoever gave the record a kind of his own. The offset is his, too.
    Body = 4,
}

impl ExtentKind {
    fn decode(byte: u8) -> Option<Self> {
        let all = [Self::Data, Self::Zero, Self::Trim, Self::Body];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether data blocks belong to it.
    pub fn has_data(self) -> bool {
        matches!(self, Self::Data | Self::Body)
    }
}

/// A range of the volume, or a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What is said about it.
    pub kind: ExtentKind,
    /// First byte in the volume.
    pub offset: u64,
    /// Bytes, at least one.
    pub len: u64,
}

impl Extent {
    fn data_blocks(&self) -> u64 {
        match self.kind.has_data() {
            true => self.len.div_ceil(BLOCK_BYTES as u64),
            false => 0,
        }
    }

    fn is_sound(&self) -> bool {
        self.len > 0 && self.offset.checked_add(self.len).is_some()
    }
}

/// The extents of a record and the checksums of its data, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    extents: Vec<Extent>,
    checksums: Vec<u32>,
}

const fn header_blocks(extents: usize, data_blocks: usize) -> usize {
    let bytes = FIXED_BYTES + extents * EXTENT_BYTES + data_blocks * CHECKSUM_BYTES;
    bytes.div_ceil(BLOCK_BYTES)
}

/// What a data block is filled up with behind `len` bytes.
pub fn padding(len: usize) -> &'static [u8] {
    &ZEROS[..len.next_multiple_of(BLOCK_BYTES) - len]
}

impl Contents {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the extent in, with the data that belongs to it. `None` if it makes no sense or the
    /// record is full.
    pub fn add(&mut self, extent: Extent, data: &[u8]) -> Option<()> {
        let wanted = if extent.kind.has_data() {
            extent.len
        } else {
            0
        };
        let blocks = self.checksums.len() as u64 + extent.data_blocks();
        let fits = self.extents.len() < MAX_EXTENTS && blocks <= MAX_DATA_BLOCKS as u64;
        if !extent.is_sound() || !fits || data.len() as u64 != wanted {
            return None;
        }
        self.checksums
            .extend(data.chunks(BLOCK_BYTES).map(block_checksum));
        self.extents.push(extent);
        Some(())
    }

    /// Of these changes, in their order. `None` if one makes no sense or they are too many.
    pub fn of(changes: &[Change]) -> Option<Self> {
        let mut contents = Self::new();
        for change in changes {
            let (kind, data) = match &change.what {
                What::Data(data) => (ExtentKind::Data, &**data),
                What::Zero => (ExtentKind::Zero, &[][..]),
                What::Trim => (ExtentKind::Trim, &[][..]),
            };
            let (offset, len) = (change.offset, change.len);
            contents.add(Extent { kind, offset, len }, data)?;
        }
        Some(contents)
    }

    /// Blocks of the header.
    pub fn header_blocks(&self) -> usize {
        header_blocks(self.extents.len(), self.checksums.len())
    }

    /// Blocks behind it.
    pub fn data_blocks(&self) -> usize {
        self.checksums.len()
    }

    /// Bytes of the whole record, a multiple of [`BLOCK_BYTES`].
    pub fn record_bytes(&self) -> u64 {
        ((self.header_blocks() + self.data_blocks()) * BLOCK_BYTES) as u64
    }
}

fn block_checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(block), padding(block.len()))
}

/// All of a record but its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub kind: RecordKind,
    /// Who wrote it, and when.
    pub stamp: Stamp,
    /// What it changes.
    pub contents: Contents,
}

impl Header {
    /// As bytes, in whole blocks. The data follows: that of each extent from a block's start, the
    /// last block filled up with zeros.
    pub fn encode(&self) -> Vec<u8> {
        let Contents { extents, checksums } = &self.contents;
        let blocks = self.contents.header_blocks();
        let mut header = begin(WHAT, blocks * BLOCK_BYTES);
        header[12] = self.kind.0;
        put(&mut header, 14, &(blocks as u16).to_le_bytes());
        put(&mut header, 16, &self.stamp.volume.0);
        put(&mut header, 32, &self.stamp.writer.0);
        put_u64(&mut header, 48, self.stamp.epoch);
        put_u64(&mut header, 56, self.stamp.seq);
        put_u64(&mut header, 64, self.stamp.durable_seq);
        put(&mut header, 72, &self.stamp.previous);
        put(&mut header, 88, &(extents.len() as u32).to_le_bytes());
        put(&mut header, 92, &(checksums.len() as u32).to_le_bytes());
        let mut at = FIXED_BYTES;
        for extent in extents {
            put_u64(&mut header, at, extent.offset);
            put_u64(&mut header, at + 8, extent.len);
            header[at + 16] = extent.kind as u8;
            at += EXTENT_BYTES;
        }
        for checksum in checksums {
            put(&mut header, at, &checksum.to_le_bytes());
            at += CHECKSUM_BYTES;
        }
        seal(&mut header);
        header
    }

    /// Looks at the first block of a record: how many blocks its header has. Nothing is proved
    /// by that but that [`decode`](Self::decode) is worth a try.
    ///
    /// # Errors
    /// If no record starts here.
    pub fn blocks(first: &[u8]) -> Result<usize, Bad> {
        if first.len() < BLOCK_BYTES {
            return Err(Bad::Alien);
        }
        check_start(WHAT, first)?;
        let blocks = usize::from(u16::from_le_bytes(array_at(first, 14)));
        match (1..=MAX_HEADER_BLOCKS).contains(&blocks) {
            true => Ok(blocks),
            false => Err(Bad::Alien),
        }
    }

    /// Reads a header from the start of `bytes`.
    ///
    /// # Errors
    /// If it is not what [`encode`](Self::encode) writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let blocks = Self::blocks(bytes)?;
        let header = bytes.get(..blocks * BLOCK_BYTES).ok_or(Bad::Checksum)?;
        check_sum(header)?;
        let (extents, checksums) = (u32_at(header, 88) as usize, u32_at(header, 92) as usize);
        let sized = extents <= MAX_EXTENTS && checksums <= MAX_DATA_BLOCKS;
        let plain = header[13] == 0 && is_zero(&header[RESERVED]);
        if !sized || !plain || header_blocks(extents, checksums) != blocks {
            return Err(Bad::Senseless);
        }
        let (table, rest) = header[FIXED_BYTES..].split_at(extents * EXTENT_BYTES);
        let (sums, rest) = rest.split_at(checksums * CHECKSUM_BYTES);
        let contents = Contents {
            extents: decode_extents(table).ok_or(Bad::Senseless)?,
            checksums: sums.chunks_exact(4).map(|sum| u32_at(sum, 0)).collect(),
        };
        let data_blocks: u64 = contents.extents.iter().map(Extent::data_blocks).sum();
        if data_blocks != checksums as u64 || !is_zero(rest) {
            return Err(Bad::Senseless);
        }
        Ok(Self {
            kind: RecordKind(header[12]),
            stamp: Stamp {
                volume: Uuid(array_at(header, 16)),
                writer: Uuid(array_at(header, 32)),
                epoch: u64_at(header, 48),
                seq: u64_at(header, 56),
                durable_seq: u64_at(header, 64),
                previous: array_at(header, 72),
            },
            contents,
        })
    }

    /// Holds all data blocks of the record up against their checksums.
    ///
    /// # Errors
    /// [`Bad::Checksum`] if they are not what was written.
    pub fn check_data(&self, data: &[u8]) -> Result<(), Bad> {
        let sums = &self.contents.checksums;
        let whole = data.len() == sums.len() * BLOCK_BYTES;
        let blocks = data.chunks_exact(BLOCK_BYTES);
        let sound = blocks
            .zip(sums)
            .all(|(block, sum)| block_checksum(block) == *sum);
        match whole && sound {
            true => Ok(()),
            false => Err(Bad::Checksum),
        }
    }

    /// Each extent, and where its bytes are in the data of the record.
    pub fn extents(&self) -> impl Iterator<Item = (Extent, Range<usize>)> + '_ {
        let mut block = 0;
        self.contents.extents.iter().map(move |extent| {
            let start = block * BLOCK_BYTES;
            let blocks = extent.data_blocks() as usize;
            block += blocks;
            let len = if blocks == 0 { 0 } else { extent.len as usize };
            (*extent, start..start + len)
        })
    }
}

fn decode_extents(table: &[u8]) -> Option<Vec<Extent>> {
    let entries = table.chunks_exact(EXTENT_BYTES);
    let extents = entries.map(|entry| {
        let extent = Extent {
            kind: ExtentKind::decode(entry[16])?,
            offset: u64_at(entry, 0),
            len: u64_at(entry, 8),
        };
        (extent.is_sound() && is_zero(&entry[17..])).then_some(extent)
    });
    extents.collect()
}

#[cfg(test)]
mod tests;
