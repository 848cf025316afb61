//! A version of a shard: all of its bytes, and behind them a trailer with the checksum of each
//! unit. Pure.

use super::fields::{Fields, Writer, SEALED_BYTES};
use super::{Hash, Named, UnitSums, Version, UNIT_BYTES};
use crate::error::Result;
use crate::layout::frame::{corrupt, What};
use crate::layout::uuid::Uuid;

/// Bytes of the trailer of an image. It stands behind so many bytes of data as a shard has.
#[must_use]
pub fn trailer_bytes(shard_bytes: u64) -> u64 {
    SEALED_BYTES as u64 + shard_bytes / UNIT_BYTES * 4
}

/// Bytes of an image.
#[must_use]
pub fn image_bytes(shard_bytes: u64) -> u64 {
    shard_bytes + trailer_bytes(shard_bytes)
}

/// The checksums of an image, which shard and version it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// The shard.
    pub shard: u32,
    /// The version.
    pub version: Version,
    /// One for each unit, as [`UnitSums`] makes them from the units' numbers in the volume.
    pub sums: Vec<u32>,
}

impl Trailer {
    /// As bytes, and how the map names the image that ends with them.
    #[must_use]
    pub fn encode(&self, volume: Uuid) -> (Vec<u8>, Named) {
        let mut writer = Writer::new(self.version);
        writer.sums(&self.sums);
        let bytes = writer.seal(What::Trailer, volume, u64::from(self.shard));
        let named = Named {
            version: self.version,
            hash: Hash::of(&bytes),
        };
        (bytes, named)
    }

    /// Reads the trailer of the image that the map names.
    ///
    /// # Errors
    /// [`Kind::Unsupported`](crate::error::Kind::Unsupported) for a newer version,
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it is not exactly that one.
    pub fn decode(
        volume: Uuid,
        shard: u32,
        shard_bytes: u64,
        image: &Named,
        bytes: &[u8],
    ) -> Result<Self> {
        let trailer = Self::decode_any(volume, shard, shard_bytes, bytes)?;
        if trailer.version != image.version || Hash::of(bytes) != image.hash {
            let found = trailer.version;
            let text = format!("shard {shard}: image {found} lies in the place of another");
            return Err(corrupt(text));
        }
        Ok(trailer)
    }

    /// Reads the trailer of any image of a shard.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    pub fn decode_any(volume: Uuid, shard: u32, shard_bytes: u64, bytes: &[u8]) -> Result<Self> {
        let (version, mut fields) = Fields::open(What::Trailer, volume, u64::from(shard), bytes)?;
        let sums = fields.sums((shard_bytes / UNIT_BYTES) as usize)?;
        fields.end()?;
        Ok(Self {
            shard,
            version,
            sums,
        })
    }

    /// The number in the volume of the first unit that is not as it was put, of the whole units in
    /// `data`, from number `first` of the shard on.
    #[must_use]
    pub fn first_damaged(&self, sums: UnitSums, first: usize, data: &[u8]) -> Option<u64> {
        let unit = u64::from(self.shard) * self.sums.len() as u64 + first as u64;
        let known = self.sums.get(first..).unwrap_or_default();
        sums.first_damaged(unit, data, known)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{refuses_damage, tells_a_newer_version, versions};
    use super::*;

    const VOLUME: Uuid = Uuid([6; 16]);
    const SHARD_BYTES: u64 = 64 << 10;

    fn decode(shard: u32, image: &Named, bytes: &[u8]) -> Result<Trailer> {
        Trailer::decode(VOLUME, shard, SHARD_BYTES, image, bytes)
    }

    fn trailer(shard: u32, version: Version, data: &[u8]) -> Trailer {
        let first = u64::from(shard) * (SHARD_BYTES / UNIT_BYTES);
        let sums = UnitSums::of(VOLUME).sums(first, [data]);
        Trailer {
            shard,
            version,
            sums,
        }
    }

    proptest! {
        #[test]
        fn a_trailer_is_read_as_it_was_written(
            shard in any::<u32>(), version in versions(), sums in prop::collection::vec(any::<u32>(), 16),
        ) {
            let trailer = Trailer { shard, version, sums };
            let (bytes, image) = trailer.encode(VOLUME);
            prop_assert_eq!(bytes.len() as u64, trailer_bytes(SHARD_BYTES));
            prop_assert_eq!(decode(shard, &image, &bytes).unwrap(), trailer);
        }

        #[test]
        fn c16_another_shard_s_or_version_s_trailer_is_refused(
            a in (any::<u32>(), versions()), b in (any::<u32>(), versions()),
        ) {
            let data = vec![7; SHARD_BYTES as usize];
            let ((bytes, _), (_, wanted)) = (trailer(a.0, a.1, &data).encode(VOLUME), trailer(b.0, b.1, &data).encode(VOLUME));
            prop_assert_eq!(decode(b.0, &wanted, &bytes).is_ok(), a == b);
        }

        #[test]
        fn c25_a_unit_from_anywhere_else_does_not_verify(
            shard in 0_u32..4, from_shard in 0_u32..4, at in 0_usize..16, from in 0_usize..16, fill in any::<u8>(),
        ) {
            // The same bytes everywhere: only the address tells.
            let data = vec![fill; SHARD_BYTES as usize];
            let here = trailer(shard, Version::default(), &data);
            let sums = UnitSums::of(VOLUME);
            prop_assert_eq!(here.first_damaged(sums, 0, &data), None);
            let there = trailer(from_shard, Version::default(), &data);
            let same = (shard, at) == (from_shard, from);
            prop_assert_eq!(here.sums[at] == there.sums[from], same);
        }

        #[test]
        fn c25_the_damaged_unit_is_named(shard in 0_u32..4, at in 0_usize..16, bit in 0_usize..32_768) {
            let mut data: Vec<u8> = (0..SHARD_BYTES).map(|at| (at % 251) as u8).collect();
            let trailer = trailer(shard, Version::default(), &data);
            let start = at * UNIT_BYTES as usize;
            data[start + bit / 8] ^= 1 << (bit % 8);
            let unit = u64::from(shard) * 16 + at as u64;
            let sums = UnitSums::of(VOLUME);
            prop_assert_eq!(trailer.first_damaged(sums, 0, &data), Some(unit));
            prop_assert_eq!(trailer.first_damaged(sums, at, &data[start..]), Some(unit));
            prop_assert_eq!(trailer.first_damaged(sums, at + 1, &data[start + UNIT_BYTES as usize..]), None);
        }
    }

    #[test]
    fn c25_every_changed_bit_of_a_trailer_is_noticed() {
        let (bytes, image) =
            trailer(3, Version::default(), &[1; SHARD_BYTES as usize]).encode(VOLUME);
        refuses_damage(&bytes, |bytes| decode(3, &image, bytes));
        refuses_damage(&bytes, |bytes| {
            Trailer::decode_any(VOLUME, 3, SHARD_BYTES, bytes)
        });
        tells_a_newer_version(&bytes, |bytes| decode(3, &image, bytes));
        assert!(Trailer::decode_any(VOLUME, 3, SHARD_BYTES * 2, &bytes).is_err());
        assert!(Trailer::decode_any(Uuid([7; 16]), 3, SHARD_BYTES, &bytes).is_err());
    }
}
