//! What the clients of all owners were told, and whether it is still true.
//!
//! Records are known by their positions alone, so a log is known by the position of its last one.

use nbd_rs_commit_log::{Epoch, Position};

/// What an owner did, kept when it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Deeds {
    /// It has chosen a log.
    pub(crate) has_chosen: bool,
    /// The last record of the log that it chose.
    pub(crate) base: Option<Position>,
    /// It serves, or did.
    pub(crate) has_started: bool,
    /// The last of its own records that was acknowledged; the start record counts.
    pub(crate) acknowledged: Option<Position>,
}

/// The deeds of every owner; the one with counter n of its epoch at n - 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct History(pub(crate) Vec<Deeds>);

pub(crate) fn epoch(owner: usize) -> Epoch {
    Epoch {
        counter: owner as u64 + 1,
        owner: 0,
    }
}

pub(crate) fn owner(epoch: Epoch) -> usize {
    usize::try_from(epoch.counter).unwrap_or(usize::MAX) - 1
}

impl History {
    fn before(&self, position: Position) -> Option<Position> {
        let base = self.0.get(owner(position.epoch))?.base;
        let seq = position.seq - 1;
        match base.map_or(0, |base| base.seq) < seq {
            true => Some(Position { seq, ..position }),
            false => base,
        }
    }

    /// A log, its last record first.
    fn log(&self, last: Option<Position>) -> impl Iterator<Item = Position> + '_ {
        std::iter::successors(last, |&position| self.before(position))
    }

    fn contains(&self, last: Option<Position>, position: Position) -> bool {
        self.log(last).any(|found| found == position)
    }

    fn started(&self) -> impl Iterator<Item = (usize, &Deeds)> {
        let all = self.0.iter().enumerate();
        all.filter(|(_, deeds)| deeds.has_started)
    }

    /// What is wrong with an owner that serves the log which ends with `base`, as the newest.
    pub(crate) fn check_newest(&self, me: Epoch, base: Option<Position>) -> Option<String> {
        for (other, deeds) in self.started().filter(|(other, _)| epoch(*other) < me) {
            let other = epoch(other);
            if let Some(lost) = deeds.acknowledged.filter(|it| !self.contains(base, *it)) {
                return Some(format!(
                    "1, 4: {lost:?} was acknowledged, and {me:?} serves a log without it, that ends with {base:?}"
                ));
            }
            if let Some(gone) = deeds.base.filter(|it| !self.contains(base, *it)) {
                return Some(format!(
                    "3, 4: {other:?} served {gone:?}, and {me:?} a log without it"
                ));
            }
            let mut later = self.log(base).take_while(|it| Some(*it) != deeds.base);
            if let Some(back) = later.find(|it| it.epoch < other) {
                return Some(format!(
                    "3: {other:?} served the volume without {back:?}, which is back in the log of {me:?}"
                ));
            }
        }
        None
    }

    /// What is wrong with a record (a start record, too) that is acknowledged now.
    pub(crate) fn check_acknowledged(&self, record: Position) -> Option<String> {
        let newer = self.started().find(|(other, deeds)| {
            epoch(*other) > record.epoch && !self.contains(deeds.base, record)
        });
        let newer = epoch(newer?.0);
        Some(format!(
            "2: {record:?} is acknowledged, {newer:?} has started without it"
        ))
    }

    /// Whether nobody was told that the record is durable.
    pub(crate) fn is_unacknowledged(&self, record: Position) -> bool {
        let deeds = self.0.get(owner(record.epoch));
        let told = deeds.and_then(|deeds| deeds.acknowledged);
        told.is_none_or(|told| told.seq < record.seq)
    }

    /// Whether somebody newer has started.
    pub(crate) fn has_newer_start(&self, me: usize) -> bool {
        self.started().any(|(other, _)| other > me)
    }

    /// Whether a record is no part of the log that ends with `base`, nor made by its owner.
    pub(crate) fn is_void(&self, base: Option<Position>, record: Position, me: Epoch) -> bool {
        record.epoch != me && !self.contains(base, record)
    }
}
