//! From a volume to objects. A layout knows neither NBD nor plugins.

mod dirty;
pub mod distributed;
mod durability;
mod frame;
mod gather;
pub mod geometry;
pub mod ledger;
pub mod open;
pub mod raw;
pub mod sharded;
pub mod split;
mod units;
pub mod uuid;

use std::sync::Arc;

use nbd_rs_journal::change::Change;
use nbd_rs_plugin::{Body, Capabilities, Data, Extent, ReadFlags, ZeroFlags};

use crate::backend::{Answer, Later};
use crate::error::Result;

/// A volume: bytes by offset. Ranges are inside it; its caller checks that, and keeps writes that
/// overlap apart.
pub trait Layout: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// What the whole chain can do for it.
    fn capabilities(&self) -> Capabilities;
    /// Reads `len` bytes.
    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data>;
    /// Writes `body`; with `fua`, durably.
    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()>;
    /// Zeroes `len` bytes.
    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()>;
    /// What is allocated, from `offset` on: at most `limit` extents.
    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>>;
    /// Reads ahead.
    fn prefetch(&self, offset: u64, len: u64) -> Answer<()>;
    /// Makes durable all that was acknowledged before the first poll.
    fn flush(&self) -> Later<()>;
    /// The last one before [`close`](Self::close), when no client is there any more.
    fn flush_at_end(&self) -> Later<()> {
        self.flush()
    }
    /// Gives everything back.
    fn close(&self) -> Later<()>;
    /// What a flush means, for people.
    fn flush_means(&self) -> &'static str;
    /// What the volume keeps about a journal before it, if it is open to write and its writes are
    /// worth gathering.
    fn ledger(&self) -> Option<Arc<dyn ledger::Ledger>> {
        None
    }
    /// How changes are made together, if the volume can do that.
    fn together(&self) -> Option<Arc<dyn Together>> {
        None
    }
    /// Waits until the volume may not be served any longer, and says why.
    fn lost(&self) -> Later<()> {
        Box::pin(std::future::pending())
    }
}

/// A volume that can make many changes as one.
pub trait Together: Send + Sync {
    /// Makes changes that have no byte in common. After a crash all of them are there or none, and none
    /// without those of earlier calls that had ended. Durable with the next flush. A result for each; one that can't
    /// be made keeps no other from being made.
    fn make(&self, changes: Vec<Change>) -> Later<Vec<Result<()>>>;
}
