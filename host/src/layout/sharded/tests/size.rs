//! What grows with the size of a volume, and what must not.

use std::time::Instant;

use super::super::in_place;
use super::*;
use crate::runtime::block_on;

const TIB: u64 = 1 << 40;

async fn init_sized(size_bytes: u64, shard_bytes: u64, way: Way) -> Store {
    let store = store(way);
    let plan = Plan {
        shard_bytes,
        ..plan(size_bytes, way)
    };
    manage::create(store.chain(), plan, false, &mut |_| ())
        .await
        .unwrap();
    store
}

#[test]
fn opening_makes_as_many_calls_for_64_tib_as_for_1_gib() {
    block_on(async {
        let mut calls = Vec::new();
        for size in [1 << 30, 64 * TIB] {
            let store = init_sized(size, 4 << 20, Way::Whole).await;
            let (volume, rig) = open(&store).await;
            calls.push(rig.calls());
            // Also after data was written far out, and the server died.
            write(&volume, size - 4096, 1, 4096).await.unwrap();
            rig.kill();
            let (volume, rig) = open(&store).await;
            calls.push(rig.calls());
            assert_eq!(read(&volume, size - 1, 1).await.unwrap(), [1]);
        }
        assert_eq!(calls[..2], calls[2..], "{calls:?}");
        assert!(calls[0] < 30, "{calls:?}");
    });
}

#[test]
fn trim_and_zeroes_of_2_tib_on_an_empty_volume_are_nothing() {
    block_on(async {
        let store = init_sized(64 * TIB, 4 << 20, Way::Whole).await;
        let (volume, rig) = open(&store).await;
        let (began, before) = (Instant::now(), rig.changes());
        for flags in [ZeroFlags::TRIM, ZeroFlags::FAST, ZeroFlags::NONE] {
            zero(&volume, 3, 2 * TIB, flags).await.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(rig.changes(), before);
    });
}

#[test]
fn a_trim_of_2_tib_puts_a_page_for_256_gib() {
    block_on(async {
        let store = init_sized(2 * TIB, 4 << 20, Way::Whole).await;
        let (volume, rig) = open(&store).await;
        let far: Vec<u64> = (0..8).map(|page| page * 65_536 * (4 << 20)).collect();
        for &offset in &far {
            write(&volume, offset + 4096, 1, 4096).await.unwrap();
        }
        volume.flush().await.unwrap();
        let (began, before) = (Instant::now(), rig.changes());
        zero(&volume, 0, 2 * TIB, ZeroFlags::TRIM).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1));
        // Eight pages; the deletes go on behind.
        assert!(
            rig.changes() - before <= 8 + 8,
            "{}",
            rig.changes() - before
        );
        for &offset in &far {
            assert_eq!(read(&volume, offset + 4096, 1).await.unwrap(), [0]);
        }
        volume.close().await.unwrap();
        assert!(named(&store, "shard/").is_empty());
    });
}

#[test]
fn memory_stays_bounded_when_all_of_a_large_volume_is_touched() {
    block_on(async {
        let size = 4096 * SHARD;
        for way in [Way::Whole, Way::InPlace] {
            let store = init_sized(size, SHARD, way).await;
            let (volume, _rig) = open(&store).await;
            for shard in 0..1000 {
                write(&volume, shard * SHARD, 1, 512).await.unwrap();
            }
            volume.flush().await.unwrap();
            assert!(
                volume.open_objects() <= in_place::MOST_OPEN,
                "{}",
                volume.open_objects()
            );
            assert_eq!(volume.queues(), 0);
            for shard in 0..1000 {
                assert_eq!(read(&volume, shard * SHARD, 1).await.unwrap(), [1]);
            }
        }
    });
}

#[test]
fn a_read_whose_data_is_at_hand_needs_no_future() {
    block_on(async {
        use crate::backend::Answer;
        let store = store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        // Without a rig: this store answers at once.
        let volume = manage::open(store.chain(), how()).await.unwrap();
        let ready = |offset, len| {
            let answer = volume.read(offset, len, ReadFlags::LEND_HOLES);
            matches!(answer, Answer::Ready(Ok(_)))
        };
        assert!(ready(0, 4096), "a hole");
        write(&volume, 0, 1, 2 * SHARD).await.unwrap();
        assert!(ready(4096, 4096), "checksums known");
        assert!(ready(SHARD - 10, 20), "two shards");
    });
}
