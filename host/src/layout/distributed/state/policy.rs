//! What is worth to be folded, and when a checkpoint is due. Pure.

use super::super::format::UNIT_BYTES;
use super::State;

/// When units go from the log into images. Zeros above an image count as a unit for each run of
/// them: they take as much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many bytes may wait in records and packs.
    pub budget_bytes: u64,
    /// From this part of a shard on, in percent, its image is always worth it.
    pub image_percent: u64,
    /// Below this part an image is made only when the budget is spent.
    pub least_percent: u64,
    /// A checkpoint is due after so many bytes of payloads,
    pub checkpoint_bytes: u64,
    /// or after so many records.
    pub checkpoint_records: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            budget_bytes: 1 << 30,
            image_percent: 25,
            least_percent: 10,
            checkpoint_bytes: 64 << 20,
            checkpoint_records: 1024,
        }
    }
}

impl Policy {
    /// Whether a flush that has `units` units of a shard should put an image of it, and not the units.
    #[must_use]
    pub fn is_image_worth(&self, state: &State, shard: u32, units: u64) -> bool {
        let waiting = state.waiting_of(shard).data_bytes / UNIT_BYTES;
        reaches(waiting + units, self.image_percent, state.units_of(shard))
    }

    /// The shards of which an image should be made now, those with the most units first; at most
    /// `most`.
    ///
    /// Over the budget it is those that bring it back to seven eighths of it; from three quarters on
    /// those that have the least percentage; and always those that have the percentage of images.
    #[must_use]
    pub fn shards_to_fold(&self, state: &State, most: usize) -> Vec<u32> {
        let budget = self.budget_bytes / UNIT_BYTES;
        let mut shards: Vec<(u64, u32)> = state.costs().collect();
        shards.sort_unstable_by_key(|&(cost, shard)| (std::cmp::Reverse(cost), shard));
        let total: u64 = shards.iter().map(|(cost, _)| cost).sum();
        let percent = match total > budget / 4 * 3 {
            true => self.least_percent.min(self.image_percent),
            false => self.image_percent,
        };
        // Over the budget this much has to go, whatever part of a shard it is.
        let mut excess = match total > budget {
            true => total - budget / 8 * 7,
            false => 0,
        };
        let worth = |&(cost, shard): &(u64, u32)| {
            let needed = excess > 0;
            excess = excess.saturating_sub(cost);
            (needed || reaches(cost, percent, state.units_of(shard))).then_some(shard)
        };
        shards.iter().filter_map(worth).take(most).collect()
    }

    /// Whether a checkpoint is due: a start has to read what came after the last one.
    #[must_use]
    pub fn is_checkpoint_due(&self, state: &State) -> bool {
        let tail = state.tail();
        tail.bytes >= self.checkpoint_bytes || tail.records >= self.checkpoint_records
    }
}

/// Whether `units` of `all` are so many percent.
fn reaches(units: u64, percent: u64, all: u64) -> bool {
    units.saturating_mul(100) >= all.saturating_mul(percent)
}

impl State {
    fn units_of(&self, shard: u32) -> u64 {
        let units = self.geometry.units_of(u64::from(shard));
        units.end - units.start
    }

    /// Each shard that has something waiting, with what it costs, in units.
    fn costs(&self) -> impl Iterator<Item = (u64, u32)> {
        let shards = self.index.by_shard().into_iter();
        shards.map(|(shard, units, zero_runs)| (units + zero_runs, shard as u32))
    }
}

#[cfg(test)]
mod tests {
    use nbd_rs_commit_log::{Epoch, Position};

    use super::super::super::format::changes::{Changes, Part, Table};
    use super::*;
    use crate::layout::geometry::Geometry;

    /// A volume of eight shards of 100 units, no: of 128, of which each has so many in the log.
    fn state(units: &[u64]) -> State {
        let geometry = Geometry {
            size_bytes: 8 << 19,
            shard_bytes: 1 << 19,
        };
        let mut state = State::new(geometry);
        let mut table = Table::default();
        for (shard, &units) in (0..).zip(units) {
            for unit in 0..units {
                table.push_summed(shard * 128 + unit, &[0]).unwrap();
            }
        }
        let parts = vec![Part::Data(table)];
        let epoch = Epoch::default();
        let position = Position { epoch, seq: 1 };
        state.apply(position, &Changes { parts }).unwrap();
        state
    }

    fn policy(budget_units: u64) -> Policy {
        Policy {
            budget_bytes: budget_units * UNIT_BYTES,
            ..Policy::default()
        }
    }

    #[test]
    fn a_quarter_of_a_shard_is_always_worth_an_image() {
        let state = state(&[31, 32, 128, 1]);
        assert_eq!(policy(1000).shards_to_fold(&state, 9), [2, 1]);
        assert_eq!(policy(1000).shards_to_fold(&state, 1), [2]);
        assert!(policy(1000).is_image_worth(&state, 0, 1));
        assert!(!policy(1000).is_image_worth(&state, 3, 30));
        assert!(policy(1000).is_image_worth(&state, 3, 31));
    }

    #[test]
    fn near_the_budget_a_tenth_is_worth_one_and_over_it_what_there_is_most_of() {
        let units = [13, 12, 11, 10];
        let near = state(&units);
        assert!(policy(100).shards_to_fold(&near, 9).is_empty());
        assert_eq!(policy(60).shards_to_fold(&near, 9), [0]);
        // Back to seven eighths of 44: at least 11 have to go.
        assert_eq!(policy(44).shards_to_fold(&near, 9), [0]);
        assert_eq!(policy(40).shards_to_fold(&near, 9), [0]);
        assert_eq!(policy(30).shards_to_fold(&near, 9), [0, 1]);
        assert_eq!(policy(8).shards_to_fold(&near, 9), [0, 1, 2, 3]);
    }

    #[test]
    fn zeros_above_an_image_count_for_what_they_take() {
        let mut state = state(&[]);
        for (seq, unit) in (2..).zip((0..128).step_by(2)) {
            let epoch = Epoch::default();
            let parts = vec![Part::Trim(unit..unit + 1)];
            let position = Position { epoch, seq };
            state.apply(position, &Changes { parts }).unwrap();
        }
        assert_eq!(state.waiting().zero_runs, 64);
        assert_eq!(state.waiting_of(0).zero_runs, 64);
        assert_eq!(policy(1000).shards_to_fold(&state, 9), [0]);
    }

    #[test]
    fn a_checkpoint_is_due_by_bytes_or_records() {
        let state = state(&[1]);
        let policy = Policy::default();
        assert!(!policy.is_checkpoint_due(&state));
        for due in [
            Policy {
                checkpoint_bytes: 4096,
                ..policy
            },
            Policy {
                checkpoint_records: 1,
                ..policy
            },
        ] {
            assert!(due.is_checkpoint_due(&state));
        }
    }
}
