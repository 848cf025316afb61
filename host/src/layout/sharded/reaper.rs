//! Deletes the objects of shards that were given up, in the background and in bulk.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::lease::Lease;
use super::names::Names;
use super::process;
use super::ranges::Ranges;
use super::store::{back_off, Store, ATTEMPTS};
use crate::error::{Kind, Result};
use crate::runtime;

/// Objects in one bulk delete (the most that S3 takes).
const BULK: u64 = 1000;
/// Between the first two looks at an object that a late delete may hit; then twice as long each time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The longest time between two looks.
const MOST_BETWEEN_LOOKS: Duration = Duration::from_secs(1);

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
    /// Those of them that a delete may still hit whose answer nobody has: nothing is put there.
    held: Vec<Held>,
    /// Those that are being deleted.
    in_hand: Ranges,
    running: bool,
    stopped: bool,
}

/// Shards whose objects may be deleted late.
struct Held {
    shards: Ranges,
    /// Since the boot.
    until: Duration,
}

impl Sets {
    /// How long a late delete may still hit what is put in the place of a shard.
    fn held_for(&self, shard: u64) -> Duration {
        let held = self.held.iter().filter(|held| held.shards.contains(shard));
        let until = held.map(|held| held.until).max().unwrap_or_default();
        until.saturating_sub(process::since_boot())
    }

    fn let_go(&mut self, shard: u64) {
        for held in &mut self.held {
            held.shards.remove(shard..shard + 1);
        }
    }
}

/// Who deletes an object.
enum Hand {
    /// There is none.
    Nothing,
    /// Somebody who may have sent a delete that comes late.
    Late,
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
        self.queue(&mut self.sets(), shards);
    }

    fn queue(self: &Arc<Self>, sets: &mut Sets, shards: Range<u64>) {
        sets.lingering.insert(shards.clone());
        sets.queued.insert(shards);
        if !sets.stopped && !std::mem::replace(&mut sets.running, true) {
            runtime::handle().spawn(self.clone().run());
        }
    }

    /// An earlier owner left the objects of these shards, which are never. Its deletes may be on
    /// their way.
    pub(super) fn inherit(self: &Arc<Self>, shards: Ranges) {
        let until = self.lease.earlier_deletes_end();
        self.hold(&mut self.sets(), shards, until);
    }

    /// The objects of these shards are deleted when no other delete of them can come any more: after
    /// one of ours it would hit what was put there since.
    fn hold(self: &Arc<Self>, sets: &mut Sets, shards: Ranges, until: Duration) {
        for run in shards.runs() {
            sets.lingering.insert(run);
        }
        sets.held.push(Held { shards, until });
        let reaper = Arc::downgrade(self);
        runtime::handle().spawn(async move {
            tokio::time::sleep(until.saturating_sub(process::since_boot())).await;
            if let Some(reaper) = reaper.upgrade() {
                reaper.release_held(until);
            }
        });
    }

    /// What is still held until then goes.
    fn release_held(self: &Arc<Self>, until: Duration) {
        let mut sets = self.sets();
        let at = sets.held.iter().position(|held| held.until == until);
        let over = at.map(|at| sets.held.swap_remove(at).shards);
        for run in over.unwrap_or_default().runs() {
            self.queue(&mut sets, run);
        }
    }

    /// Waits until the object of a shard is gone, or no late delete of it can come.
    async fn outwait(&self, shard: u64) {
        let mut pause = LOOK_AGAIN;
        loop {
            // A store that does not tell is no reason to give up.
            let found = self.store.head(self.names.shard(shard)).await;
            let left = {
                let mut sets = self.sets();
                let left = sets.held_for(shard);
                if left.is_zero() {
                    return;
                }
                if let Ok(None) = found {
                    // It has come.
                    sets.let_go(shard);
                    sets.lingering.remove(shard..shard + 1);
                    return;
                }
                left
            };
            tokio::time::sleep(left.min(pause)).await;
            pause = (pause * 2).min(MOST_BETWEEN_LOOKS);
        }
    }

    async fn run(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            match self.delete(batch).await {
                Ok(()) => {}
                Err(error) if error.kind == Kind::Ambiguous => tracing::info!(
                    "objects of shards that were trimmed may not be deleted yet: {error}"
                ),
                Err(error) => tracing::warn!(
                    "objects of shards that were trimmed could not be deleted: {error}"
                ),
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
    async fn delete(self: &Arc<Self>, shards: Range<u64>) -> Result<()> {
        let deleted = self.try_delete(shards.clone()).await;
        let outcome = self.deleted(shards, deleted);
        self.changed.notify_waiters();
        outcome
    }

    fn deleted(
        self: &Arc<Self>,
        shards: Range<u64>,
        results: Result<Vec<Result<()>>>,
    ) -> Result<()> {
        let results = results.unwrap_or_else(|error| {
            let each = shards.clone().map(|_| Err(error.clone()));
            each.collect()
        });
        let (mut outcome, mut unknown) = (Ok(()), Ranges::default());
        let mut sets = self.sets();
        sets.in_hand.remove(shards.clone());
        for (shard, result) in shards.zip(results) {
            let shard = shard..shard + 1;
            match result {
                Ok(()) => sets.lingering.remove(shard),
                Err(error) => {
                    if error.kind == Kind::Ambiguous {
                        unknown.insert(shard);
                    }
                    outcome = Err(error);
                }
            }
        }
        if !unknown.is_empty() {
            self.hold(&mut sets, unknown, self.lease.late_deletes_end());
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
    pub(super) async fn clear(self: &Arc<Self>, shard: u64) -> Result<()> {
        let mut attempt = 0;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.take_in_hand(shard) {
                Hand::Nothing => return Ok(()),
                Hand::Mine => match self.delete(shard..shard + 1).await {
                    // Now it is held: waited for, and deleted again if it did not come.
                    Err(error) if error.kind == Kind::Ambiguous && attempt + 1 < ATTEMPTS => {
                        back_off(attempt).await;
                        attempt += 1;
                        continue;
                    }
                    outcome => return outcome,
                },
                Hand::Late => {
                    self.outwait(shard).await;
                    continue;
                }
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
        if !sets.held_for(shard).is_zero() {
            return Hand::Late;
        }
        sets.let_go(shard);
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
