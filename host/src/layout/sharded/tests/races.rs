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

#[test]
fn c08_a_question_about_extents_never_brings_a_deleted_shard_back() {
    block_on(async {
        let (store, volume, rig) = wide(MOST_OPEN as u64 + 8, Way::InPlace).await;
        let volume = std::sync::Arc::new(volume);
        // So many that the first is not open any more, and the next to open makes one go.
        for shard in 0..=MOST_OPEN as u64 {
            write(&*volume, shard * SHARD, 1, 512).await.unwrap();
        }
        let (syncs, deletes) = (rig.hold("sync"), rig.hold("shard/000000000000"));
        let asked = tokio::spawn(volume.extents(0, SHARD, 9).wait());
        a_moment().await;
        zero(&*volume, 0, SHARD, ZeroFlags::NONE).await.unwrap();
        drop(syncs);
        let _ = asked.await.unwrap();
        drop(deletes);
        until_deleted(&store, "shard/000000000000").await;
        write(&*volume, 0, 2, 512).await.unwrap();
        volume.flush().await.unwrap();
        rig.kill();
        let (volume, _rig) = open(&store).await;
        assert_eq!(read(&volume, 511, 2).await.unwrap(), [2, 0]);
    });
}

#[test]
fn shards_that_were_only_reserved_take_no_place_among_the_open_ones() {
    block_on(async {
        let (store, volume, rig) = wide(640, Way::InPlace).await;
        for group in 0..10 {
            write(&volume, group * 64 * SHARD, 1, 512).await.unwrap();
        }
        rig.kill();
        let how = How {
            writes: false,
            ..how()
        };
        let volume = manage::open(store.chain(), how).await.unwrap();
        for shard in 0..640 {
            let expected = u8::from(shard % 64 == 0);
            assert_eq!(read(&volume, shard * SHARD, 1).await.unwrap(), [expected]);
            volume.prefetch(shard * SHARD, 512).wait().await.unwrap();
        }
        assert!(volume.open_objects() <= 10, "{}", volume.open_objects());
    });
}

#[test]
fn c08_a_trim_that_fails_in_part_leaves_no_shard_between_two_states() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for failing in ["state/00000000", "state/00000001"] {
                let (store, volume, rig) = wide(65_536 + 8, way).await;
                let shards = [65_530, 65_540];
                for shard in shards {
                    write(&volume, shard * SHARD, 1, 512).await.unwrap();
                }
                volume.flush().await.unwrap();
                rig.fault(failing, Fault::Fails(Kind::Denied));
                let trimmed = zero(&volume, shards[0] * SHARD, 12 * SHARD, ZeroFlags::NONE).await;
                assert_eq!(kind(trimmed), Kind::Denied);
                a_moment().await;
                let left = named(&store, "shard/");
                assert_eq!(left.len(), 1, "{way} {failing}: {left:?}");
                for shard in shards {
                    write(&volume, shard * SHARD, 2, 100).await.unwrap();
                }
                volume.flush().await.unwrap();
                rig.kill();
                let (volume, _rig) = open(&store).await;
                for (at, shard) in shards.into_iter().enumerate() {
                    let found = read(&volume, shard * SHARD + 99, 2).await.unwrap();
                    let kept = failing.ends_with(&at.to_string());
                    assert_eq!(found, [2, u8::from(kept)], "{way} {failing} {shard}");
                }
            }
        }
    });
}

#[test]
fn c12_no_write_is_acknowledged_before_its_page_is_in_the_index() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            rig.fault("/index", Fault::Fails(Kind::NoSpace));
            assert_eq!(kind(write(&volume, 0, 1, 512).await), Kind::NoSpace);
            write(&volume, 0, 1, 512).await.unwrap();
            rig.kill();
            let (volume, _rig) = open(&store).await;
            assert_eq!(read(&volume, 0, 1).await.unwrap(), [1], "{way}");
        }
    });
}

#[test]
fn c12_a_write_after_a_trim_of_unknown_outcome_survives() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            write(&volume, 0, 1, SHARD).await.unwrap();
            volume.flush().await.unwrap();
            // The page gets there, nobody knows, and then nobody may ask.
            rig.fault("state/", Fault::Unknown);
            rig.fault("state/", Fault::Fails(Kind::Denied));
            let trimmed = zero(&volume, 0, SHARD, ZeroFlags::NONE).await;
            assert_eq!(kind(trimmed), Kind::Denied);
            write(&volume, 100, 2, 50).await.unwrap();
            rig.kill();
            let (volume, _rig) = open(&store).await;
            assert_eq!(read(&volume, 100, 50).await.unwrap(), [2; 50], "{way}");
        }
    });
}

#[test]
fn c13_a_flush_does_not_vouch_for_a_shard_that_is_made_while_it_runs() {
    block_on(async {
        let (store, volume, rig) = fresh(Way::InPlace).await;
        write(&volume, 0, 1, 512).await.unwrap();
        let flushes = rig.hold("flush");
        let flushed = tokio::spawn(volume.flush());
        a_moment().await;
        write(&volume, 5 * SHARD, 1, 512).await.unwrap();
        drop(flushes);
        flushed.await.unwrap().unwrap();
        rig.lose_power();
        let (volume, _rig) = open(&store).await;
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [1]);
        // It may be lost; but then it reads as it did before, and can be written.
        assert_eq!(read(&volume, 5 * SHARD, 1).await.unwrap(), [0]);
        write(&volume, 5 * SHARD, 2, 512).await.unwrap();
    });
}

#[test]
fn c17_looking_at_the_owner_record_is_no_heartbeat() {
    block_on(async {
        let store = store(Way::Whole);
        init(&store, SIZE, Way::Whole).await;
        let how = how_with_short_lease(100);
        let rig = Rig::new(&store);
        let volume = manage::open(rig.chain(), how).await.unwrap();
        for _ in 0..200 {
            rig.fault("owner", Fault::Fails(Kind::Io));
        }
        // Another listens for heartbeats, and hears none; that flushes succeed does not help.
        for _ in 0..10 {
            volume.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert_eq!(kind(read(&volume, 0, 1).await), Kind::Io);
    });
}

#[test]
fn c23_nothing_is_put_where_a_closing_volume_says_that_nothing_is() {
    block_on(async {
        let (store, volume, _rig) = fresh(Way::Whole).await;
        let pages = volume.inner.pages.clone();
        let intended = pages.intend(3).await.unwrap();
        pages.settle().await.unwrap();
        assert!(intended.putting().is_err());
        assert!(named(&store, "shard/").is_empty());
    });
}

#[test]
fn c23_a_volume_is_not_given_back_while_a_change_whose_client_is_gone_is_under_way() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for offset in [0, 2 * SHARD] {
                let (store, volume, rig) = fresh(way).await;
                write(&volume, 0, 1, SHARD).await.unwrap();
                volume.flush().await.unwrap();
                let held = rig.hold("shard/");
                let body = body(vec![2; 512]);
                let writing = tokio::spawn(volume.write(offset, body, false).wait());
                a_moment().await;
                // An open shard's own store drives what its caller may not give up.
                if (way, offset) != (Way::InPlace, 0) {
                    writing.abort();
                }
                let closing = tokio::spawn(volume.close());
                a_moment().await;
                assert!(!closing.is_finished(), "{way} {offset}");
                assert!(!owner(&store).released, "{way} {offset}");
                drop(held);
                closing.await.unwrap().unwrap();
                assert!(owner(&store).released, "{way} {offset}");
                assert_eq!(kind(write(&volume, 0, 3, 512).await), Kind::Fenced);
                let (volume, _rig) = open(&store).await;
                let found = read(&volume, offset, 512).await.unwrap();
                assert_eq!(found, [2; 512], "{way} {offset}");
            }
        }
    });
}

#[test]
fn c17_a_late_page_of_an_owner_two_before_changes_nothing() {
    block_on(async {
        let (store, first, rig) = fresh(Way::Whole).await;
        write(&first, 0, 1, SIZE).await.unwrap();
        first.flush().await.unwrap();
        // It stands still in the middle of a trim; another takes over, and leaves in order.
        let late = rig.hold("state/");
        let trim = first.zero(3 * SHARD, SHARD, ZeroFlags::NONE);
        let trim = tokio::spawn(trim.wait());
        a_moment().await;
        let (second, _) = open(&store).await;
        second.close().await.unwrap();
        let (third, third_rig) = open(&store).await;
        write(&third, 3 * SHARD, 2, 100).await.unwrap();
        third.flush().await.unwrap();
        drop(late);
        assert_eq!(kind(trim.await.unwrap()), Kind::Fenced);
        third_rig.kill();
        let (fourth, _rig) = open(&store).await;
        assert_eq!(read(&fourth, 3 * SHARD + 99, 2).await.unwrap(), [2, 1]);
    });
}

async fn until_waiting(rig: &Rig, calls: u64, what: &str) {
    for _ in 0..1000 {
        if rig.waiting() == calls {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{what}: {} calls at the same time", rig.waiting());
}

#[test]
fn a_request_that_spans_shards_asks_for_all_of_them_at_the_same_time() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            let held = rig.hold("shard/");
            let all = body(vec![7; 8 * SHARD as usize]);
            let writing = tokio::spawn(volume.write(0, all, false).wait());
            until_waiting(&rig, 8, &format!("WRITE, {way}")).await;
            drop(held);
            writing.await.unwrap().unwrap();
            volume.close().await.unwrap();
            // Nothing is known of them any more.
            let (volume, rig) = open(&store).await;
            let held = rig.hold("get 0000000000");
            let reading = volume.read(0, 8 * SHARD, ReadFlags::NONE);
            let reading = tokio::spawn(reading.wait());
            until_waiting(&rig, 8, &format!("READ, {way}")).await;
            drop(held);
            let found = bytes_of(&reading.await.unwrap().unwrap());
            assert_eq!(found, vec![7; 8 * SHARD as usize], "{way}");
        }
    });
}
