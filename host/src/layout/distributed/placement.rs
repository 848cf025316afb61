//! Which backends hold the copies of a shard or a pack. Pure.
//!
//! Rendezvous hashing: each backend has a score for each thing that is placed, made from its identity,
//! and the greatest scores win. The list's order means nothing, and a backend that comes or goes
//! moves only its own copies.

use super::format::Version;
use crate::layout::uuid::Uuid;

/// Something that has its copies on some of the backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed(u64);

impl Placed {
    /// A shard: all its versions stay at the same homes.
    #[must_use]
    pub fn shard(shard: u32) -> Self {
        Self(mix(u64::from(shard)))
    }

    /// A pack.
    #[must_use]
    pub fn pack(pack: Version) -> Self {
        let Version { epoch, seq } = pack;
        // Not the beginning of a shard's: packs are spread apart from shards.
        let tag = u64::from_le_bytes(*b"nbd-rs/B");
        let words = [epoch.counter, epoch.owner, seq];
        Self(
            words
                .into_iter()
                .fold(mix(tag), |sum, word| mix(sum ^ word)),
        )
    }
}

/// The homes of `placed`, best first, as places in the list of backends: `copies` of them, or all
/// if there are fewer.
#[must_use]
pub fn homes(backends: &[Uuid], copies: usize, placed: Placed) -> Vec<usize> {
    let score = |&at: &usize| (score(backends[at], placed), backends[at]);
    let mut all: Vec<usize> = (0..backends.len()).collect();
    all.sort_by_cached_key(|at| std::cmp::Reverse(score(at)));
    all.truncate(copies);
    all
}

/// How much a backend attracts what is placed. Never to be changed: volumes lie where it says.
fn score(backend: Uuid, placed: Placed) -> u64 {
    let number = u128::from_le_bytes(backend.0);
    mix(mix(placed.0 ^ number as u64) ^ (number >> 64) as u64)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014), from the next state on.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use nbd_rs_commit_log::Epoch;
    use proptest::prelude::*;

    use super::*;

    const SHARDS: u32 = 4000;

    fn backends() -> impl Strategy<Value = Vec<Uuid>> {
        let uuids = prop::collection::btree_set(any::<[u8; 16]>(), 2..10);
        uuids.prop_map(|uuids| uuids.into_iter().map(Uuid).collect())
    }

    fn homes_of(backends: &[Uuid], copies: usize, shard: u32) -> Vec<Uuid> {
        let homes = homes(backends, copies, Placed::shard(shard));
        homes.into_iter().map(|at| backends[at]).collect()
    }

    /// How far from `expected` a count of that mean may be: six standard deviations, so that one in
    /// a hundred million fails by chance.
    fn slack(expected: f64) -> f64 {
        6.0 * expected.sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn copies_are_spread_evenly(backends in backends(), copies in 1_usize..5) {
            let copies = copies.min(backends.len());
            let mut counts = vec![0_u32; backends.len()];
            let mut firsts = counts.clone();
            for shard in 0..SHARDS {
                let homes = homes(&backends, copies, Placed::shard(shard));
                firsts[homes[0]] += 1;
                homes.into_iter().for_each(|at| counts[at] += 1);
            }
            let share = f64::from(SHARDS) / backends.len() as f64;
            for (counts, expected) in [(firsts, share), (counts, share * copies as f64)] {
                for count in counts {
                    prop_assert!((f64::from(count) - expected).abs() <= slack(expected), "{count} of {expected}");
                }
            }
        }

        #[test]
        fn a_replaced_backend_moves_its_own_copies_alone(
            backends in backends(), copies in 1_usize..5, at in any::<prop::sample::Index>(), new in any::<[u8; 16]>(),
        ) {
            let new = Uuid(new);
            prop_assume!(!backends.contains(&new));
            let copies = copies.min(backends.len());
            let mut changed = backends.clone();
            let old = std::mem::replace(&mut changed[at.index(backends.len())], new);
            let (mut moved, mut all) = (0, 0);
            for shard in 0..SHARDS {
                let before: BTreeSet<Uuid> = homes_of(&backends, copies, shard).into_iter().collect();
                let after: BTreeSet<Uuid> = homes_of(&changed, copies, shard).into_iter().collect();
                prop_assert_eq!(before.len(), copies);
                let gone: Vec<_> = before.difference(&after).collect();
                let come: Vec<_> = after.difference(&before).collect();
                // One goes and one comes, and either the old backend goes or the new one comes.
                prop_assert!(gone.len() <= 1 && gone.len() == come.len());
                prop_assert!(gone.is_empty() || *gone[0] == old || *come[0] == new);
                prop_assert!(!before.contains(&old) || gone == [&old]);
                moved += gone.len();
                all += copies;
            }
            // What the old one had moves away, and what the new one attracts moves to it: each 1/N.
            let expected = 2.0 * all as f64 / backends.len() as f64;
            prop_assert!(moved as f64 <= expected + slack(expected), "{moved} of {all}");
        }

        #[test]
        fn the_order_of_the_list_means_nothing(
            (list, shuffled) in backends().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
            copies in 0_usize..12, shard in any::<u32>(),
        ) {
            let homes = homes_of(&list, copies, shard);
            prop_assert_eq!(&homes_of(&shuffled, copies, shard), &homes);
            // More copies than backends are as many as there are; fewer are the first of them.
            prop_assert_eq!(homes.len(), copies.min(list.len()));
            prop_assert_eq!(&homes_of(&list, 100, shard)[..homes.len()], &homes[..]);
        }
    }

    #[test]
    fn packs_are_spread_as_well() {
        let backends: Vec<Uuid> = (0..4).map(|at| Uuid([at; 16])).collect();
        let mut counts = [0_u32; 4];
        for seq in 0..u64::from(SHARDS) {
            let epoch = Epoch {
                counter: 1,
                owner: 7,
            };
            let pack = Placed::pack(Version { epoch, seq });
            homes(&backends, 2, pack)
                .into_iter()
                .for_each(|at| counts[at] += 1);
        }
        let expected = f64::from(SHARDS) / 2.0;
        for count in counts {
            assert!(
                (f64::from(count) - expected).abs() <= slack(expected),
                "{counts:?}"
            );
        }
    }

    /// Volumes lie where these numbers say: a change here loses them.
    #[test]
    fn where_things_lie_never_changes() {
        let backends: Vec<Uuid> = (1..6).map(|at| Uuid([at * 17; 16])).collect();
        let shards: Vec<_> = (0..4)
            .map(|shard| homes(&backends, 3, Placed::shard(shard)))
            .collect();
        let epoch = Epoch {
            counter: 2,
            owner: 3,
        };
        let pack = homes(&backends, 3, Placed::pack(Version { epoch, seq: 4 }));
        assert_eq!(score(backends[0], Placed::shard(7)), 0x9c1d106a77e44a55);
        assert_eq!(shards, [[0, 1, 4], [3, 4, 1], [2, 4, 3], [1, 4, 3]]);
        assert_eq!(pack, [0, 1, 2]);
    }
}
