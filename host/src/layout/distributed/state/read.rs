//! What ranges are made of. Pure.

use std::ops::{ControlFlow, Range};

use nbd_rs_commit_log::Position;

use super::super::format::map::Base;
use super::super::format::{Named, Version, UNIT_BYTES};
use super::index::{Empty, Held, Place, Source};
use super::State;

/// A part of a range, and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its units in the volume.
    pub units: Range<u64>,
    /// Where they are.
    pub origin: Origin,
}

/// Where units are, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// They are zeros.
    Zeros,
    /// In the payload of a record of the log.
    Log {
        /// The record.
        position: Position,
        /// Their first byte in its payload.
        offset: u64,
        /// The checksum of each.
        sums: Vec<u32>,
    },
    /// In a pack.
    Pack {
        /// Its name.
        pack: Version,
        /// Their first byte in it.
        offset: u64,
        /// The checksum of each.
        sums: Vec<u32>,
    },
    /// In the image of their shard, whose trailer has the checksums.
    Image {
        /// The shard.
        shard: u32,
        /// The image.
        image: Named,
        /// The number inside the shard of the first.
        first: u32,
    },
}

/// What is known of a range without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// It has data.
    Data,
    /// It reads as zeros, and keeps its space.
    Zero,
    /// It reads as zeros, and has no space.
    Hole,
}

impl State {
    /// Where the bytes of these units are, in order and without a gap. Units beyond the volume's end
    /// are left out.
    #[must_use]
    pub fn plan(&self, units: Range<u64>) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        self.walk(units, |units, found| {
            let piece = piece(units, &found);
            match pieces.last_mut().filter(|last| last.continues(&piece)) {
                Some(last) => last.extend(piece),
                None => pieces.push(piece),
            }
            ControlFlow::Continue(())
        });
        pieces
    }

    /// What is allocated of these units, in order: neighbours differ. It ends early when there are
    /// `most`.
    #[must_use]
    pub fn allocation(&self, units: Range<u64>, most: usize) -> Vec<(Range<u64>, Allocation)> {
        let mut all: Vec<(Range<u64>, Allocation)> = Vec::new();
        self.walk(units, |units, found| {
            let allocation = match found {
                Found::Base(_, Base::Never) | Found::Index(Held::Empty(Empty::Trim)) => {
                    Allocation::Hole
                }
                Found::Base(_, Base::Zero) | Found::Index(Held::Empty(Empty::Zero)) => {
                    Allocation::Zero
                }
                Found::Base(_, Base::Image(_)) | Found::Index(Held::Data { .. }) => {
                    Allocation::Data
                }
            };
            match all.last_mut() {
                Some((last, same)) if *same == allocation => last.end = units.end,
                _ => all.push((units, allocation)),
            }
            // One more, to see where the last one ends.
            match all.len() > most {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        all.truncate(most);
        all
    }

    /// Calls `each` for every part of the range, in order, until it breaks.
    fn walk<'s>(
        &'s self,
        units: Range<u64>,
        mut each: impl FnMut(Range<u64>, Found<'s>) -> ControlFlow<()>,
    ) {
        let units = units.start..units.end.min(self.geometry.units());
        let mut at = units.start;
        for (part, held) in self.index.within(units.clone()) {
            let gap = self.walk_bases(at..part.start, &mut each);
            at = part.end;
            if gap.is_break() || each(part, Found::Index(held)).is_break() {
                return;
            }
        }
        // The end, or nobody wants to know more.
        let _ = self.walk_bases(at..units.end, &mut each);
    }

    fn walk_bases<'s>(
        &'s self,
        units: Range<u64>,
        each: &mut impl FnMut(Range<u64>, Found<'s>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if units.is_empty() {
            return ControlFlow::Continue(());
        }
        let shard_units = self.geometry.shard_units();
        let shards = units.start / shard_units..units.end.div_ceil(shard_units);
        let mut bases = self.map.bases(shards);
        bases.try_for_each(|(shards, base)| {
            let (start, end) = (shards.start * shard_units, shards.end * shard_units);
            let part = units.start.max(start)..units.end.min(end);
            let first = part.start - start;
            each(part, Found::Base((shards.start, first), base))
        })
    }
}

/// Where a part of a range was found.
enum Found<'s> {
    Index(Held<'s>),
    /// Nothing newer than what the shard is: its number, and that of the first unit inside it.
    Base((u64, u64), Base),
}

fn piece(units: Range<u64>, found: &Found<'_>) -> Piece {
    let origin = match found {
        Found::Base((shard, first), Base::Image(image)) => Origin::Image {
            shard: *shard as u32,
            image: *image,
            first: *first as u32,
        },
        Found::Base(..) | Found::Index(Held::Empty(_)) => Origin::Zeros,
        Found::Index(Held::Data {
            source, ordinal, ..
        }) => return piece_of(units, source, *ordinal),
    };
    Piece { units, origin }
}

/// Units of a source, from this ordinal on.
pub(super) fn piece_of(units: Range<u64>, source: &Source, ordinal: u16) -> Piece {
    let offset = source.offset(ordinal);
    let count = (units.end - units.start) as usize;
    let sums = source.sums_of(ordinal, count).to_vec();
    let origin = match source.place {
        Place::Log(position) => Origin::Log {
            position,
            offset,
            sums,
        },
        Place::Pack(pack) => Origin::Pack { pack, offset, sums },
    };
    Piece { units, origin }
}

impl Piece {
    /// Whether `next` lies right behind this piece, in the volume and where its bytes are.
    fn continues(&self, next: &Piece) -> bool {
        let bytes = (self.units.end - self.units.start) * UNIT_BYTES;
        match (&self.origin, &next.origin) {
            (Origin::Zeros, Origin::Zeros) => true,
            (
                Origin::Log {
                    position, offset, ..
                },
                Origin::Log {
                    position: same,
                    offset: behind,
                    ..
                },
            ) => position == same && offset + bytes == *behind,
            (
                Origin::Pack { pack, offset, .. },
                Origin::Pack {
                    pack: same,
                    offset: behind,
                    ..
                },
            ) => pack == same && offset + bytes == *behind,
            _ => false,
        }
    }

    /// Each of its units for itself.
    pub fn singles(&self) -> impl DoubleEndedIterator<Item = Piece> + '_ {
        let count = self.units.end - self.units.start;
        (0..count).map(|at| {
            let mut origin = self.origin.clone();
            match &mut origin {
                Origin::Zeros => {}
                Origin::Image { first, .. } => *first += at as u32,
                Origin::Log { offset, sums, .. } | Origin::Pack { offset, sums, .. } => {
                    *offset += at * UNIT_BYTES;
                    *sums = sums.get(at as usize).copied().into_iter().collect();
                }
            }
            let unit = self.units.start + at;
            let units = unit..unit + 1;
            Piece { units, origin }
        })
    }

    fn extend(&mut self, next: Piece) {
        self.units.end = next.units.end;
        match (&mut self.origin, next.origin) {
            (Origin::Log { sums, .. }, Origin::Log { sums: more, .. })
            | (Origin::Pack { sums, .. }, Origin::Pack { sums: more, .. }) => sums.extend(more),
            _ => {}
        }
    }
}
