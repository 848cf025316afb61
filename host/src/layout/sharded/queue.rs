//! One change at a time in each shard; those that come meanwhile go together in the next.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, OwnedMutexGuard};

use super::image::{are_lent, covered, Edit};
use crate::error::Result;

/// A change and who waits for it.
pub(super) type Waiting = (Edit, oneshot::Sender<Result<()>>);

/// The queues of all shards; those that are idle take no memory.
#[derive(Default)]
pub(super) struct Queues {
    shards: Mutex<HashMap<u64, Shard>>,
}

#[derive(Default)]
struct Shard {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether somebody is going to carry out what waits.
    served: bool,
    waiting: Vec<Waiting>,
}

/// The right to touch the object of a shard; nobody else does meanwhile.
pub(super) struct Turn<'a> {
    queues: &'a Queues,
    shard: u64,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.queues.forget_idle(self.shard);
    }
}

/// Whoever serves a shard. If it ends in a panic, those who wait are told, and others can serve.
pub(super) struct Serving<'a> {
    queues: &'a Queues,
    shard: u64,
    over: bool,
}

impl Serving<'_> {
    /// Whether nothing waits any more; then somebody else may serve.
    pub(super) fn leave(&mut self) -> bool {
        let mut shards = self.queues.shards();
        let entry = shards.get_mut(&self.shard);
        self.over = entry.is_none_or(|entry| {
            entry.served = !entry.waiting.is_empty();
            !entry.served
        });
        self.over
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if !self.over {
            if let Some(entry) = self.queues.shards().get_mut(&self.shard) {
                entry.served = false;
                entry.waiting.clear();
            }
        }
        self.queues.forget_idle(self.shard);
    }
}

impl Queues {
    fn shards(&self) -> MutexGuard<'_, HashMap<u64, Shard>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_idle(&self, shard: u64) {
        let mut shards = self.shards();
        let idle = |entry: &Shard| {
            !entry.served && entry.waiting.is_empty() && Arc::strong_count(&entry.turn) == 1
        };
        if shards.get(&shard).is_some_and(idle) {
            shards.remove(&shard);
        }
    }

    /// Waits for one's turn.
    pub(super) async fn turn(&self, shard: u64) -> Turn<'_> {
        let turn = self.shards().entry(shard).or_default().turn.clone();
        let guard = turn.lock_owned().await;
        Turn {
            queues: self,
            shard,
            guard: Some(guard),
        }
    }

    /// Puts a change into the queue; the answer, and whether somebody must be sent to serve it.
    pub(super) fn push(
        &self,
        shard: u64,
        edit: Edit,
    ) -> (
        impl Future<Output = Option<Result<()>>> + Send + 'static,
        bool,
    ) {
        let (sender, receiver) = oneshot::channel();
        let mut shards = self.shards();
        let entry = shards.entry(shard).or_default();
        entry.waiting.push((edit, sender));
        let serve = !std::mem::replace(&mut entry.served, true);
        (async move { receiver.await.ok() }, serve)
    }

    /// Takes what waits.
    pub(super) fn take(&self, shard: u64) -> Vec<Waiting> {
        let mut shards = self.shards();
        let entry = shards.get_mut(&shard);
        entry
            .map(|entry| std::mem::take(&mut entry.waiting))
            .unwrap_or_default()
    }

    /// How many changes wait, and whether they cover the first `len` bytes together.
    pub(super) fn waiting(&self, shard: u64, len: u64) -> (usize, bool) {
        let shards = self.shards();
        let waiting = shards.get(&shard).map_or(&[][..], |entry| &entry.waiting);
        let ranges = waiting.iter().map(|(edit, _)| edit.range());
        (waiting.len(), covered(ranges.collect(), 0..len))
    }

    /// Whether all that waits are zeros: to a shard that is never they change nothing.
    pub(super) fn are_zeroes(&self, shard: u64) -> bool {
        let shards = self.shards();
        let waiting = shards.get(&shard).map_or(&[][..], |entry| &entry.waiting);
        let mut edits = waiting.iter().map(|(edit, _)| edit);
        edits.all(|edit| matches!(edit, Edit::Zero(_)))
    }

    /// Whether what waits can be put as it is.
    pub(super) fn are_lent(&self, shard: u64, shard_bytes: u64) -> bool {
        let shards = self.shards();
        let waiting = shards.get(&shard).map_or(&[][..], |entry| &entry.waiting);
        let (mut ranges, mut pieces) = (Vec::with_capacity(waiting.len()), 0);
        for (edit, _) in waiting {
            let Edit::Write(_, body) = edit else {
                return false;
            };
            pieces += body.pieces().len();
            ranges.push(edit.range());
        }
        ranges.sort_by_key(|range| range.start);
        are_lent(&ranges, pieces, shard_bytes)
    }

    /// Begins to serve a shard that [`push`](Self::push) found nobody to serve.
    pub(super) fn serve(&self, shard: u64) -> Serving<'_> {
        Serving {
            queues: self,
            shard,
            over: false,
        }
    }

    /// Shards of a range that somebody is at.
    pub(super) fn busy(&self, range: &std::ops::Range<u64>) -> Vec<u64> {
        let shards = self.shards();
        let busy = shards.keys().filter(|shard| range.contains(shard));
        busy.copied().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards().len()
    }
}
