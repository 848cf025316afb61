//! One promise each.

use std::time::Duration;

use nbd_rs_journal::claim::Ticket;
use nbd_rs_journal::uuid::Uuid as JournalUuid;

use nbd_rs_commit_log::Epoch;

use super::rig::{Rig, SHARD_BYTES};
use crate::error::Kind;
use crate::layout::distributed::format::names::{Names, Object};
use crate::layout::distributed::format::Version;
use crate::layout::distributed::log::tests::rig::{lock, seconds, VOLUME};
use crate::layout::Layout;

const UNIT: usize = 4096;

/// Bytes that tell where they belong.
fn pattern(len: usize, salt: u8) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ salt;
    (0..len).map(byte).collect()
}

#[tokio::test(start_paused = true)]
async fn c20_f41_a_flush_with_two_backends_away_is_an_error_and_nothing_is_lost() {
    let rig = Rig::new(3, 3, 1);
    let served = rig.open().await;
    served.write(0, pattern(UNIT, 1)).await.unwrap();
    served.flush().await.unwrap();
    served.write(0, pattern(UNIT, 2)).await.unwrap();
    served.ways[0].is_away(true);
    served.ways[1].is_away(true);
    assert_eq!(served.flush().await.unwrap_err().kind, Kind::Timeout);
    // Reads end with the lease.
    assert_eq!(served.read(0, 1).await.unwrap_err().kind, Kind::Timeout);
    served.ways[0].is_away(false);
    served.flush().await.unwrap();
    drop(served);
    let served = rig.open().await;
    assert_eq!(served.read(0, UNIT as u64).await.unwrap(), pattern(UNIT, 2));
}

#[tokio::test(start_paused = true)]
async fn f63_writes_wait_when_backends_do_not_take_them_and_are_an_error_then() {
    let rig = Rig::new(3, 3, 2);
    let served = rig.open().await;
    served.ways[0].is_away(true);
    served.ways[1].is_away(true);
    let mut outcome = Ok(());
    for at in 0..4 {
        outcome = served
            .write(at * SHARD_BYTES, pattern(SHARD_BYTES as usize, 3))
            .await;
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome.unwrap_err().kind, Kind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn c17_the_older_of_two_owners_neither_flushes_nor_reads() {
    let rig = Rig::new(3, 2, 3);
    let old = rig.open().await;
    old.write(0, pattern(UNIT, 1)).await.unwrap();
    let new = rig.open().await;
    assert_eq!(old.flush().await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(old.read(0, 1).await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(old.volume.lost().await.unwrap_err().kind, Kind::Fenced);
    assert_eq!(new.read(0, UNIT as u64).await.unwrap(), vec![0; UNIT]);
}

#[tokio::test(start_paused = true)]
async fn c25_f43_a_damaged_copy_is_passed_over_and_damage_everywhere_is_an_error() {
    // What lies in an image, in the log, and in packs.
    for prefix in ["s/", "log/"] {
        let rig = Rig::new(3, 3, 4);
        let written = match prefix {
            "s/" => pattern(SHARD_BYTES as usize, 5),
            _ => pattern(UNIT, 5),
        };
        let served = rig.open().await;
        served.write(0, written.clone()).await.unwrap();
        served.flush().await.unwrap();
        served.volume.close().await.unwrap();
        drop(served);
        let served = rig.open().await;
        let len = written.len() as u64;
        let mut keys = rig.keys(prefix);
        keys.retain(|(at, key)| rig.stage.disks[*at].copy()[key].len() > UNIT);
        assert_eq!(keys.len(), 3, "{prefix}");
        for (count, (at, key)) in keys.iter().enumerate() {
            let middle = rig.stage.disks[*at].copy()[key].len() / 2;
            rig.stage.disks[*at].damage(key, middle);
            let read = served.read(0, len).await;
            match count {
                0 | 1 => assert!(read.unwrap() == written, "{prefix}"),
                _ => assert_eq!(read.unwrap_err().kind, Kind::Corrupt, "{prefix}"),
            }
        }
        // Elsewhere all is as before.
        assert_eq!(served.read(5 * SHARD_BYTES, 10).await.unwrap(), [0; 10]);
    }
}

#[tokio::test(start_paused = true)]
async fn f44_a_backend_that_was_away_is_brought_what_the_checkpoint_names() {
    let rig = Rig::new(3, 2, 6);
    let served = rig.open().await;
    served.ways[2].is_away(true);
    let mut written = Vec::new();
    for round in 0..30_u8 {
        written = pattern(9 * SHARD_BYTES as usize, round);
        for (at, part) in written.chunks(20_000).enumerate() {
            served
                .write(at as u64 * 20_000, part.to_vec())
                .await
                .unwrap();
        }
        served.flush().await.unwrap();
        seconds(1).await;
    }
    assert!(
        rig.keys("floor/").iter().any(|(at, _)| *at == 0),
        "the log was cut"
    );
    served.ways[2].is_away(false);
    served
        .until(|| !served.volume.status().log.is_degraded())
        .await;
    served
        .until(|| served.volume.status().log.backends[2].behind_records == 0)
        .await;
    drop(served);
    for away in 0..2 {
        let ways = rig.stage.ways();
        ways[away].is_away(true);
        let served = rig.open_by(ways).await.unwrap();
        let found = served.read(0, written.len() as u64).await.unwrap();
        assert!(found == written, "without {away}");
    }
}

#[tokio::test(start_paused = true)]
async fn c23_a_close_while_upkeep_folds_and_checkpoints_keeps_everything() {
    let mut busy = 0;
    for at in 0..60 {
        let rig = Rig::new(3, 2, at);
        let served = rig.open().await;
        for way in &served.ways {
            way.set(|faults| faults.latency = Duration::from_millis(30));
        }
        let mut written = Vec::new();
        for round in 0..12_u8 {
            written = pattern(6 * 20_000, round);
            for (part, bytes) in (0..).zip(written.chunks(20_000)) {
                served.write(part * 20_000, bytes.to_vec()).await.unwrap();
            }
            served.flush().await.unwrap();
        }
        let before = served.volume.status().work;
        tokio::time::sleep(Duration::from_millis(17 * at)).await;
        served.volume.close().await.unwrap();
        busy += u32::from(served.volume.status().work != before);
        drop(served);
        let served = rig.open().await;
        assert!(served.read(0, 120_000).await.unwrap() == written);
    }
    assert!(busy > 20, "upkeep was at work in {busy} of them");
}

#[tokio::test(start_paused = true)]
async fn f62_a_unit_that_is_damaged_everywhere_is_an_error_and_keeps_nothing_from_going_on() {
    let rig = Rig::new(3, 3, 11);
    let served = rig.open().await;
    let written = pattern(3 * UNIT, 9);
    served.write(0, written.clone()).await.unwrap();
    served.flush().await.unwrap();
    served.volume.close().await.unwrap();
    drop(served);
    // What it keeps in memory is gone, and then the second of three units on all backends.
    let served = rig.open().await;
    let mut keys = rig.keys("log/");
    keys.retain(|(at, key)| rig.stage.disks[*at].copy()[key].len() > 3 * UNIT);
    assert_eq!(keys.len(), 3);
    for (at, key) in keys {
        let end = rig.stage.disks[at].copy()[&key].len();
        rig.stage.disks[at].damage(&key, end - 2 * UNIT);
    }
    for round in 0..40_u8 {
        let at = (u64::from(round) % 8 + 16) * UNIT as u64;
        served.write(at, pattern(UNIT, round)).await.unwrap();
        served.flush().await.unwrap();
        seconds(1).await;
    }
    let work = served.volume.status().work;
    assert!(
        work.checkpoints > 2 && work.collected_records > 0,
        "{work:?}"
    );
    assert!(work.lost_units > 0, "{work:?}");
    drop(served);
    let served = rig.open().await;
    let unit = UNIT as u64;
    let damaged = served.read(unit, unit).await.unwrap_err();
    assert_eq!(damaged.kind, Kind::Corrupt);
    assert!(served.read(0, unit).await.unwrap() == written[..UNIT]);
    assert!(served.read(2 * unit, unit).await.unwrap() == written[2 * UNIT..]);
    served.write(unit, pattern(UNIT, 77)).await.unwrap();
    served.flush().await.unwrap();
    assert!(served.read(unit, unit).await.unwrap() == pattern(UNIT, 77));
}

#[tokio::test(start_paused = true)]
async fn f65_f68_what_dead_owners_left_is_deleted_and_what_a_newer_one_has_is_not() {
    let rig = Rig::new(3, 2, 12);
    let served = rig.open().await;
    let written = pattern(3 * SHARD_BYTES as usize, 1);
    served.write(0, written.clone()).await.unwrap();
    served.flush().await.unwrap();
    drop(served);
    let served = rig.open().await;
    let own = served.volume.status().log.epoch;
    let names = |counter| {
        let owner = 7;
        let epoch = Epoch { counter, owner };
        let version = Version { epoch, seq: 5 };
        let (shard, page) = (1, 0);
        let objects = [
            Object::Image { shard, version },
            Object::Pack(version),
            Object::Map { page, version },
            Object::Root(version),
        ];
        let all = Names::of(VOLUME);
        objects.map(|object| all.name(&object)[all.all().len()..].to_owned())
    };
    let (older, newer) = (names(own.counter - 1), names(own.counter + 1));
    for disk in &rig.stage.disks {
        let mut objects = lock(&disk.objects);
        for name in older.iter().chain(&newer) {
            objects.insert(name.clone(), vec![1]);
        }
    }
    let swept = || served.volume.status().work.swept_objects == 12;
    let mut rounds = 0_u8;
    while !swept() {
        rounds += 1;
        assert!(rounds < 200, "{:?}", served.volume.status().work);
        served
            .write(5 * SHARD_BYTES, pattern(UNIT, rounds))
            .await
            .unwrap();
        served.flush().await.unwrap();
        seconds(1).await;
    }
    for disk in &rig.stage.disks {
        let left = disk.copy();
        assert!(older.iter().all(|name| !left.contains_key(name)));
        assert!(newer.iter().all(|name| left.contains_key(name)));
    }
    drop(served);
    let served = rig.open().await;
    assert!(served.read(0, 3 * SHARD_BYTES).await.unwrap() == written);
}

#[tokio::test(start_paused = true)]
async fn f45_lists_that_lack_names_or_have_some_twice_delete_nothing_that_is_needed() {
    let rig = Rig::new(3, 3, 14);
    let written = pattern(3 * SHARD_BYTES as usize, 1);
    for round in 0..4_u8 {
        let served = rig.open().await;
        served
            .ways
            .iter()
            .for_each(|way| way.set(|faults| faults.lists_lie = 400));
        served.write(0, written.clone()).await.unwrap();
        for at in 0..30 {
            served
                .write(5 * SHARD_BYTES, pattern(UNIT, round ^ at))
                .await
                .unwrap();
            served.flush().await.unwrap();
            seconds(1).await;
        }
        assert!(served.volume.status().work.checkpoints > 2);
        assert!(served.read(0, 3 * SHARD_BYTES).await.unwrap() == written);
    }
}

#[tokio::test(start_paused = true)]
async fn f74_a_hung_home_holds_up_no_commit_where_another_can_take_its_place() {
    for backends in [3, 4] {
        let rig = Rig::new(backends, 2, 13);
        let served = rig.open().await;
        served.ways[1].set(|faults| faults.hangs = 1000);
        let began = tokio::time::Instant::now();
        let written = pattern(9 * SHARD_BYTES as usize, 3);
        served.write(0, written.clone()).await.unwrap();
        served.flush().await.unwrap();
        // Of the simulation's time; a call that hangs takes 30 s.
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(served.read(0, 9 * SHARD_BYTES).await.unwrap() == written);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_needed_any_more_is_deleted() {
    let rig = Rig::new(3, 3, 7);
    let served = rig.open().await;
    for round in 0..60_u8 {
        served
            .write(0, pattern(SHARD_BYTES as usize, round))
            .await
            .unwrap();
        served.flush().await.unwrap();
        seconds(1).await;
    }
    let images = rig.keys("s/").len();
    // Those of three checkpoints, of eight records each, on three backends.
    assert!(images <= 3 * 3 * 16, "{images} images of one shard");
}

#[tokio::test(start_paused = true)]
async fn c12_the_journal_s_note_is_there_for_the_next_owner() {
    let rig = Rig::new(3, 2, 8);
    let served = rig.open().await;
    let ledger = served.volume.ledger().unwrap();
    assert_eq!(ledger.read().await.unwrap(), None);
    let ticket = Ticket {
        journal: JournalUuid([4; 16]),
        epoch: 7,
        shipped_seq: 9,
        passed_by: false,
    };
    ledger.write(Some(ticket)).await.unwrap();
    drop(served);
    let served = rig.open().await;
    let ledger = served.volume.ledger().unwrap();
    assert_eq!(ledger.read().await.unwrap().unwrap().ticket, ticket);
    ledger.write(None).await.unwrap();
    drop(served);
    let served = rig.open().await;
    let ledger = served.volume.ledger().unwrap();
    assert_eq!(ledger.read().await.unwrap(), None);
    drop(served);
    assert!(!ledger.is_held());
}

#[tokio::test(start_paused = true)]
async fn f70_a_slow_backend_does_not_set_the_pace() {
    let rig = Rig::new(3, 3, 9);
    let served = rig.open().await;
    served
        .write(0, pattern(SHARD_BYTES as usize, 1))
        .await
        .unwrap();
    served.flush().await.unwrap();
    served.ways[1].set(|faults| faults.hangs = 1000);
    let began = tokio::time::Instant::now();
    served
        .write(0, pattern(SHARD_BYTES as usize, 2))
        .await
        .unwrap();
    served.flush().await.unwrap();
    let found = served.read(0, SHARD_BYTES).await.unwrap();
    assert!(found == pattern(SHARD_BYTES as usize, 2));
    // Of the simulation's time: hedges, not timeouts of 30 s.
    assert!(began.elapsed() < Duration::from_secs(5));
}
