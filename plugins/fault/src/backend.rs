//! The link: one short method per operation.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nbd_rs_plugin::{
    known_flags, Backend, Body, Capabilities, Condition, GetFlags, Got, Host, Meta, Next,
    ObjectMode, OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::faults::Faults;
use crate::object::FaultObject;
use crate::plan::{Fault, Op};
use crate::versions::Versions;

/// Stands before a backend, and does it harm.
#[derive(Debug)]
pub struct FaultLink {
    faults: Arc<Faults>,
    versions: Versions,
    inner: Next,
}

impl FaultLink {
    /// Opens the link.
    ///
    /// # Errors
    /// What is wrong with an option; that nothing stands behind it.
    pub fn open(host: Host, mut request: OpenRequest) -> Result<Self> {
        let mut config = Config::new(&request.options)?;
        config.plan.seed = config.seed.unwrap_or_else(of_the_clock);
        let link = Self::new(host, config, request.take_inner()?);
        link.faults.tell_plan();
        Ok(link)
    }

    /// A link before `inner`.
    pub fn new(host: Host, config: Config, inner: Next) -> Self {
        Self {
            faults: Arc::new(Faults::new(host, config)),
            versions: Versions::default(),
            inner,
        }
    }

    /// What happens, and what happened.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    async fn remember(&self, key: &str) {
        if self.faults.may(Fault::Stale) {
            self.versions.remember(&self.inner, key).await;
        }
    }
}

fn of_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Six digits more than enough, and short enough to type.
    now.map_or(1, |now| now.as_micros() as u64 % 1_000_000_000)
}

/// Its capabilities are those of the backend behind it, also where a fault breaks what they
/// promise: that is what it is for.
#[deny(clippy::missing_trait_methods)]
impl Backend for FaultLink {
    type Object = FaultObject;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().passed_on()
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        if self.faults.concern(Op::Get) || !flags.unknown().is_empty() {
            return None;
        }
        self.inner.try_get(key, range, flags)
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        known_flags(flags.unknown().0)?;
        let step = self.faults.meet(Op::Get, key).await?;
        if step.is_stale() {
            if let Some(old) = self.versions.get(key, range, flags) {
                return old;
            }
        }
        let Got { data, meta } = self.inner.get(key, range, flags).await?;
        let data = step.data(Ok(data))?;
        Ok(Got { data, meta })
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let step = self.faults.meet(Op::Put, key).await?;
        if step.is_lost() {
            return Ok(Put::new("lost"));
        }
        self.remember(key).await;
        step.answer(self.inner.put(key, body, condition).await)
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        known_flags(flags.unknown().0)?;
        let step = self.faults.meet(Op::Head, key).await?;
        if step.is_stale() {
            if let Some(old) = self.versions.head(key) {
                return old;
            }
        }
        step.answer(self.inner.head(key, flags).await)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let first = keys.first().cloned().unwrap_or_default();
        let step = self.faults.meet(Op::Delete, &first).await?;
        if step.is_lost() {
            return Ok(keys.iter().map(|_| Ok(())).collect());
        }
        for key in &keys {
            self.remember(key).await;
        }
        step.answer(self.inner.delete(keys).await)
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let step = self.faults.meet(Op::List, prefix).await?;
        step.answer(self.inner.list(prefix, after).await)
    }

    async fn flush(&self) -> Result<()> {
        let step = self.faults.meet(Op::Flush, "").await?;
        match step.is_lost() {
            true => Ok(()),
            false => step.answer(self.inner.flush().await),
        }
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<FaultObject> {
        known_flags(mode.flags.unknown().0)?;
        let step = self.faults.meet(Op::Open, key).await?;
        let object = step.answer(self.inner.open_object(key, mode).await)?;
        Ok(FaultObject::new(self.faults.clone(), object, key))
    }

    async fn close(&self) -> Result<()> {
        self.faults.tell_met();
        self.inner.close().await
    }
}
