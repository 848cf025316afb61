//! A store with contiguous slots, put if absent, and what may still happen to it.

use nbd_rs_commit_log::collect::{self, Collector};
use nbd_rs_commit_log::{Entry, Epoch, Floor, Held, Kind, Protocol, Replica, Rules};

use crate::hash;

/// A put whose sender has given it up, or is dead. It may have effect yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Late {
    pub(crate) slot: u64,
    pub(crate) entry: Entry,
}

/// The newest owner that knew a backend before a loss, and the newest that fenced it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lost {
    before: Epoch,
    since: Epoch,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Backend {
    pub(crate) slots: Vec<Option<Entry>>,
    pub(crate) floors: Vec<Floor>,
    /// In no order that matters.
    pub(crate) late: Vec<Late>,
    /// Collections under way, and whose they are.
    pub(crate) collectors: Vec<(usize, Collector)>,
    /// Never answers.
    pub(crate) is_down: bool,
    /// It has lost slots, and no owner has completed it since.
    pub(crate) lost: Option<Lost>,
    /// It has lost slots at some time. Owners that were there already may have put something behind
    /// a fence in a slot that was lost, and count it.
    pub(crate) has_lost: bool,
    /// The owners that had it fenced when they chose a log, one bit each; kept if slots may be lost.
    pub(crate) chosen_from: u8,
}

impl Backend {
    pub(crate) fn get(&self, slot: u64) -> Option<Entry> {
        self.slots.get(usize::try_from(slot).ok()?).copied()?
    }

    /// Whether the slot was empty.
    pub(crate) fn put(&mut self, slot: u64, entry: Entry) -> bool {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        if self.slots.len() <= at {
            self.slots.resize(at + 1, None);
        }
        let is_new = self.slots[at].is_none();
        if is_new {
            self.slots[at] = Some(entry);
            self.heal(&entry);
        }
        is_new
    }

    /// It loses slots. `newest` is the newest owner that may have read it already.
    pub(crate) fn lose(&mut self, slots: std::ops::Range<u64>, newest: Epoch) {
        let before = self.fence().max(newest);
        let since = Epoch::default();
        self.lost = Some(Lost { before, since });
        self.has_lost = true;
        slots.for_each(|slot| self.clear(slot));
    }

    /// After a loss it is whole again when an owner that fenced it since, newer than all that knew it
    /// before, has its start record behind what is still there.
    fn heal(&mut self, entry: &Entry) {
        let Some(Lost { before, since }) = &mut self.lost else {
            return;
        };
        match *entry {
            Entry::Fence(epoch) => *since = epoch.max(*since),
            Entry::Record { writer, record } => {
                let is_start = record.kind == Kind::Start && record.position.epoch == writer;
                let is_newest = writer == *since && *since > *before;
                let last = self.replica().log().last().map(|held| held.record);
                if is_start && is_newest && last == Some(record) {
                    self.lost = None;
                }
            }
        }
    }

    pub(crate) fn collect(&mut self, request: &collect::Request) -> collect::Answer {
        match request {
            collect::Request::GetFloor { number } => collect::Answer::Floor(self.floor(*number)),
            collect::Request::PutFloor { number, .. } if *number < self.floors.len() as u64 => {
                collect::Answer::Exists
            }
            collect::Request::PutFloor { floor, .. } => {
                self.floors.push(*floor);
                collect::Answer::Stored
            }
            collect::Request::Delete { slots } => {
                for slot in slots {
                    self.clear(*slot);
                }
                collect::Answer::Deleted
            }
        }
    }

    pub(crate) fn floor(&self, number: u64) -> Option<Floor> {
        self.floors.get(usize::try_from(number).ok()?).copied()
    }

    fn clear(&mut self, slot: u64) {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = None;
        }
        while self.slots.last() == Some(&None) {
            self.slots.pop();
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let numbered = (0..).zip(&self.slots);
        numbered.filter_map(|(slot, entry)| Some((slot, (*entry)?)))
    }

    /// What a new owner would read.
    pub(crate) fn replica(&self) -> Replica {
        self.replica_by(&Protocol)
    }

    /// What a new owner with these rules would read.
    pub(crate) fn replica_by<R: Rules>(&self, rules: &R) -> Replica {
        let floor = self.last_floor();
        let mut replica = Replica::behind(&floor);
        let mut slot = rules.first_slot(&floor);
        while let Some(entry) = self.get(slot) {
            replica.read(rules, &entry);
            slot += 1;
        }
        replica
    }

    pub(crate) fn last_floor(&self) -> Floor {
        self.floors.last().copied().unwrap_or_default()
    }

    /// Puts that are on their way have no order.
    pub(crate) fn fingerprint(&self) -> u64 {
        let late = self.late.iter().map(hash::of);
        let late = late.fold(0, u64::wrapping_add);
        let Self {
            slots,
            floors,
            collectors,
            is_down,
            lost,
            has_lost,
            chosen_from,
            ..
        } = self;
        hash::of(&(
            slots,
            floors,
            collectors,
            is_down,
            lost,
            has_lost,
            chosen_from,
            late,
        ))
    }

    /// The greatest fence anywhere.
    pub(crate) fn fence(&self) -> Epoch {
        let fences = self.entries().filter_map(|(_, entry)| match entry {
            Entry::Fence(epoch) => Some(epoch),
            Entry::Record { .. } => None,
        });
        fences.max().unwrap_or_default()
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = Held> + '_ {
        self.entries().filter_map(|(_, entry)| match entry {
            Entry::Record { writer, record } => Some(Held { writer, record }),
            Entry::Fence(_) => None,
        })
    }
}
