//! Deletes the objects of shards that were given up, in the background and in bulk.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::lease::Lease;
use super::names::Names;
use super::ranges::Ranges;
use super::store::Store;
use crate::error::Result;
use crate::runtime;

/// Objects in one bulk delete (the most that S3 takes).
const BULK: u64 = 1000;

/// Knows of every object that may lie there though its shard is never.
pub(super) struct Reaper {
    store: Store,
    names: Names,
    lease: Arc<Lease>,
    sets: Mutex<Sets>,
    changed: Notify,
}

#[derive(Default)]
struct Sets {
    /// Shards whose objects may linger.
    lingering: Ranges,
    /// Those of them that may be deleted: that the shard is never is durable.
    queued: Ranges,
    /// Those that are being deleted.
    in_hand: Ranges,
    running: bool,
    stopped: bool,
}

/// Who deletes an object.
enum Hand {
    /// There is none.
    Nothing,
    Mine,
    Others,
}

impl Reaper {
    pub(super) fn new(store: Store, names: Names, lease: Arc<Lease>) -> Arc<Self> {
        Arc::new(Self {
            store,
            names,
            lease,
            sets: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the shard's object may lie there though it is never.
    pub(super) fn lingers(&self, shard: u64) -> bool {
        self.sets().lingering.contains(shard)
    }

    /// Whether any of them does.
    pub(super) fn any_lingers(&self, shards: Range<u64>) -> bool {
        self.sets().lingering.touches(shards)
    }

    /// These shards are about to become never.
    pub(super) fn announce(&self, shards: Range<u64>) {
        self.sets().lingering.insert(shards);
    }

    /// They did not.
    pub(super) fn withdraw(&self, shards: Range<u64>) {
        self.sets().lingering.remove(shards);
    }

    /// They did, durably: their objects go.
    pub(super) fn release(self: &Arc<Self>, shards: Range<u64>) {
        let start = {
            let mut sets = self.sets();
            sets.lingering.insert(shards.clone());
            sets.queued.insert(shards);
            !sets.stopped && !std::mem::replace(&mut sets.running, true)
        };
        if start {
            runtime::handle().spawn(self.clone().run());
        }
    }

    async fn run(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            if let Err(error) = self.delete(batch).await {
                tracing::warn!("objects of shards that were trimmed could not be deleted: {error}");
            }
        }
        self.changed.notify_waiters();
    }

    fn next_batch(&self) -> Option<Range<u64>> {
        let mut sets = self.sets();
        let batch = match sets.stopped {
            true => None,
            false => sets.queued.take(BULK),
        };
        sets.running = batch.is_some();
        if let Some(batch) = &batch {
            sets.in_hand.insert(batch.clone());
        }
        batch
    }

    /// Deletes the objects of shards that are in hand; those that could not be go on lingering.
    async fn delete(&self, shards: Range<u64>) -> Result<()> {
        let deleted = self.try_delete(shards.clone()).await;
        let outcome = self.deleted(shards, deleted);
        self.changed.notify_waiters();
        outcome
    }

    fn deleted(&self, shards: Range<u64>, results: Result<Vec<Result<()>>>) -> Result<()> {
        let mut sets = self.sets();
        sets.in_hand.remove(shards.clone());
        let mut outcome = Ok(());
        for (shard, result) in shards.zip(results?) {
            match result {
                Ok(()) => sets.lingering.remove(shard..shard + 1),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    async fn try_delete(&self, shards: Range<u64>) -> Result<Vec<Result<()>>> {
        // What a newer owner put must stay.
        self.lease.confirm().await?;
        let keys = shards.map(|shard| self.names.shard(shard)).collect();
        let results = self.store.chain.delete(keys).wait().await?;
        self.store.settle().await?;
        Ok(results)
    }

    /// Makes sure that no old object lies in the place of a shard that is about to be written.
    ///
    /// # Errors
    /// If it can't be deleted.
    pub(super) async fn clear(&self, shard: u64) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.take_in_hand(shard) {
                Hand::Nothing => return Ok(()),
                Hand::Mine => return self.delete(shard..shard + 1).await,
                Hand::Others => {}
            }
            changed.await;
        }
    }

    fn take_in_hand(&self, shard: u64) -> Hand {
        let mut sets = self.sets();
        if !sets.lingering.contains(shard) {
            return Hand::Nothing;
        }
        if sets.in_hand.contains(shard) {
            return Hand::Others;
        }
        sets.queued.remove(shard..shard + 1);
        sets.in_hand.insert(shard..shard + 1);
        Hand::Mine
    }

    /// Waits so long for what is queued, then stops after what is in hand. Whether nothing is in
    /// hand any more: before that the volume must not be given back.
    pub(super) async fn stop(&self, most: Duration) -> bool {
        if runtime::timeout(most, self.idle()).await.is_ok() {
            return true;
        }
        self.sets().stopped = true;
        runtime::timeout(most, self.idle()).await.is_ok()
    }

    async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let busy = {
                let sets = self.sets();
                sets.running || !sets.in_hand.is_empty()
            };
            if !busy {
                return;
            }
            changed.await;
        }
    }
}
