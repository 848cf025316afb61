//! Deleting, on one backend, the records that a checkpoint stands for.

use crate::record::{Entry, Floor, Position};
use crate::rules::Rules;

/// What is to be deleted, and the floor that has to be there first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collection {
    /// The floor.
    pub floor: Floor,
    /// Slots with records in front of it. Never one with a fence.
    pub slots: Vec<u64>,
}

/// What can go from a backend, given the entries that its owner knows to be there, each with its slot,
/// in order. Nothing if the checkpoint is not among them.
///
/// `checkpoint` must have been acknowledged: then every later owner's log has it.
#[must_use]
pub fn collectable<R: Rules>(
    rules: &R,
    entries: &[(u64, Entry)],
    checkpoint: Position,
) -> Option<Collection> {
    let is_checkpoint = |entry: &Entry| matches!(entry, Entry::Record { record, .. } if record.position == checkpoint);
    let at = entries
        .iter()
        .rposition(|(_, entry)| is_checkpoint(entry))?;
    let (slot, entry) = entries[at];
    let fence = entry.writer();
    let garbage = |(_, entry): &&(u64, Entry)| rules.is_garbage(entry);
    let slots = entries[..at].iter().filter(garbage).map(|(slot, _)| *slot);
    Some(Collection {
        floor: Floor { slot, fence },
        slots: slots.collect(),
    })
}

/// A step of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// The floor of this number.
    GetFloor {
        /// Its number.
        number: u64,
    },
    /// A floor, if there is none of its number.
    PutFloor {
        /// Its number.
        number: u64,
        /// The floor.
        floor: Floor,
    },
    /// Delete the entries in these slots.
    Delete {
        /// The slots.
        slots: Vec<u64>,
    },
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The floor, or that there is none of this number.
    Floor(Option<Floor>),
    /// Stored.
    Stored,
    /// There is a floor of this number.
    Exists,
    /// Deleted.
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Look,
    Put,
    Delete,
    Done,
}

/// One collection under way. Ask what [`Collector::request`] says until it says nothing; ask again
/// what had no answer.
///
/// A floor is only put after every floor before it was seen, so that they never fall, whoever puts
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collector {
    collection: Collection,
    number: u64,
    phase: Phase,
}

impl Collector {
    /// `seen` floors are known to be there. The last of them is looked at again.
    #[must_use]
    pub fn new(collection: Collection, seen: u64) -> Self {
        Self {
            collection,
            number: seen.saturating_sub(1),
            phase: Phase::Look,
        }
    }

    /// What is to be done next; nothing when all is done.
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        let number = self.number;
        match self.phase {
            Phase::Look => Some(Request::GetFloor { number }),
            Phase::Put => Some(Request::PutFloor {
                number,
                floor: self.collection.floor,
            }),
            Phase::Delete => Some(Request::Delete {
                slots: self.collection.slots.clone(),
            }),
            Phase::Done => None,
        }
    }

    /// Takes in the answer.
    pub fn answered(&mut self, answer: &Answer) {
        match (self.phase, answer) {
            (Phase::Look, Answer::Floor(None)) => self.phase = Phase::Put,
            (Phase::Look, Answer::Floor(Some(floor))) => self.seen(floor),
            (Phase::Put, Answer::Exists) => self.phase = Phase::Look,
            (Phase::Put, Answer::Stored) => self.phase = Phase::Delete,
            (Phase::Delete, Answer::Deleted) => self.phase = Phase::Done,
            _ => {}
        }
    }

    /// A floor as high as ours, be it our own, allows the deletions just as well.
    fn seen(&mut self, floor: &Floor) {
        if floor.slot >= self.collection.floor.slot {
            self.phase = Phase::Delete;
        } else {
            self.number += 1;
        }
    }
}
