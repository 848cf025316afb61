//! An opened object behind the link.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Body, Capabilities, Data, Extent, NextObject, Object, ReadFlags, Result,
    WriteFlags, ZeroFlags,
};

use crate::faults::Faults;
use crate::plan::{Fault, Op};

/// An object whose calls meet faults.
#[derive(Debug)]
pub struct FaultObject {
    faults: Arc<Faults>,
    inner: NextObject,
    key: String,
}

impl FaultObject {
    pub(crate) fn new(faults: Arc<Faults>, inner: NextObject, key: &str) -> Self {
        let key = key.to_owned();
        Self { faults, inner, key }
    }

    /// What may be lent when what was read may have to be changed.
    fn readable(&self, flags: ReadFlags) -> ReadFlags {
        match self.faults.may(Fault::Short) || self.faults.may(Fault::Flip) {
            true => flags.without(ReadFlags::LEND_MAPPED),
            false => flags,
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Object for FaultObject {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    async fn size(&self) -> Result<u64> {
        let step = self.faults.meet(Op::Size, &self.key).await?;
        step.answer(self.inner.size().await)
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if self.faults.concern(Op::Read) || !flags.unknown().is_empty() {
            return None;
        }
        self.inner.start_read(offset, len, flags).now().ok()
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        known_flags(flags.unknown().0)?;
        let step = self.faults.meet(Op::Read, &self.key).await?;
        let data = self.inner.read(offset, len, self.readable(flags)).await;
        step.data(data)
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        if self.faults.concern(Op::Write) || !flags.unknown().is_empty() {
            return None;
        }
        let started = self.inner.start_write(offset, body.clone(), flags);
        started.now().ok()
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let step = self.faults.meet(Op::Write, &self.key).await?;
        match step.is_lost() {
            true => Ok(()),
            false => step.answer(self.inner.write(offset, body, flags).await),
        }
    }

    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        if self.faults.concern(Op::Zero) || !flags.unknown().is_empty() {
            return None;
        }
        self.inner.start_zero(offset, len, flags).now().ok()
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let step = self.faults.meet(Op::Zero, &self.key).await?;
        match step.is_lost() {
            true => Ok(()),
            false => step.answer(self.inner.zero(offset, len, flags).await),
        }
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let step = self.faults.meet(Op::Extents, &self.key).await?;
        step.answer(self.inner.extents(offset, len, limit).await)
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.prefetch(offset, len).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let step = self.faults.meet(Op::Resize, &self.key).await?;
        match step.is_lost() {
            true => Ok(()),
            false => step.answer(self.inner.resize(size).await),
        }
    }

    async fn sync(&self) -> Result<()> {
        let step = self.faults.meet(Op::Sync, &self.key).await?;
        match step.is_lost() {
            true => Ok(()),
            false => step.answer(self.inner.sync().await),
        }
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
