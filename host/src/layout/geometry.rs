//! How large a volume is, and its shards. Pure.

use std::ops::Range;

use nbd_rs_plugin::options::display_size;

use super::units::UNIT_BYTES;
use crate::error::{Error, Kind, Result};

/// Shard sizes, in bytes; powers of two.
const MIN_SHARD_BYTES: u64 = 64 << 10;
const MAX_SHARD_BYTES: u64 = 64 << 20;

/// The size of a volume and of its shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The size of the volume in bytes, never 0.
    pub size_bytes: u64,
    /// The size of each shard, also of the last one.
    pub shard_bytes: u64,
}

impl Geometry {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with what would do.
    pub fn check(&self, most_shards: u64) -> Result<()> {
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        let shard = self.shard_bytes;
        if !shard.is_power_of_two() || !(MIN_SHARD_BYTES..=MAX_SHARD_BYTES).contains(&shard) {
            return invalid(format!(
                "a shard size of {}: it must be a power of two from 64Ki to 64Mi",
                display_size(shard)
            ));
        }
        if self.size_bytes == 0 || self.size_bytes > i64::MAX as u64 {
            return invalid("a volume has 1 byte at least, and less than 8 EiB".to_owned());
        }
        if self.shards() > most_shards {
            return invalid(format!(
                "{} in shards of {} are too many shards: choose a larger --shard-size",
                display_size(self.size_bytes),
                display_size(shard)
            ));
        }
        Ok(())
    }

    /// How many shards it has.
    pub fn shards(&self) -> u64 {
        self.size_bytes.div_ceil(self.shard_bytes)
    }

    /// How many units of 4 KiB it has; the last one may reach beyond its end.
    pub fn units(&self) -> u64 {
        self.size_bytes.div_ceil(UNIT_BYTES)
    }

    /// How many units a shard has.
    pub fn shard_units(&self) -> u64 {
        self.shard_bytes / UNIT_BYTES
    }

    /// The units that the volume has of a shard: fewer than all for the last one.
    pub fn units_of(&self, shard: u64) -> Range<u64> {
        let first = shard * self.shard_units();
        first..(first + self.shard_units()).min(self.units())
    }
}
