//! Names and bytes of the objects of a volume, all but those of its log. Pure.
//! `docs/distributed-format.md` shows them.
//!
//! ```text
//! names                                what an object is called; every name is used once, ever
//! identity                             what the volume is, and which backend this is
//! changes (in the log) -> pack         what a record says, and units that are no record's any more
//! root -> map -> image                 a checkpoint, the versions of the shards, one of these
//! ```
//!
//! A decoder takes no length for granted: it is held up against the bytes that are there before
//! anything is allocated.

pub mod changes;
mod fields;
pub mod identity;
pub mod image;
pub mod map;
pub mod names;
pub mod root;
#[cfg(test)]
pub(crate) mod testing;

use nbd_rs_commit_log::Epoch;
use sha2::{Digest, Sha256};

use crate::layout::units;
use crate::layout::uuid::Uuid;

/// Bytes of a unit: what one checksum covers, and the least that is written.
pub const UNIT_BYTES: u64 = units::UNIT_BYTES;

/// The name of an object that is put once: who made it, and which of his it is.
///
/// An owner counts all that he makes with one counter, so no two objects of any kind have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// The owner.
    pub epoch: Epoch,
    /// Which of his objects it is.
    pub seq: u64,
}

/// The first half of a SHA-256: says of an object's bytes that they are those that were meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hash(pub [u8; 16]);

impl Hash {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let whole: [u8; 32] = Sha256::digest(bytes).into();
        let mut half = [0; 16];
        half.copy_from_slice(&whole[..16]);
        Self(half)
    }
}

/// An object by its name and its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Named {
    /// Its name.
    pub version: Version,
    /// Of all its bytes; of an image that of its trailer.
    pub hash: Hash,
}

/// Checksums of the units of one volume.
///
/// Each covers the volume's identity and the unit's address as well as its bytes. It is made when a
/// unit is written, and goes with the unit from the log to packs and images: whoever mixes units up
/// on the way is found out by whoever reads them.
#[derive(Debug, Clone, Copy)]
pub struct UnitSums {
    volume: u32,
}

impl UnitSums {
    /// Of this volume.
    #[must_use]
    pub fn of(volume: Uuid) -> Self {
        let volume = crc32c::crc32c(&volume.0);
        Self { volume }
    }

    fn seed(self, unit: u64) -> u32 {
        crc32c::crc32c_append(self.volume, &unit.to_le_bytes())
    }

    /// Of the unit with this number in the volume.
    #[must_use]
    pub fn sum(self, unit: u64, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed(unit), bytes)
    }

    /// Of the whole units in `pieces`, from number `first` on.
    pub fn sums<'d>(self, first: u64, pieces: impl IntoIterator<Item = &'d [u8]>) -> Vec<u32> {
        units::checksums(pieces, |at| self.seed(first.wrapping_add(at as u64)))
    }

    /// The number of the first unit that is not as its checksum says, of the whole units in `data`
    /// from number `first` on. One without a checksum is not.
    #[must_use]
    pub fn first_damaged(self, first: u64, data: &[u8], sums: &[u32]) -> Option<u64> {
        let units = (first..).zip(data.chunks(UNIT_BYTES as usize));
        let mut sums = sums.iter();
        units
            .map(|(unit, bytes)| (unit, sums.next() == Some(&self.sum(unit, bytes))))
            .find_map(|(unit, sound)| (!sound).then_some(unit))
    }
}

impl Version {
    /// Reads what [`Display`](std::fmt::Display) writes, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split('-').map(|word| u64::from_str_radix(word, 16));
        let mut word = || words.next()?.ok();
        let version = Self {
            epoch: Epoch {
                counter: word()?,
                owner: word()?,
            },
            seq: word()?,
        };
        (version.to_string() == text).then_some(version)
    }
}

/// Digits enough for any number: the order of the names is that of the versions.
impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Epoch { counter, owner } = self.epoch;
        write!(f, "{counter:016x}-{owner:016x}-{:016x}", self.seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::versions;
    use super::*;

    proptest! {
        #[test]
        fn a_version_is_read_as_it_is_written_and_sorts_like_its_name(a in versions(), b in versions()) {
            prop_assert_eq!(Version::parse(&a.to_string()), Some(a));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn c25_a_unit_of_another_place_or_volume_does_not_verify(
            volume in any::<[u8; 16]>(), other in any::<[u8; 16]>(),
            unit in 0_u64..1 << 40, elsewhere in 0_u64..1 << 40, fill in any::<u8>(),
        ) {
            prop_assume!(volume != other && unit != elsewhere);
            let (here, there) = (UnitSums::of(Uuid(volume)), UnitSums::of(Uuid(other)));
            let data = [fill; UNIT_BYTES as usize];
            let sum = here.sum(unit, &data);
            prop_assert_ne!(here.sum(elsewhere, &data), sum);
            prop_assert_ne!(there.sum(unit, &data), sum);
        }
    }

    #[test]
    fn c25_the_first_damaged_unit_is_named() {
        let sums = UnitSums::of(Uuid([3; 16]));
        let mut data: Vec<u8> = (0..5 * UNIT_BYTES).map(|at| (at % 251) as u8).collect();
        let table = sums.sums(70, [&data[..5000], &data[5000..]]);
        let one_by_one = (70..).zip(data.chunks(UNIT_BYTES as usize));
        let one_by_one: Vec<_> = one_by_one
            .map(|(unit, bytes)| sums.sum(unit, bytes))
            .collect();
        assert_eq!(table, one_by_one);
        assert_eq!(sums.first_damaged(70, &data, &table), None);
        assert_eq!(sums.first_damaged(71, &data, &table), Some(71));
        assert_eq!(sums.first_damaged(70, &data, &table[..4]), Some(74));
        data[4096 * 3 + 17] ^= 1;
        assert_eq!(sums.first_damaged(70, &data, &table), Some(73));
    }

    #[test]
    fn other_spellings_are_no_versions() {
        let version = Version::default().to_string();
        for wrong in [
            version.replace('-', ""),
            format!("{version}-"),
            format!("{version}0"),
            version.replacen('0', "+", 1),
            "0-0-0".to_owned(),
        ] {
            assert_eq!(Version::parse(&wrong), None, "{wrong}");
        }
    }
}
