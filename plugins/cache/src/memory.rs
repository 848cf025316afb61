//! Blocks in memory: sharded, bounded in bytes, and not washed out by a scan.

use nbd_rs_plugin::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::grid::Grid;

/// What a block costs beside its bytes: the owner's allocation, the slot, the hash table, and its
/// share of the remembered names of evicted blocks. Measured by `tests/memory_bound.rs`.
pub const BLOCK_OVERHEAD: u64 = 224;

/// New blocks get a tenth of the room until they are asked for again, as in S3-FIFO (Yang et al.,
/// SOSP 2023).
const HOT_SHARE: f64 = 0.9;

/// A block of one version of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// See [`Object::id`](crate::index::Object::id).
    pub object: u64,
    /// Which block of it.
    pub block: u64,
}

#[derive(Debug, Clone, Copy)]
struct Cost;

impl Weighter<BlockKey, Bytes> for Cost {
    fn weight(&self, _: &BlockKey, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + BLOCK_OVERHEAD
    }
}

/// The memory tier.
pub struct Memory {
    blocks: Cache<BlockKey, Bytes, Cost, DefaultHashBuilder, DefaultLifecycle<BlockKey, Bytes>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Memory({} of {})",
            self.used_bytes(),
            self.blocks.capacity()
        )
    }
}

impl Memory {
    /// Room for `size` bytes, bookkeeping included.
    pub fn new(size: u64, grid: Grid) -> Self {
        let items = size / (grid.block_bytes() + BLOCK_OVERHEAD) + 1;
        let options = OptionsBuilder::new()
            .weight_capacity(size)
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are set");
        Self {
            blocks: Cache::with_options(
                options,
                Cost,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
        }
    }

    /// A block, which counts as asked for.
    pub fn get(&self, key: BlockKey) -> Option<Bytes> {
        self.blocks.get(&key)
    }

    /// A block, for a reader that only passes by: it does not become more worth keeping.
    pub fn pass(&self, key: BlockKey) -> Option<Bytes> {
        self.blocks.peek(&key)
    }

    /// Keeps a block, in place of others.
    pub fn insert(&self, key: BlockKey, bytes: Bytes) {
        self.blocks.insert(key, bytes);
    }

    /// Drops a block.
    pub fn remove(&self, key: BlockKey) {
        self.blocks.remove(&key);
    }

    /// Bytes in use, bookkeeping included.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize, fill: u8) -> Bytes {
        Bytes::from_owner(vec![fill; len].into_boxed_slice())
    }

    fn key(object: u64, block: u64) -> BlockKey {
        BlockKey { object, block }
    }

    proptest! {
        /// Whatever was evicted, what is answered is what was put in last, and the bound holds.
        #[test]
        fn the_tier_forgets_but_never_invents(
            steps in prop::collection::vec((0u8..4, 0u64..40, 1usize..4096, any::<u8>()), 1..400),
        ) {
            let size = 100_000;
            let memory = Memory::new(size, Grid::new(4096));
            let mut model = std::collections::HashMap::new();
            for (step, at, len, fill) in steps {
                let key = key(at % 5, at);
                match step {
                    0 => {
                        memory.remove(key);
                        model.remove(&key);
                    }
                    1 | 2 => {
                        memory.insert(key, bytes(len, fill));
                        model.insert(key, vec![fill; len]);
                    }
                    _ => {
                        if let Some(found) = memory.get(key) {
                            prop_assert_eq!(Some(&found.to_vec()), model.get(&key));
                        }
                    }
                }
                prop_assert!(memory.used_bytes() <= size);
            }
        }
    }

    /// A working set of half the room, asked for now and then, while a scan of ten times the room
    /// passes by.
    fn kept_through_a_scan(blocks: u64, scan: u64) -> f64 {
        let grid = Grid::new(4096);
        let memory = Memory::new(blocks * (4096 + BLOCK_OVERHEAD), grid);
        let set = blocks / 2;
        for round in 0..3 {
            for block in 0..set {
                if memory.get(key(0, block)).is_none() {
                    memory.insert(key(0, block), bytes(4096, round));
                }
            }
        }
        let (mut hits, mut asked) = (0, 0);
        for passing in 0..scan {
            if memory.pass(key(1, passing)).is_none() {
                memory.insert(key(1, passing), bytes(4096, 9));
            }
            if passing % 10 == 0 {
                let block = (passing / 10) % set;
                asked += 1;
                match memory.get(key(0, block)) {
                    Some(_) => hits += 1,
                    None => memory.insert(key(0, block), bytes(4096, 1)),
                }
            }
        }
        f64::from(hits) / f64::from(asked)
    }

    #[test]
    fn a_scan_does_not_wash_out_what_is_used() {
        let (blocks, scan) = (2000, 20_000);
        let kept = kept_through_a_scan(blocks, scan);
        println!(
            "{:.1} % hits during a scan of 10 times the room",
            kept * 100.0
        );
        // With least-recently-used, one in ten accesses means that every one of them misses.
        assert!(kept > 0.9, "{kept}");
    }
}
