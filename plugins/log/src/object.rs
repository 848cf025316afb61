//! An opened object behind the link.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Body, Capabilities, Data, Extent, NextObject, Object, ReadFlags, Result, Started,
    WriteFlags, ZeroFlags,
};

use crate::meter::{Call, Meter, Op, What};

/// An object of which every call is written down.
#[derive(Debug)]
pub struct LogObject {
    meter: Arc<Meter>,
    inner: NextObject,
    key: String,
}

impl LogObject {
    pub(crate) fn new(meter: Arc<Meter>, inner: NextObject, key: &str) -> Self {
        let key = key.to_owned();
        Self { meter, inner, key }
    }

    fn start(&self, op: Op) -> Call<'_> {
        self.meter.start(What::new(op, &self.key))
    }

    fn start_at(&self, op: Op, offset: u64, len: u64) -> Call<'_> {
        self.meter.start(What::at(op, &self.key, offset, len))
    }
}

/// What is at hand; what is not will be asked for again, and counts then.
fn at_hand<T>(call: Call<'_>, started: Started<'_, T>) -> Option<Result<T>> {
    match started.now() {
        Ok(result) => Some(call.done(result)),
        Err(_) => {
            call.not_made();
            None
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Object for LogObject {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    async fn size(&self) -> Result<u64> {
        self.start(Op::Size).done(self.inner.size().await)
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let call = self.start_at(Op::Read, offset, len);
        at_hand(call, self.inner.start_read(offset, len, flags))
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        known_flags(flags.unknown().0)?;
        let call = self.start_at(Op::Read, offset, len);
        call.done(self.inner.read(offset, len, flags).await)
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let call = self.start_at(Op::Write, offset, body.len());
        at_hand(call, self.inner.start_write(offset, body.clone(), flags))
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let call = self.start_at(Op::Write, offset, body.len());
        call.done(self.inner.write(offset, body, flags).await)
    }

    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let call = self.start_at(Op::Zero, offset, len);
        at_hand(call, self.inner.start_zero(offset, len, flags))
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let call = self.start_at(Op::Zero, offset, len);
        call.done(self.inner.zero(offset, len, flags).await)
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let call = self.start_at(Op::Extents, offset, len);
        call.done(self.inner.extents(offset, len, limit).await)
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        let call = self.start_at(Op::Prefetch, offset, len);
        call.done(self.inner.prefetch(offset, len).await)
    }

    async fn resize(&self, size: u64) -> Result<()> {
        self.start(Op::Resize).done(self.inner.resize(size).await)
    }

    async fn sync(&self) -> Result<()> {
        self.start(Op::Sync).done(self.inner.sync().await)
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
