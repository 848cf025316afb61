//! A volume as its log says it is. Pure: records go in, and out come the places where bytes are,
//! what is worth to be folded, what a checkpoint is, and which objects nobody needs.
//!
//! ```text
//! apply ──▶ index   units that are in no image: in a record of the log, in a pack, or zeros
//!       ──▶ map     which image each shard is, below the index
//! read     what a range of units is made of                  <- index, then map
//! policy   which shards are worth an image, and when a checkpoint is due
//! checkpoint  units from records into packs, pages, the root; what may be deleted after it
//! ```
//!
//! Everything is in whole units of 4 KiB. Who writes a part of one reads the unit, changes it, and
//! keeps others from writing it meanwhile: that is for whoever makes the records.
//!
//! **Folding.** An image has everything through some record. While it is put the log may go on, so its
//! part names that record ([`Part::Image`]), and newer changes stay above it. An image that was made
//! from an older state than the shard's base has now (it was trimmed or folded meanwhile, or a
//! checkpoint was made) counts for nothing, here and in every replay; [`State::is_late`] tells.
//!
//! **A checkpoint** is exact: it says what the state is, and nothing may be appended between
//! [`State::root`] and its record. Nearly all of its work is done before, while the log goes on:
//! [`State::unpacked`] and [`State::packed`] move units from records to packs,
//! [`State::unstored_pages`] and [`State::page_stored`] put pages.

use std::collections::BTreeSet;
use std::ops::Range;

use nbd_rs_commit_log::Position;

use super::format::changes::{pack_data_at, Changes, Part, Table};
use super::format::map::Base;
use super::format::names::Object;
use super::format::{Named, Version, UNIT_BYTES};
use crate::error::{Error, Kind, Result};
use crate::layout::geometry::Geometry;
use crate::layout::split::split;
use index::{Empty, Index, Place, Source};
use map::Map;
use spans::Spans;

mod checkpoint;
mod index;
mod map;
pub mod policy;
mod read;
pub(super) mod spans;

pub use checkpoint::{pack_table, PageSnapshot};
pub use read::{Allocation, Origin, Piece};

/// See the module.
#[derive(Debug)]
pub struct State {
    geometry: Geometry,
    index: Index,
    map: Map,
    /// The last record that was applied.
    last: Option<Position>,
    /// The number of the last record that the last checkpoint stands for.
    floor: u64,
    /// Of shards whose base changed since the checkpoint: the record that their base is as of.
    since: Spans<u64>,
    ledger: Vec<u8>,
    checkpoints: Checkpoints,
    garbage: Garbage,
    tail: Tail,
}

/// The checkpoints that are kept.
#[derive(Debug, Default)]
struct Checkpoints {
    last: Option<Named>,
    previous: Option<Named>,
    /// One that was made and whose record was not applied yet, with the record before that.
    offered: Option<(Named, Position)>,
}

/// Objects that were given up.
#[derive(Debug, Default)]
struct Garbage {
    /// Since the last checkpoint.
    new: BTreeSet<Object>,
    /// Since the one before; the last one does not name them any more.
    old: BTreeSet<Object>,
    /// Neither of the last two checkpoints names them.
    ready: BTreeSet<Object>,
}

/// The log behind the last checkpoint: what a start has to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// Records.
    pub records: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// What waits to be folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Bytes that are in records and packs and in no image, of which nothing newer is known.
    pub data_bytes: u64,
    /// Runs of zeros above images.
    pub zero_runs: u64,
}

impl State {
    /// A volume that was never written. The geometry is sound.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            index: Index::new(geometry.shard_units()),
            map: Map::default(),
            last: None,
            floor: 0,
            since: Spans::new(),
            ledger: Vec::new(),
            checkpoints: Checkpoints::default(),
            garbage: Garbage::default(),
            tail: Tail::default(),
        }
    }

    /// The size of the volume and of its shards.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The last record that was applied.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// The log behind the last checkpoint.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// What the volume keeps about the journal before it; empty if nothing was ever said.
    #[must_use]
    pub fn ledger(&self) -> &[u8] {
        &self.ledger
    }

    /// What waits to be folded in all shards.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        let (units, zero_runs) = self.index.counts();
        Waiting {
            data_bytes: units * UNIT_BYTES,
            zero_runs,
        }
    }

    /// What waits to be folded in one shard.
    #[must_use]
    pub fn waiting_of(&self, shard: u32) -> Waiting {
        let mut waiting = Waiting::default();
        let units = self.geometry.units_of(u64::from(shard));
        for (range, held) in self.index.within(units) {
            match held {
                index::Held::Empty(_) => waiting.zero_runs += 1,
                index::Held::Data { .. } => {
                    waiting.data_bytes += (range.end - range.start) * UNIT_BYTES;
                }
            }
        }
        waiting
    }

    /// Whether an image of the shard that has everything through record `through` would not count
    /// any more.
    #[must_use]
    pub fn is_late(&self, shard: u32, through: u64) -> bool {
        let since = self.since.get(u64::from(shard)).unwrap_or_default();
        through < since.max(self.floor)
    }

    /// Takes in the next record: an acknowledged one, or one of the log that is replayed. A record
    /// without a payload (the first of an owner) is one without parts. Only the payload's header
    /// is needed.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is not the next one, or says what can't be; nothing has changed then.
    pub fn apply(&mut self, position: Position, changes: &Changes) -> Result<()> {
        self.check(position, changes)?;
        let data_at = changes.data_at();
        let inline = changes.parts.iter().filter_map(|part| match part {
            Part::Data(table) => Some(table.sums()),
            _ => None,
        });
        let sums = inline.collect::<Vec<_>>().concat();
        let place = Place::Log(position);
        let record = Source::new(place, position.seq, data_at as u32, sums);
        let record = self.index.add(record);
        let mut ordinal = 0;
        for part in &changes.parts {
            if let Part::Data(table) = part {
                self.put(record, ordinal, table);
                ordinal += table.sums().len() as u16;
            } else {
                self.apply_part(position.seq, record, part);
            }
        }
        self.index.unpin(record);
        self.collect_packs();
        self.last = Some(position);
        self.tail.records += 1;
        self.tail.bytes += data_at + changes.data_bytes();
        Ok(())
    }

    fn apply_part(&mut self, seq: u64, record: u32, part: &Part) {
        match part {
            Part::Data(_) => {}
            Part::Pack { pack, table } => {
                let sums = table.sums().to_vec();
                let (place, data_at) = (Place::Pack(*pack), pack_data_at(table) as u32);
                let pack = self.index.add(Source::new(place, seq, data_at, sums));
                self.put(pack, 0, table);
                self.index.unpin(pack);
            }
            Part::Image {
                shard,
                image,
                through,
            } => self.fold(*shard, *image, through.unwrap_or(seq)),
            Part::Zero(units) => self.zero(seq, units.clone(), record, Empty::Zero),
            Part::Trim(units) => self.zero(seq, units.clone(), record, Empty::Trim),
            Part::Root(root) => self.checkpointed(*root, seq),
            Part::Ledger(note) => self.ledger.clone_from(note),
        }
    }

    fn put(&mut self, source: u32, ordinal: u16, table: &Table) {
        let mut ordinal = ordinal;
        for extent in table.extents() {
            self.index.cut(extent.unit..extent.end(), u64::MAX);
            let units = u64::from(extent.units);
            self.index.put(extent.unit, units, source, ordinal);
            ordinal += extent.units as u16;
        }
    }

    fn fold(&mut self, shard: u32, image: Named, through: u64) {
        if self.is_late(shard, through) {
            let version = image.version;
            self.garbage.new.insert(Object::Image { shard, version });
            return;
        }
        let number = u64::from(shard);
        self.index.cut(self.geometry.units_of(number), through);
        self.set_base(number..number + 1, Base::Image(image), through);
    }

    fn zero(&mut self, seq: u64, units: Range<u64>, record: u32, empty: Empty) {
        let base = match empty {
            Empty::Zero => Base::Zero,
            Empty::Trim => Base::Never,
        };
        self.index.cut(units.clone(), u64::MAX);
        let (shard_units, all) = (self.geometry.shard_units(), self.geometry.units());
        let split = split(shard_units, all, units.start, units.end - units.start);
        self.set_base(split.whole, base, seq);
        for edge in split.edges {
            let start = edge.shard * shard_units + edge.offset;
            let run = self.index.put_empty(start..start + edge.len, record, empty);
            if run == self.geometry.units_of(edge.shard) {
                self.index.cut(run, u64::MAX);
                self.set_base(edge.shard..edge.shard + 1, base, seq);
            }
        }
    }

    fn set_base(&mut self, shards: Range<u64>, base: Base, since: u64) {
        if shards.is_empty() {
            return;
        }
        self.map.set(shards.clone(), base, &mut self.garbage.new);
        self.since.set(shards, since);
    }

    fn collect_packs(&mut self) {
        let freed = self.index.take_freed();
        self.garbage.new.extend(freed.into_iter().map(Object::Pack));
    }

    fn check(&self, position: Position, changes: &Changes) -> Result<()> {
        let next = self.last.map_or(0, |last| last.seq).checked_add(1);
        if Some(position.seq) != next {
            let seq = position.seq;
            return Err(wrong(
                position,
                format!("it has number {seq}, after {:?}", self.last),
            ));
        }
        let mut packs: Vec<Version> = Vec::new();
        for part in &changes.parts {
            self.check_part(position, part)
                .map_err(|what| wrong(position, what))?;
            if let Part::Pack { pack, .. } = part {
                if packs.contains(pack) || self.index.has_pack(pack) {
                    return Err(wrong(position, format!("pack {pack} is used twice")));
                }
                packs.push(*pack);
            }
        }
        Ok(())
    }

    fn check_part(&self, position: Position, part: &Part) -> Result<(), String> {
        let units = self.geometry.units();
        let inside = |end: u64| match end <= units {
            true => Ok(()),
            false => Err(format!("unit {end} is beyond the volume's end")),
        };
        match part {
            Part::Data(table) | Part::Pack { table, .. } => {
                let ends = table.extents().iter().map(|extent| extent.end());
                inside(ends.max().unwrap_or_default())
            }
            Part::Zero(units) | Part::Trim(units) if units.is_empty() => {
                Err("it zeroes nothing".to_owned())
            }
            Part::Zero(units) | Part::Trim(units) => inside(units.end),
            Part::Image { shard, through, .. } => {
                let exists = u64::from(*shard) < self.geometry.shards();
                let earlier = through.is_none_or(|through| (1..position.seq).contains(&through));
                match exists && earlier {
                    true => Ok(()),
                    false => Err(format!("its image of shard {shard} can't be")),
                }
            }
            Part::Root(root) => match self.checkpoints.offered {
                Some((offered, last)) if offered == *root && Some(last) == self.last => Ok(()),
                _ => Err("its checkpoint is not of the state before it".to_owned()),
            },
            Part::Ledger(_) => Ok(()),
        }
    }
}

fn wrong(position: Position, what: String) -> Error {
    let text = format!("record {position:?} of the log makes no sense: {what}");
    Error::new(Kind::Corrupt, text)
}

#[cfg(test)]
mod tests;
