//! Flushes of one volume: shared among those who wait, and never true after a failed sync until
//! the lost bytes were written again (contract C4, C5).

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::dirty::{Began, Dirty};
use crate::backend::Object;
use crate::error::{Error, Kind, Result};
use crate::runtime;

/// The dirty record of an object and the queue before its sync.
#[derive(Debug)]
pub(super) struct Durability {
    object: Object,
    dirty: Mutex<Dirty>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    running: bool,
    /// They came after the running sync began, so it does not cover them.
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Durability {
    /// For an object that was just opened; nothing of it is dirty.
    pub(super) fn new(object: Object) -> Arc<Self> {
        Arc::new(Self {
            object,
            dirty: Mutex::default(),
            queue: Mutex::default(),
        })
    }

    /// A write is about to start.
    pub(super) fn writing(&self, offset: u64, len: u64) -> Began {
        lock(&self.dirty).writing(offset, len)
    }

    /// It ended well.
    pub(super) fn written(&self, offset: u64, len: u64, began: Began) {
        lock(&self.dirty).written(offset, len, began);
    }

    /// Makes durable all that was acknowledged before the first poll. Those who come while a sync
    /// runs share the next one.
    pub(super) fn flush(self: &Arc<Self>) -> impl Future<Output = Result<()>> + Send + 'static {
        let durability = self.clone();
        async move {
            let (sender, receiver) = oneshot::channel();
            let start = {
                let mut queue = lock(&durability.queue);
                queue.waiting.push(sender);
                !std::mem::replace(&mut queue.running, true)
            };
            if start {
                runtime::handle().spawn(durability.clone().serve_waiting());
            }
            let lost = || Error::new(Kind::Io, "the flush was given up");
            receiver.await.unwrap_or_else(|_| Err(lost()))
        }
    }

    async fn serve_waiting(self: Arc<Self>) {
        loop {
            let waiting = {
                let mut queue = lock(&self.queue);
                if queue.waiting.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let result = self.sync().await;
            for sender in waiting {
                // A receiver that went away does not want to know.
                let _ = sender.send(result.clone());
            }
        }
    }

    async fn sync(&self) -> Result<()> {
        if let Some(bytes) = lock(&self.dirty).lost_bytes() {
            return Err(lost(bytes));
        }
        lock(&self.dirty).sync_begins();
        let result = self.object.sync().await;
        lock(&self.dirty).sync_ended(result.is_ok());
        if let Err(error) = &result {
            tracing::error!(
                "sync failed, flushes fail until the lost bytes are rewritten: {error}"
            );
        }
        result
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
    use nbd_rs_plugin::{ObjectFlags, ObjectMode};
    use std::sync::atomic::Ordering;

    fn write(durability: &Durability, offset: u64, len: u64) {
        let began = durability.writing(offset, len);
        durability.written(offset, len, began);
    }

    #[test]
    fn c05_a_flush_after_a_failed_sync_stays_an_error_until_rewritten() {
        let (chain, faults) = memory::chain(vec![0; 4096]);
        runtime::block_on(async {
            let mode = ObjectMode::new(ObjectFlags::WRITE);
            let durability = Durability::new(chain.open_object("", mode).await.unwrap());
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
            let durability = Durability::new(chain.open_object("", mode).await.unwrap());
            faults.failing_syncs.store(1, Ordering::Relaxed);
            // Nothing is dirty, so the failed sync loses nothing, and the next one is believed.
            let (first, second) = (durability.flush(), durability.flush());
            let _ = futures_util::future::join(first, second).await;
            durability.flush().await.unwrap();
        });
    }
}
