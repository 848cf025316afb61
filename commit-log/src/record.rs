//! What lies in the slots of a backend's log, as far as the protocol decides on it.

use std::fmt;

/// One run of an owner. Greater is newer; the random part keeps two that saw the same counter apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// One more than the greatest that was seen.
    pub counter: u64,
    /// Drawn at random by the owner.
    pub owner: u64,
}

/// The name of a record: who made it, and how many records of its log come before it, plus one.
///
/// An owner makes one record for a number, so equal positions are equal records, on any backend.
/// The order is the one in which logs are compared: the epoch first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch of the owner who made the record, whoever copied it since.
    pub epoch: Epoch,
    /// 1 for the first record of a volume.
    pub seq: u64,
}

/// What a record is to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first record of an owner: whatever else followed its predecessor is void.
    Start,
    /// Changes of the volume.
    Data,
    /// Everything before it is in objects that this record names: it stands for all of them.
    Checkpoint,
}

/// The part of a record that decisions are made on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// Its name.
    pub position: Position,
    /// The record before it in its log; none before the first of a volume.
    pub prev: Option<Position>,
    /// What it is.
    pub kind: Kind,
}

/// What one slot holds. Slots are put if absent, and never overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// No owner of a lower epoch may write behind this. Never deleted.
    Fence(Epoch),
    /// A record, put here by `writer`.
    Record {
        /// Who put it: the wrapper of a copy, else the epoch of the record itself.
        writer: Epoch,
        /// The record.
        record: Record,
    },
}

/// Where the log of a backend begins. The slots in front may be gone, all but the fences.
///
/// Floors have names of their own (0, 1, 2, ...), are put if absent before anything is deleted, and
/// are never deleted, so that the last one is found without a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Floor {
    /// The slot of a checkpoint that was acknowledged; 0 before the first collection.
    pub slot: u64,
    /// The greatest fence in front of it.
    pub fence: Epoch,
}

impl Entry {
    /// Who put it.
    #[must_use]
    pub fn writer(&self) -> Epoch {
        match *self {
            Self::Fence(epoch) => epoch,
            Self::Record { writer, .. } => writer,
        }
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.counter)?;
        if self.owner == 0 {
            return Ok(());
        }
        write!(f, ".{:x}", self.owner)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", self.epoch, self.seq)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.kind, self.position)?;
        match self.prev {
            Some(prev) => write!(f, " after {prev:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fence(epoch) => write!(f, "Fence {epoch:?}"),
            Self::Record { writer, record } if *writer == record.position.epoch => {
                write!(f, "{record:?}")
            }
            Self::Record { writer, record } => write!(f, "{record:?} copied by {writer:?}"),
        }
    }
}
