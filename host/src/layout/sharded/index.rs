//! Which state pages exist, so that one that was never put is told from one that is lost. Pure.

use super::frame::{corrupt, Frame, Stamp, What};
use super::uuid::Uuid;
use crate::error::Result;

/// A bit for each state page that was put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    bits: Vec<u8>,
}

impl Index {
    pub(super) fn contains(&self, page: u64) -> bool {
        let byte = self.bits.get((page / 8) as usize);
        byte.is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    }

    pub(super) fn insert(&mut self, page: u64) {
        let at = (page / 8) as usize;
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        self.bits[at] |= 1 << (page % 8);
    }

    /// Takes over what another has.
    pub(super) fn merge(&mut self, other: &Index) {
        if self.bits.len() < other.bits.len() {
            self.bits.resize(other.bits.len(), 0);
        }
        for (mine, theirs) in self.bits.iter_mut().zip(&other.bits) {
            *mine |= theirs;
        }
    }

    /// The pages in order.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.bits.len() as u64 * 8).filter(|&page| self.contains(page))
    }

    pub(super) fn encode(&self, uuid: Uuid, stamp: Stamp) -> Vec<u8> {
        let frame = Frame {
            what: What::Index,
            uuid,
            number: 0,
            stamp,
            flags: 0,
            payload: &self.bits,
        };
        frame.encode()
    }

    /// Reads an index of a volume of at most `pages` pages.
    pub(super) fn decode(uuid: Uuid, pages: u64, bytes: &[u8]) -> Result<(Self, Stamp)> {
        let frame = Frame::decode_of(What::Index, uuid, 0, bytes)?;
        let index = Self {
            bits: frame.payload.to_vec(),
        };
        let empty_tail = index.bits.last() == Some(&0);
        let last = index.bits.len() as u64 * 8;
        let beyond = last > pages && (pages..last).any(|page| index.contains(page));
        if frame.flags != 0 || empty_tail || beyond || last >= pages + 8 {
            return Err(corrupt("the index of state pages makes no sense"));
        }
        Ok((index, frame.stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_index_holds_what_was_put_in(
            pages in prop::collection::btree_set(0u64..5000, 0..60),
            more in prop::collection::btree_set(0u64..5000, 0..60),
        ) {
            let (mut index, mut other) = (Index::default(), Index::default());
            pages.iter().for_each(|&page| index.insert(page));
            more.iter().for_each(|&page| other.insert(page));
            prop_assert!(index.pages().eq(pages.iter().copied()));
            index.merge(&other);
            prop_assert!(index.pages().eq(pages.union(&more).copied()));
            let stamp = Stamp { epoch: 1, sequence: 2 };
            let bytes = index.encode(Uuid([3; 16]), stamp);
            prop_assert_eq!(Index::decode(Uuid([3; 16]), 5000, &bytes).unwrap(), (index.clone(), stamp));
            if let Some(last) = index.pages().last() {
                prop_assert!(Index::decode(Uuid([3; 16]), last, &bytes).is_err());
            }
        }
    }
}
