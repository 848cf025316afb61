//! Changes that are in no record yet. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_rs_plugin::Bytes;

use super::super::format::changes::Part;
use super::super::format::UNIT_BYTES;
use super::super::state::spans::Spans;

/// Runs of zeros of one batch, at the most.
const MAX_ZERO_RUNS: usize = 4096;

/// How units are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Empty {
    /// They keep their space.
    #[default]
    Zero,
    /// They have none.
    Trim,
}

/// What a batch knows of some units.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    /// The bytes of one unit.
    Data(Bytes),
    Empty(Empty),
}

/// What one record will say.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// By unit; each is newer than zeros that cover it.
    data: BTreeMap<u64, Bytes>,
    empty: Spans<Empty>,
    /// Images that were made of older records.
    folds: Vec<Part>,
    /// The journal's note, if there is a new one.
    note: Option<Vec<u8>>,
    /// All bytes that were taken in: a unit that was overwritten may still take its place.
    taken_bytes: u64,
}

impl Batch {
    /// Takes in whole units.
    pub(super) fn write(&mut self, first: u64, data: &Bytes) {
        self.taken_bytes += data.len() as u64;
        let unit_bytes = UNIT_BYTES as usize;
        for (unit, start) in (first..).zip((0..data.len()).step_by(unit_bytes)) {
            let end = data.len().min(start + unit_bytes);
            self.data.insert(unit, data.clone().slice(start..end));
        }
    }

    pub(super) fn zero(&mut self, units: Range<u64>, empty: Empty) {
        let gone: Vec<u64> = self.data.range(units.clone()).map(|(&at, _)| at).collect();
        for unit in gone {
            self.data.remove(&unit);
        }
        self.empty.set(units, empty);
    }

    /// An image goes along; it counts only if nothing newer was said of its shard.
    pub(super) fn fold(&mut self, image: Part) {
        self.folds.push(image);
    }

    pub(super) fn note(&mut self, note: Vec<u8>) {
        self.note = Some(note);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty()
            && self.empty.len() == 0
            && self.folds.is_empty()
            && self.note.is_none()
    }

    pub(super) fn is_full(&self, most_bytes: u64) -> bool {
        self.taken_bytes >= most_bytes || self.empty.len() >= MAX_ZERO_RUNS
    }

    /// Each shard with data, and how many of its units that is.
    pub(super) fn shards(&self, shard_units: u64) -> Vec<(u32, u64)> {
        let mut shards: Vec<(u32, u64)> = Vec::new();
        for unit in self.data.keys() {
            let shard = (unit / shard_units) as u32;
            match shards.last_mut() {
                Some((last, units)) if *last == shard => *units += 1,
                _ => shards.push((shard, 1)),
            }
        }
        shards
    }

    /// The units, in order.
    pub(super) fn units(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.data.iter().map(|(&unit, bytes)| (unit, bytes))
    }

    /// The parts of a record that come before its units: zeros, since they are older.
    pub(super) fn zeros(&self) -> Vec<Part> {
        let all = self.empty.within(0..u64::MAX);
        let zeros = all.map(|(units, empty)| match empty {
            Empty::Zero => Part::Zero(units),
            Empty::Trim => Part::Trim(units),
        });
        zeros.collect()
    }

    /// The parts that come behind.
    pub(super) fn others(&self) -> Vec<Part> {
        let note = self.note.iter().cloned().map(Part::Ledger);
        self.folds.iter().cloned().chain(note).collect()
    }

    /// What it knows of these units, in order and without a gap; none where it knows nothing.
    pub(super) fn cover(&self, units: Range<u64>) -> Vec<(Range<u64>, Option<Cell>)> {
        let mut cover = Vec::new();
        let mut at = units.start;
        for (&unit, bytes) in self.data.range(units.clone()) {
            self.cover_empty(at..unit, &mut cover);
            cover.push((unit..unit + 1, Some(Cell::Data(bytes.clone()))));
            at = unit + 1;
        }
        self.cover_empty(at..units.end, &mut cover);
        cover
    }

    fn cover_empty(&self, units: Range<u64>, cover: &mut Vec<(Range<u64>, Option<Cell>)>) {
        let mut at = units.start;
        for (part, empty) in self.empty.within(units.clone()) {
            if at < part.start {
                cover.push((at..part.start, None));
            }
            at = part.end;
            cover.push((part, Some(Cell::Empty(empty))));
        }
        if at < units.end {
            cover.push((at..units.end, None));
        }
    }
}

/// What the first batch that knows anything of them says of these units.
pub(super) fn cover(batches: &[&Batch], units: Range<u64>) -> Vec<(Range<u64>, Option<Cell>)> {
    let Some((first, others)) = batches.split_first() else {
        return vec![(units, None)];
    };
    let covered = first.cover(units).into_iter();
    let below = covered.flat_map(|(units, cell)| match cell {
        None => cover(others, units),
        Some(_) => vec![(units, cell)],
    });
    below.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNITS: u64 = 64;

    #[derive(Debug, Clone, PartialEq)]
    enum Known {
        Nothing,
        Data(u8),
        Empty(Empty),
    }

    fn known(covered: Vec<(Range<u64>, Option<Cell>)>) -> Vec<Known> {
        let mut all = Vec::new();
        for (units, cell) in covered {
            assert_eq!(units.start, all.len() as u64, "in order and without a gap");
            let known = match cell {
                None => Known::Nothing,
                Some(Cell::Data(bytes)) => Known::Data(bytes[0]),
                Some(Cell::Empty(empty)) => Known::Empty(empty),
            };
            all.extend(vec![known; (units.end - units.start) as usize]);
        }
        all
    }

    proptest! {
        #[test]
        fn c03_the_newest_change_of_each_unit_counts(
            changes in prop::collection::vec((0_u8..3, 0..UNITS, 1..UNITS, any::<u8>(), any::<bool>()), 0..40),
        ) {
            let (mut older, mut newer) = (Batch::default(), Batch::default());
            let mut model = vec![Known::Nothing; UNITS as usize];
            let mut all: Vec<_> = changes;
            all.sort_by_key(|change| change.4);
            for (kind, first, count, fill, is_newer) in all {
                let batch = if is_newer { &mut newer } else { &mut older };
                let units = first..(first + count).min(UNITS);
                let change = match kind {
                    0 => {
                        let bytes = vec![fill; ((units.end - first) * UNIT_BYTES) as usize];
                        batch.write(first, &Bytes::from(bytes));
                        Known::Data(fill)
                    }
                    kind => {
                        let empty = if kind == 1 { Empty::Zero } else { Empty::Trim };
                        batch.zero(units.clone(), empty);
                        Known::Empty(empty)
                    }
                };
                model[units.start as usize..units.end as usize].fill(change);
            }
            prop_assert_eq!(known(cover(&[&newer, &older], 0..UNITS)), model);
            // A record says zeros first, and then the units that stand above them.
            let mut replayed = Batch::default();
            for batch in [&older, &newer] {
                for part in batch.zeros() {
                    match part {
                        Part::Zero(units) => replayed.zero(units, Empty::Zero),
                        Part::Trim(units) => replayed.zero(units, Empty::Trim),
                        _ => unreachable!("no zeros"),
                    }
                }
                for (unit, bytes) in batch.units() {
                    replayed.write(unit, bytes);
                }
            }
            let all = cover(&[&newer, &older], 0..UNITS);
            prop_assert_eq!(known(replayed.cover(0..UNITS)), known(all));
        }
    }

    #[test]
    fn f63_what_was_overwritten_counts_as_well() {
        let mut batch = Batch::default();
        let unit = Bytes::from(vec![1; UNIT_BYTES as usize]);
        (0..3).for_each(|_| batch.write(7, &unit));
        assert!(batch.is_full(3 * UNIT_BYTES) && !batch.is_full(3 * UNIT_BYTES + 1));
        assert_eq!(batch.units().count(), 1);
        assert_eq!(batch.shards(4), [(1, 1)]);
    }
}
