//! Where units are that are in no image yet. Pure.
//!
//! A run takes 16 bytes in the tree and, as measured, 20 with its share of the nodes after
//! [`Index::compact`], 29 where runs come in any order, 37 where they come in order; a unit takes 4
//! more for its checksum. So a unit that stands alone takes 24 to 41 bytes, one of many in a run little
//! more than 4.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_rs_commit_log::Position;

use super::super::format::{Version, UNIT_BYTES};
use crate::layout::split::parts;

/// Units that follow one another, inside one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    source: u32,
    /// Which unit of the source is the first, or one of the two below.
    ordinal: u16,
    units: u16,
}

/// The ordinals of runs without data.
const ZERO: u16 = u16::MAX;
const TRIM: u16 = u16::MAX - 1;

/// What units without data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    Zero,
    Trim,
}

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Log(Position),
    Pack(Version),
}

/// A record or a pack that runs refer to.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) place: Place,
    /// The newest record that has changes in it.
    pub(super) seq: u64,
    /// Where its units begin, in bytes.
    pub(super) data_at: u32,
    /// The checksum of each of its units; none when no run has data of it.
    pub(super) sums: Box<[u32]>,
    data_units: u32,
    empty_runs: u32,
    /// It is being applied: kept, though nothing refers to it.
    pinned: bool,
}

/// What an index says about a range.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Held<'a> {
    Empty(Empty),
    /// Units of a source, from this ordinal on.
    Data {
        source: &'a Source,
        id: u32,
        ordinal: u16,
    },
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    shard_units: u64,
    runs: BTreeMap<u64, Run>,
    sources: Vec<Option<Source>>,
    free: Vec<u32>,
    packs: BTreeMap<Version, u32>,
    data_units: u64,
    empty_runs: u64,
    /// Packs that nothing refers to any more, since they were last asked for.
    freed: Vec<Version>,
}

impl Source {
    pub(super) fn new(place: Place, seq: u64, data_at: u32, sums: Vec<u32>) -> Self {
        Self {
            place,
            seq,
            data_at,
            sums: sums.into_boxed_slice(),
            data_units: 0,
            empty_runs: 0,
            pinned: true,
        }
    }

    /// Where the unit with this ordinal is, in bytes from the start of the payload or pack.
    pub(super) fn offset(&self, ordinal: u16) -> u64 {
        u64::from(self.data_at) + u64::from(ordinal) * UNIT_BYTES
    }

    /// How many of its units are still needed.
    pub(super) fn live_units(&self) -> u64 {
        u64::from(self.data_units)
    }

    /// Whether that is less than half of them.
    pub(super) fn is_sparse(&self) -> bool {
        self.live_units() * 2 < self.sums.len() as u64
    }

    /// The checksums of `units` units.
    pub(super) fn sums_of(&self, ordinal: u16, units: usize) -> &[u32] {
        let first = usize::from(ordinal);
        self.sums.get(first..first + units).unwrap_or_default()
    }
}

impl Run {
    fn empty(&self) -> Option<Empty> {
        match self.ordinal {
            ZERO => Some(Empty::Zero),
            TRIM => Some(Empty::Trim),
            _ => None,
        }
    }

    /// Its part from `skip` units on, so many units.
    fn part(&self, skip: u64, units: u64) -> Self {
        let ordinal = match self.empty() {
            Some(_) => self.ordinal,
            None => self.ordinal + skip as u16,
        };
        Self {
            ordinal,
            units: units as u16,
            ..*self
        }
    }
}

impl Index {
    pub(super) fn new(shard_units: u64) -> Self {
        Self {
            shard_units,
            runs: BTreeMap::new(),
            sources: Vec::new(),
            free: Vec::new(),
            packs: BTreeMap::new(),
            data_units: 0,
            empty_runs: 0,
            freed: Vec::new(),
        }
    }

    /// Units with data, and runs without.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.data_units, self.empty_runs)
    }

    pub(super) fn has_pack(&self, pack: &Version) -> bool {
        self.packs.contains_key(pack)
    }

    /// The packs that runs refer to, by number.
    pub(super) fn packs(&self) -> impl Iterator<Item = (u32, &Source)> {
        let ids = self.packs.values().copied();
        ids.filter_map(|id| Some((id, self.source(id)?)))
    }

    /// Whether a run has data in a record.
    pub(super) fn has_log_data(&self) -> bool {
        let mut sources = self.sources.iter().flatten();
        sources.any(|source| matches!(source.place, Place::Log(_)) && source.data_units > 0)
    }

    /// Packs that nothing refers to any more.
    pub(super) fn take_freed(&mut self) -> Vec<Version> {
        std::mem::take(&mut self.freed)
    }

    /// Takes in a source, and keeps it until it is [`unpin`](Self::unpin)ned at least.
    pub(super) fn add(&mut self, source: Source) -> u32 {
        let pack = match source.place {
            Place::Pack(pack) => Some(pack),
            Place::Log(_) => None,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.sources[id as usize] = Some(source);
                id
            }
            None => {
                self.sources.push(Some(source));
                (self.sources.len() - 1) as u32
            }
        };
        if let Some(pack) = pack {
            self.packs.insert(pack, id);
        }
        id
    }

    pub(super) fn unpin(&mut self, id: u32) {
        if let Some(source) = self.source_mut(id) {
            source.pinned = false;
        }
        self.release(id);
    }

    fn source(&self, id: u32) -> Option<&Source> {
        self.sources.get(id as usize)?.as_ref()
    }

    fn source_mut(&mut self, id: u32) -> Option<&mut Source> {
        self.sources.get_mut(id as usize)?.as_mut()
    }

    /// Gives memory back that nothing refers to.
    fn release(&mut self, id: u32) {
        let Some(source) = self.source_mut(id).filter(|source| !source.pinned) else {
            return;
        };
        if source.data_units > 0 {
            return;
        }
        source.sums = Box::default();
        if source.empty_runs > 0 {
            return;
        }
        if let Place::Pack(pack) = source.place {
            self.packs.remove(&pack);
            self.freed.push(pack);
        }
        self.sources[id as usize] = None;
        self.free.push(id);
    }

    /// Units of a source, from this ordinal on. What was there before has been cut out.
    pub(super) fn put(&mut self, unit: u64, units: u64, id: u32, ordinal: u16) {
        let mut ordinal = ordinal;
        for part in parts(self.shard_units, unit, units) {
            let run = Run {
                source: id,
                ordinal,
                units: part.len as u16,
            };
            self.insert(part.shard * self.shard_units + part.offset, run);
            ordinal += part.len as u16;
        }
    }

    /// Units of one shard read as zeros since this source. What was there before has been cut out.
    /// The run that they are a part of now.
    pub(super) fn put_empty(&mut self, range: Range<u64>, id: u32, empty: Empty) -> Range<u64> {
        let shard = range.start / self.shard_units;
        let mut range = range;
        let before = self.runs.range(..range.start).next_back();
        let before = before.map(|(&unit, &run)| (unit, run));
        let behind = self.runs.get(&range.end).map(|&run| (range.end, run));
        for (unit, run) in [before, behind].into_iter().flatten() {
            let end = unit + u64::from(run.units);
            let touches = end == range.start || unit == range.end;
            if touches && unit / self.shard_units == shard && run.empty() == Some(empty) {
                self.remove(unit);
                range = range.start.min(unit)..range.end.max(end);
            }
        }
        let ordinal = match empty {
            Empty::Zero => ZERO,
            Empty::Trim => TRIM,
        };
        let run = Run {
            source: id,
            ordinal,
            units: (range.end - range.start) as u16,
        };
        self.insert(range.start, run);
        range
    }

    fn insert(&mut self, unit: u64, run: Run) {
        self.runs.insert(unit, run);
        let is_empty = run.empty().is_some();
        match is_empty {
            true => self.empty_runs += 1,
            false => self.data_units += u64::from(run.units),
        }
        if let Some(source) = self.source_mut(run.source) {
            match is_empty {
                true => source.empty_runs += 1,
                false => source.data_units += u32::from(run.units),
            }
        }
    }

    fn remove(&mut self, unit: u64) {
        let Some(run) = self.runs.remove(&unit) else {
            return;
        };
        self.forget(run);
    }

    fn forget(&mut self, run: Run) {
        let is_empty = run.empty().is_some();
        match is_empty {
            true => self.empty_runs -= 1,
            false => self.data_units -= u64::from(run.units),
        }
        if let Some(source) = self.source_mut(run.source) {
            match is_empty {
                true => source.empty_runs -= 1,
                false => source.data_units -= u32::from(run.units),
            }
        }
        self.release(run.source);
    }

    /// The first unit of the first run that has units of the range.
    fn first(&self, range: &Range<u64>) -> u64 {
        let before = self.runs.range(..range.start).next_back();
        let reaching = before.filter(|(&unit, run)| unit + u64::from(run.units) > range.start);
        reaching.map_or(range.start, |(&unit, _)| unit)
    }

    /// Takes the range out of all runs that no record behind `through` made.
    pub(super) fn cut(&mut self, range: Range<u64>, through: u64) {
        if range.is_empty() {
            return;
        }
        let old = |run: &Run| {
            let source = self.source(run.source);
            source.is_none_or(|source| source.seq <= through)
        };
        let touched = self.runs.range(self.first(&range)..range.end);
        let touched = touched.filter(|(_, run)| old(run));
        let touched: Vec<(u64, Run)> = touched.map(|(&unit, &run)| (unit, run)).collect();
        for (unit, run) in touched {
            self.runs.remove(&unit);
            let end = unit + u64::from(run.units);
            if unit < range.start {
                self.insert(unit, run.part(0, range.start - unit));
            }
            if end > range.end {
                self.insert(range.end, run.part(range.end - unit, end - range.end));
            }
            // Last, so that a source that has parts left is never without any.
            self.forget(run);
        }
    }

    /// What is here of the range, in order, with gaps.
    pub(super) fn within(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, Held<'_>)> + '_ {
        let first = self.first(&range).min(range.end);
        self.runs
            .range(first..range.end)
            .filter_map(move |(&unit, run)| {
                let part = unit.max(range.start)..(unit + u64::from(run.units)).min(range.end);
                if part.is_empty() {
                    return None;
                }
                let held = match run.empty() {
                    Some(empty) => Held::Empty(empty),
                    None => Held::Data {
                        source: self.source(run.source)?,
                        id: run.source,
                        ordinal: run.part(part.start - unit, 0).ordinal,
                    },
                };
                Some((part, held))
            })
    }

    /// Fills the nodes of the tree.
    pub(super) fn compact(&mut self) {
        self.runs = std::mem::take(&mut self.runs).into_iter().collect();
    }

    /// Each shard that has runs: its number, units with data, and runs without.
    pub(super) fn by_shard(&self) -> Vec<(u64, u64, u64)> {
        let mut shards: Vec<(u64, u64, u64)> = Vec::new();
        for (unit, run) in &self.runs {
            let shard = unit / self.shard_units;
            if shards.last().is_none_or(|last| last.0 != shard) {
                shards.push((shard, 0, 0));
            }
            let last = shards.len() - 1;
            match run.empty() {
                Some(_) => shards[last].2 += 1,
                None => shards[last].1 += u64::from(run.units),
            }
        }
        shards
    }
}

#[cfg(test)]
mod tests;
