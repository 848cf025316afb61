//! What may happen between two steps: a step that fails, or is late, while others go on.

use super::super::in_place::MOST_OPEN;
use super::rig::Fault;
use super::*;
use crate::runtime::block_on;

/// A volume of so many shards.
async fn wide(shards: u64, way: Way) -> (Store, Sharded, Rig) {
    let store = store(way);
    init(&store, shards * SHARD, way).await;
    let (volume, rig) = open(&store).await;
    (store, volume, rig)
}

/// Long enough for everything that can go on.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn until_deleted(store: &Store, object: &str) {
    for _ in 0..1000 {
        if named(store, object).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{object} is still there");
}

#[test]
fn extents_leave_no_gap_whatever_the_limit() {
    block_on(async {
        let (_store, volume, _rig) = fresh(Way::InPlace).await;
        for at in [SHARD + 8192, 3 * SHARD, 3 * SHARD + 8192] {
            write(&volume, at, 1, 512).await.unwrap();
        }
        let end = 6 * SHARD;
        let truth = read(&volume, 0, end).await.unwrap();
        for (limit, offset) in (1..9).flat_map(|limit| (0..6).map(move |at| (limit, at * 30_720))) {
            let extents = volume.extents(offset, end - offset, limit);
            let extents = extents.wait().await.unwrap();
            assert!(!extents.is_empty() && extents.len() <= limit as usize);
            let mut at = offset as usize;
            for extent in extents {
                let data = &truth[at..at + extent.len as usize];
                let hole = extent.flags.0 == 3;
                assert!(
                    !hole || data.iter().all(|&byte| byte == 0),
                    "at most {limit} from {offset}: data at {at} is called a hole"
                );
                at += extent.len as usize;
            }
        }
    });
}
