//! The link: one short method per operation.

use std::sync::Arc;

use nbd_rs_plugin::{
    known_flags, Backend, Body, Capabilities, Condition, Error, GetFlags, Got, Host, Kind, Meta,
    Next, ObjectFlags, ObjectMode, OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::disk::Disk;
use crate::index::Version;
use crate::object::CachedObject;
use crate::shared::Shared;

/// Stands before a backend, and keeps copies of what it answers.
#[derive(Debug)]
pub struct Cache(Arc<Shared>);

impl Cache {
    /// Opens the link.
    ///
    /// # Errors
    /// What is wrong with an option; that nothing stands behind it.
    pub async fn open(host: Host, mut request: OpenRequest) -> Result<Self> {
        let config = Config::new(&request.options)?;
        let inner = request.take_inner()?;
        Self::new(host, config, inner, &request.target).await
    }

    /// A link before `inner`. `store` tells its objects from those of other stores, on disk.
    ///
    /// # Errors
    /// What is wrong with the directory.
    pub async fn new(host: Host, config: Config, inner: Next, store: &str) -> Result<Self> {
        let disk = match &config.dir {
            None => None,
            Some(_) if store.is_empty() => {
                let text = "dir needs a host that tells links which store is behind them";
                return Err(Error::new(Kind::Unsupported, text));
            }
            Some(dir) => {
                let (limit, waiting, block) = (config.disk_size, config.waiting(), config.block);
                or_without(Disk::open(host, dir, limit, waiting, store, block).await)?
            }
        };
        Ok(Self(Shared::new(host, config, inner, disk)))
    }

    /// The tier on disk, if there is one.
    pub fn disk(&self) -> Option<&Disk> {
        self.0.disk.as_deref()
    }

    /// Bytes of copies and bookkeeping in memory.
    pub fn used_bytes(&self) -> u64 {
        self.0.memory.used_bytes() + self.0.index.used_bytes()
    }
}

/// A disk that fails costs the copies on it, not the volume. What the user can put right is told.
fn or_without<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(error) if matches!(error.kind, Kind::NoSpace | Kind::Io) => {
            tracing::warn!("the cache's directory is not used: {error}");
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

#[deny(clippy::missing_trait_methods)]
impl Backend for Cache {
    type Object = CachedObject;

    fn capabilities(&self) -> Capabilities {
        // Nothing is promised that is not kept behind: writes go through, and a read after one of
        // ours gives that write.
        self.0.inner.capabilities().passed_on()
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        if flags.has(GetFlags::FRESH) || !flags.unknown().is_empty() {
            return None;
        }
        self.0.hit(key, range, flags).map(Ok)
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        known_flags(flags.unknown().0)?;
        match flags.has(GetFlags::FRESH) {
            true => self.0.ask(key, range, flags).await,
            false => self.0.read(key, range, flags).await,
        }
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let change = self.0.change(key);
        let put = self.0.inner.put(key, body.clone(), condition).await;
        match &put {
            Ok(put) => change.stored(&put.etag, body),
            failed => change.ended(failed),
        }
        put
    }

    async fn head(&self, key: &str, flags: GetFlags) -> Result<Meta> {
        known_flags(flags.unknown().0)?;
        let held = self.0.index.lookup(key);
        let held = held.as_ref().and_then(|object| object.version.get());
        match held {
            Some(version) if !flags.has(GetFlags::FRESH) => return Ok(version.meta(key)),
            _ => {}
        }
        let Some(object) = self.0.index.current(key) else {
            return self.0.inner.head(key, flags).await;
        };
        let began = self.0.index.tick();
        let meta = self.0.inner.head(key, flags).await;
        let meta = self.0.noticed(key, &object, meta)?;
        if let Some(version) = Version::of(&meta) {
            self.0.observe(key, &object, &version, began);
        }
        Ok(meta)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let changes: Vec<_> = keys.iter().map(|key| self.0.change(key)).collect();
        let results = self.0.inner.delete(keys).await;
        match &results {
            Ok(results) => {
                // One without a result of its own ends as unknown, where it is dropped.
                for (change, result) in changes.into_iter().zip(results) {
                    change.ended(result);
                }
            }
            failed => changes.into_iter().for_each(|change| change.ended(failed)),
        }
        results
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.0.inner.list(prefix, after).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.inner.flush().await
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<CachedObject> {
        known_flags(mode.flags.unknown().0)?;
        let changes = ObjectFlags::WRITE | ObjectFlags::CREATE | ObjectFlags::TRUNCATE;
        let change = (mode.flags.0 & changes.0 != 0).then(|| self.0.change(key));
        match self.0.inner.open_object(key, mode).await {
            Ok(object) => Ok(CachedObject::new(object, change)),
            Err(error) => {
                let failed = Err::<(), _>(error);
                if let Some(change) = change {
                    change.ended(&failed);
                }
                failed.map(|()| unreachable!("it is an error"))
            }
        }
    }

    async fn close(&self) -> Result<()> {
        self.0.log_summary();
        if let Some(disk) = &self.0.disk {
            disk.close().await;
        }
        self.0.inner.close().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_at_start_is_a_cache_without_one() {
        for kind in [Kind::NoSpace, Kind::Io] {
            let opened = or_without(Err::<(), _>(Error::new(kind, "no")));
            assert!(opened.unwrap().is_none());
        }
        for kind in [Kind::Busy, Kind::Denied] {
            assert!(or_without(Err::<(), _>(Error::new(kind, "no"))).is_err());
        }
        assert_eq!(or_without(Ok(1)).unwrap(), Some(1));
    }
}
