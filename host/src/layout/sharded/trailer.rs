//! What stands behind the data of a shard that is put whole: a CRC32C of each unit, and a footer
//! that says whose shard it is. Pure.

use super::frame::{array_at, corrupt, u32_at, u64_at, Stamp};
use super::uuid::Uuid;
use crate::error::Result;
use crate::layout::units;

pub(super) use crate::layout::units::{checksum, UNIT_BYTES};

const MAGIC: &[u8; 8] = b"nbd-rs/S";
const VERSION: u32 = 1;
const FOOTER_BYTES: usize = 64;

/// Checksums and footer of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) uuid: Uuid,
    pub(super) shard: u64,
    /// Who put it, and which of his puts it was: no two puts have the same, so no two objects
    /// have the same bytes, and a store that makes ETags from contents never repeats one.
    pub(super) stamp: Stamp,
    /// One for each unit.
    pub(super) checksums: Vec<u32>,
}

/// Bytes of the trailer of a shard.
pub(super) fn trailer_bytes(shard_bytes: u64) -> u64 {
    shard_bytes / UNIT_BYTES * 4 + FOOTER_BYTES as u64
}

/// Bytes of the object of a shard.
pub(super) fn object_bytes(shard_bytes: u64) -> u64 {
    shard_bytes + trailer_bytes(shard_bytes)
}

/// The checksums of all units of pieces that stand one behind the other.
pub(super) fn checksums<'d>(pieces: impl IntoIterator<Item = &'d [u8]>) -> Vec<u32> {
    units::checksums(pieces, |_| 0)
}

impl Trailer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.checksums.len() * 4 + FOOTER_BYTES);
        for checksum in &self.checksums {
            bytes.extend_from_slice(&checksum.to_le_bytes());
        }
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.checksums.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.uuid.0);
        for word in [self.shard, self.stamp.epoch, self.stamp.sequence] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 4]);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the trailer of one shard of a volume.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is not exactly that.
    pub(super) fn decode(uuid: Uuid, shard: u64, shard_bytes: u64, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: &str| corrupt(format!("shard {shard}: {what}"));
        let units = (shard_bytes / UNIT_BYTES) as usize;
        if bytes.len() != units * 4 + FOOTER_BYTES {
            return Err(damaged("its checksums are cut short"));
        }
        let (covered, checksum) = bytes.split_at(bytes.len() - 4);
        if u32_at(checksum, 0) != crc32c::crc32c(covered) {
            return Err(damaged("its checksums are damaged"));
        }
        let (table, footer) = bytes.split_at(units * 4);
        if footer[..8] != *MAGIC || u32_at(footer, 8) != VERSION || u32_at(footer, 56) != 0 {
            return Err(damaged("it is of another format"));
        }
        let trailer = Self {
            uuid: Uuid(array_at(footer, 16)),
            shard: u64_at(footer, 32),
            stamp: Stamp {
                epoch: u64_at(footer, 40),
                sequence: u64_at(footer, 48),
            },
            checksums: table.chunks_exact(4).map(|word| u32_at(word, 0)).collect(),
        };
        if u32_at(footer, 12) as usize != units || trailer.uuid != uuid || trailer.shard != shard {
            return Err(damaged("another shard lies in its place"));
        }
        Ok(trailer)
    }

    /// The units of a whole shard that are not as they were put.
    pub(super) fn damaged(&self, data: &[u8]) -> Vec<u64> {
        let units = data.chunks(UNIT_BYTES as usize).zip(&self.checksums);
        let wrong = (0..)
            .zip(units)
            .filter(|(_, (unit, sum))| checksum(unit) != **sum);
        wrong.map(|(at, _)| at).collect()
    }

    /// The first unit of `units`, whole units from number `first` on, that is not as it was put.
    pub(super) fn first_damaged<'d>(
        &self,
        first: u64,
        units: impl IntoIterator<Item = &'d [u8]>,
    ) -> Option<u64> {
        let wrong = |at: u64, unit: &[u8]| self.checksums.get(at as usize) != Some(&checksum(unit));
        let mut numbered = (first..).zip(units);
        numbered
            .find(|(at, unit)| wrong(*at, unit))
            .map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARD_BYTES: u64 = 64 << 10;

    fn trailer(checksums: Vec<u32>) -> Trailer {
        Trailer {
            uuid: Uuid([9; 16]),
            shard: 77,
            stamp: Stamp {
                epoch: 3,
                sequence: 5,
            },
            checksums,
        }
    }

    proptest! {
        #[test]
        fn a_trailer_is_read_as_it_was_written(checksums in prop::collection::vec(any::<u32>(), 16)) {
            let trailer = trailer(checksums);
            let bytes = trailer.encode();
            prop_assert_eq!(bytes.len() as u64, trailer_bytes(SHARD_BYTES));
            prop_assert_eq!(Trailer::decode(Uuid([9; 16]), 77, SHARD_BYTES, &bytes).unwrap(), trailer);
        }
    }

    #[test]
    fn c25_every_changed_bit_of_a_trailer_is_noticed() {
        let bytes = trailer(vec![1; 16]).encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(Uuid([9; 16]), 77, SHARD_BYTES, &damaged).is_err());
        }
        for (uuid, shard, len) in [(8, 77, bytes.len()), (9, 76, bytes.len()), (9, 77, 100)] {
            let read = Trailer::decode(Uuid([uuid; 16]), shard, SHARD_BYTES, &bytes[..len]);
            assert!(read.is_err());
        }
    }

    #[test]
    fn c25_the_damaged_unit_is_named() {
        let mut data: Vec<u8> = (0..SHARD_BYTES).map(|at| (at % 251) as u8).collect();
        let units = |data: &[u8]| -> Vec<Vec<u8>> {
            data.chunks(UNIT_BYTES as usize)
                .map(<[u8]>::to_vec)
                .collect()
        };
        let checksums = units(&data).iter().map(|unit| checksum(unit)).collect();
        let trailer = trailer(checksums);
        let check = |data: &[u8], first: u64| {
            trailer.first_damaged(first, data.chunks(UNIT_BYTES as usize))
        };
        assert_eq!(check(&data, 0), None);
        assert_eq!(check(&data[8192..], 2), None);
        data[4096 * 5 + 17] ^= 1;
        assert_eq!(check(&data, 0), Some(5));
        assert_eq!(check(&data[4096 * 5..], 5), Some(5));
        assert_eq!(check(&data[4096 * 6..], 6), None);
    }
}
