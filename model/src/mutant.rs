//! The rules, and wrong ones: each mutant replaces one decision.

use nbd_rs_commit_log::{
    Entry, Epoch, Floor, Kind, Occupied, Position, Protocol, Quorum, Record, Rules,
};

/// Which decision is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None: the protocol.
    None,
    /// A record is acknowledged with one backend too few.
    AcknowledgesEarly,
    /// A slot that was taken passes for one's own.
    IgnoresTaken,
    /// Logs are compared by who copied them.
    RanksByWrapper,
    /// An owner serves without a start record of its own.
    SkipsStart,
    /// Fences are collected like records.
    CollectsFences,
    /// An owner serves when one backend has its start record.
    ServesEarly,
    /// Records behind a fence of somebody newer count.
    CountsBehindFence,
    /// A backend gets the last record, whatever it lacks.
    CopiesWithoutOrder,
    /// A log is chosen with one backend too few fenced.
    ChoosesEarly,
    /// The plan as it was: only start records replace what is behind their predecessor.
    OnlyStartsVoid,
    /// The plan as it was: the first empty slot is the end of the log, wherever one looks first.
    NoFloor,
    /// The floor is not looked at again behind the fence.
    TrustsOldFloor,
}

impl Rules for Mutant {
    fn is_durable(&self, holders: usize, quorum: &Quorum) -> bool {
        let early = usize::from(*self == Self::AcknowledgesEarly);
        Protocol.is_durable(holders + early, quorum)
    }

    fn is_started(&self, holders: usize, quorum: &Quorum) -> bool {
        match self {
            Self::ServesEarly => holders >= 1,
            _ => Protocol.is_started(holders, quorum),
        }
    }

    fn may_choose(&self, fenced: usize, quorum: &Quorum) -> bool {
        let early = usize::from(*self == Self::ChoosesEarly);
        Protocol.may_choose(fenced + early, quorum)
    }

    fn rank(&self, writer: Epoch, record: &Record) -> Position {
        let epoch = match self {
            Self::RanksByWrapper => writer,
            _ => return Protocol.rank(writer, record),
        };
        let seq = record.position.seq;
        Position { epoch, seq }
    }

    fn counts(&self, fence: Epoch, writer: Epoch) -> bool {
        *self == Self::CountsBehindFence || Protocol.counts(fence, writer)
    }

    fn voids(&self, record: &Record) -> bool {
        *self != Self::OnlyStartsVoid || record.kind == Kind::Start
    }

    fn opening(&self, epoch: Epoch, last: Option<Position>) -> Option<Record> {
        let skips = *self == Self::SkipsStart;
        Protocol.opening(epoch, last).filter(|_| !skips)
    }

    fn next(&self, held: u64, first: u64, last: u64) -> Option<u64> {
        match self {
            Self::CopiesWithoutOrder => (held < last).then_some(last),
            _ => Protocol.next(held, first, last),
        }
    }

    fn occupied(&self, me: Epoch, mine: &Entry, found: &Entry) -> Occupied {
        match self {
            Self::IgnoresTaken => Occupied::Mine,
            _ => Protocol.occupied(me, mine, found),
        }
    }

    fn is_garbage(&self, entry: &Entry) -> bool {
        *self == Self::CollectsFences || Protocol.is_garbage(entry)
    }

    fn first_slot(&self, floor: &Floor) -> u64 {
        match self {
            Self::NoFloor => 0,
            _ => Protocol.first_slot(floor),
        }
    }

    fn confirms_floor(&self) -> bool {
        !matches!(self, Self::NoFloor | Self::TrustsOldFloor) && Protocol.confirms_floor()
    }
}
