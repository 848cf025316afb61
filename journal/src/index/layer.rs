//! The changes of some records: of each range the newest.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{Batch, Piece, Source};
use crate::change::{Change, What};
use crate::data::{Buffer, Data};

/// Memory that an entry takes besides its data, in bytes, with its share of the tables.
const ENTRY_BYTES: u64 = 160;

#[derive(Debug)]
pub(super) struct Layer {
    last_seq: u64,
    /// Parts of changes that nothing newer in the layer covers, by first byte; they do not overlap.
    entries: BTreeMap<u64, Change>,
    /// How many entries have bytes in a buffer.
    buffers: HashMap<Buffer, u64>,
    /// Of all buffers together.
    buffer_bytes: u64,
}

impl Layer {
    /// An empty one behind that record.
    pub(super) fn new(last_seq: u64) -> Self {
        Self {
            last_seq,
            entries: BTreeMap::new(),
            buffers: HashMap::new(),
            buffer_bytes: 0,
        }
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.buffer_bytes + self.entries.len() as u64 * ENTRY_BYTES
    }

    pub(super) fn insert(&mut self, seq: u64, changes: &[Change]) {
        self.last_seq = seq;
        for change in changes.iter().filter(|change| change.len > 0) {
            self.cut(change.offset..change.end());
            self.put(change.clone());
        }
    }

    fn put(&mut self, change: Change) {
        if let Some(buffer) = change.data().map(Data::buffer) {
            let entries = self.buffers.entry(buffer).or_default();
            if *entries == 0 {
                self.buffer_bytes += buffer.bytes;
            }
            *entries += 1;
        }
        self.entries.insert(change.offset, change);
    }

    /// Takes the range out of all entries.
    fn cut(&mut self, range: Range<u64>) {
        let before = self.entries.range(..range.start).next_back();
        let reaching = before.filter(|(_, change)| change.end() > range.start);
        let first = reaching.map_or(range.start, |(&start, _)| start);
        let touched: Vec<u64> = self
            .entries
            .range(first..range.end)
            .map(|(&start, _)| start)
            .collect();
        for start in touched {
            let Some(change) = self.entries.remove(&start) else {
                continue;
            };
            let (left, right) = (change.offset..range.start, range.end..change.end());
            for part in [left, right].into_iter().filter(|part| !part.is_empty()) {
                self.put(change.part(part));
            }
            self.release(&change);
        }
    }

    /// An entry is gone, and perhaps the last one of its buffer.
    fn release(&mut self, change: &Change) {
        let Some(buffer) = change.data().map(Data::buffer) else {
            return;
        };
        let Some(entries) = self.buffers.get_mut(&buffer) else {
            return;
        };
        *entries -= 1;
        if *entries == 0 {
            self.buffer_bytes -= buffer.bytes;
            self.buffers.remove(&buffer);
        }
    }

    /// The entries that have bytes of the range.
    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = &Change> {
        let before = self.entries.range(..range.start).next_back();
        let start = range.start;
        let reaching = before.filter(|(_, change)| change.end() > start);
        let inside = match range.is_empty() {
            true => self.entries.range(start..start),
            false => self.entries.range(range.clone()),
        };
        reaching.into_iter().chain(inside).map(|(_, change)| change)
    }

    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && self.within(range).next().is_some()
    }

    /// Adds what is here of the range to `pieces`, and what is not to `gaps`.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        pieces: &mut Vec<Piece>,
        gaps: &mut Vec<Range<u64>>,
    ) {
        let mut at = range.start;
        for change in self.within(&range) {
            let part = change.offset.max(range.start)..change.end().min(range.end);
            if at < part.start {
                gaps.push(at..part.start);
            }
            at = part.end;
            let source = match change.part(part.clone()).what {
                What::Data(data) => Source::Data(data),
                What::Zero | What::Trim => Source::Zeros,
            };
            pieces.push(Piece {
                range: part,
                source,
            });
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
    }

    pub(super) fn batch(&self) -> Batch {
        Batch {
            seq: self.last_seq,
            changes: self.entries.values().cloned().collect(),
        }
    }
}
