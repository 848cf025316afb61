//! What stands before the ring in a journal's file: two superblocks, written in turn, and a mark.

use super::{
    array_at, begin, check_start, check_sum, is_zero, put, put_u64, seal, u64_at, Bad, BLOCK_BYTES,
};
use crate::uuid::Uuid;

/// Where the two superblocks stand, each twice: a sector that can't be read any more is no harm.
/// A write of one that goes wrong does not reach the other.
pub const SUPERBLOCKS_AT: [[u64; 2]; 2] = [[0, 32 << 10], [64 << 10, 96 << 10]];
/// Where the mark stands.
pub const MARK_AT: u64 = 128 << 10;
/// Where the ring begins.
pub const RING_AT: u64 = 192 << 10;
/// Bytes of a superblock and of a mark: what every disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// The smallest ring, in bytes.
pub const MIN_RING_BYTES: u64 = 8 * BLOCK_BYTES as u64;
/// The largest ring, in bytes.
pub const MAX_RING_BYTES: u64 = 1 << 44;

const SUPERBLOCK: u8 = b'J';
const MARK: u8 = b'M';
const OPEN: u8 = 1;

/// Which file it is, whatever it is called: a copy has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileIdentity {
    /// The number of its inode.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970; 0 if the file system does not know.
    pub born_ns: u64,
}

/// What is known of a journal without reading its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Superblock {
    /// Counts the superblocks of the file: the greater one counts.
    pub counter: u64,
    /// The volume whose writes wait here.
    pub volume: Uuid,
    /// This journal: chosen at random when it was made.
    pub journal: Uuid,
    /// The machine that it was written on.
    pub host: Uuid,
    /// The run of its kernel in which it was written: what is in the page cache came from then.
    pub boot: Uuid,
    /// The file that this was written to.
    pub identity: FileIdentity,
    /// Which file of the journal it is; a file whose disk failed is followed by another.
    pub generation: u64,
    /// The first record of this file; those before it are in the file before.
    pub first_seq: u64,
    /// The owner who has the journal, or had it last.
    pub epoch: u64,
    /// Records from this one on are of that epoch, those before it of earlier ones.
    pub epoch_seq: u64,
    /// The last record that the store has.
    pub shipped_seq: u64,
    /// Where the record behind it starts, in bytes since the ring was made.
    pub head: u64,
    /// All records up to this one were durable when this was written.
    pub durable_seq: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Somebody has it, or had it and died.
    pub open: bool,
}

impl Superblock {
    /// The first record that a scan has to find, at [`head`](Self::head).
    pub fn next_seq(&self) -> u64 {
        self.first_seq.max(self.shipped_seq + 1)
    }

    /// As the bytes of a sector.
    pub fn encode(&self) -> Vec<u8> {
        let mut sector = begin(SUPERBLOCK, SECTOR_BYTES);
        sector[12] = if self.open { OPEN } else { 0 };
        let uuids = [self.volume, self.journal, self.host, self.boot];
        for (index, uuid) in uuids.iter().enumerate() {
            put(&mut sector, 16 + 16 * index, &uuid.0);
        }
        for (index, number) in self.numbers().into_iter().enumerate() {
            put_u64(&mut sector, NUMBERS_AT + 8 * index, number);
        }
        seal(&mut sector);
        sector
    }

    fn numbers(&self) -> [u64; NUMBERS] {
        [
            self.counter,
            self.identity.inode,
            self.identity.born_ns,
            self.generation,
            self.first_seq,
            self.epoch,
            self.epoch_seq,
            self.shipped_seq,
            self.head,
            self.durable_seq,
            self.ring_bytes,
        ]
    }

    /// Reads what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn decode(sector: &[u8]) -> Result<Self, Bad> {
        let sector = start(SUPERBLOCK, sector)?;
        let number = |index: usize| u64_at(sector, NUMBERS_AT + 8 * index);
        let superblock = Self {
            volume: Uuid(array_at(sector, 16)),
            journal: Uuid(array_at(sector, 32)),
            host: Uuid(array_at(sector, 48)),
            boot: Uuid(array_at(sector, 64)),
            counter: number(0),
            identity: FileIdentity {
                inode: number(1),
                born_ns: number(2),
            },
            generation: number(3),
            first_seq: number(4),
            epoch: number(5),
            epoch_seq: number(6),
            shipped_seq: number(7),
            head: number(8),
            durable_seq: number(9),
            ring_bytes: number(10),
            open: sector[12] == OPEN,
        };
        let plain = sector[12] <= OPEN && is_zero(&sector[13..16]) && is_zero(&sector[END..]);
        match plain && superblock.is_sound() {
            true => Ok(superblock),
            false => Err(Bad::Senseless),
        }
    }

    fn is_sound(&self) -> bool {
        let block = BLOCK_BYTES as u64;
        let sized = (MIN_RING_BYTES..=MAX_RING_BYTES).contains(&self.ring_bytes);
        let aligned = self.ring_bytes.is_multiple_of(block) && self.head.is_multiple_of(block);
        // Far from where the sum of two could wrap.
        let counted = [self.head, self.shipped_seq, self.first_seq, self.counter];
        sized && aligned && counted.iter().all(|&number| number < 1 << 62)
    }
}

const NUMBERS: usize = 11;
const NUMBERS_AT: usize = 80;
const END: usize = NUMBERS_AT + 8 * NUMBERS;

/// Says, without being waited for, how far the last sync reached.
///
/// A sync is told of in the records that follow it. When none follows, this is what tells a
/// record that was lost from one that was never durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The journal that it belongs to.
    pub journal: Uuid,
    /// All records up to this one are durable.
    pub durable_seq: u64,
}

impl Mark {
    /// As the bytes of a sector.
    pub fn encode(&self) -> Vec<u8> {
        let mut sector = begin(MARK, SECTOR_BYTES);
        put(&mut sector, 16, &self.journal.0);
        put_u64(&mut sector, 32, self.durable_seq);
        seal(&mut sector);
        sector
    }

    /// Reads what [`encode`](Self::encode) writes.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn decode(sector: &[u8]) -> Result<Self, Bad> {
        let sector = start(MARK, sector)?;
        if !is_zero(&sector[12..16]) || !is_zero(&sector[40..]) {
            return Err(Bad::Senseless);
        }
        Ok(Self {
            journal: Uuid(array_at(sector, 16)),
            durable_seq: u64_at(sector, 32),
        })
    }
}

fn start(what: u8, sector: &[u8]) -> Result<&[u8], Bad> {
    let sector = sector.get(..SECTOR_BYTES).ok_or(Bad::Alien)?;
    check_start(what, sector)?;
    check_sum(sector)?;
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            counter: 1,
            volume: Uuid([2; 16]),
            journal: Uuid([3; 16]),
            host: Uuid([4; 16]),
            boot: Uuid([15; 16]),
            identity: FileIdentity {
                inode: 5,
                born_ns: 6,
            },
            generation: 7,
            first_seq: 8,
            epoch: 9,
            epoch_seq: 10,
            shipped_seq: 11,
            head: 12 << 12,
            durable_seq: 13,
            ring_bytes: 14 << 12,
            open: true,
        }
    }

    #[test]
    fn both_are_read_as_they_were_written() {
        let superblock = superblock();
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        let mark = Mark {
            journal: Uuid([1; 16]),
            durable_seq: 2,
        };
        assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
        assert_eq!(Mark::decode(&superblock.encode()), Err(Bad::Alien));
        assert_eq!(Superblock::decode(&mark.encode()), Err(Bad::Alien));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let sector = superblock().encode();
        for bit in 0..sector.len() * 8 {
            let mut damaged = sector.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..sector.len() {
            assert!(Superblock::decode(&sector[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn numbers_that_arithmetic_could_trip_over_are_refused() {
        let tests: [fn(&mut Superblock); 6] = [
            |superblock| superblock.ring_bytes = 0,
            |superblock| superblock.ring_bytes = !4095,
            |superblock| superblock.ring_bytes += 1,
            |superblock| superblock.head = !4095,
            |superblock| superblock.shipped_seq = u64::MAX,
            |superblock| superblock.head += 1,
        ];
        for test in tests {
            let mut wrong = superblock();
            test(&mut wrong);
            assert_eq!(Superblock::decode(&wrong.encode()), Err(Bad::Senseless));
        }
    }
}
