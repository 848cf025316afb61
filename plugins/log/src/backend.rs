//! The link: one short method per operation.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Backend, Body, Capabilities, Condition, GetFlags, Got, Meta, Next, ObjectMode,
    OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::meter::{Meter, Op, What};
use crate::object::LogObject;

/// Stands before a backend, and writes down what it is asked.
#[derive(Debug)]
pub struct Log {
    meter: Arc<Meter>,
    inner: Next,
}

impl Log {
    /// Opens the link.
    ///
    /// # Errors
    /// What is wrong with an option; that nothing stands behind it.
    pub fn open(mut request: OpenRequest) -> Result<Self> {
        let config = Config::new(&request.options)?;
        let inner = request.take_inner()?;
        Ok(Self::new(&request.target, config, inner))
    }

    /// A link before `inner`; `name` is in every line.
    pub fn new(name: &str, config: Config, inner: Next) -> Self {
        let meter = Arc::new(Meter::new(name, config));
        Self { meter, inner }
    }

    /// What it has seen.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

fn got_bytes(got: &Got) -> u64 {
    got.data.len()
}

/// A range by name may say "to the end": then how long it is, only the answer knows.
fn asked<'a>(key: &'a str, range: Range) -> What<'a> {
    let len = if range.len == Range::TO_END {
        0
    } else {
        range.len
    };
    What::at(Op::Get, key, range.offset, len)
}

#[deny(clippy::missing_trait_methods)]
impl Backend for Log {
    type Object = LogObject;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        let call = self.meter.start(asked(key, range));
        match self.inner.try_get(key, range, flags) {
            Some(got) => Some(call.done_with(got_bytes, got)),
            None => {
                call.not_made();
                None
            }
        }
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        known_flags(flags.unknown().0)?;
        let call = self.meter.start(asked(key, range));
        call.done_with(got_bytes, self.inner.get(key, range, flags).await)
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let what = What {
            bytes: body.len(),
            ..What::new(Op::Put, key)
        };
        let call = self.meter.start(what);
        call.done(self.inner.put(key, body, condition).await)
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        known_flags(flags.unknown().0)?;
        let call = self.meter.start(What::new(Op::Head, key));
        call.done(self.inner.head(key, flags).await)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let first = keys.first().cloned().unwrap_or_default();
        let call = self.meter.start(What::new(Op::Delete, &first));
        call.done(self.inner.delete(keys).await)
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let call = self.meter.start(What::new(Op::List, prefix));
        call.done(self.inner.list(prefix, after).await)
    }

    async fn flush(&self) -> Result<()> {
        let call = self.meter.start(What::new(Op::Flush, ""));
        call.done(self.inner.flush().await)
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<LogObject> {
        known_flags(mode.flags.unknown().0)?;
        let call = self.meter.start(What::new(Op::Open, key));
        let object = call.done(self.inner.open_object(key, mode).await)?;
        Ok(LogObject::new(self.meter.clone(), object, key))
    }

    async fn close(&self) -> Result<()> {
        let closed = self.inner.close().await;
        self.meter.tell();
        closed
    }
}
