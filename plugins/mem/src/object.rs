//! An opened object.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use nbd_rs_plugin::{
    Body, Capabilities, Data, Error, Extent, Object, ObjectFlags, Range, ReadFlags, Result,
    WriteFlags, ZeroFlags,
};

use crate::backend::capabilities;
use crate::contents::Contents;
use crate::store::{Entry, Store};

/// An opened object. Its lock goes with it.
#[derive(Debug)]
pub struct MemObject {
    store: Arc<Store>,
    entry: Arc<Entry>,
    writable: bool,
    holds_lock: AtomicBool,
}

impl MemObject {
    pub(crate) fn new(store: Arc<Store>, entry: Arc<Entry>, flags: ObjectFlags) -> Self {
        Self {
            store,
            entry,
            writable: flags.has(ObjectFlags::WRITE),
            holds_lock: AtomicBool::new(flags.has(ObjectFlags::LOCK)),
        }
    }

    fn release(&self) {
        if self.holds_lock.swap(false, Ordering::AcqRel) {
            self.entry.unlock();
        }
    }

    /// A change, and a new ETag with it.
    fn change(&self, change: impl FnOnce(&mut Contents) -> Result<()>) -> Result<()> {
        if !self.writable {
            return Err(Error::read_only("a change"));
        }
        let mut state = self.entry.write();
        state.version = self.store.next_version();
        change(&mut state.contents)
    }

    fn read_now(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        let holes = flags.has(ReadFlags::LEND_HOLES);
        self.entry
            .read()
            .contents
            .read(Range::new(offset, len), holes)
    }

    fn zero_now(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let allocate = flags.has(ZeroFlags::NO_HOLE);
        if allocate && flags.has(ZeroFlags::FAST) {
            return Err(Error::unsupported("fast zeroing that allocates"));
        }
        self.change(|contents| contents.zero(offset, len, allocate))
    }
}

impl Drop for MemObject {
    fn drop(&mut self) {
        self.release();
    }
}

impl Object for MemObject {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.writable)
    }

    async fn size(&self) -> Result<u64> {
        Ok(self.entry.read().contents.size())
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        Some(self.read_now(offset, len, flags))
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        self.read_now(offset, len, flags)
    }

    fn try_write(&self, offset: u64, body: &Body, _: WriteFlags) -> Option<Result<()>> {
        Some(self.change(|contents| contents.write(offset, body)))
    }

    async fn write(&self, offset: u64, body: Body, _: WriteFlags) -> Result<()> {
        self.change(|contents| contents.write(offset, &body))
    }

    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        Some(self.zero_now(offset, len, flags))
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.zero_now(offset, len, flags)
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let state = self.entry.read();
        state.contents.extents(offset, len, limit as usize)
    }

    async fn prefetch(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.change(|contents| contents.resize(size))
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.release();
        Ok(())
    }
}
