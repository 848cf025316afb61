//! Making a checkpoint, starting from one, and what may be deleted after it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::format::changes::{pack_data_at, Table, MAX_UNITS};
use super::super::format::map::{Base, MapPage, PAGE_SHARDS};
use super::super::format::names::Object;
use super::super::format::root::{Holds, PackUnits, Root, Run};
use super::super::format::{Named, Version, UNIT_BYTES};
use super::index::{Empty, Held, Place, Source};
use super::read::{piece_of, Origin, Piece};
use super::{Checkpoints, State, Tail};
use crate::error::{Error, Kind, Result};
use crate::layout::frame::corrupt;
use crate::layout::geometry::Geometry;
use crate::layout::uuid::Uuid;

/// A map page as it was at some moment.
#[derive(Debug, Clone)]
pub struct PageSnapshot {
    /// Its number.
    pub number: u32,
    /// What it says.
    pub page: MapPage,
    changes: u64,
}

impl State {
    /// Units that are to be put into a pack, from number `from` of the volume on; at most as many as one
    /// has. They are in records of the log, which have to be without any before a checkpoint, or in
    /// packs that have lost more than half of their units. Where that leaves room, small packs
    /// come along: so packs stay large, and take at most twice the room of what is needed of them.
    #[must_use]
    pub fn unpacked(&self, from: u64) -> Vec<Piece> {
        let all = from..self.geometry.units();
        let mut pieces = Vec::new();
        let left = self.pick(
            all,
            MAX_UNITS as u64,
            &mut pieces,
            |_, source| match source.place {
                Place::Log(_) => true,
                Place::Pack(_) => source.is_sparse(),
            },
        );
        if pieces.is_empty() || left == 0 {
            return pieces;
        }
        let small = self.small_packs(left);
        let all = 0..self.geometry.units();
        if !small.is_empty() {
            self.pick(all, left, &mut pieces, |id, _| small.contains(&id));
        }
        pieces
    }

    /// Adds units of the sources that are `wanted`, at most `most`. How many more it might have been.
    fn pick(
        &self,
        units: Range<u64>,
        most: u64,
        pieces: &mut Vec<Piece>,
        wanted: impl Fn(u32, &Source) -> bool,
    ) -> u64 {
        let mut left = most;
        for (units, held) in self.index.within(units) {
            let Held::Data {
                source,
                id,
                ordinal,
            } = held
            else {
                continue;
            };
            if left == 0 {
                break;
            }
            if wanted(id, source) {
                let units = units.start..units.end.min(units.start + left);
                left -= units.end - units.start;
                pieces.push(piece_of(units, source, ordinal));
            }
        }
        left
    }

    /// Packs that are small, and not to be put anew anyhow: as many as have `units` units together.
    fn small_packs(&self, units: u64) -> BTreeSet<u32> {
        let mut left = units;
        let packs = self.index.packs();
        let small = packs.filter(|(_, pack)| pack.sums.len() < MAX_UNITS / 2 && !pack.is_sparse());
        let fitting = small.filter(|(_, pack)| {
            let fits = pack.live_units() <= left;
            left -= if fits { pack.live_units() } else { 0 };
            fits
        });
        fitting.map(|(id, _)| id).collect()
    }

    /// These pieces, as [`unpacked`](Self::unpacked) gave them, are in a pack on the backends, in their
    /// order, and the pack has the table that [`pack_table`] makes of them. Reads of what is still as
    /// it was go there from now on.
    pub fn packed(&mut self, pieces: &[Piece], pack: Version) {
        let table = pack_table(pieces);
        let (mut ordinal, mut newest) = (0, 0);
        let mut moves = Vec::new();
        for piece in pieces {
            for (units, seq) in self.unchanged(piece) {
                newest = newest.max(seq);
                moves.push((ordinal + (units.start - piece.units.start) as u16, units));
            }
            ordinal += (piece.units.end - piece.units.start) as u16;
        }
        let (place, data_at) = (Place::Pack(pack), pack_data_at(&table) as u32);
        let source = Source::new(place, newest, data_at, table.sums().to_vec());
        let id = self.index.add(source);
        for (ordinal, units) in moves {
            self.index.cut(units.clone(), u64::MAX);
            self.index
                .put(units.start, units.end - units.start, id, ordinal);
        }
        self.index.unpin(id);
        self.collect_packs();
    }

    /// What of a piece is still where it was, and the newest record that had a part in it.
    fn unchanged(&self, piece: &Piece) -> Vec<(Range<u64>, u64)> {
        let (place, offset) = match piece.origin {
            Origin::Log {
                position, offset, ..
            } => (Place::Log(position), offset),
            Origin::Pack { pack, offset, .. } => (Place::Pack(pack), offset),
            Origin::Zeros | Origin::Image { .. } => return Vec::new(),
        };
        let within = self.index.within(piece.units.clone());
        let same = within.filter_map(|(units, held)| match held {
            Held::Data {
                source, ordinal, ..
            } => {
                let expected = offset + (units.start - piece.units.start) * UNIT_BYTES;
                let same = source.place == place && source.offset(ordinal) == expected;
                same.then_some((units, source.seq))
            }
            Held::Empty(_) => None,
        });
        same.collect()
    }

    /// The map pages that changed since they were put.
    #[must_use]
    pub fn unstored_pages(&self) -> Vec<u32> {
        self.map.unstored()
    }

    /// A map page as it is now.
    #[must_use]
    pub fn page(&self, number: u32) -> PageSnapshot {
        let (page, changes) = self.map.page(number);
        PageSnapshot {
            number,
            page,
            changes,
        }
    }

    /// The page is on the backends under this name.
    pub fn page_stored(&mut self, snapshot: &PageSnapshot, named: Named) {
        let gone = &mut self.garbage.new;
        self.map
            .stored(snapshot.number, snapshot.changes, named, gone);
    }

    /// The checkpoint of the volume as it is now, and its name for a [`Part::Root`]. When it is on the
    /// backends, a record with that part has to be the next one that is applied.
    ///
    /// [`Part::Root`]: super::super::format::changes::Part::Root
    ///
    /// # Errors
    /// [`Kind::Invalid`] if units are not in packs yet, or pages not put, or nothing was applied.
    pub fn root(&mut self, volume: Uuid, version: Version) -> Result<(Vec<u8>, Named)> {
        let unfinished = |what: &str| Error::new(Kind::Invalid, format!("a checkpoint {what}"));
        let through = self.last.ok_or_else(|| unfinished("of nothing"))?;
        let pages = self.map.names();
        let pages = pages.ok_or_else(|| unfinished("before all its pages were put"))?;
        if self.index.has_log_data() {
            return Err(unfinished("of units that are in records"));
        }
        let (packs, runs) = self.runs();
        let root = Root {
            through,
            previous: self.checkpoints.last,
            ledger: self.ledger.clone(),
            pages,
            packs,
            runs,
        };
        let (bytes, named) = root.encode(volume, version);
        self.checkpoints.offered = Some((named, through));
        Ok((bytes, named))
    }

    fn runs(&self) -> (Vec<PackUnits>, Vec<Run>) {
        let mut numbers = BTreeMap::new();
        let mut packs = Vec::new();
        for (id, source) in self.index.packs() {
            let Place::Pack(version) = source.place else {
                continue;
            };
            numbers.insert(id, packs.len() as u32);
            packs.push(PackUnits {
                version,
                data_at: source.data_at,
                sums: source.sums.to_vec(),
            });
        }
        let all = self.index.within(0..self.geometry.units());
        let runs = all.filter_map(|(units, held)| {
            let holds = match held {
                Held::Empty(empty) if self.is_needless(units.start, empty) => return None,
                Held::Empty(Empty::Zero) => Holds::Zero,
                Held::Empty(Empty::Trim) => Holds::Trim,
                Held::Data { id, ordinal, .. } => Holds::Pack {
                    pack: *numbers.get(&id)?,
                    ordinal,
                },
            };
            Some(Run {
                unit: units.start,
                units: (units.end - units.start) as u16,
                holds,
            })
        });
        let runs = runs.collect();
        (packs, runs)
    }

    /// Whether zeros say no more than the shard's base. They do until a checkpoint: an image that is
    /// being made may have something else there.
    fn is_needless(&self, unit: u64, empty: Empty) -> bool {
        let base = self.map.get(unit / self.geometry.shard_units());
        match empty {
            Empty::Zero => base == Base::Zero,
            Empty::Trim => base == Base::Never,
        }
    }

    /// The record of the checkpoint that was offered is applied.
    pub(super) fn checkpointed(&mut self, root: Named, seq: u64) {
        let all = self.index.within(0..self.geometry.units());
        let needless = all.filter(|(units, held)| match held {
            Held::Empty(empty) => self.is_needless(units.start, *empty),
            Held::Data { .. } => false,
        });
        let needless: Vec<_> = needless.map(|(units, _)| units).collect();
        for units in needless {
            self.index.cut(units, u64::MAX);
        }
        self.index.compact();
        self.floor = seq.saturating_sub(1);
        self.since.clear();
        self.tail = Tail::default();
        let garbage = &mut self.garbage;
        garbage.ready.append(&mut garbage.old);
        garbage.old.append(&mut garbage.new);
        // Named by the checkpoint before the last one, if at all.
        let Checkpoints { last, previous, .. } = std::mem::take(&mut self.checkpoints);
        let third = previous.map(|previous| Object::Root(previous.version));
        garbage.ready.extend(third);
        self.map.drop_empty(&mut garbage.old);
        self.checkpoints.last = Some(root);
        self.checkpoints.previous = last;
    }

    /// The volume as a checkpoint says it is. `pages` are those that it names, in its order. The next
    /// record to be applied is the checkpoint's own.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it says what can't be for a volume of this geometry.
    pub fn restore(
        geometry: Geometry,
        root: &Root,
        named: Named,
        pages: Vec<MapPage>,
    ) -> Result<Self> {
        let mut state = Self::new(geometry);
        state.last = Some(root.through);
        state.floor = root.through.seq;
        state.ledger.clone_from(&root.ledger);
        state.checkpoints.last = root.previous;
        state.checkpoints.offered = Some((named, root.through));
        state.restore_pages(root, pages)?;
        state.restore_runs(root)?;
        Ok(state)
    }

    fn restore_pages(&mut self, root: &Root, pages: Vec<MapPage>) -> Result<()> {
        let shards = self.geometry.shards();
        let wrong = || corrupt("a checkpoint has pages that the volume can't have");
        if pages.len() != root.pages.len() {
            return Err(wrong());
        }
        for (&(number, named), page) in root.pages.iter().zip(pages) {
            let start = u64::from(number) * PAGE_SHARDS as u64;
            let inside = shards.saturating_sub(start).min(PAGE_SHARDS as u64) as usize;
            let beyond = (inside..PAGE_SHARDS).any(|at| page.get(at) != Base::Never);
            if inside == 0 || beyond {
                return Err(wrong());
            }
            self.map.restore(number, named, page);
        }
        Ok(())
    }

    fn restore_runs(&mut self, root: &Root) -> Result<()> {
        let wrong = || corrupt("a checkpoint has units that the volume can't have");
        let seq = root.through.seq;
        let zeros = Source::new(Place::Log(root.through), seq, 0, Vec::new());
        let zeros = self.index.add(zeros);
        let mut packs = Vec::new();
        for pack in &root.packs {
            if self.index.has_pack(&pack.version) {
                return Err(wrong());
            }
            let place = Place::Pack(pack.version);
            let source = Source::new(place, seq, pack.data_at, pack.sums.clone());
            packs.push(self.index.add(source));
        }
        for run in &root.runs {
            let units = run.unit..run.unit + u64::from(run.units);
            let shard = self
                .geometry
                .units_of(run.unit / self.geometry.shard_units());
            if units.end > shard.end {
                return Err(wrong());
            }
            match run.holds {
                Holds::Zero => drop(self.index.put_empty(units, zeros, Empty::Zero)),
                Holds::Trim => drop(self.index.put_empty(units, zeros, Empty::Trim)),
                Holds::Pack { pack, ordinal } => {
                    let id = packs.get(pack as usize).ok_or_else(wrong)?;
                    let count = units.end - units.start;
                    self.index.put(units.start, count, *id, ordinal);
                }
            }
        }
        packs.push(zeros);
        packs.into_iter().for_each(|id| self.index.unpin(id));
        Ok(())
    }

    /// Objects that may be deleted now, each once: neither of the last two checkpoints names them, nor
    /// does anything since. Whoever deletes them has to be the volume's owner still.
    pub fn take_garbage(&mut self) -> Vec<Object> {
        let ready = std::mem::take(&mut self.garbage.ready);
        ready.into_iter().collect()
    }

    /// An object that was put and is not needed after all: its record was never made. It becomes
    /// garbage like any other.
    pub fn give_up(&mut self, object: Object) {
        self.garbage.new.insert(object);
    }

    /// Whether the volume needs the object, or may: it is in use, or was since the checkpoint before
    /// the last.
    ///
    /// An object of an *earlier* owner that is not needed after this owner's second checkpoint is an
    /// orphan, and may be deleted. Objects of this owner that are still being put are not known here.
    #[must_use]
    pub fn needs(&self, object: &Object) -> bool {
        let named = |root: &Option<Named>, version| root.is_some_and(|it| it.version == version);
        let garbage = [&self.garbage.new, &self.garbage.old, &self.garbage.ready];
        let in_use = match *object {
            Object::Identity { .. } => true,
            Object::Image { shard, version } => match self.map.get(u64::from(shard)) {
                Base::Image(image) => image.version == version,
                Base::Never | Base::Zero => false,
            },
            Object::Pack(version) => self.index.has_pack(&version),
            Object::Map { page, version } => named(&self.map.stored_name(page), version),
            Object::Root(version) => {
                let Checkpoints {
                    last,
                    previous,
                    offered,
                } = &self.checkpoints;
                let offered = offered.map(|(named, _)| named);
                [last, previous, &offered]
                    .iter()
                    .any(|root| named(root, version))
            }
        };
        in_use || garbage.iter().any(|objects| objects.contains(object))
    }

    /// All images that the volume is made of.
    pub fn images(&self) -> impl Iterator<Item = (u32, Named)> + '_ {
        self.map.images()
    }

    /// All packs that have units which are in no image.
    pub fn packs(&self) -> impl Iterator<Item = Version> + '_ {
        self.index
            .packs()
            .filter_map(|(_, source)| match source.place {
                Place::Pack(version) => Some(version),
                Place::Log(_) => None,
            })
    }

    /// The units that are in a pack.
    #[must_use]
    pub fn units_in(&self, pack: Version) -> Vec<Range<u64>> {
        let all = self.index.within(0..self.geometry.units());
        let inside = all.filter_map(|(units, held)| match held {
            Held::Data { source, .. } if source.place == Place::Pack(pack) => Some(units),
            _ => None,
        });
        inside.collect()
    }

    /// What [`packs`](Self::packs) gives, with where the units begin and the checksum of each.
    #[must_use]
    pub fn pack_units(&self, pack: Version) -> Option<PackUnits> {
        let (_, source) = self
            .index
            .packs()
            .find(|(_, it)| it.place == Place::Pack(pack))?;
        Some(PackUnits {
            version: pack,
            data_at: source.data_at,
            sums: source.sums.to_vec(),
        })
    }

    /// All map pages that were put, as they were named last.
    pub fn stored_pages(&self) -> impl Iterator<Item = (u32, Named)> + '_ {
        let pages = 0..self.geometry.shards().div_ceil(PAGE_SHARDS as u64) as u32;
        pages.filter_map(|page| Some((page, self.map.stored_name(page)?)))
    }

    /// The last checkpoint, if one was made.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Named> {
        self.checkpoints.last
    }

    /// The record behind which there was nothing when the checkpoint was made.
    #[must_use]
    pub fn checkpoint_through(&self) -> u64 {
        self.floor
    }
}

/// The table of a pack with these pieces in their order.
#[must_use]
pub fn pack_table(pieces: &[Piece]) -> Table {
    let mut table = Table::default();
    for piece in pieces {
        if let Origin::Log { sums, .. } | Origin::Pack { sums, .. } = &piece.origin {
            // As many as `unpacked` gives have room.
            let _ = table.push_summed(piece.units.start, sums);
        }
    }
    table
}
