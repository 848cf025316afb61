//! The log that one backend holds: its slots, read in order.

use crate::record::{Entry, Epoch, Floor, Kind, Position, Record};
use crate::rules::Rules;

/// What the slots read so far amount to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Replica {
    fence: Epoch,
    log: Vec<Held>,
}

/// A record on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    /// Who put it there.
    pub writer: Epoch,
    /// The record.
    pub record: Record,
}

impl Replica {
    /// Nothing was read yet of a backend with this floor.
    #[must_use]
    pub fn behind(floor: &Floor) -> Self {
        Self {
            fence: floor.fence,
            log: Vec::new(),
        }
    }

    /// The records that count, each the predecessor of the next.
    #[must_use]
    pub fn log(&self) -> &[Held] {
        &self.log
    }

    /// The greatest fence.
    #[must_use]
    pub fn fence(&self) -> Epoch {
        self.fence
    }

    /// Takes in the entry of the next slot; false if it does not count.
    ///
    /// A record replaces whatever is behind its predecessor. One without its predecessor is left out:
    /// its owner believed that the backend still had what it has lost.
    pub fn read<R: Rules>(&mut self, rules: &R, entry: &Entry) -> bool {
        let (writer, record) = match *entry {
            Entry::Fence(epoch) => {
                self.fence = self.fence.max(epoch);
                return true;
            }
            Entry::Record { writer, record } => (writer, record),
        };
        if !rules.counts(self.fence, writer) || self.has(record.position) {
            return false;
        }
        let before = record.prev.map_or(0, |prev| prev.seq);
        let keep = match record.prev {
            _ if record.position.seq != before + 1 => return false,
            None => 0,
            Some(prev) if self.has(prev) => self.index(prev.seq).map_or(0, |at| at + 1),
            Some(_) if record.kind == Kind::Checkpoint => 0,
            Some(_) => return false,
        };
        if keep < self.log.len() && !rules.voids(&record) {
            return false;
        }
        self.log.truncate(keep);
        self.log.push(Held { writer, record });
        true
    }

    /// Whether the record counts here.
    #[must_use]
    pub fn has(&self, position: Position) -> bool {
        let held = self.index(position.seq).and_then(|at| self.log.get(at));
        held.is_some_and(|held| held.record.position == position)
    }

    /// Where in the log the record of this number stands, if it does: there are no gaps.
    fn index(&self, seq: u64) -> Option<usize> {
        let first = self.log.first()?.record.position.seq;
        usize::try_from(seq.checked_sub(first)?).ok()
    }

    /// The rank of the last record.
    pub(crate) fn rank<R: Rules>(&self, rules: &R) -> Option<Position> {
        let last = self.log.last()?;
        Some(rules.rank(last.writer, &last.record))
    }
}

/// The log that an owner goes on with: of the replicas it fenced, the one with the greatest rank.
///
/// None of them differ below the last record that was acknowledged, so the greatest one has it.
#[must_use]
pub fn choose<'a, R: Rules>(
    rules: &R,
    fenced: impl IntoIterator<Item = &'a Replica>,
) -> Option<&'a Replica> {
    fenced.into_iter().max_by_key(|replica| replica.rank(rules))
}

/// The number of the last record of `log` that the replica has, 0 for none.
#[must_use]
pub fn common(replica: &Replica, log: &[Record]) -> u64 {
    let has = |record: &&Record| replica.has(record.position);
    let last = log.iter().rev().find(has);
    last.map_or(0, |record| record.position.seq)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rules::Protocol;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, owner: 0 }
    }

    fn position(counter: u64, seq: u64) -> Position {
        let epoch = epoch(counter);
        Position { epoch, seq }
    }

    fn record(at: Position, prev: Option<Position>, kind: Kind) -> Record {
        Record {
            position: at,
            prev,
            kind,
        }
    }

    /// Anything that may be found: of few owners, so that much of it fits together.
    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let kinds = prop_oneof![Just(Kind::Start), Just(Kind::Data), Just(Kind::Checkpoint)];
        let a_record = (0_u64..4, 0_u64..4, 1_u64..5, 0_u64..4, kinds).prop_map(
            |(writer, maker, seq, before, kind)| {
                let prev = (seq > 1).then(|| position(before.min(maker), seq - 1));
                Entry::Record {
                    writer: epoch(writer),
                    record: record(position(maker, seq), prev, kind),
                }
            },
        );
        let a_fence = (0_u64..4).prop_map(|counter| Entry::Fence(epoch(counter)));
        prop::collection::vec(prop_oneof![1 => a_fence, 4 => a_record], 0..30)
    }

    fn read(entries: &[Entry]) -> Replica {
        let mut replica = Replica::default();
        for entry in entries {
            replica.read(&Protocol, entry);
        }
        replica
    }

    proptest! {
        #[test]
        fn a_log_is_a_chain_whatever_was_found(entries in entries()) {
            let replica = read(&entries);
            for pair in replica.log().windows(2) {
                let [before, behind] = [pair[0].record.position, pair[1].record.position];
                prop_assert_eq!(pair[1].record.prev, Some(before));
                prop_assert_eq!(behind.seq, before.seq + 1);
            }
            for held in replica.log() {
                prop_assert!(replica.has(held.record.position));
            }
            let first = replica.log().first().map(|held| held.record);
            prop_assert!(first.is_none_or(|it| it.prev.is_none() || it.kind == Kind::Checkpoint));
        }

        #[test]
        fn what_does_not_count_changes_nothing(entries in entries()) {
            let mut replica = Replica::default();
            let mut counted = Vec::new();
            for entry in &entries {
                let before = replica.clone();
                if replica.read(&Protocol, entry) {
                    counted.push(*entry);
                } else {
                    prop_assert_eq!(&replica, &before);
                }
            }
            prop_assert_eq!(read(&counted), replica);
        }

        #[test]
        fn nobody_writes_behind_a_fence_of_somebody_newer(entries in entries(), old in 0_u64..3) {
            let mut replica = read(&entries);
            replica.read(&Protocol, &Entry::Fence(epoch(4)));
            let before = replica.clone();
            let next = replica.log().last().map(|held| held.record.position);
            let seq = next.map_or(0, |next| next.seq) + 1;
            let late = record(position(old, seq), next, Kind::Data);
            let late = Entry::Record { writer: epoch(old), record: late };
            prop_assert!(!replica.read(&Protocol, &late));
            prop_assert_eq!(replica, before);
        }
    }

    #[test]
    fn f61_a_copy_replaces_a_tail_that_was_never_acknowledged() {
        let first = record(position(1, 1), None, Kind::Start);
        let void = record(position(2, 2), Some(position(1, 1)), Kind::Start);
        let chosen = record(position(1, 2), Some(position(1, 1)), Kind::Data);
        let by = |counter, record| Entry::Record {
            writer: epoch(counter),
            record,
        };
        let replica = read(&[
            Entry::Fence(epoch(1)),
            by(1, first),
            Entry::Fence(epoch(2)),
            by(2, void),
            Entry::Fence(epoch(3)),
            by(3, chosen),
        ]);
        let log: Vec<_> = replica.log().iter().map(|held| held.record).collect();
        assert_eq!(log, [first, chosen]);
        assert_eq!(common(&replica, &[first, void]), 1);
        assert_eq!(common(&replica, &[first, chosen]), 2);
    }

    #[test]
    fn f59_logs_are_compared_by_who_made_their_last_record() {
        let first = record(position(1, 1), None, Kind::Start);
        let second = record(position(1, 2), Some(position(1, 1)), Kind::Data);
        let by = |counter, record| Entry::Record {
            writer: epoch(counter),
            record,
        };
        let whole = read(&[Entry::Fence(epoch(1)), by(1, first), by(1, second)]);
        let half = read(&[Entry::Fence(epoch(2)), by(2, first)]);
        for replicas in [[&whole, &half], [&half, &whole]] {
            assert_eq!(choose(&Protocol, replicas), Some(&whole));
        }
        assert_eq!(choose(&Protocol, []), None);
    }
}
