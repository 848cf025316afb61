//! An opened object of the fake store.

use std::sync::atomic::{AtomicBool, Ordering};

use nbd_rs_plugin::{
    Body, Bytes, Capabilities, CapabilityFlags, Data, Error, Extent, ExtentFlags, Object, Range,
    ReadFlags, Result, WriteFlags, ZeroFlags,
};

use crate::{Fake, Fault, STORE};

/// See [`Fake`].
#[derive(Debug)]
pub struct FakeObject {
    store: Fake,
    key: String,
    writable: bool,
    locked: AtomicBool,
    at_once: bool,
}

impl FakeObject {
    pub(crate) fn new(store: Fake, key: &str, writable: bool, locked: bool, at_once: bool) -> Self {
        Self {
            store,
            key: key.to_owned(),
            writable,
            locked: AtomicBool::new(locked),
            at_once,
        }
    }

    fn unlock(&self) {
        if self.locked.swap(false, Ordering::Relaxed) {
            self.store.unlock(&self.key);
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        match self.writable {
            true => self.store.edit(&self.key, edit),
            false => Err(Error::read_only("a change")),
        }
    }

    fn read_now(&self, offset: u64, len: u64) -> Result<Data> {
        let bytes = self.store.bytes(&self.key)?;
        let range = Range::new(offset, len).within(bytes.len() as u64)?;
        Ok(bytes.slice(range).into())
    }

    fn write_now(&self, offset: u64, body: &Body) -> Result<()> {
        let size = self.store.bytes(&self.key)?.len() as u64;
        let range = Range::new(offset, body.len()).within(size)?;
        let new: Vec<u8> = body
            .pieces()
            .iter()
            .flat_map(|piece| piece.to_vec())
            .collect();
        self.edit(|bytes| bytes[range].copy_from_slice(&new))
    }

    fn now(&self, operation: &str) -> Option<Result<Fault>> {
        let at_once = self.at_once;
        at_once.then(|| match self.store.faults().next(operation) {
            Fault::Before(kind, text) => Err(Fault::error(kind, text)),
            fault => Ok(fault),
        })
    }
}

impl Object for FakeObject {
    fn capabilities(&self) -> Capabilities {
        self.store.offered(match self.writable {
            true => STORE,
            false => STORE.without(CapabilityFlags::WRITABLE),
        })
    }

    async fn size(&self) -> Result<u64> {
        Ok(self.store.bytes(&self.key)?.len() as u64)
    }

    fn try_read(&self, offset: u64, len: u64, _: ReadFlags) -> Option<Result<Data>> {
        let fault = self.now("try_read")?;
        Some(fault.and_then(|_| self.read_now(offset, len)))
    }

    async fn read(&self, offset: u64, len: u64, _: ReadFlags) -> Result<Data> {
        self.store.call(format!("read {offset}+{len}"));
        let fault = self.store.before("read").await?;
        let data = self.read_now(offset, len);
        self.store.after(fault, data).await
    }

    fn try_write(&self, offset: u64, body: &Body, _: WriteFlags) -> Option<Result<()>> {
        let fault = match self.now("try_write")? {
            Ok(fault) => fault,
            Err(error) => return Some(Err(error)),
        };
        let written = self.write_now(offset, body);
        Some(match fault {
            Fault::After(kind, text) => Err(Fault::error(kind, text)),
            _ => written,
        })
    }

    async fn write(&self, offset: u64, body: Body, _: WriteFlags) -> Result<()> {
        self.store.call(format!("write {offset}+{}", body.len()));
        let fault = self.store.before("write").await?;
        let written = self.write_now(offset, &body);
        self.store.after(fault, written).await
    }

    async fn zero(&self, offset: u64, len: u64, _: ZeroFlags) -> Result<()> {
        self.store.call(format!("zero {offset}+{len}"));
        let fault = self.store.before("zero").await?;
        let zeros = Bytes::from(vec![0; len as usize]);
        let zeroed = self.write_now(offset, &zeros.into());
        self.store.after(fault, zeroed).await
    }

    async fn extents(&self, _: u64, len: u64, _: u32) -> Result<Vec<Extent>> {
        let fault = self.store.before("extents").await?;
        let flags = ExtentFlags::NONE;
        self.store
            .after(fault, Ok(vec![Extent { len, flags }]))
            .await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.store.call(format!("prefetch {offset}+{len}"));
        Ok(())
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.store.call(format!("resize {size}"));
        let fault = self.store.before("resize").await?;
        let resized = self.edit(|bytes| bytes.resize(size as usize, 0));
        self.store.after(fault, resized).await
    }

    async fn sync(&self) -> Result<()> {
        self.store.call("sync".to_owned());
        let fault = self.store.before("sync").await?;
        self.store.after(fault, Ok(())).await
    }

    async fn close(&self) -> Result<()> {
        self.store.call("close object".to_owned());
        self.unlock();
        Ok(())
    }
}

impl Drop for FakeObject {
    fn drop(&mut self) {
        self.unlock();
    }
}
