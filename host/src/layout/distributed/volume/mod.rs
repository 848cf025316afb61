//! A distributed volume: what NBD asks, over the log and the objects beside it.
//! `docs/decisions/0033-the-engine-of-a-distributed-volume.md` says what runs and what is locked when.
//!
//! ```text
//! write ─▶ open batch ─▶ commit: flight ─▶ record of the log ─▶ State
//! read  ◀─ open batch, else the flight, else what State says
//! upkeep   folds, checkpoints, garbage
//! ```
//!
//! - pure: `batch`: changes that are in no record yet;
//! - `open`: from the log to a volume; `shared`: what is behind the lock;
//! - `write`, `read`, `extents`, `ledger`: what is asked; `locks`: parts of units;
//! - `together`: changes that one record has;
//! - `commit`: one record after the other; `record`: what goes into one; `upkeep`: the rest;
//! - `sweep`: what dead owners left; `status`, `tell`: how it stands;
//! - `audit`: what lies on the backends, compared and mended;
//! - `replicas`: objects on their homes; `objects`: whole ones; `copies`: before a checkpoint.

mod audit;
mod batch;
mod commit;
mod copies;
mod extents;
mod ledger;
mod locks;
mod objects;
mod open;
mod read;
mod record;
mod replicas;
mod shared;
mod status;
mod sweep;
mod tell;
mod together;
mod trailers;
mod upkeep;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use nbd_rs_journal::change::Change;
use nbd_rs_plugin::{Body, Capabilities, CapabilityFlags, Data, Extent, ReadFlags, ZeroFlags};

use super::format::UNIT_BYTES;
use crate::backend::{Answer, Later};
use crate::error::Result;
use crate::layout::geometry::Geometry;
use crate::layout::ledger::Ledger;
use crate::layout::{Layout, Together};
use shared::Inner;

pub use audit::{Audit, Finding, Flaw, Report};
pub use open::{open, Released, Setup, Tuning};
pub use status::{Status, Work};

/// What a flush is, for people.
pub const FLUSH_MEANS: &str = "a record of the commit log, durable on a quorum of the backends";

/// What the whole chain can do for a volume of this geometry.
#[must_use]
pub fn capabilities(geometry: Geometry, is_writable: bool) -> Capabilities {
    // Zeros are a matter of a record, wherever there are whole units.
    let mut flags = CapabilityFlags::PUNCH_HOLE
        .with(CapabilityFlags::FAST_ZERO)
        .with(CapabilityFlags::ALLOCATE)
        .with(CapabilityFlags::EXTENTS);
    if is_writable {
        flags = flags.with(CapabilityFlags::WRITABLE);
    }
    let mut capabilities = Capabilities::new(flags);
    capabilities.preferred_io_bytes = geometry.shard_bytes as u32;
    capabilities.atomic_unit_bytes = UNIT_BYTES as u32;
    capabilities
}

/// A volume that this process owns. Dropped without a close it is as after a crash.
pub struct Volume {
    inner: Arc<Inner>,
}

impl Volume {
    /// How it stands.
    pub fn status(&self) -> Status {
        self.inner.status()
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.inner.volume)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.inner.log.abandon();
    }
}

impl Layout for Volume {
    fn size(&self) -> u64 {
        self.inner.geometry.size_bytes
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.inner.geometry, !self.inner.tuning.read_only)
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        let inner = self.inner.clone();
        Answer::later(async move { inner.read(offset, len, flags).await })
    }

    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()> {
        let inner = self.inner.clone();
        Answer::later(async move {
            inner.write(offset, &body).await?;
            inner.written(fua).await
        })
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        let inner = self.inner.clone();
        Answer::later(async move {
            inner.zero(offset, len, flags).await?;
            inner.written(flags.has(ZeroFlags::FUA)).await
        })
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        let inner = self.inner.clone();
        Answer::later(async move {
            inner.held().await?;
            Ok(inner.extents(offset, len, limit as usize))
        })
    }

    fn prefetch(&self, _: u64, _: u64) -> Answer<()> {
        Answer::Ready(Ok(()))
    }

    fn flush(&self) -> Later<()> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.flush().await })
    }

    fn close(&self) -> Later<()> {
        let inner = self.inner.clone();
        Box::pin(async move { inner.close().await })
    }

    fn flush_means(&self) -> &'static str {
        FLUSH_MEANS
    }

    fn ledger(&self) -> Option<Arc<dyn Ledger>> {
        let book = || -> Arc<dyn Ledger> { Arc::new(ledger::Book(self.inner.clone())) };
        (!self.inner.tuning.read_only).then(book)
    }

    fn together(&self) -> Option<Arc<dyn Together>> {
        Some(Arc::new(OneRecord(self.inner.clone())))
    }

    fn lost(&self) -> Later<()> {
        let inner = self.inner.clone();
        Box::pin(async move { Result::Err(inner.log.lost().await) })
    }
}

/// Changes that one record has.
struct OneRecord(Arc<Inner>);

impl Together for OneRecord {
    fn make(&self, changes: Vec<Change>) -> Later<Vec<Result<()>>> {
        let inner = self.0.clone();
        Box::pin(async move { inner.together(&changes).await })
    }
}
