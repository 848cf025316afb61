//! An opened object behind the link.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Body, Capabilities, Data, Extent, NextObject, Object, ReadFlags, Result,
    WriteFlags, ZeroFlags,
};

use crate::link::{Call, Link};
use crate::policy::{repeatable, Class};

/// An object that is asked again.
///
/// A write or zeroing whose outcome is unknown is made again with the same bytes: the host lets
/// nothing else touch the range before it is answered.
#[derive(Debug)]
pub struct RetryObject {
    link: Arc<Link>,
    inner: NextObject,
    key: String,
}

impl RetryObject {
    pub(crate) fn new(link: Arc<Link>, inner: NextObject, key: &str) -> Self {
        let key = key.to_owned();
        Self { link, inner, key }
    }

    fn call(&self, operation: &'static str, class: Class) -> Call<'_> {
        Call {
            operation,
            name: &self.key,
            class,
        }
    }
}

/// An answer that came at once, unless it is a failure after which nothing has changed and which
/// the waiting form asks about again. After any other the caller must not think that nothing happened.
fn settled<T>(class: Class, answer: Result<T>) -> Option<Result<T>> {
    match answer {
        Err(error) if repeatable(class, error.kind) => None,
        answer => Some(answer),
    }
}

#[deny(clippy::missing_trait_methods)]
impl Object for RetryObject {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    async fn size(&self) -> Result<u64> {
        let call = self.call("size", Class::Read);
        self.link.repeat(call, || self.inner.size()).await
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let started = self.inner.start_read(offset, len, flags);
        settled(Class::Read, started.now().ok()?)
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        known_flags(flags.unknown().0)?;
        let call = self.call("read", Class::Read);
        let attempt = || self.inner.read(offset, len, flags);
        self.link.repeat(call, attempt).await
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let started = self.inner.start_write(offset, body.clone(), flags);
        settled(Class::Once, started.now().ok()?)
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let call = self.call("write", Class::Idempotent);
        let attempt = || self.inner.write(offset, body.clone(), flags);
        self.link.repeat(call, attempt).await
    }

    fn try_zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Option<Result<()>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let started = self.inner.start_zero(offset, len, flags);
        settled(Class::Once, started.now().ok()?)
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        let call = self.call("zero", Class::Idempotent);
        let attempt = || self.inner.zero(offset, len, flags);
        self.link.repeat(call, attempt).await
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        let call = self.call("extents", Class::Read);
        let attempt = || self.inner.extents(offset, len, limit);
        self.link.repeat(call, attempt).await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        // A hint: worth one attempt.
        self.inner.prefetch(offset, len).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let call = self.call("resize", Class::Idempotent);
        self.link.repeat(call, || self.inner.resize(size)).await
    }

    async fn sync(&self) -> Result<()> {
        // Never again: the store reports a loss once, and would call the next sync a success.
        self.inner.sync().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
