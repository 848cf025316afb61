//! What an owner knows of one backend: what lies where, and how it answers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nbd_rs_commit_log::{Entry, Epoch, Floor, Position};

use super::object::Seal;
use crate::error::Error;

/// Damaged slots that are remembered.
const MAX_DAMAGED: usize = 1000;

/// One backend.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What lies in each slot, from the floor on.
    entries: BTreeMap<u64, (Entry, Seal)>,
    /// Where a record lies. Any place of it will do: equal positions are equal records.
    places: BTreeMap<Position, u64>,
    /// The last floor that was seen, and its number.
    floor: Option<(u64, Floor)>,
    /// Slots whose payload is not what was written.
    damaged: BTreeSet<u64>,
    /// When it last answered.
    pub(super) answered: Duration,
    /// Since when it does not answer, or not with anything that can be used.
    pub(super) away_since: Option<Duration>,
    pub(super) failures: u32,
    pub(super) error: Option<Error>,
}

impl Known {
    pub(super) fn note(&mut self, slot: u64, entry: Entry, seal: Seal) {
        self.entries.insert(slot, (entry, seal));
        if let Entry::Record { record, .. } = entry {
            self.places.insert(record.position, slot);
        }
    }

    pub(super) fn note_floor(&mut self, number: u64, floor: Floor) {
        if self.floor.is_none_or(|(known, _)| known < number) {
            self.floor = Some((number, floor));
        }
    }

    pub(super) fn entry(&self, slot: u64) -> Option<(Entry, Seal)> {
        self.entries.get(&slot).copied()
    }

    /// The floor of this number or a later one, if one is known. Floors have no gaps and never fall, so
    /// that those in front of one that is known need not be read.
    pub(super) fn floor(&self, number: u64) -> Option<Floor> {
        let (last, floor) = self.floor?;
        (number <= last).then_some(floor)
    }

    /// How many floors are known to be there.
    pub(super) fn floors(&self) -> u64 {
        self.floor.map_or(0, |(number, _)| number + 1)
    }

    /// Where the log begins.
    pub(super) fn first_slot(&self) -> u64 {
        self.floor.map_or(0, |(_, floor)| floor.slot)
    }

    /// Where a record lies, and its seal.
    pub(super) fn place(&self, position: Position) -> Option<(u64, Seal)> {
        let slot = *self.places.get(&position)?;
        Some((slot, self.entry(slot)?.1))
    }

    /// The greatest epoch that wrote here.
    pub(super) fn newest(&self) -> Epoch {
        let writers = self.entries.values().map(|(entry, _)| entry.writer());
        let floor = self
            .floor
            .map_or(Epoch::default(), |(_, floor)| floor.fence);
        writers.fold(floor, Epoch::max)
    }

    /// All entries, each with its slot, in order.
    pub(super) fn entries(&self) -> Vec<(u64, Entry)> {
        let entries = self.entries.iter();
        entries.map(|(slot, (entry, _))| (*slot, *entry)).collect()
    }

    /// Forgets what was deleted, and the fences in front of the floor, which are left where they are.
    pub(super) fn collected(&mut self, deleted: &BTreeSet<u64>, floor: u64) {
        let is_gone = |slot: u64, entry: &Entry| {
            let is_fence = matches!(entry, Entry::Fence(_));
            deleted.contains(&slot) || (is_fence && slot < floor)
        };
        self.entries
            .retain(|slot, (entry, _)| !is_gone(*slot, entry));
        self.places.retain(|_, slot| !deleted.contains(slot));
        self.damaged.retain(|slot| !deleted.contains(slot));
    }

    pub(super) fn note_damage(&mut self, slot: u64) {
        if self.damaged.len() < MAX_DAMAGED {
            self.damaged.insert(slot);
        }
    }

    pub(super) fn damaged(&self) -> Vec<u64> {
        self.damaged.iter().copied().collect()
    }
}
