//! The volume is one object, byte for byte. Needs a chain that can write inside it; nothing is
//! written beside it.

use std::sync::Arc;

use nbd_rs_plugin::{Body, Capabilities, Data, Extent, ReadFlags, WriteFlags, ZeroFlags};

use super::durability::{Durability, Failed};
use super::Layout;
use crate::backend::chain::Chain;
use crate::backend::{Answer, Later, Object};
use crate::error::Result;

/// The flushes of a volume that is one object.
fn over(object: Object) -> Arc<Durability> {
    Durability::new(move || {
        let object = object.clone();
        async move { object.sync().await.map_err(Failed::Lost) }
    })
}

/// A raw volume.
pub struct Raw {
    chain: Chain,
    object: Object,
    size: u64,
    capabilities: Capabilities,
    durability: Arc<Durability>,
}

impl Raw {
    /// Over an object that was opened from `chain`.
    ///
    /// # Errors
    /// If its size can't be asked.
    pub async fn new(chain: Chain, object: Object) -> Result<Self> {
        Ok(Self {
            size: object.size().await?,
            capabilities: object.capabilities(),
            durability: over(object.clone()),
            chain,
            object,
        })
    }

    /// Makes a change and records it, and waits for durability if that was asked for.
    fn change(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
        start: impl FnOnce() -> Answer<()>,
    ) -> Answer<()> {
        let durability = self.durability.clone();
        let began = durability.writing(offset, len);
        match start() {
            Answer::Ready(Ok(())) if !fua => {
                durability.written(offset, len, began);
                Answer::Ready(Ok(()))
            }
            Answer::Ready(Err(error)) => Answer::Ready(Err(error)),
            answer => Answer::later(async move {
                answer.wait().await?;
                durability.written(offset, len, began);
                if fua {
                    durability.flush().await?;
                }
                Ok(())
            }),
        }
    }
}

impl Layout for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Answer<Data> {
        self.object.read(offset, len, flags)
    }

    fn write(&self, offset: u64, body: Body, fua: bool) -> Answer<()> {
        // Durability comes from the shared flush, which remembers what a failed sync lost.
        let len = body.len();
        let start = || self.object.write(offset, body, WriteFlags::NONE);
        self.change(offset, len, fua, start)
    }

    fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Answer<()> {
        let fua = flags.has(ZeroFlags::FUA);
        let start = || self.object.zero(offset, len, flags.without(ZeroFlags::FUA));
        self.change(offset, len, fua, start)
    }

    fn extents(&self, offset: u64, len: u64, limit: u32) -> Answer<Vec<Extent>> {
        self.object.extents(offset, len, limit)
    }

    fn prefetch(&self, offset: u64, len: u64) -> Answer<()> {
        self.object.prefetch(offset, len)
    }

    fn flush(&self) -> Later<()> {
        Box::pin(self.durability.flush())
    }

    fn flush_means(&self) -> &'static str {
        "synced to the image's own disk (fdatasync)"
    }

    fn close(&self) -> Later<()> {
        let (object, chain) = (self.object.clone(), self.chain.clone());
        Box::pin(async move {
            let object = object.close().await;
            chain.close().await.and(object)
        })
    }
}
