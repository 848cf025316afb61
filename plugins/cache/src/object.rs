//! An opened object: everything passes through. What can be written inside has a page cache where
//! it is stored, and a copy here would have to follow every write.

use std::sync::{Mutex, PoisonError};

use nbd_rs_plugin::{
    known_flags, Body, Capabilities, Data, Extent, NextObject, Object, ReadFlags, Result,
    WriteFlags, ZeroFlags,
};

use crate::shared::Changing;

/// An opened object behind the link. As long as it may be written, its name is not answered from
/// copies.
#[derive(Debug)]
pub struct CachedObject {
    inner: NextObject,
    change: Mutex<Option<Changing>>,
}

impl CachedObject {
    pub(crate) fn new(inner: NextObject, change: Option<Changing>) -> Self {
        let change = Mutex::new(change);
        Self { inner, change }
    }

    fn end_change(&self) {
        let mut change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(change) = change.take() {
            change.ended(&Ok(()));
        }
    }
}

impl Drop for CachedObject {
    fn drop(&mut self) {
        self.end_change();
    }
}

#[deny(clippy::missing_trait_methods)]
impl Object for CachedObject {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    async fn size(&self) -> Result<u64> {
        self.inner.size().await
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        self.inner.start_read(offset, len, flags).now().ok()
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        known_flags(flags.unknown().0)?;
        self.inner.read(offset, len, flags).await
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let started = self.inner.start_write(offset, body.clone(), flags);
        started.now().ok()
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        self.inner.write(offset, body, flags).await
    }

    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        self.inner.start_zero(offset, len, flags).now().ok()
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        self.inner.zero(offset, len, flags).await
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        self.inner.extents(offset, len, limit).await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.prefetch(offset, len).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.inner.resize(size).await
    }

    async fn sync(&self) -> Result<()> {
        self.inner.sync().await
    }

    async fn close(&self) -> Result<()> {
        let closed = self.inner.close().await;
        self.end_change();
        closed
    }
}
