//! A link for nbd-rs: it stands before another backend and answers for it. This one passes everything
//! on and counts the calls; put what yours does in the place of `seen`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nbd_rs_plugin::{
    export_plugin, known_flags, Backend, Body, Capabilities, Condition, Data, Description, Extent,
    GetFlags, Got, Host, Meta, Next, NextObject, Object, ObjectMode, OpenRequest, Page, Put, Range,
    ReadFlags, Result, WriteFlags, ZeroFlags,
};

/// What `nbd-rs plugins` shows. Options of a link are written `LINK.OPTION` in a location.
fn describe() -> Description {
    Description::link(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        .scheme(env!("CARGO_PKG_NAME"), "counts what passes through")
}

export_plugin! {
    describe: describe,
    open: |_host: Host, mut request: OpenRequest| async move {
        Ok(Link { calls: Arc::default(), inner: request.take_inner()? })
    },
}

struct Link {
    calls: Arc<AtomicU64>,
    inner: Next,
}

/// A call comes in.
fn seen(calls: &AtomicU64) {
    calls.fetch_add(1, Ordering::Relaxed);
}

// Every operation is here, none has a default: what passes around a link is a way to corrupt data.
impl Backend for Link {
    type Object = Opened;

    fn capabilities(&self) -> Capabilities {
        // A link may add what it really does itself, and drops what it does not know.
        self.inner.capabilities().passed_on()
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        // What the backend has at hand stays at hand; unknown flags are refused in `get`.
        if !flags.unknown().is_empty() {
            return None;
        }
        let got = self.inner.try_get(key, range, flags)?;
        seen(&self.calls);
        Some(got)
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        known_flags(flags.unknown().0)?;
        seen(&self.calls);
        self.inner.get(key, range, flags).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        seen(&self.calls);
        self.inner.put(key, body, condition).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        known_flags(flags.unknown().0)?;
        seen(&self.calls);
        self.inner.head(key, flags).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        seen(&self.calls);
        self.inner.delete(keys).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        seen(&self.calls);
        self.inner.list(prefix, after).await
    }

    async fn flush(&self) -> Result<()> {
        seen(&self.calls);
        self.inner.flush().await
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<Opened> {
        known_flags(mode.flags.unknown().0)?;
        seen(&self.calls);
        let calls = self.calls.clone();
        let inner = self.inner.open_object(key, mode).await?;
        Ok(Opened { calls, inner })
    }

    async fn close(&self) -> Result<()> {
        tracing::info!("{} calls", self.calls.load(Ordering::Relaxed));
        self.inner.close().await
    }
}

struct Opened {
    calls: Arc<AtomicU64>,
    inner: NextObject,
}

impl Object for Opened {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    async fn size(&self) -> Result<u64> {
        self.inner.size().await
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if !flags.unknown().is_empty() {
            return None;
        }
        let data = self.inner.start_read(offset, len, flags).now().ok()?;
        seen(&self.calls);
        Some(data)
    }

    async fn read(&self, offset: u64, len: u64, flags: ReadFlags) -> Result<Data> {
        known_flags(flags.unknown().0)?;
        seen(&self.calls);
        self.inner.read(offset, len, flags).await
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        if !flags.unknown().is_empty() {
            return None;
        }
        let started = self.inner.start_write(offset, body.clone(), flags);
        let written = started.now().ok()?;
        seen(&self.calls);
        Some(written)
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        seen(&self.calls);
        self.inner.write(offset, body, flags).await
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        known_flags(flags.unknown().0)?;
        seen(&self.calls);
        self.inner.zero(offset, len, flags).await
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        seen(&self.calls);
        self.inner.extents(offset, len, limit).await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.prefetch(offset, len).await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        seen(&self.calls);
        self.inner.resize(size).await
    }

    async fn sync(&self) -> Result<()> {
        seen(&self.calls);
        self.inner.sync().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[cfg(test)]
mod tests {
    use nbd_rs_plugin::conformance::{host::block_on, memory::Memory, run, Options};
    use nbd_rs_plugin::export_backend;

    use super::*;

    #[test]
    fn it_conforms_before_a_store_that_answers_at_once_and_one_that_does_not() {
        let memory = Memory::default();
        for store in [memory.clone(), memory.slow()] {
            let link = Link {
                calls: Arc::default(),
                inner: export_backend(store).into(),
            };
            let next = export_backend(link).into();
            let report = block_on(run(next, &Options::named("test/", 1)));
            assert!(report.passed(), "{report}");
        }
    }
}
