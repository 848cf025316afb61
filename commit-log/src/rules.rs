//! The decisions, one function each.
//!
//! The provided methods are the protocol, and [`Protocol`] is all that a server uses. They are in a
//! trait so that the model can put a wrong one in place of each and be seen to find it.

use std::hash::Hash;

use crate::record::{Entry, Epoch, Floor, Kind, Position, Record};

/// How many of the backends have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quorum {
    backends: usize,
    write: usize,
}

impl Quorum {
    /// `write` of `backends` hold a record before it is acknowledged. None unless
    /// 1 <= `write` <= `backends`.
    #[must_use]
    pub fn new(backends: usize, write: usize) -> Option<Self> {
        (1..=backends)
            .contains(&write)
            .then_some(Self { backends, write })
    }

    /// More than half of the backends.
    #[must_use]
    pub fn majority(backends: usize) -> Option<Self> {
        Self::new(backends, backends / 2 + 1)
    }

    /// N.
    #[must_use]
    pub fn backends(&self) -> usize {
        self.backends
    }

    /// W.
    #[must_use]
    pub fn write(&self) -> usize {
        self.write
    }

    /// Q = N - W + 1: so many backends meet every set of W.
    #[must_use]
    pub fn fence(&self) -> usize {
        self.backends - self.write + 1
    }
}

/// What an owner makes of an entry where it wanted to put its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// It is its own: an earlier attempt had succeeded.
    Mine,
    /// A newer owner was here. The end of this one.
    Lost(Epoch),
    /// A leftover that counts for nobody: the next slot is to be tried.
    Skip,
    /// Nothing that can be here. The backend is used no more.
    Damaged,
}

/// The decisions of the protocol.
pub trait Rules: Clone + PartialEq + Eq + Hash {
    /// Whether a record that `holders` backends hold, together with all before it, is acknowledged.
    fn is_durable(&self, holders: usize, quorum: &Quorum) -> bool {
        holders >= quorum.write()
    }

    /// Whether an owner whose start record `holders` backends hold may serve.
    fn is_started(&self, holders: usize, quorum: &Quorum) -> bool {
        holders >= quorum.write()
    }

    /// Whether the logs of `fenced` backends show every record that was ever acknowledged.
    fn may_choose(&self, fenced: usize, quorum: &Quorum) -> bool {
        fenced >= quorum.fence()
    }

    /// Logs are compared by the rank of their last record, and the greatest is chosen.
    ///
    /// The epoch is the original one. By the wrapper's a half-done copy would beat the longer log
    /// that it was made from.
    fn rank(&self, _writer: Epoch, record: &Record) -> Position {
        record.position
    }

    /// Whether an entry of `writer` counts when `fence` is the greatest fence before it.
    fn counts(&self, fence: Epoch, writer: Epoch) -> bool {
        writer == fence
    }

    /// Whether a record that counts replaces what is behind its predecessor.
    ///
    /// Not start records alone: the chosen log may go on with an older owner's record where this
    /// backend has the start of somebody who got no further.
    fn voids(&self, _record: &Record) -> bool {
        true
    }

    /// The first record of an owner that chose a log with this last record.
    fn opening(&self, epoch: Epoch, last: Option<Position>) -> Option<Record> {
        let seq = last.map_or(0, |last| last.seq) + 1;
        Some(Record {
            position: Position { epoch, seq },
            prev: last,
            kind: Kind::Start,
        })
    }

    /// The number of the record that a backend gets next, when it holds all through `held` and the
    /// log has `first` to `last`. `first` stands for what is before it.
    fn next(&self, held: u64, first: u64, last: u64) -> Option<u64> {
        let next = first.max(held + 1);
        (next <= last).then_some(next)
    }

    /// What `found` in a slot means to the owner `me` that wanted to put `mine` there.
    fn occupied(&self, me: Epoch, mine: &Entry, found: &Entry) -> Occupied {
        if found == mine {
            Occupied::Mine
        } else if found.writer() > me {
            Occupied::Lost(found.writer())
        } else if found.writer() < me {
            Occupied::Skip
        } else {
            Occupied::Damaged
        }
    }

    /// Whether an entry in front of a floor may be deleted.
    ///
    /// A fence is what an owner that sleeps for days finds where it wants to go on.
    fn is_garbage(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Record { .. })
    }

    /// The slot where the log of a backend with this floor begins.
    fn first_slot(&self, floor: &Floor) -> u64 {
        floor.slot
    }

    /// Whether the floor is looked at again when the fence is in place.
    ///
    /// It may have moved, and then the fence may stand in a slot that was only empty because it was
    /// collected.
    fn confirms_floor(&self) -> bool {
        true
    }
}

/// The rules as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protocol;

impl Rules for Protocol {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c15_any_two_quorums_meet() {
        for backends in 1..=9 {
            for write in 1..=backends {
                let quorum = Quorum::new(backends, write).expect("possible");
                assert_eq!(quorum.write() + quorum.fence(), backends + 1);
                assert!(Protocol.may_choose(quorum.fence(), &quorum));
                assert!(!Protocol.may_choose(quorum.fence() - 1, &quorum));
                assert!(Protocol.is_durable(write, &quorum));
                assert!(!Protocol.is_durable(write - 1, &quorum));
            }
        }
        assert_eq!(Quorum::new(3, 0), None);
        assert_eq!(Quorum::new(3, 4), None);
        let writes = (1..6).filter_map(Quorum::majority).map(|it| it.write());
        assert_eq!(writes.collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
    }

    #[test]
    fn c20_what_a_taken_slot_means() {
        let epoch = |counter| Epoch { counter, owner: 0 };
        let (older, me, newer) = (epoch(1), epoch(2), epoch(3));
        let by = |writer, seq| Entry::Record {
            writer,
            record: Record {
                position: Position { epoch: me, seq },
                prev: None,
                kind: Kind::Data,
            },
        };
        let mine = by(me, 5);
        let occupied = |found| Protocol.occupied(me, &mine, &found);
        assert_eq!(occupied(mine), Occupied::Mine);
        assert_eq!(occupied(Entry::Fence(newer)), Occupied::Lost(newer));
        assert_eq!(occupied(by(newer, 5)), Occupied::Lost(newer));
        assert_eq!(occupied(Entry::Fence(older)), Occupied::Skip);
        assert_eq!(occupied(by(older, 5)), Occupied::Skip);
        assert_eq!(occupied(by(me, 6)), Occupied::Damaged);
    }
}
