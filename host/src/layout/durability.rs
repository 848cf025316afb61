//! Flushes of one volume: shared among those who wait, and never true after a failed sync until
//! the lost bytes were written again (contract C4, C5).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dirty::{Began, Dirty};
use super::gather::Gather;
use crate::error::{Error, Kind, Result};

/// How a sync failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// What was written since the last good one may be lost.
    Lost(Error),
    /// Nothing is lost: it can be tried again.
    Again(Error),
}

type Syncing = Pin<Box<dyn Future<Output = std::result::Result<(), Failed>> + Send>>;

/// The dirty record of a volume and the queue before its sync.
pub(super) struct Durability {
    sync: Box<dyn Fn() -> Syncing + Send + Sync>,
    dirty: Mutex<Dirty>,
    gather: Arc<Gather>,
}

impl Durability {
    /// For a volume that was just opened; nothing of it is dirty. `sync` makes durable all that
    /// was acknowledged before it is called.
    pub(super) fn new<F>(sync: impl Fn() -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = std::result::Result<(), Failed>> + Send + 'static,
    {
        Arc::new(Self {
            sync: Box::new(move || Box::pin(sync())),
            dirty: Mutex::default(),
            gather: Arc::default(),
        })
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write is about to start.
    pub(super) fn writing(&self, offset: u64, len: u64) -> Began {
        self.dirty().writing(offset, len)
    }

    /// It ended well.
    pub(super) fn written(&self, offset: u64, len: u64, began: Began) {
        self.dirty().written(offset, len, began);
    }

    /// A part of the volume could not be synced, outside a flush.
    pub(super) fn sync_failed(&self) {
        self.dirty().failed();
    }

    /// Makes durable all that was acknowledged before the first poll. Those who come while a sync
    /// runs share the next one.
    pub(super) fn flush(self: &Arc<Self>) -> impl Future<Output = Result<()>> + Send + 'static {
        let durability = self.clone();
        self.gather.join(move || {
            let durability = durability.clone();
            Box::pin(async move { durability.sync().await })
        })
    }

    async fn sync(&self) -> Result<()> {
        if let Some(bytes) = self.dirty().lost_bytes() {
            return Err(lost(bytes));
        }
        self.dirty().sync_begins();
        match (self.sync)().await {
            Ok(()) => {
                self.dirty().sync_ended(true);
                // Something of it may have failed on its own meanwhile.
                self.dirty()
                    .lost_bytes()
                    .map_or(Ok(()), |bytes| Err(lost(bytes)))
            }
            Err(Failed::Again(error)) => {
                self.dirty().sync_put_off();
                Err(error)
            }
            Err(Failed::Lost(error)) => {
                self.dirty().sync_ended(false);
                tracing::error!(
                    "sync failed, flushes fail until the lost bytes are rewritten: {error}"
                );
                Err(error)
            }
        }
    }
}

fn lost(bytes: u64) -> Error {
    let what = match bytes {
        u64::MAX => "an unknown part of the volume".to_owned(),
        bytes => format!("{bytes} bytes"),
    };
    let text =
        format!("an earlier sync failed: {what} must be written again before a flush can succeed");
    Error::new(Kind::Io, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory;
    use crate::backend::Object;
    use crate::runtime;
    use nbd_rs_plugin::{ObjectFlags, ObjectMode};
    use std::sync::atomic::Ordering;

    /// Over one object.
    fn over(object: Object) -> Arc<Durability> {
        Durability::new(move || {
            let object = object.clone();
            async move { object.sync().await.map_err(Failed::Lost) }
        })
    }

    fn write(durability: &Durability, offset: u64, len: u64) {
        let began = durability.writing(offset, len);
        durability.written(offset, len, began);
    }

    #[test]
    fn c05_a_flush_after_a_failed_sync_stays_an_error_until_rewritten() {
        let (chain, faults) = memory::chain(vec![0; 4096]);
        runtime::block_on(async {
            let mode = ObjectMode::new(ObjectFlags::WRITE);
            let durability = over(chain.open_object("", mode).await.unwrap());
            write(&durability, 512, 1024);
            faults.failing_syncs.store(1, Ordering::Relaxed);
            for _ in 0..3 {
                assert_eq!(durability.flush().await.unwrap_err().kind, Kind::Io);
            }
            write(&durability, 512, 512);
            let error = durability.flush().await.unwrap_err();
            assert!(error.message.contains("512 bytes"), "{error}");
            write(&durability, 1024, 512);
            durability.flush().await.unwrap();
        });
    }

    #[test]
    fn c04_flushes_share_a_sync_but_never_one_that_began_before_them() {
        let (chain, faults) = memory::chain(vec![0; 4096]);
        runtime::block_on(async {
            let mode = ObjectMode::new(ObjectFlags::WRITE);
            let durability = over(chain.open_object("", mode).await.unwrap());
            faults.failing_syncs.store(1, Ordering::Relaxed);
            // Nothing is dirty, so the failed sync loses nothing, and the next one is believed.
            let (first, second) = (durability.flush(), durability.flush());
            let _ = futures_util::future::join(first, second).await;
            durability.flush().await.unwrap();
        });
    }
}
