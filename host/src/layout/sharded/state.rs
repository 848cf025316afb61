//! The state of each shard, two bits of it, in pages. Pure.

use super::frame::{corrupt, Frame, Stamp, What};
use super::uuid::Uuid;
use crate::error::Result;

/// Shards in one page.
pub(super) const PAGE_SHARDS: u64 = 65_536;
/// Bytes of states in one page.
const PAYLOAD_BYTES: usize = PAGE_SHARDS as usize / 4;
/// Shards in one word.
const WORD_SHARDS: u64 = 32;
const WORDS: usize = (PAGE_SHARDS / WORD_SHARDS) as usize;
/// The flag of a page whose states are all final: no shard is intended, and every object of a
/// shard that is never was deleted.
const SETTLED: u32 = 1;

/// What may be said of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It reads as zeros, whatever lies there.
    Never = 0,
    /// A first put may have happened.
    Intended = 1,
    /// It was put: if it is gone, data is lost.
    Written = 2,
}

/// States of the shards of one page, by their number inside the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatePage {
    words: Box<[u64; WORDS]>,
}

impl Default for StatePage {
    fn default() -> Self {
        Self {
            words: Box::new([0; WORDS]),
        }
    }
}

impl StatePage {
    pub(super) fn get(&self, at: u64) -> State {
        let word = self.words[(at / WORD_SHARDS) as usize];
        match word >> (at % WORD_SHARDS * 2) & 3 {
            0 => State::Never,
            1 => State::Intended,
            _ => State::Written,
        }
    }

    pub(super) fn set(&mut self, at: u64, state: State) {
        let shift = at % WORD_SHARDS * 2;
        let word = &mut self.words[(at / WORD_SHARDS) as usize];
        *word = *word & !(3 << shift) | (state as u64) << shift;
    }

    /// How many shards are never, intended, written.
    pub(super) fn counts(&self, shards: u64) -> [u64; 3] {
        let mut counts = [0; 3];
        for at in 0..shards {
            counts[self.get(at) as usize] += 1;
        }
        counts
    }

    /// Takes over what `theirs` has, except where `self` was changed since `base`.
    pub(super) fn rebase(&mut self, base: &StatePage, theirs: &StatePage) {
        for at in 0..PAGE_SHARDS {
            if self.get(at) == base.get(at) {
                self.set(at, theirs.get(at));
            }
        }
    }

    pub(super) fn encode(&self, uuid: Uuid, page: u64, stamp: Stamp, settled: bool) -> Vec<u8> {
        let payload: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let frame = Frame {
            what: What::Page,
            uuid,
            number: page,
            stamp,
            flags: if settled { SETTLED } else { 0 },
            payload: &payload,
        };
        frame.encode()
    }

    /// The states, their stamp, and whether they are settled.
    pub(super) fn decode(uuid: Uuid, page: u64, bytes: &[u8]) -> Result<(Self, Stamp, bool)> {
        let frame = Frame::decode_of(What::Page, uuid, page, bytes)?;
        let wrong = || corrupt(format!("state page {page} makes no sense"));
        if frame.payload.len() != PAYLOAD_BYTES || frame.flags & !SETTLED != 0 {
            return Err(wrong());
        }
        let mut states = Self::default();
        for (word, bytes) in states.words.iter_mut().zip(frame.payload.chunks_exact(8)) {
            *word = super::frame::u64_at(bytes, 0);
            // Both bits of a shard: no state.
            if *word & *word >> 1 & 0x5555_5555_5555_5555 != 0 {
                return Err(wrong());
            }
        }
        Ok((states, frame.stamp, frame.flags & SETTLED != 0))
    }
}

/// A set of shards of one page.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardSet(Option<Box<[u64; PAGE_SHARDS as usize / 64]>>);

impl ShardSet {
    pub(super) fn contains(&self, at: u64) -> bool {
        let bit =
            |words: &[u64; PAGE_SHARDS as usize / 64]| words[(at / 64) as usize] >> (at % 64) & 1;
        self.0.as_deref().is_some_and(|words| bit(words) == 1)
    }

    pub(super) fn insert(&mut self, at: u64) {
        let words = self
            .0
            .get_or_insert_with(|| Box::new([0; PAGE_SHARDS as usize / 64]));
        words[(at / 64) as usize] |= 1 << (at % 64);
    }

    pub(super) fn remove(&mut self, at: u64) {
        if let Some(words) = &mut self.0 {
            words[(at / 64) as usize] &= !(1 << (at % 64));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let words = self.0.as_deref().map_or(&[][..], |words| &words[..]);
        words.iter().enumerate().flat_map(|(at, &word)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| at as u64 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [State; 3] = [State::Never, State::Intended, State::Written];

    fn page(changes: &[(u64, usize)]) -> StatePage {
        let mut page = StatePage::default();
        for &(at, state) in changes {
            page.set(at, STATES[state]);
        }
        page
    }

    proptest! {
        #[test]
        fn a_page_agrees_with_a_plain_map_and_survives_its_bytes(
            changes in prop::collection::vec((0u64..PAGE_SHARDS, 0usize..3), 0..200),
            settled in any::<bool>(),
        ) {
            let mut model = std::collections::BTreeMap::new();
            for &(at, state) in &changes {
                model.insert(at, STATES[state]);
            }
            let states = page(&changes);
            let stamp = Stamp { epoch: 4, sequence: 9 };
            let bytes = states.encode(Uuid([2; 16]), 7, stamp, settled);
            let read = StatePage::decode(Uuid([2; 16]), 7, &bytes).unwrap();
            prop_assert_eq!(&read, &(states.clone(), stamp, settled));
            for at in 0..PAGE_SHARDS {
                prop_assert_eq!(states.get(at), model.get(&at).copied().unwrap_or(State::Never));
            }
        }

        #[test]
        fn rebasing_keeps_my_changes_and_takes_theirs(
            base in prop::collection::vec((0u64..64, 0usize..3), 0..40),
            mine in prop::collection::vec((0u64..64, 0usize..3), 0..40),
            theirs in prop::collection::vec((0u64..64, 0usize..3), 0..40),
        ) {
            let base = page(&base);
            let (mut target, mut other) = (base.clone(), base.clone());
            for &(at, state) in &mine { target.set(at, STATES[state]); }
            for &(at, state) in &theirs { other.set(at, STATES[state]); }
            let mut rebased = target.clone();
            rebased.rebase(&base, &other);
            for at in 0..PAGE_SHARDS {
                let changed = target.get(at) != base.get(at);
                prop_assert_eq!(rebased.get(at), if changed { target.get(at) } else { other.get(at) });
            }
        }

        #[test]
        fn a_set_holds_what_was_put_in(changes in prop::collection::vec((0u64..PAGE_SHARDS, any::<bool>()), 0..100)) {
            let (mut set, mut model) = (ShardSet::default(), std::collections::BTreeSet::new());
            for &(at, insert) in &changes {
                match insert {
                    true => { set.insert(at); model.insert(at); }
                    false => { set.remove(at); model.remove(&at); }
                }
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            for at in model { prop_assert!(set.contains(at)); }
        }
    }

    #[test]
    fn a_state_that_does_not_exist_is_refused() {
        let payload = vec![0b11; PAYLOAD_BYTES];
        let frame = Frame {
            what: What::Page,
            uuid: Uuid([2; 16]),
            number: 0,
            stamp: Stamp::default(),
            flags: 0,
            payload: &payload,
        };
        assert!(StatePage::decode(Uuid([2; 16]), 0, &frame.encode()).is_err());
    }
}
