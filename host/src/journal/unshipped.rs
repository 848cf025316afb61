//! What the volume does not have yet, kept in memory in bounds.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_rs_journal::change::Change;
use nbd_rs_journal::index::{Batch, Index, Piece};

/// In percent of what may wait: from here on writers are slowed down.
const HIGH_PERCENT: u64 = 80;
/// One batch is so many parts of what may wait.
const BATCHES: u64 = 4;

/// The index behind a lock, and its size beside it.
pub(super) struct Unshipped {
    index: Mutex<Index>,
    memory_bytes: AtomicU64,
    most_bytes: u64,
}

impl Unshipped {
    /// Empty, behind record `last_seq`. `most_bytes` of memory are not passed by more than what is
    /// appended at the same time.
    pub(super) fn new(last_seq: u64, most_bytes: u64) -> Self {
        Self {
            index: Mutex::new(Index::new(last_seq, most_bytes / BATCHES)),
            memory_bytes: AtomicU64::new(0),
            most_bytes,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index();
        let changed = change(&mut index);
        self.memory_bytes
            .store(index.memory_bytes(), Ordering::Release);
        changed
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in record `seq`. Records come in their order: the journal numbers them one by one.
    pub(super) fn insert(&self, seq: u64, changes: &[Change]) {
        let inserted = self.change(|index| index.insert(seq, changes));
        inserted.expect("the journal calls back in the order of its records");
    }

    pub(super) fn read(&self, range: Range<u64>) -> Vec<Piece> {
        self.index().read(range)
    }

    /// Whether the volume has everything.
    pub(super) fn is_empty(&self) -> bool {
        self.memory_bytes.load(Ordering::Acquire) == 0
    }

    pub(super) fn bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Acquire)
    }

    /// Whether there is enough for a batch.
    pub(super) fn is_worth_it(&self) -> bool {
        self.bytes() >= self.most_bytes / BATCHES
    }

    /// Whether nothing more may come in.
    pub(super) fn is_full(&self) -> bool {
        self.bytes() >= self.most_bytes
    }

    /// How near it is to being full, once it is near: from 0 to 1.
    pub(super) fn pressure(&self) -> Option<f64> {
        let high = self.most_bytes * HIGH_PERCENT / 100;
        let above = self.bytes().checked_sub(high)?;
        Some((above as f64 / (self.most_bytes - high) as f64).min(1.0))
    }

    pub(super) fn batch_behind(&self, seq: u64, seal: bool) -> Option<Batch> {
        self.index().batch_behind(seq, seal)
    }

    pub(super) fn shipped(&self, seq: u64) {
        self.change(|index| index.shipped(seq));
    }

    pub(super) fn merge(&self) {
        self.change(Index::merge);
    }
}
