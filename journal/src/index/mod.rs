//! Changes that the store does not have: reads see them first, the shipper takes them in batches.
//! Pure.
//!
//! ```text
//! insert -> [ newest layer | sealed | sealed | oldest layer ] -> batch_behind -> the store
//!                     read asks them from the newest on, then the store
//! ```
//!
//! A layer has the newest bytes of each range that its records changed. A batch is a whole layer,
//! so whoever ships batches in order keeps the store at a state that the volume really had.

use std::collections::VecDeque;
use std::ops::Range;

use crate::change::{Change, What};
use crate::data::Data;

mod batch;
mod layer;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Group};
use layer::Layer;

/// What a read of a part of the volume gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// What the store has.
    Store,
    /// Zeros.
    Zeros,
    /// These bytes.
    Data(Data),
}

/// A part of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes in the volume.
    pub range: Range<u64>,
    /// Where they come from.
    pub source: Source,
}

/// A record that does not follow the one before; it was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfOrder {
    /// The record that would have been next.
    pub expected_seq: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Index {
    /// Oldest first; the last one takes changes in. Never empty.
    layers: VecDeque<Layer>,
    layer_bytes: u64,
    last_seq: u64,
}

impl Index {
    /// An empty one behind record `last_seq`. A layer that keeps `layer_bytes` of memory is sealed:
    /// a batch is about as large, or one record larger.
    pub fn new(last_seq: u64, layer_bytes: u64) -> Self {
        Self {
            layers: VecDeque::from([Layer::new(last_seq)]),
            layer_bytes,
            last_seq,
        }
    }

    /// Takes a record in. Its changes take effect in their order, and come into one batch.
    ///
    /// # Errors
    /// [`OutOfOrder`]: a record that came late would be missing in a batch that claims it.
    pub fn insert(&mut self, seq: u64, changes: &[Change]) -> Result<(), OutOfOrder> {
        let expected_seq = self.last_seq + 1;
        if seq != expected_seq {
            return Err(OutOfOrder { expected_seq });
        }
        self.last_seq = seq;
        let layer_bytes = self.layer_bytes;
        let newest = self.newest();
        if !newest.is_empty() && newest.memory_bytes() >= layer_bytes {
            self.layers.push_back(Layer::new(seq));
        }
        self.newest().insert(seq, changes);
        Ok(())
    }

    fn newest(&mut self) -> &mut Layer {
        let last = self.layers.len() - 1;
        &mut self.layers[last]
    }

    /// The last record that was taken in.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Whether the store has everything in the range.
    pub fn is_shipped(&self, range: &Range<u64>) -> bool {
        self.layers.iter().all(|layer| !layer.touches(range))
    }

    /// Where the bytes of the range are to be read, in order and without a gap.
    pub fn read(&self, range: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut gaps = vec![range];
        for layer in self.layers.iter().rev() {
            let asked = std::mem::take(&mut gaps);
            for gap in asked {
                layer.read(gap, &mut pieces, &mut gaps);
            }
        }
        pieces.extend(gaps.into_iter().map(|range| Piece {
            range,
            source: Source::Store,
        }));
        pieces.sort_unstable_by_key(|piece| piece.range.start);
        pieces
    }

    /// Memory that is kept, in bytes: of each buffer all, as long as one byte of it is needed.
    pub fn memory_bytes(&self) -> u64 {
        self.layers.iter().map(Layer::memory_bytes).sum()
    }

    /// What the store has to get behind record `seq`, if there is anything: behind 0 what it has to
    /// get first, behind the number of a batch the next one. It is the same until it is
    /// [`shipped`](Self::shipped); later changes come into later batches. The newest layer may
    /// still grow: only with `seal` it is given, and sealed.
    pub fn batch_behind(&mut self, seq: u64, seal: bool) -> Option<Batch> {
        let last_seq = self.last_seq;
        let newest = self.layers.len() - 1;
        let waits = |layer: &Layer| layer.last_seq() > seq && !layer.is_empty();
        let at = self.layers.iter().position(waits)?;
        if at == newest {
            if !seal {
                return None;
            }
            self.layers.push_back(Layer::new(last_seq));
        }
        Some(self.layers[at].batch())
    }

    /// Makes one batch of all that the store does not have. No batch may be on its way.
    pub fn merge(&mut self) {
        let mut layers = std::mem::take(&mut self.layers).into_iter();
        let mut all = layers.next().unwrap_or_else(|| Layer::new(self.last_seq));
        for layer in layers {
            all.insert(layer.last_seq(), &layer.batch().changes);
        }
        self.layers.push_back(all);
    }

    /// The store has every record up to `seq`, the number of a batch.
    pub fn shipped(&mut self, seq: u64) {
        while self.layers[0].last_seq() <= seq && self.layers.len() > 1 {
            self.layers.pop_front();
        }
    }
}

impl Change {
    /// A part of the change, `range` counted in the volume and inside it.
    fn part(&self, range: Range<u64>) -> Change {
        let what = match &self.what {
            What::Data(data) => {
                let start = (range.start - self.offset) as usize;
                let len = (range.end - range.start) as usize;
                What::Data(data.slice(start..start + len))
            }
            other => other.clone(),
        };
        Change {
            offset: range.start,
            len: range.end - range.start,
            what,
        }
    }

    fn end(&self) -> u64 {
        self.offset + self.len
    }
}
