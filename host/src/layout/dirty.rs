//! Which sectors were written since the last good sync, and which of them a failed sync may have
//! lost. Pure.
//!
//! After a failed sync Linux marks the pages clean and reports the error once, so asking again
//! proves nothing: what was dirty must be written again first (contract C5).

use std::collections::BTreeMap;
use std::ops::Range;

/// The grain of the record, in bytes.
const SECTOR: u64 = 512;
/// Words of 64 sectors in one page of the record: 16 MiB of the volume.
const PAGE_WORDS: usize = 512;
const PAGE_SECTORS: u64 = PAGE_WORDS as u64 * 64;
/// Pages kept at most (16 MiB of memory, 64 GiB of touched volume); beyond them everything counts.
const MAX_PAGES: usize = 4096;

/// A set of sectors.
#[derive(Debug, Default)]
struct Sectors {
    pages: BTreeMap<u64, Box<[u64; PAGE_WORDS]>>,
    /// Too many to record: all of them.
    all: bool,
}

impl Sectors {
    fn is_empty(&self) -> bool {
        !self.all && self.pages.is_empty()
    }

    /// Calls `each` with page, word and mask for every word that `sectors` touches.
    fn words(sectors: Range<u64>, mut each: impl FnMut(u64, usize, u64)) {
        let mut at = sectors.start;
        while at < sectors.end {
            let bit = at % 64;
            let count = (64 - bit).min(sectors.end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            each(at / PAGE_SECTORS, (at % PAGE_SECTORS / 64) as usize, mask);
            at += count;
        }
    }

    fn insert(&mut self, sectors: Range<u64>) {
        if self.all {
            return;
        }
        let first = sectors.start / PAGE_SECTORS;
        let last = (sectors.end - 1) / PAGE_SECTORS;
        if self.pages.len() as u64 + (last - first) >= MAX_PAGES as u64 {
            let new = (first..=last).take(MAX_PAGES + 1);
            let new = new.filter(|page| !self.pages.contains_key(page)).count();
            if self.pages.len() + new > MAX_PAGES {
                self.pages.clear();
                self.all = true;
                return;
            }
        }
        let pages = &mut self.pages;
        Self::words(sectors, |page, word, mask| {
            pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_WORDS]))[word] |= mask;
        });
    }

    fn remove(&mut self, sectors: Range<u64>) {
        let pages = &mut self.pages;
        Self::words(sectors.clone(), |page, word, mask| {
            if let Some(page) = pages.get_mut(&page) {
                page[word] &= !mask;
            }
        });
        let touched = sectors.start / PAGE_SECTORS..=(sectors.end - 1) / PAGE_SECTORS;
        let emptied: Vec<u64> = pages
            .range(touched)
            .filter(|(_, words)| words.iter().all(|&word| word == 0))
            .map(|(&page, _)| page)
            .collect();
        for page in emptied {
            pages.remove(&page);
        }
    }

    fn absorb(&mut self, other: Sectors) {
        self.all |= other.all;
        for (page, words) in other.pages {
            let mine = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_WORDS]));
            for (mine, theirs) in mine.iter_mut().zip(words.iter()) {
                *mine |= theirs;
            }
        }
        if self.all || self.pages.len() > MAX_PAGES {
            self.all = true;
            self.pages.clear();
        }
    }

    fn bytes(&self) -> u64 {
        let words = self.pages.values().flat_map(|page| page.iter());
        words
            .map(|word| u64::from(word.count_ones()) * SECTOR)
            .sum()
    }
}

/// What a sync has to make durable, and what an earlier one failed to.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Written since the last sync began.
    current: Sectors,
    /// Covered by the sync that is running.
    syncing: Sectors,
    /// Covered by a sync that failed, and not written again since.
    lost: Sectors,
    /// Syncs that failed so far.
    failures: u64,
}

/// When a write began, counted in failed syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Began(u64);

impl Dirty {
    /// A write of `len` bytes at `offset` is about to start. From now on a failing sync may take
    /// its bytes along.
    pub(super) fn writing(&mut self, offset: u64, len: u64) -> Began {
        self.current.insert(outer(offset, len));
        Began(self.failures)
    }

    /// That write ended well: its bytes are dirty now, whatever sync came between, and no longer
    /// lost; unless a sync failed meanwhile, which may have lost them too.
    pub(super) fn written(&mut self, offset: u64, len: u64, began: Began) {
        self.current.insert(outer(offset, len));
        if began != Began(self.failures) {
            self.lost.insert(outer(offset, len));
            return;
        }
        let whole = inner(offset, len);
        if !self.lost.is_empty() && !whole.is_empty() {
            self.lost.remove(whole);
        }
    }

    /// What is lost, in bytes, if anything is: then no sync may be believed. `u64::MAX` when it
    /// was too much to record.
    pub(super) fn lost_bytes(&self) -> Option<u64> {
        match &self.lost {
            lost if lost.is_empty() => None,
            lost if lost.all => Some(u64::MAX),
            lost => Some(lost.bytes()),
        }
    }

    /// A sync begins.
    pub(super) fn sync_begins(&mut self) {
        self.syncing = std::mem::take(&mut self.current);
    }

    /// It came to nothing, and nothing is lost by that: the next one covers the same and more.
    pub(super) fn sync_put_off(&mut self) {
        let synced = std::mem::take(&mut self.syncing);
        self.current.absorb(synced);
    }

    /// Something failed outside a sync: all that is not known to be durable may be lost, also what
    /// a running sync covers.
    pub(super) fn failed(&mut self) {
        self.failures += 1;
        self.lost.absorb(std::mem::take(&mut self.syncing));
        self.lost.absorb(std::mem::take(&mut self.current));
    }

    /// It ended. A failure may be that of any page written until now: the kernel writes back when
    /// it likes, and the next sync to end tells of it, once.
    pub(super) fn sync_ended(&mut self, well: bool) {
        match well {
            true => self.syncing = Sectors::default(),
            false => self.failed(),
        }
    }
}

/// Sectors that a range touches.
fn outer(offset: u64, len: u64) -> Range<u64> {
    offset / SECTOR..(offset + len).div_ceil(SECTOR)
}

/// Sectors that a range covers whole.
fn inner(offset: u64, len: u64) -> Range<u64> {
    let start = offset.div_ceil(SECTOR);
    start..((offset + len) / SECTOR).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failed_sync(dirty: &mut Dirty) {
        dirty.sync_begins();
        dirty.sync_ended(false);
    }

    fn write(dirty: &mut Dirty, offset: u64, len: u64) {
        let began = dirty.writing(offset, len);
        dirty.written(offset, len, began);
    }

    #[test]
    fn c05_lost_bytes_come_back_only_by_writing_all_of_them_again() {
        let mut dirty = Dirty::default();
        write(&mut dirty, 4096, 8192);
        failed_sync(&mut dirty);
        assert_eq!(dirty.lost_bytes(), Some(8192));
        write(&mut dirty, 4096, 4096);
        write(&mut dirty, 8192 + 512, 4096 - 512);
        assert_eq!(dirty.lost_bytes(), Some(512));
        write(&mut dirty, 8192, 511);
        assert_eq!(dirty.lost_bytes(), Some(512));
        write(&mut dirty, 8192, 512);
        assert_eq!(dirty.lost_bytes(), None);
    }

    #[test]
    fn c05_a_write_that_overlaps_a_failing_sync_counts_as_lost() {
        let mut dirty = Dirty::default();
        // It began before the sync ended, whenever it ends itself.
        let early = dirty.writing(0, 512);
        dirty.sync_begins();
        let late = dirty.writing(512, 512);
        dirty.written(512, 512, late);
        let last = dirty.writing(1024, 512);
        dirty.sync_ended(false);
        assert_eq!(dirty.lost_bytes(), Some(3 * 512));
        dirty.written(0, 512, early);
        dirty.written(1024, 512, last);
        assert_eq!(dirty.lost_bytes(), Some(3 * 512));
        write(&mut dirty, 0, 3 * 512);
        assert_eq!(dirty.lost_bytes(), None);
    }

    #[test]
    fn a_good_sync_clears_only_what_it_covered() {
        let mut dirty = Dirty::default();
        let began = dirty.writing(0, 512);
        dirty.sync_begins();
        dirty.written(0, 512, began);
        dirty.sync_ended(true);
        failed_sync(&mut dirty);
        assert_eq!(dirty.lost_bytes(), Some(512));
    }

    #[test]
    fn beyond_the_bound_everything_counts() {
        let mut dirty = Dirty::default();
        write(&mut dirty, 0, 1 << 40);
        failed_sync(&mut dirty);
        assert_eq!(dirty.lost_bytes(), Some(u64::MAX));
        assert!(dirty.lost.pages.is_empty());
        write(&mut dirty, 0, 1 << 40);
        assert_eq!(dirty.lost_bytes(), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn the_record_agrees_with_a_plain_set(
            writes in prop::collection::vec((0u64..200_000, 1u64..90_000), 1..12),
            again in prop::collection::vec((0u64..200_000, 1u64..90_000), 0..12),
        ) {
            let mut dirty = Dirty::default();
            let mut model = std::collections::BTreeSet::new();
            for &(offset, len) in &writes {
                write(&mut dirty, offset, len);
                model.extend(outer(offset, len));
            }
            failed_sync(&mut dirty);
            for &(offset, len) in &again {
                write(&mut dirty, offset, len);
                for sector in inner(offset, len) {
                    model.remove(&sector);
                }
            }
            let lost = (!model.is_empty()).then_some(model.len() as u64 * SECTOR);
            prop_assert_eq!(dirty.lost_bytes(), lost);
        }
    }
}
