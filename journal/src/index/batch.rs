//! What the store gets at once, cut along its shards.

use std::ops::Range;

use crate::change::{Change, What};

/// All that changed up to a record and since the batch before: of each range the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The last record in it.
    pub seq: u64,
    /// By offset; they do not overlap.
    pub changes: Vec<Change>,
}

/// The part of a batch that belongs to one shard, or a run of shards that one change covers whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The shards, by number.
    pub shards: Range<u64>,
    /// By offset, inside the shards. A run of several shards has one, and it is no data.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Cuts the changes along shards of so many bytes, and groups them: by shard, in order. A trim
    /// of a whole volume is one group, not one for each shard.
    pub fn by_shard(&self, shard_bytes: u64) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for change in &self.changes {
            let mut at = change.offset;
            while at < change.end() {
                let (shards, end) = run(change, at, shard_bytes);
                let part = change.part(at..end);
                match groups.last_mut().filter(|group| group.shards == shards) {
                    Some(group) => group.changes.push(part),
                    None => groups.push(Group {
                        shards,
                        changes: vec![part],
                    }),
                }
                at = end;
            }
        }
        groups
    }
}

/// From `at` on: the shards that the change reaches with its next part, and where that ends.
fn run(change: &Change, at: u64, shard_bytes: u64) -> (Range<u64>, u64) {
    let shard = at / shard_bytes;
    let whole_shards = (change.end() - at) / shard_bytes;
    let is_run =
        at.is_multiple_of(shard_bytes) && whole_shards > 0 && !matches!(change.what, What::Data(_));
    if is_run {
        return (shard..shard + whole_shards, at + whole_shards * shard_bytes);
    }
    let left = shard_bytes - at % shard_bytes;
    (shard..shard + 1, at + left.min(change.end() - at))
}
