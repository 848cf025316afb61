//! The volume record: what the volume is. Put once by `init`, and again by `resize`. Pure.

use super::frame::{corrupt, u64_at, Frame, Stamp, What};
use super::state::PAGE_SHARDS;
use super::uuid::Uuid;
use crate::error::{Error, Kind, Result};
use crate::layout::geometry::Geometry;

/// State pages that the index has room for (1 MiB of it).
const MAX_PAGES: u64 = 8 << 20;
/// Shards of one volume.
pub(super) const MAX_SHARDS: u64 = MAX_PAGES * PAGE_SHARDS;
const PAYLOAD_BYTES: usize = 32;

/// How shards are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Each change puts the whole shard again, with checksums.
    Whole = 1,
    /// Shards are opened and written inside.
    InPlace = 2,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Way::Whole => "whole",
            Way::InPlace => "in-place",
        })
    }
}

impl std::str::FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "whole" => Ok(Way::Whole),
            "in-place" => Ok(Way::InPlace),
            _ => {
                let text = crate::error::printable(text, 40);
                let text = format!("option way: {text:?} is none; whole and in-place are known");
                Err(Error::new(Kind::Invalid, text))
            }
        }
    }
}

/// A sharded volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its identity: everything of it but this record lies under this name.
    pub uuid: Uuid,
    /// Its size in bytes, never 0.
    pub size_bytes: u64,
    /// The size of each shard, also of the last one.
    pub shard_bytes: u64,
    /// How shards are stored.
    pub way: Way,
    /// Seconds since 1970, UTC.
    pub created_s: u64,
    /// How often the record was put.
    pub revision: u64,
}

impl VolumeRecord {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with what would do.
    pub fn check(&self) -> Result<()> {
        self.geometry().check(MAX_SHARDS)
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            shard_bytes: self.shard_bytes,
        }
    }

    /// How many shards it has.
    pub fn shards(&self) -> u64 {
        self.geometry().shards()
    }

    /// How many state pages it may have.
    pub fn pages(&self) -> u64 {
        self.shards().div_ceil(PAGE_SHARDS)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut payload = [0; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&self.size_bytes.to_le_bytes());
        payload[8..16].copy_from_slice(&self.shard_bytes.to_le_bytes());
        payload[16..24].copy_from_slice(&self.created_s.to_le_bytes());
        payload[24] = self.way as u8;
        let stamp = Stamp {
            epoch: 0,
            sequence: self.revision,
        };
        let frame = Frame {
            what: What::Volume,
            uuid: self.uuid,
            number: 0,
            stamp,
            flags: 0,
            payload: &payload,
        };
        frame.encode()
    }

    pub(in crate::layout) fn decode(bytes: &[u8]) -> Result<Self> {
        let frame = Frame::decode(What::Volume, bytes)?;
        let payload = frame.payload;
        let wrong = || corrupt("the volume record makes no sense");
        let fixed = frame.number == 0 && frame.stamp.epoch == 0 && frame.flags == 0;
        if !fixed || payload.len() != PAYLOAD_BYTES || payload[25..].iter().any(|&byte| byte != 0) {
            return Err(wrong());
        }
        let record = Self {
            uuid: frame.uuid,
            size_bytes: u64_at(payload, 0),
            shard_bytes: u64_at(payload, 8),
            created_s: u64_at(payload, 16),
            way: match payload[24] {
                1 => Way::Whole,
                2 => Way::InPlace,
                _ => return Err(wrong()),
            },
            revision: frame.stamp.sequence,
        };
        record.check().map_err(|_| wrong())?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(size_bytes: u64, shard_bytes: u64) -> VolumeRecord {
        VolumeRecord {
            uuid: Uuid([5; 16]),
            size_bytes,
            shard_bytes,
            way: Way::Whole,
            created_s: 1_700_000_000,
            revision: 1,
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            size in 1u64..1 << 55, power in 16u32..27, whole in any::<bool>(), revision in any::<u64>(),
        ) {
            let mut record = record(size, 1 << power);
            record.way = if whole { Way::Whole } else { Way::InPlace };
            record.revision = revision;
            prop_assert_eq!(VolumeRecord::decode(&record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (size, shard) in [
            (0, 4 << 20),
            (1 << 63, 4 << 20),
            (1 << 30, 32 << 10),
            (1 << 30, 128 << 20),
            (1 << 30, (4 << 20) + 1),
            (1 << 62, 64 << 10),
        ] {
            assert!(record(size, shard).check().is_err(), "{size} {shard}");
            assert!(VolumeRecord::decode(&record(size, shard).encode()).is_err());
        }
        assert_eq!(record((4 << 20) + 1, 4 << 20).shards(), 2);
        record(1 << 61, 4 << 20).check().unwrap();
    }
}
