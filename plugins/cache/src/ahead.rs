//! More than a reader asked for: all of a small object, and what a sequential reader will want next.
//!
//! Both have a bound together. What is fetched ahead is of use only if it is still there when its
//! reader comes.

use std::ops::Range as Span;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use nbd_rs_plugin::Range;

use crate::fetch::Departure;
use crate::habit::Habit;
use crate::index::{Object, Version};
use crate::memory::BlockKey;
use crate::read::Reader;
use crate::shared::{Counters, Shared};

/// While there is room, a small object is fetched whole at this miss: who came twice comes again.
const WHOLE_WITH_ROOM: u32 = 2;
/// Without room it is at every eighth: what it pushes out was wanted too.
const WHOLE_WITHOUT_ROOM: u32 = 8;

/// Bytes that are being fetched ahead of readers; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.shared.ahead.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An object that is opened with a fetch of all of it.
#[derive(Debug)]
pub(crate) struct WholeAtOnce {
    /// As large as it is believed to be.
    pub(crate) bytes: u64,
    _admitted: Arc<Admitted>,
}

impl Shared {
    /// Bytes that can come in without pushing anything out.
    fn room(&self) -> u64 {
        let held = self.memory.used_bytes();
        self.config.roomy().saturating_sub(held)
    }

    fn has_room(&self, bytes: u64) -> bool {
        let coming = self.ahead.load(Ordering::Relaxed);
        coming.saturating_add(bytes) <= self.room()
    }

    /// Lets so many bytes be fetched ahead, if not too much is under way.
    fn admit(self: &Arc<Self>, bytes: u64) -> Option<Arc<Admitted>> {
        let before = self.ahead.fetch_add(bytes, Ordering::Relaxed);
        let admitted = Arc::new(Admitted {
            shared: self.clone(),
            bytes,
        });
        let most = self.config.background().max(self.room());
        (before.saturating_add(bytes) <= most).then_some(admitted)
    }

    /// Whether to open an object with a fetch of all of it, as far as its size can be guessed, for
    /// a reader of `range`.
    pub(crate) fn whole_at_once(self: &Arc<Self>, range: Range) -> Option<WholeAtOnce> {
        let bytes = self.usual_size.load(Ordering::Relaxed);
        let is_inside = range.len != Range::TO_END && range.within(bytes).is_ok();
        let is_small = self.ranged && bytes > 0 && bytes <= self.config.small();
        if !is_inside || !is_small || !self.has_room(bytes) || !self.habit().expects_more() {
            return None;
        }
        Some(WholeAtOnce {
            bytes,
            _admitted: self.admit(bytes)?,
        })
    }

    /// An object is asked for another time.
    pub(crate) fn came_again(&self, object: &Object) {
        if !object.was_opened_whole() {
            self.habit().came_again();
        }
    }

    fn habit(&self) -> MutexGuard<'_, Habit> {
        self.habit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fetch of all that is missing of an object, for a reader of `blocks` that misses `block`, if
    /// it is small and likely to be wanted.
    pub(crate) fn whole(
        self: &Arc<Self>,
        key: &str,
        object: &Object,
        version: &Version,
        block: u64,
        blocks: &Span<u64>,
        reader: Reader,
    ) -> Option<Departure> {
        let is_small = self.ranged && version.size <= self.config.small();
        if !is_small || self.is_on_disk(key, version, block) {
            return None;
        }
        let is_eighth = reader.counted && reader.misses.is_multiple_of(WHOLE_WITHOUT_ROOM);
        let is_wanted = !object.has_failed_wide()
            && (reader.streams || reader.misses >= WHOLE_WITH_ROOM && self.has_room(version.size));
        if !is_wanted && !is_eighth {
            return None;
        }
        let run = self.missing(object, version, block);
        if blocks.start <= run.start && run.end <= blocks.end {
            // He has asked for all of that himself: its failure is his.
            return Some(Departure::narrow(run));
        }
        let bytes = self.grid.bytes(&run, version.size);
        let admitted = self.admit(bytes.end - bytes.start)?;
        Counters::add(&self.counters.ahead);
        Some(Departure::wide(run, &admitted))
    }

    /// From the first to the last block that is not in memory; `block` is not.
    fn missing(&self, object: &Object, version: &Version, block: u64) -> Span<u64> {
        let is_missing = |block: &u64| {
            let key = BlockKey {
                object: object.id,
                block: *block,
            };
            self.memory.pass(key).is_none()
        };
        let mut all = self.grid.blocks(&(0..version.size));
        let last = all.clone().rfind(is_missing).unwrap_or(block);
        let first = all.find(is_missing).unwrap_or(block);
        first.min(block)..last.max(block) + 1
    }

    /// Fetches what a sequential reader will want next.
    pub(crate) fn read_ahead(
        self: &Arc<Self>,
        key: &str,
        object: &Arc<Object>,
        version: &Version,
        ahead: Span<u64>,
    ) {
        let ahead = ahead.start.min(version.size)..ahead.end.min(version.size);
        let mut flights = object.flights();
        let mut runs: Vec<Span<u64>> = Vec::new();
        for block in self.grid.blocks(&ahead) {
            if self.find(object, &flights, block, true).is_some() {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        let bytes = |run: &Span<u64>| self.grid.bytes(run, version.size);
        let bytes = runs.iter().map(bytes).map(|run| run.end - run.start).sum();
        let admitted = match bytes {
            0 => None,
            bytes => self.admit(bytes),
        };
        let Some(admitted) = admitted else { return };
        let departures: Vec<Departure> = runs
            .into_iter()
            .map(|run| Departure::wide(run, &admitted))
            .collect();
        departures.iter().for_each(|one| one.enter(&mut flights));
        drop(flights);
        for departure in departures {
            Counters::add(&self.counters.ahead);
            self.send(key, object, version, departure);
        }
    }

    /// What is on disk is read from there, and not with all of its object from the store.
    fn is_on_disk(&self, key: &str, version: &Version, block: u64) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| disk.holds(key, version, block))
    }
}
