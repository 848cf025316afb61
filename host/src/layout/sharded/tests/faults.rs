//! Puts that fail, that may have happened, that come late; deletes that fail; flushes that fail.

use super::rig::Fault;
use super::*;
use crate::runtime::{self, block_on};

#[test]
fn c10_a_put_that_fails_leaves_the_old_data_and_the_next_flush_is_not_false() {
    block_on(async {
        let (_store, volume, rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        for error in [Kind::NoSpace, Kind::Denied, Kind::Io] {
            rig.fault("shard/", Fault::Fails(error));
            assert_eq!(kind(write(&volume, 100, 2, 5000).await), error);
            assert_eq!(read(&volume, 100, 1).await.unwrap(), [1]);
        }
        volume.flush().await.unwrap();
        write(&volume, 100, 3, 5000).await.unwrap();
        assert_eq!(read(&volume, 99, 2).await.unwrap(), [1, 3]);
    });
}

#[test]
fn c20_an_unknown_outcome_is_asked_again_until_it_is_known() {
    block_on(async {
        for fault in [
            Fault::Unknown,
            Fault::UnknownNot,
            Fault::Fails(Kind::Transient),
        ] {
            for object in ["shard/", "state/", "index"] {
                let (store, volume, rig) = fresh(Way::Whole).await;
                rig.fault(object, fault);
                write(&volume, 10, 1, 100).await.unwrap();
                rig.fault(object, fault);
                write(&volume, 50, 2, 100).await.unwrap();
                rig.fault(object, fault);
                volume.flush().await.unwrap();
                rig.kill();
                let (volume, _rig) = open(&store).await;
                let found = read(&volume, 9, 142).await.unwrap();
                let expected = [vec![0], vec![1; 40], vec![2; 100], vec![0]].concat();
                assert_eq!(found, expected, "{object} {fault:?}");
            }
        }
    });
}

#[test]
fn c04_a_flush_fails_while_its_states_are_not_durable_and_then_succeeds() {
    block_on(async {
        let (store, volume, rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        rig.fault("state/", Fault::Fails(Kind::NoSpace));
        assert_eq!(kind(volume.flush().await), Kind::NoSpace);
        // The states are ours: nothing of the client's is lost, so the next one may succeed.
        volume.flush().await.unwrap();
        let shard = named(&store, "shard/").remove(0);
        store.remove(&shard);
        rig.kill();
        let (volume, _rig) = open(&store).await;
        assert_eq!(kind(read(&volume, 0, 1).await), Kind::Corrupt);
    });
}

#[test]
fn c05_a_failed_sync_in_place_stays_an_error_until_rewritten() {
    block_on(async {
        let (_store, volume, rig) = fresh(Way::InPlace).await;
        write(&volume, SHARD - 1024, 1, 2048).await.unwrap();
        rig.fault("sync", Fault::Fails(Kind::Io));
        for _ in 0..3 {
            assert_eq!(kind(volume.flush().await), Kind::Io);
        }
        write(&volume, SHARD - 1024, 2, 1024).await.unwrap();
        let error = volume.flush().await.unwrap_err();
        assert!(error.message.contains("1024 bytes"), "{error}");
        write(&volume, SHARD, 2, 1024).await.unwrap();
        volume.flush().await.unwrap();
    });
}

#[test]
fn c05_a_store_that_may_lose_what_it_acknowledged_is_not_believed_after_a_failed_flush() {
    block_on(async {
        let flags = LIKE_S3.without(CapabilityFlags::DURABLE_ON_ACK);
        let store = Store::with(flags);
        init(&store, SIZE, Way::Whole).await;
        let (volume, rig) = open(&store).await;
        write(&volume, 0, 1, 4096).await.unwrap();
        rig.fault("flush", Fault::Fails(Kind::Io));
        assert_eq!(kind(volume.flush().await), Kind::Io);
        assert_eq!(kind(volume.flush().await), Kind::Io);
        write(&volume, 0, 1, 4096).await.unwrap();
        volume.flush().await.unwrap();
    });
}

#[test]
fn a_trim_whose_states_can_not_be_put_changes_nothing() {
    block_on(async {
        let (store, volume, rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, 4 * SHARD).await.unwrap();
        volume.flush().await.unwrap();
        rig.fault("state/", Fault::Fails(Kind::Denied));
        assert_eq!(
            kind(zero(&volume, 0, 3 * SHARD, ZeroFlags::NONE).await),
            Kind::Denied
        );
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [1]);
        assert_eq!(named(&store, "shard/").len(), 4);
        volume.flush().await.unwrap();
        zero(&volume, 0, 3 * SHARD, ZeroFlags::NONE).await.unwrap();
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [0]);
        for _ in 0..500 {
            if named(&store, "shard/").len() == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(named(&store, "shard/").len(), 1);
    });
}

#[test]
fn c03_a_write_behind_a_trim_waits_for_the_delete_and_is_not_deleted() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (store, volume, rig) = fresh(way).await;
            for round in 0..30 {
                write(&volume, 0, 1, 8 * SHARD).await.unwrap();
                zero(&volume, 0, 8 * SHARD, ZeroFlags::NONE).await.unwrap();
                write(&volume, 3 * SHARD, 2, 10).await.unwrap();
                assert_eq!(
                    read(&volume, 3 * SHARD, 11).await.unwrap()[9..],
                    [2, 0],
                    "{round}"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            volume.flush().await.unwrap();
            rig.kill();
            let (volume, _rig) = open(&store).await;
            assert_eq!(read(&volume, 3 * SHARD, 11).await.unwrap()[9..], [2, 0]);
        }
    });
}

#[test]
fn many_small_writes_of_one_shard_share_its_puts() {
    block_on(async {
        let (_store, volume, rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        let before = rig.changes();
        let writes = (0..64).map(|at| write(&volume, at * 1024, 2, 512));
        for result in futures_util::future::join_all(writes).await {
            result.unwrap();
        }
        let puts = rig.changes() - before;
        assert!(puts <= 4, "{puts} puts for 64 writes");
        let found = read(&volume, 0, SHARD).await.unwrap();
        let expected = |at: usize| if at % 1024 < 512 { 2 } else { 1 };
        assert!(found
            .iter()
            .enumerate()
            .all(|(at, &byte)| byte == expected(at)));
    });
}

#[test]
fn a_put_waits_for_the_neighbours_that_are_on_their_way() {
    block_on(async {
        let (_store, volume, rig) = fresh(Way::Whole).await;
        write(&volume, 0, 1, SHARD).await.unwrap();
        volume.flush().await.unwrap();
        let (mut rounds, mut puts) = (0, 0);
        for _ in 0..1000 {
            let before = rig.changes();
            let mut writes = Vec::new();
            let mut together = true;
            for part in 0..8 {
                let began = std::time::Instant::now();
                let body = body(vec![part as u8; 8192]);
                writes.push(tokio::spawn(volume.write(part * 8192, body, false).wait()));
                // Long enough for a put of the first ones alone.
                std::thread::sleep(Duration::from_micros(200));
                together &= began.elapsed() < Duration::from_millis(1);
            }
            for write in writes {
                write.await.unwrap().unwrap();
            }
            // Where the machine was too busy to send them one behind the other, nothing is told.
            rounds += u64::from(together);
            puts += if together { rig.changes() - before } else { 0 };
            if rounds == 20 {
                break;
            }
        }
        assert!(puts <= 2 * rounds, "{puts} puts in {rounds} rounds");
        println!("company: {puts} puts in {rounds} rounds");
    });
}

#[test]
fn a_sequential_fill_puts_a_page_once_in_64_shards() {
    block_on(async {
        let store = store(Way::Whole);
        init(&store, 256 * SHARD, Way::Whole).await;
        let (volume, rig) = open(&store).await;
        let before = rig.changes();
        for shard in 0..256 {
            write(&volume, shard * SHARD, 1, SHARD).await.unwrap();
        }
        // 256 shards, 4 times their page, and once the index.
        assert_eq!(rig.changes() - before, 256 + 4 + 1);
    });
}

#[test]
fn c09_zeroes_are_holes_unless_space_is_wanted_and_fast_only_if_they_are() {
    block_on(async {
        let (store, volume, rig) = fresh(Way::Whole).await;
        for flags in [CapabilityFlags::PUNCH_HOLE, CapabilityFlags::FAST_ZERO] {
            assert!(has(&volume, flags));
        }
        write(&volume, 0, 1, SHARD).await.unwrap();
        let before = rig.changes();
        let slow = zero(&volume, 4096, SHARD, ZeroFlags::FAST).await;
        assert_eq!(kind(slow), Kind::Unsupported);
        let slow = zero(&volume, 8 * SHARD, 10, ZeroFlags::FAST | ZeroFlags::NO_HOLE).await;
        assert_eq!(kind(slow), Kind::Unsupported);
        // Where nothing is, nothing is done.
        zero(&volume, SHARD, 3 * SHARD + 17, ZeroFlags::FAST)
            .await
            .unwrap();
        zero(&volume, 2 * SHARD + 5, 77, ZeroFlags::TRIM)
            .await
            .unwrap();
        assert_eq!(rig.changes(), before);
        zero(&volume, 6 * SHARD, SHARD + 1, ZeroFlags::NO_HOLE)
            .await
            .unwrap();
        assert_eq!(named(&store, "shard/").len(), 3);
        zero(&volume, 0, SHARD, ZeroFlags::FAST).await.unwrap();
        assert_eq!(read(&volume, 0, 1).await.unwrap(), [0]);
    });
}

#[test]
fn c08_what_reaches_the_volumes_end_covers_its_last_short_unit() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for flags in [ZeroFlags::TRIM, ZeroFlags::NONE, ZeroFlags::NO_HOLE] {
                // The volume ends 904 bytes behind a unit's border: from far before, within it.
                for len in [3 * SHARD, 5000, 904, 900] {
                    let (_store, volume, _rig) = fresh(way).await;
                    write(&volume, SIZE - 4 * SHARD, 1, 4 * SHARD)
                        .await
                        .unwrap();
                    zero(&volume, SIZE - len, len, flags).await.unwrap();
                    let found = read(&volume, SIZE - 1000, 1000).await.unwrap();
                    let kept = found.iter().filter(|&&byte| byte == 1).count() as u64;
                    let exact = 1000 - len.min(1000);
                    // A unit that is covered in part may keep its data.
                    match (flags, len) {
                        (ZeroFlags::TRIM, 900) => assert!(kept == 1000 || kept == exact),
                        _ => assert_eq!(kept, exact, "{way} {flags:?} {len}"),
                    }
                }
            }
        }
    });
}

#[test]
fn extents_tell_holes_from_data() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            let (_store, volume, _rig) = fresh(way).await;
            write(&volume, 2 * SHARD, 1, 2 * SHARD).await.unwrap();
            let extents = volume.extents(SHARD, 5 * SHARD, 10).wait().await.unwrap();
            let extents: Vec<(u64, bool)> = extents
                .iter()
                .map(|extent| (extent.len, extent.flags.0 == 3))
                .collect();
            assert_eq!(
                extents,
                [(SHARD, true), (2 * SHARD, false), (2 * SHARD, true)],
                "{way}"
            );
            let one = volume.extents(0, SIZE, 1).wait().await.unwrap();
            assert_eq!((one.len(), one[0].len), (1, 2 * SHARD));
        }
    });
}

#[test]
fn f06_a_volume_whose_store_panics_fails_closed_and_the_next_server_finds_old_or_new() {
    block_on(async {
        for way in [Way::Whole, Way::InPlace] {
            for object in ["shard/", "state/", "owner"] {
                for fault in [Fault::Panics, Fault::PanicsThen] {
                    let when = format!("{way}, {object}, {fault:?}");
                    let (store, volume, rig) = fresh(way).await;
                    write(&volume, 0, 1, SHARD).await.unwrap();
                    volume.flush().await.unwrap();
                    rig.fault(object, fault);
                    // A shard that is there, and one that is not.
                    let mut written = Vec::new();
                    for shard in [0, 2] {
                        written.push(write(&volume, shard * SHARD, 2, SHARD).await);
                    }
                    let mut end = Box::pin(async {
                        while volume.flush().await.is_ok() {
                            write(&volume, 4 * SHARD, 2, SHARD).await.ok();
                            zero(&volume, 4 * SHARD, SHARD, ZeroFlags::NONE).await.ok();
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    });
                    runtime::timeout(Duration::from_secs(20), &mut end)
                        .await
                        .unwrap_or_else(|_| panic!("{when}: flushes go on"));
                    // Nobody asks it again, and nobody waits for ever.
                    assert!(write(&volume, 0, 3, SHARD).await.is_err(), "{when}");
                    assert!(volume.flush().await.is_err(), "{when}");
                    rig.kill();
                    let (volume, _rig) = open(&store).await;
                    for (at, was, written) in [(0, 1, &written[0]), (2 * SHARD, 0, &written[1])] {
                        let found = read(&volume, at, SHARD).await.unwrap();
                        let is = |byte: u8| found.iter().all(|&found| found == byte);
                        assert!(is(2) || written.is_err() && is(was), "{when}: at {at}");
                    }
                    write(&volume, 0, 3, 3 * SHARD).await.unwrap();
                    volume.flush().await.unwrap();
                    let found = read(&volume, 0, 3 * SHARD).await.unwrap();
                    assert_eq!(found, vec![3; 3 * SHARD as usize], "{when}");
                }
            }
        }
    });
}
