//! The link: one short method per operation.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Backend, Body, Capabilities, Condition, GetFlags, Got, Host, Meta, Next,
    ObjectFlags, ObjectMode, OpenRequest, Page, Put, Range, Result,
};

use crate::config;
use crate::link::{Call, Link};
use crate::object::RetryObject;
use crate::policy::{repeatable, Class};

mod conditional;
mod delete;

/// Stands before a backend, and asks it again.
#[derive(Debug)]
pub struct Retry {
    link: Arc<Link>,
    inner: Next,
}

impl Retry {
    /// Opens the link.
    ///
    /// # Errors
    /// What is wrong with an option; that nothing stands behind it.
    pub async fn open(host: Host, mut request: OpenRequest) -> Result<Self> {
        let policy = config::policy(&request.options)?;
        let inner = request.take_inner()?;
        Ok(Self::new(Link::new(host, policy), inner))
    }

    /// A link before `inner`.
    pub fn new(link: Link, inner: Next) -> Self {
        let link = Arc::new(link);
        Self { link, inner }
    }

    /// What all its calls share.
    pub fn link(&self) -> &Link {
        &self.link
    }
}

fn call<'a>(operation: &'static str, name: &'a str, class: Class) -> Call<'a> {
    Call {
        operation,
        name,
        class,
    }
}

#[deny(clippy::missing_trait_methods)]
impl Backend for Retry {
    type Object = RetryObject;

    fn capabilities(&self) -> Capabilities {
        // A repeated call keeps the promise of a single one.
        self.inner.capabilities().passed_on()
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        if let Err(error) = known_flags(flags.unknown().0) {
            return Some(Err(error));
        }
        match self.inner.try_get(key, range, flags)? {
            Err(error) if repeatable(Class::Read, error.kind) => None,
            answer => Some(answer),
        }
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        known_flags(flags.unknown().0)?;
        let call = call("get", key, Class::Read);
        let attempt = || self.inner.get(key, range, flags);
        self.link.repeat(call, attempt).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        if condition != Condition::Always {
            return self.put_conditional(key, body, condition).await;
        }
        // The same bytes again are the same object; the pieces are counted, not copied.
        let call = call("put", key, Class::Idempotent);
        let attempt = || self.inner.put(key, body.clone(), Condition::Always);
        self.link.repeat(call, attempt).await
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        known_flags(flags.unknown().0)?;
        let call = call("head", key, Class::Read);
        self.link.repeat(call, || self.inner.head(key, flags)).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        self.delete_each(keys).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let call = call("list", prefix, Class::Read);
        self.link
            .repeat(call, || self.inner.list(prefix, after))
            .await
    }

    async fn flush(&self) -> Result<()> {
        // A flush that failed has lost something; the next one can't know, and would succeed.
        self.inner.flush().await
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<RetryObject> {
        known_flags(mode.flags.unknown().0)?;
        // If the first attempt came through after all, the second would meet its lock or its file.
        let once = ObjectFlags::CREATE_NEW | ObjectFlags::LOCK;
        let class = match mode.flags.0 & once.0 {
            0 => Class::Idempotent,
            _ => Class::Once,
        };
        let call = call("open", key, class);
        let attempt = || self.inner.open_object(key, mode);
        let object = self.link.repeat(call, attempt).await?;
        Ok(RetryObject::new(self.link.clone(), object, key))
    }

    async fn close(&self) -> Result<()> {
        self.link.log_summary();
        self.inner.close().await
    }
}
