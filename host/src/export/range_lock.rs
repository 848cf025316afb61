//! Order among overlapping requests: writers exclude everybody, readers exclude writers, first
//! come first served. While nothing is being written a reader only looks at one number, twice.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The lower bits of the state count writers; the upper ones count writers that ever began.
const WRITER_BITS: u32 = 20;
const ONE_BEGAN: u64 = 1 << WRITER_BITS;
const WRITERS: u64 = ONE_BEGAN - 1;

/// Locks on byte ranges of one export.
#[derive(Debug, Default)]
pub struct RangeLock {
    state: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    held: Vec<Entry>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug, Clone)]
struct Entry {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
}

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    waker: Waker,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        (self.exclusive || other.exclusive)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

/// Proof that no writer was at work at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet(u64);

/// A held range; dropping it lets the next ones in.
#[derive(Debug)]
#[must_use]
pub struct RangeGuard<L: std::ops::Deref<Target = RangeLock>> {
    lock: L,
    id: u64,
}

impl RangeLock {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no writer holds or awaits anything now.
    pub fn quiet(&self) -> Option<Quiet> {
        let state = self.state.load(Ordering::Acquire);
        (state & WRITERS == 0).then_some(Quiet(state))
    }

    /// Whether no writer has begun since: then what was read in between is one state.
    pub fn still(&self, quiet: Quiet) -> bool {
        fence(Ordering::Acquire);
        self.state.load(Ordering::Relaxed) == quiet.0
    }

    /// Takes the range at once, unless it overlaps one that is held or waited for.
    pub fn try_lock(&self, range: Range<u64>, exclusive: bool) -> Option<RangeGuard<&Self>> {
        let mut table = self.table();
        let entry = table.entry(range, exclusive);
        if !table.free(&entry) {
            return None;
        }
        let id = entry.id;
        self.counted(&entry);
        table.held.push(entry);
        Some(RangeGuard { lock: self, id })
    }

    /// Takes the range when everybody who came before and overlaps is gone. The place in the queue
    /// is taken now.
    pub fn lock<L>(lock: L, range: Range<u64>, exclusive: bool) -> LockFuture<L>
    where
        L: std::ops::Deref<Target = RangeLock> + Unpin,
    {
        let mut table = lock.table();
        let entry = table.entry(range, exclusive);
        let id = entry.id;
        lock.counted(&entry);
        if table.free(&entry) {
            table.held.push(entry);
        } else {
            let waker = Waker::noop().clone();
            table.waiting.push_back(Waiting { entry, waker });
        }
        drop(table);
        LockFuture(Some(RangeGuard { lock, id }))
    }

    fn counted(&self, entry: &Entry) {
        if entry.exclusive {
            self.state.fetch_add(ONE_BEGAN + 1, Ordering::AcqRel);
        }
    }

    fn release(&self, id: u64) {
        let mut table = self.table();
        let is_it = |entry: &Entry| entry.id == id;
        let gone = if let Some(at) = table.held.iter().position(is_it) {
            table.held.swap_remove(at)
        } else if let Some(at) = table.waiting.iter().position(|w| is_it(&w.entry)) {
            match table.waiting.remove(at) {
                Some(waiting) => waiting.entry,
                None => return,
            }
        } else {
            return;
        };
        if gone.exclusive {
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
        let wakers = table.promote();
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Table {
    fn entry(&mut self, range: Range<u64>, exclusive: bool) -> Entry {
        self.next_id += 1;
        Entry {
            id: self.next_id,
            range,
            exclusive,
        }
    }

    fn free(&self, entry: &Entry) -> bool {
        let waiting = self.waiting.iter().map(|waiting| &waiting.entry);
        !self
            .held
            .iter()
            .chain(waiting)
            .any(|other| other.conflicts(entry))
    }

    /// Moves everybody who may go from the queue to the holders.
    fn promote(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let entry = &self.waiting[at].entry;
            let before = self.waiting.iter().take(at).map(|waiting| &waiting.entry);
            if self
                .held
                .iter()
                .chain(before)
                .any(|other| other.conflicts(entry))
            {
                at += 1;
            } else if let Some(waiting) = self.waiting.remove(at) {
                self.held.push(waiting.entry);
                wakers.push(waiting.waker);
            }
        }
        wakers
    }
}

/// Waits for a range. Dropping it gives up the place in the queue.
#[derive(Debug)]
pub struct LockFuture<L: std::ops::Deref<Target = RangeLock>>(Option<RangeGuard<L>>);

impl<L> Future for LockFuture<L>
where
    L: std::ops::Deref<Target = RangeLock> + Unpin,
{
    type Output = RangeGuard<L>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let guard = self.0.take().expect("not polled after its end");
        let mut table = guard.lock.table();
        let id = guard.id;
        if let Some(waiting) = table.waiting.iter_mut().find(|w| w.entry.id == id) {
            waiting.waker.clone_from(cx.waker());
            drop(table);
            self.0 = Some(guard);
            return Poll::Pending;
        }
        drop(table);
        Poll::Ready(guard)
    }
}

impl<L: std::ops::Deref<Target = RangeLock>> Drop for RangeGuard<L> {
    fn drop(&mut self) {
        self.lock.release(self.id);
    }
}

impl<L: std::ops::Deref<Target = RangeLock>> RangeGuard<L> {
    /// Whether the hold covers all of `range`.
    pub fn covers(&self, range: Range<u64>) -> bool {
        let table = self.lock.table();
        let held = table.held.iter().find(|entry| entry.id == self.id);
        held.is_some_and(|held| held.range.start <= range.start && range.end <= held.range.end)
    }
}

impl RangeGuard<&RangeLock> {
    /// The same hold through an owner that may live longer.
    pub fn into_owned<L: std::ops::Deref<Target = RangeLock>>(self, lock: L) -> RangeGuard<L> {
        debug_assert!(std::ptr::eq(self.lock, &*lock));
        let id = self.id;
        std::mem::forget(self);
        RangeGuard { lock, id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::Arc;

    #[test]
    fn readers_share_and_writers_do_not() {
        let lock = RangeLock::default();
        let reader = lock.try_lock(0..10, false).unwrap();
        assert!(lock.quiet().is_some());
        let _other = lock.try_lock(5..15, false).unwrap();
        assert!(lock.try_lock(9..20, true).is_none());
        let writer = lock.try_lock(15..20, true).unwrap();
        assert!(lock.quiet().is_none());
        drop((reader, writer));
        assert!(lock.quiet().is_some());
        assert!(lock.try_lock(0..5, true).is_some());
    }

    #[test]
    fn a_writer_in_between_is_noticed() {
        let lock = RangeLock::default();
        let quiet = lock.quiet().unwrap();
        assert!(lock.still(quiet));
        drop(lock.try_lock(0..1, true));
        assert!(lock.quiet().is_some() && !lock.still(quiet));
    }

    #[test]
    fn c03_overlapping_writers_go_in_the_order_they_came() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.try_lock(0..10, true).unwrap();
        let mut second = RangeLock::lock(lock.clone(), 5..15, true);
        let mut third = RangeLock::lock(lock.clone(), 12..20, true);
        let mut apart = RangeLock::lock(lock.clone(), 20..30, true);
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut apart).now_or_never().is_some());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = (&mut second).now_or_never().unwrap();
        drop(second);
        assert!((&mut third).now_or_never().is_some());
    }

    #[test]
    fn giving_up_the_place_lets_the_next_one_in() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.try_lock(0..10, false).unwrap();
        let writer = RangeLock::lock(lock.clone(), 0..10, true);
        let mut reader = RangeLock::lock(lock.clone(), 0..10, false);
        assert!((&mut reader).now_or_never().is_none());
        drop(writer);
        assert!((&mut reader).now_or_never().is_some());
        drop(first);
        assert!(lock.quiet().is_some());
        assert!(lock.table().held.is_empty());
    }
}
